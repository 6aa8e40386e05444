"""The trainer of every stage: ``transformers.Trainer`` with planned batches, the same on any launch command.

A stage is a :class:`~.stage.Stage`, whose forward returns a dictionary with ``loss`` and figures to log. A
checkpoint holds its trainable parameters; what is frozen is never written.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainingArguments
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
)

from canvas_asr.errors import DataError, RecipeError

from .batches import BatchPlan, Collate, RowCollator, RowDataset, ShareOfPlan
from .callbacks import RunLog, Stop, Terminated, ignore_sigterm, say
from .checkpoints import (
    ASIDE,
    WEIGHTS_NAME,
    clear_aside,
    load_trainable_state,
    newest_checkpoint,
    publish,
    save_trainable_state,
)
from .judging import Judgement
from .optimizer import build_optimizer
from .processes import LONGEST_WAIT_S
from .recipe import TIMED_COSINE, TrainingOptions
from .recompute import recompute_activations
from .stage import Stage
from .steps import MOST_NAMED, StepFigures, StepMaker


def _reporters(names: Sequence[str]) -> list[str]:
    """Leave out of the programs that logs go to those that are not installed, and say so.

    Raises:
        RecipeError: If a name is not known.
    """
    if unknown := sorted(set(names) - set(INTEGRATION_TO_CALLBACK)):
        known = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
        raise RecipeError(f"training.report_to: {unknown[0]!r} is not known; choose from {known}.")
    installed = get_available_reporting_integrations()
    for name in names:
        if name not in installed:
            say(f"training.report_to: {name} is not installed, so it gets no logs (log.jsonl does).")
    return [name for name in names if name in installed]


def _arguments(options: TrainingOptions, output_dir: Path) -> TrainingArguments:
    """Say a recipe's options as ``Trainer`` takes them."""
    arguments = TrainingArguments(
        output_dir=str(output_dir),
        max_steps=options.max_steps,
        per_device_train_batch_size=options.batch_size,
        gradient_accumulation_steps=options.accumulation_steps,
        learning_rate=options.learning_rate,
        warmup_steps=options.warmup_steps,
        lr_scheduler_type="constant" if options.schedule == TIMED_COSINE else options.schedule,
        max_grad_norm=options.max_grad_norm,
        eval_strategy="steps",
        eval_steps=options.eval_steps,
        save_steps=options.save_steps,
        logging_steps=options.log_steps,
        logging_nan_inf_filter=False,
        seed=options.seed,
        bf16=options.bf16,
        use_cpu=not torch.cuda.is_available(),
        ddp_timeout=LONGEST_WAIT_S,
        report_to=_reporters(options.report_to),
        remove_unused_columns=False,
        dataloader_num_workers=options.n_workers,
    )
    if arguments.n_gpu > 1:
        say(
            f"{arguments.n_gpu} GPUs are here and one is used; for all of them: "
            "accelerate launch -m canvas_asr.training RECIPE"
        )
        arguments._n_gpu = 1  # else Trainer cuts batches in a way of its own (DataParallel)
    return arguments


