"""The trainer of every stage: ``transformers.Trainer`` with planned batches, a JSONL log and safe resumption.

A stage is an ``nn.Module`` whose forward returns a dictionary with ``loss`` and any figures to log. A
checkpoint holds its trainable parameters; what is frozen is never written.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from canvas_asr.errors import CheckpointError

from .optimizer import build_optimizer
from .recipe import TIMED_COSINE, TrainingOptions

WEIGHTS_NAME = "trained.safetensors"
COMPLETE_MARK = "complete"

Index = tuple[int, int]


class BatchPlan:
    """Batches of similar length for a whole run, a pure function of lengths and seed.

    Every item is (epoch, index), so that augmentation can depend on both and a resumed run sees what an
    unbroken one would have seen.
    """

    def __init__(self, lengths: Sequence[float], batch_size: int, n_batches: int, seed: int) -> None:
        """Plan.

        Args:
            lengths: Length of every example, in any unit.
            batch_size: Examples per batch.
            n_batches: Batches in all; epochs follow one another as needed.
            seed: Of the order.

        Raises:
            ValueError: If there are no examples.
        """
        if not len(lengths):
            raise ValueError("there are no training examples.")
        self.lengths = np.asarray(lengths, dtype=np.float64)
        self.batch_size = batch_size
        self.n_batches = n_batches
        self.seed = seed

    def __len__(self) -> int:
        """Batches in all."""
        return self.n_batches

    def __iter__(self) -> Iterator[list[Index]]:
        """Yield the batches from the first."""
        n_made, epoch = 0, 0
        while n_made < self.n_batches:
            rng = np.random.default_rng((self.seed, epoch))
            jittered = self.lengths * rng.uniform(0.9, 1.1, len(self.lengths))
            order = np.argsort(jittered, kind="stable")
            starts = np.arange(0, len(order), self.batch_size)
            rng.shuffle(starts)
            for start in starts[: self.n_batches - n_made]:
                yield [(epoch, int(i)) for i in order[start : start + self.batch_size]]
                n_made += 1
            epoch += 1


class _LogFile(TrainerCallback):
    """Append every log line, with step and wall-clock seconds, to ``log.jsonl``; stop when time is up."""

    def __init__(self, path: Path, options: TrainingOptions) -> None:
        self.path = path
        self.max_s = options.max_minutes * 60
        self.before_s = options.minutes_before * 60
        self.start = time.monotonic()

    def share_used(self) -> float:
        """Share of the time limit that has gone by; 0 where there is none."""
        return (self.before_s + time.monotonic() - self.start) / self.max_s if self.max_s else 0.0

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        record = {
            "step": state.global_step,
            "wall_s": round(time.monotonic() - self.start, 1),
            **(logs or {}),
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.share_used() >= 1:
            control.should_training_stop = True
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # Written last: a checkpoint that a kill left half-made has no mark and is passed over.
        (Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE_MARK).touch()


def trainable_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """Give the parameters that require gradients by name, each shared tensor once."""
    return {
        name: parameter.detach().cpu().contiguous()
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }


def load_trainable_state(module: nn.Module, path: Path, *, partial: bool = False) -> None:
    """Load what :func:`trainable_state` gave.

    Args:
        module: A module of the same geometry.
        path: A safetensors file.
        partial: Whether the file may lack some of the module's parameters.

    Raises:
        CheckpointError: If the file is missing or damaged, or names or shapes differ.
    """
    try:
        state, own = load_file(path), trainable_state(module)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}).") from error
    wrong = sorted(set(state) - set(own) if partial else set(state) ^ set(own))
    wrong += [name for name in state if name in own and state[name].shape != own[name].shape]
    if wrong:
        raise CheckpointError(f"{path}: tensor {wrong[0]!r} does not fit this stage's model.")
    module.load_state_dict(state, strict=False)


def _arguments(options: TrainingOptions, output_dir: Path) -> TrainingArguments:
    """Say a recipe's options as ``Trainer`` takes them."""
    return TrainingArguments(
        output_dir=str(output_dir),
        max_steps=options.max_steps,
        per_device_train_batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        warmup_steps=options.warmup_steps,
        lr_scheduler_type="constant" if options.schedule == TIMED_COSINE else options.schedule,
        max_grad_norm=options.max_grad_norm,
        eval_strategy="steps",
        eval_steps=options.eval_steps,
        save_steps=options.save_steps,
        save_total_limit=2,
        logging_steps=options.log_steps,
        seed=options.seed,
        bf16=options.bf16,
        use_cpu=not torch.cuda.is_available(),
        report_to=[],
        remove_unused_columns=False,
        dataloader_num_workers=options.n_workers,
    )


