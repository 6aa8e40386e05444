"""Speed and memory of the published system at full size, with random weights, on one GPU.

    python benchmarks/full_size.py                        # one GPU of 80 GB or more, under nine minutes
    python benchmarks/full_size.py --small --out results  # every line that a CPU can run, on a small geometry
    python benchmarks/full_size.py --estimate             # no GPU: the floor, written down as an estimate

Measured are the parts (audio encoder, draft, prefix, first pass, further pass) of every shape; the grid of
passes is composed of them, and six of its cells are run as a whole to check that. Log-mel features are made
on the CPU and stand apart. Whatever fails or does not fit the time is recorded, and the rest goes on.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from full_size_floor import H200, Floor, Machine
from full_size_measure import Bench
from full_size_report import compose, estimate, markdown, memory_section, summary, targets
from full_size_timing import MEASURING_ERRORS, Budget, Record, Sizes, ceilings

from canvas_asr.configuration import CanvasASRConfig
from canvas_asr.published import published_config

DOCS = Path(__file__).parents[1] / "docs"

NEEDED_BYTES = 62_000_000_000  # the weights, and a batch's logits and caches

# Of the first kind come the targets: one pass and eight, batch and canvas.
FULL = Sizes(
    batches=(1, 32, 8),
    canvases=(192, 64, 256, 128),
    passes=(0, 1, 2, 4, 8, 16, 32, 48),
    stock_steps=(8, 32),
    repeats=5,
    matrix=8192,
    copy_bytes=1 << 32,
)
SMALL = Sizes(
    batches=(1, 2),
    canvases=(8, 6),
    passes=(0, 1, 2, 4),
    stock_steps=(2,),
    repeats=1,
    matrix=64,
    copy_bytes=1 << 20,
)
SMALL_TEXT: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "global_head_dim": 16,
    "layer_types": ["sliding_attention", "full_attention"],
    "num_experts": 4,
    "top_k_experts": 2,
    "moe_intermediate_size": 16,
    "use_bidirectional_attention": "vision",
}


def small_config() -> CanvasASRConfig:
    """The published shape of system in small."""
    vision = {"model_type": "gemma4_vision", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    vision |= {
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "position_embedding_size": 16,
    }
    encoder = {"d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32}
    return published_config(
        backbone_config={"text_config": SMALL_TEXT, "vision_config": vision, "canvas_length": 16},
        audio_encoder_config={"num_mel_bins": 80, "max_source_positions": 1500, **encoder},
        projector_width=16,
        lora_rank=2,
        canvas_length=8,
        max_canvas_length=8,
    )


def environment(device: torch.device) -> Record:
    """What the figures were measured with."""
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else platform.processor() or platform.machine(),
        "memory_gb": torch.cuda.get_device_properties(device).total_memory / 1e9 if cuda else None,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
    }


def write_page(folder: Path, text: str) -> None:
    """Write the page, and on it what ``quantised_memory.py`` has measured."""
    memory = folder / "quantised_memory.json"
    if memory.is_file():
        text = f"{text}\n{memory_section(json.loads(memory.read_text(encoding='utf-8')))}"
    (folder / "full_size.md").write_text(text, encoding="utf-8")


class Run:
    """What was measured so far, written to disk after every phase."""

    def __init__(self, folder: Path, content: Record, budget: Budget) -> None:
        self.folder, self.content, self.budget = folder, content, budget
        content.update(skipped=budget.skipped, failed=[], phase_s={})

    def phase(self, name: str, need_s: float, measure: Callable[[], Any]) -> Any:
        """Run a phase if there is time for it; record what it gives, or how it failed.

        Args:
            name: Of the phase, under which its result is recorded.
            need_s: Seconds that must be left.
            measure: Gives a result that JSON can hold.

        Returns:
            The result; None if there is none.
        """
        started = time.perf_counter()
        result = None
        if self.budget.allows(name, need_s):
            try:
                result = measure()
            except MEASURING_ERRORS as error:
                self.failed(name, error)
        if result is not None:
            self.content[name] = result
        self.content["phase_s"][name] = round(time.perf_counter() - started, 2)
        self.write()
        print(f"{self.budget.spent():6.1f} s  {name}", flush=True)
        return result

    def failed(self, what: str, error: Exception) -> None:
        """Record a failure; the run goes on."""
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
        self.content["failed"].append({"what": what, "error": text})
        print(f"failed: {what}: {text}", file=sys.stderr, flush=True)

    def write(self) -> None:
        """Write what there is."""
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.content, ensure_ascii=False, indent=1) + "\n"
        (self.folder / "full_size.json").write_text(text, encoding="utf-8")
        if "floor_machine" in self.content:
            write_page(self.folder, markdown(self.content))


def measure(run: Run, config: CanvasASRConfig, sizes: Sizes, device: torch.device) -> None:
    """Measure everything, the most wanted first."""
    small = device.type != "cuda"
    dtype = torch.float32 if small else torch.bfloat16
    found = run.phase("ceilings", 10, lambda: ceilings(device, dtype, sizes))
    machine = H200
    if found:
        name = run.content["environment"]["device"]
        machine = Machine(
            name, found["copy_bytes_per_s"], found["matrix_flops_per_s"], "measured in this run"
        )
    run.content["floor_machine"] = asdict(machine)
    bench = Bench(config, sizes, device, run.budget, run.failed)
    run.content["shapes"] = bench.measured
    floor = Floor(config, 4 if small else 2)
    run.phase("weights", 0, bench.weights)
    run.phase("features", 5, bench.features)
    run.phase("stock_norms", 30, lambda: bench.key_shapes("stock norms"))
    run.phase("fused_norms", 0, bench.fuse_norms)
    run.phase("n_shapes", 30, bench.shapes)
    grid = run.phase("grid", 0, lambda: compose(bench.measured, sizes.passes, floor, machine)) or []
    run.phase("targets", 0, lambda: targets(grid))
    run.phase("verification", 20, lambda: bench.verify(grid))
    run.phase("stock_generate", 20, bench.stock_generate)
    run.phase("profile", 15, bench.profile)
    run.phase("compiled_parts", 120, lambda: bench.compiled("eager" if small else "inductor"))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--small", action="store_true", help="a small geometry on the CPU; needs --out")
    kind.add_argument(
        "--estimate", action="store_true", help="write the floor as an estimate, measure nothing"
    )
    parser.add_argument("--out", type=Path, help="folder to write to (default: docs)")
    parser.add_argument("--limit-s", type=float, default=500.0, help="start nothing that would end later")
    options = parser.parse_args(sys.argv[1:] if argv is None else argv)
    folder = options.out or DOCS
    if options.estimate:
        folder.mkdir(parents=True, exist_ok=True)
        write_page(folder, estimate(Floor(published_config()), H200, FULL))
        return 0
    if options.small and options.out is None:
        parser.error("--small measures nothing worth keeping in docs/: give --out")
    if not options.small and not torch.cuda.is_available():
        parser.error("no CUDA device: give --small or --estimate")
    if not options.small and (free := torch.cuda.mem_get_info(0)[0]) < NEEDED_BYTES:
        parser.error(f"{free / 1e9:.0f} GB of the GPU are free, {NEEDED_BYTES / 1e9:.0f} GB are needed")
    device = torch.device("cpu" if options.small else "cuda:0")
    command = "python benchmarks/full_size.py" + (" --small" if options.small else "")
    run = Run(folder, {"command": command, "environment": environment(device)}, Budget(options.limit_s))
    with torch.no_grad():
        config = small_config() if options.small else published_config()
        measure(run, config, SMALL if options.small else FULL, device)
    print(summary(run.content))
    return 0 if run.content.get("grid") else 1


if __name__ == "__main__":
    sys.exit(main())