class StageTrainer(Trainer):
    """``Trainer`` for stage modules."""

    model: Stage  # always given here, so never None

    def __init__(
        self,
        module: Stage,
        dataset: Dataset[Any],
        lengths: Sequence[float],
        collate: Collate,
        options: TrainingOptions,
        output_dir: Path,
        evaluate: Callable[[], Judgement],
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
            evaluate: Decodes the development set.
            lr_scale_of: Factor on the learning rate by parameter name; None: 1 for all.

        Raises:
            RecipeError: If ``report_to`` has an unknown name.
        """
        if options.n_threads and not torch.cuda.is_available():
            torch.set_num_threads(options.n_threads)
        # Experts multiply in float32 even under autocast; on a GPU, tensor cores take that only as TF32.
        torch.set_float32_matmul_precision("high")
        output_dir.mkdir(parents=True, exist_ok=True)
        if options.gradient_checkpointing:
            recompute_activations(module)
        self.run_log = RunLog(output_dir)
        self.stop = Stop(options)
        self.options = options
        self.lr_scale_of = lr_scale_of
        super().__init__(
            model=module,
            args=_arguments(options, output_dir),
            train_dataset=dataset,
            eval_dataset=dataset,  # Trainer asks for one; evaluation decodes its own development set
            callbacks=[self.run_log, self.stop],
        )
        self.stop.several = self.accelerator.num_processes > 1
        self.plan = BatchPlan(lengths, options.batch_size, options.max_steps, options.seed)
        self.collate = collate
        self.run_evaluation = evaluate
        self.make_step = StepMaker(module, self.accelerator, options, len(lengths), self.run_log, self.stop)
        self.figures = StepFigures(self.accelerator)
        self._losses: list[Tensor] = []
        self._aside: Path | None = None
        self._waited_s, self._logged_at = 0.0, time.monotonic()

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        return Path(str(self.args.output_dir))

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Give this process's share of the planned batches, as one epoch of ``max_steps``."""
        if self.train_dataset is None:
            raise ValueError("the stage has no training data.")
        n_workers = self.args.dataloader_num_workers
        share = ShareOfPlan(
            self.plan,
            self.accelerator.num_processes,
            self.accelerator.process_index,
            self.options.accumulation_steps,
        )
        # Not prepared by accelerate, which would cut it a second time.
        return DataLoader(
            RowDataset(self.train_dataset),
            batch_sampler=share,
            collate_fn=RowCollator(self.collate, self.options.seed),
            num_workers=n_workers,
            # Many workers with many batches each would fill the shared memory of a machine.
            prefetch_factor=(4 if n_workers < 4 else 2) if n_workers else None,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=ignore_sigterm,
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], None]:
        """Give the parts of the next step; their shares stand for the number of items."""
        asked = time.monotonic()
        batches = list(itertools.islice(epoch_iterator, num_batches))
        self._waited_s += time.monotonic() - asked
        self._losses = []
        return self.make_step(batches, self.state.global_step), None

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
            used = min(1.0, max(step / options.max_steps, self.stop.share_used()))
            warm = min(1.0, (step + 1) / max(1, options.warmup_steps))
            return warm * 0.5 * (1 + math.cos(math.pi * used))

        own = optimizer or self.optimizer
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(own, factor)  # type: ignore[arg-type]
        return self.lr_scheduler

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """Run the stage and keep its figures for the next log line."""
        outputs = model(**inputs)
        self.figures.add(outputs, counted=self.make_step.counted[len(self._losses)])
        self._losses.append(outputs["loss"].detach())
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        """Give the gradients' norm, before they change the weights.

        Raises:
            DataError: If it, or a loss, is not a finite number.
        """
        norm = super()._get_grad_norm(model, grad_norm)  # type: ignore[no-untyped-call]
        finite = torch.isfinite(torch.stack(self._losses))
        norm_finite = torch.isfinite(torch.as_tensor(norm)).to(finite.device)
        if bool(finite.all() & norm_finite):
            return norm
        suspects = [
            name
            for names, is_finite in zip(self.make_step.names, finite.tolist(), strict=True)
            for name in names
            if not is_finite or bool(finite.all())
        ]
        if not bool(norm_finite):  # the same in all processes, so all are here
            suspects = gather_object(suspects)
        what = "gradient" if bool(finite.all()) else "loss"
        more = f" and {len(suspects) - MOST_NAMED} more" if len(suspects) > MOST_NAMED else ""
        raise DataError(
            f"step {self.state.global_step + 1}: the {what} is not a finite number; the weights were not "
            f"changed. Its clips: {', '.join(suspects[:MOST_NAMED])}{more}. Look at them; if they are sound, "
            "lower training.learning_rate."
        )

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the means of the stage's figures since the last line, and the share of time without data."""
        if "loss" in logs:
            now = time.monotonic()
            waited = self._waited_s / max(now - self._logged_at, 1e-9)
            logs.update({**self.figures.take(), "data_wait": round(waited, 4)})
            self._waited_s, self._logged_at = 0.0, now
        super().log(logs, *args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Decode the development set in the main process; figures are logged under ``eval_``."""
        figures: dict[str, float] = {}
        if self.accelerator.is_main_process:
            self.model.eval()
            self.stop.interruptible = True
            try:
                with torch.no_grad():
                    figures = self._report(self.run_evaluation())
            except Terminated:
                pass
            finally:
                self.stop.interruptible = False
                self.model.train()
        self.accelerator.wait_for_everyone()
        self.make_step.tell_passed_over(self.state.global_step)
        self.log(figures)
        # Trainer clears its wish to evaluate here; without it, the last step is evaluated twice.
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, figures)
        return figures

    def _report(self, judgement: Judgement) -> dict[str, float]:
        """Write an evaluation's transcripts, warn of a model that does not listen, and name its figures."""
        step, figures, options = self.state.global_step, judgement.figures, self.options
        self.run_log.write_transcripts(step, judgement.transcripts)
        due = options.listening_steps and step >= options.listening_steps
        if due and figures.get("gap", math.inf) < options.listening_gap:
            warning = (
                f"step {step}: the model does not listen yet: with another clip's audio it does only "
                f"{figures['gap']:.0%} worse (training.listening_gap is {options.listening_gap:.0%}). "
                f"{self.model.likely_cause(figures)}"
            )
            say(f"warning: {warning}")
            self.run_log.write(step, {"warning": warning})
        return {f"eval_{name}": value for name, value in figures.items()}

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._aside or self.folder)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint aside, then give it its name."""
        everyone = self.accelerator.wait_for_everyone
        if self.accelerator.is_main_process:
            clear_aside(self.folder)
        everyone()
        self._aside = self.folder / ASIDE
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._aside = None
        everyone()
        if self.accelerator.is_main_process:
            publish(self.folder / ASIDE / f"checkpoint-{self.state.global_step}", self.folder)
        everyone()

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if self.args.should_save:
            save_trainable_state(self.accelerator.unwrap_model(self.model), Path(output_dir or self.folder))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_trainable_state(
            self.accelerator.unwrap_model(model or self.model), Path(resume_from_checkpoint) / WEIGHTS_NAME
        )

    def run(self) -> bool:
        """Train, from the newest complete checkpoint where there is one, and save the trained part.

        Returns:
            Whether this is the main process, which alone has more to write.

        Raises:
            SystemExit: With code 0, after SIGTERM and a checkpoint.
            DataError: If too many clips cannot be read, or the loss is not a finite number.
        """
        newest = newest_checkpoint(self.folder)
        with self.stop.catching_sigterm():
            self.train(resume_from_checkpoint=str(newest) if newest else None)
        if self.stop.terminated():
            step = self.state.global_step
            say(f"ended by SIGTERM, with a checkpoint at step {step}; run it again to go on.")
            raise SystemExit(0)
        self._save(str(self.folder))
        return bool(self.accelerator.is_main_process)