class StageTrainer(Trainer):
    """``Trainer`` for stage modules."""

    model: nn.Module  # always given here, so never None

    def __init__(
        self,
        module: nn.Module,
        dataset: Dataset[Any],
        lengths: Sequence[float],
        collate: Callable[[list[Any]], dict[str, Any]],
        options: TrainingOptions,
        output_dir: Path,
        evaluate: Callable[[], dict[str, float]],
        *,
        lr_scale_of: Callable[[str], float] | None = None,
    ) -> None:
        """Set up a run.

        Args:
            module: The stage.
            dataset: Map-style, indexed by (epoch, index).
            lengths: Length of each example, for batches of similar length.
            collate: Examples to keyword arguments of the module.
            options: From the recipe.
            output_dir: Folder of the run.
            evaluate: Decodes the development set and gives figures by name.
            lr_scale_of: Factor on the learning rate by parameter name; None: 1 for all.
        """
        if options.n_threads and not torch.cuda.is_available():
            torch.set_num_threads(options.n_threads)
        # Experts multiply in float32 even under autocast; on a GPU, tensor cores take that only as TF32.
        torch.set_float32_matmul_precision("high")
        output_dir.mkdir(parents=True, exist_ok=True)
        self.log_file = _LogFile(output_dir / "log.jsonl", options)
        self.options = options
        self.lr_scale_of = lr_scale_of
        super().__init__(
            model=module,
            args=_arguments(options, output_dir),
            train_dataset=dataset,
            eval_dataset=dataset,  # Trainer asks for one; evaluation decodes its own development set
            callbacks=[self.log_file],
        )
        self.plan = BatchPlan(lengths, options.batch_size, options.max_steps, options.seed)
        self.collate = collate
        self.run_evaluation = evaluate
        self._figures: dict[str, list[torch.Tensor]] = {}

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Give the planned batches as one epoch of ``max_steps``."""
        if self.train_dataset is None:
            raise ValueError("the stage has no training data.")
        n_workers = self.args.dataloader_num_workers
        loader: DataLoader[Any] = DataLoader(
            self.train_dataset,
            batch_sampler=self.plan,
            collate_fn=self.collate,
            num_workers=n_workers,
            # Many workers with many batches each would fill the shared memory of a machine.
            prefetch_factor=(4 if n_workers < 4 else 2) if n_workers else None,
            pin_memory=torch.cuda.is_available(),
        )
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Make the recipe's optimiser."""
        if self.optimizer is None:
            self.optimizer = build_optimizer(self.model, self.options, self.lr_scale_of)
        made: torch.optim.Optimizer = self.optimizer
        return made

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Make the recipe's schedule."""
        options = self.options
        if options.schedule != TIMED_COSINE or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)

        def factor(step: int) -> float:
            used = min(1.0, max(step / options.max_steps, self.log_file.share_used()))
            warm = min(1.0, (step + 1) / max(1, options.warmup_steps))
            return warm * 0.5 * (1 + math.cos(math.pi * used))

        own = optimizer or self.optimizer
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(own, factor)  # type: ignore[arg-type]
        return self.lr_scheduler

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """Run the stage and keep its figures for the next log line."""
        outputs = model(**inputs)
        for name, value in outputs.items():
            if name != "loss":
                self._figures.setdefault(name, []).append(value.detach().float())
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the mean of the stage's figures since the last line."""
        if "loss" in logs:
            logs.update({name: float(torch.stack(v).mean()) for name, v in self._figures.items()})
            self._figures = {}
        super().log(logs, *args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Decode the development set; figures are logged under ``eval_``."""
        self.model.eval()
        with torch.no_grad():
            figures = {f"eval_{name}": value for name, value in self.run_evaluation().items()}
        self.model.train()
        self.log(figures)
        # Trainer clears its wish to evaluate here; without it, the last step is evaluated twice.
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, figures)
        return figures

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_file(trainable_state(self.accelerator.unwrap_model(self.model)), folder / WEIGHTS_NAME)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_trainable_state(
            self.accelerator.unwrap_model(model or self.model), Path(resume_from_checkpoint) / WEIGHTS_NAME
        )

    def run(self) -> None:
        """Train, from the newest complete checkpoint where there is one, and save the trained part."""
        folder = Path(str(self.args.output_dir))
        complete = [path.parent for path in folder.glob(f"checkpoint-*/{COMPLETE_MARK}")]
        newest = max(complete, key=lambda path: int(path.name.rsplit("-", 1)[1]), default=None)
        self.train(resume_from_checkpoint=str(newest) if newest else None)
        self._save(str(folder))
