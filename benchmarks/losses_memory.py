"""Memory of the losses at the vocabulary of the released system: ours beside the plain ones.

    python benchmarks/losses_memory.py --out docs/losses_memory.json

One batch, by default 8 clips of 30 s: 188 audio tokens each for CTC, a canvas of 192 for diffusion. *Plain*
makes the logits of all states at once, soft-cap included, and hands them to torch's own losses; *ours* is
``canvas_asr.training.losses`` as training calls it. Each runs in a fresh process, so that peaks do not mix:
what the process holds after the forward pass (kept for backward) and its peak over forward and backward,
both above what it held before. Width hardly matters to either (the logits do not have it), so it is small
here. A third process takes the first clip alone in float64, by which the gradients of both are judged.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

LOSSES = ("ctc", "diffusion")
VARIANTS = ("plain", "ours")
EXACT = "exact"
SOFTCAP = 30.0
BLANK = 6
N_TEXT = 60  # tokens said in a clip, where its frames can spell so many
TAIL_WEIGHT = 0.1
MIB = 1 << 20


def memory(name: str) -> int:
    """Bytes of a line of ``/proc/self/status``: ``VmRSS`` (now) or ``VmHWM`` (peak)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


class Gauge:
    """Memory above what a process held when the gauge was made.

    On a GPU its allocator counts; on a CPU the kernel does, whose peak is reset first.
    """

    def __init__(self, device: str) -> None:
        import torch

        self.cuda = torch.cuda if device != "cpu" else None
        if self.cuda:
            self.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        self.before = self.now()

    def now(self) -> int:
        """Bytes held."""
        return int(self.cuda.memory_allocated()) if self.cuda else memory("VmRSS")

    def held_mib(self) -> float:
        """MiB held now."""
        return round((self.now() - self.before) / MIB, 1)

    def peak_mib(self) -> float:
        """MiB held at most."""
        peak = int(self.cuda.max_memory_allocated()) if self.cuda else memory("VmHWM")
        return round((peak - self.before) / MIB, 1)


def plain_loss(name: str, states: Any, targets: Any, n_text: Any, read: Callable[[Any], Any]) -> Any:
    """Torch's own losses over the logits (B, T, V) of all states (B, T, D) at once."""
    import torch
    from torch.nn import functional

    logits = read(states)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if name == "ctc":
        n_states = torch.full_like(n_text, states.shape[1])
        log_probs = logits.log_softmax(-1).transpose(0, 1)
        losses = functional.ctc_loss(
            log_probs, targets, n_states, n_text, blank=BLANK, reduction="none", zero_infinity=True
        )
        return (losses / n_text).mean()
    losses = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    in_text = torch.arange(states.shape[1], device=states.device) < n_text[:, None]
    weights = torch.where(in_text, 1.0, TAIL_WEIGHT).flatten()
    return (losses * weights).sum() / weights.sum()


def our_loss(
    name: str, states: Any, targets: Any, n_text: Any, read: Callable[[Any], Any], chunk: int
) -> Any:
    """The losses of training."""
    import torch

    from canvas_asr.training.losses import ctc_loss, diffusion_loss

    if name == "ctc":
        n_states = torch.full_like(n_text, states.shape[1])
        return ctc_loss(states, n_states, targets, n_text, read, blank=BLANK, chunk=chunk)[0]
    return diffusion_loss(states, targets, n_text, read, tail_weight=TAIL_WEIGHT, chunk=chunk)[0]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run one loss once, forward and backward, in this process."""
    import torch

    from canvas_asr.training.losses import states_per_chunk

    name, variant = options.child
    dtype = torch.float32 if options.device == "cpu" else torch.bfloat16
    generator = torch.Generator().manual_seed(0)
    n_states = options.frames if name == "ctc" else options.canvas
    n_said = min(N_TEXT, n_states // 2)
    n_labels = n_said if name == "ctc" else n_states
    states = torch.randn(options.clips, n_states, options.width, generator=generator)
    states = states.to(options.device, dtype).requires_grad_()
    weight = 0.5 * torch.randn(options.vocabulary, options.width, generator=generator)
    weight = weight.to(options.device, dtype)  # frozen, as in training
    targets = torch.randint(BLANK + 1, options.vocabulary, (options.clips, n_labels), generator=generator)
    n_text = torch.full((options.clips,), n_said)
    targets, n_text = targets.to(options.device), n_text.to(options.device)

    def read(some: Any) -> Any:
        return torch.tanh(some @ weight.T / SOFTCAP) * SOFTCAP

    if variant == EXACT:
        states = states.detach()[:1].double().requires_grad_()
        weight, targets, n_text = weight.double(), targets[:1], n_text[:1]
    chunk = states_per_chunk(options.vocabulary)
    loss_of = partial(our_loss, chunk=chunk) if variant == "ours" else plain_loss
    gauge, start = Gauge(options.device), time.perf_counter()
    loss = loss_of(name, states, targets, n_text, read)
    value = float(loss.detach())
    kept_mib = gauge.held_mib()
    loss.backward()
    gradient = states.grad.float().cpu().numpy()
    seconds = time.perf_counter() - start
    np.save(options.gradient, gradient)
    return {
        "peak_mib": gauge.peak_mib(),
        "kept_for_backward_mib": max(0.0, kept_mib),
        "seconds": round(seconds, 2),
        "value": value,
        "states_per_chunk": chunk if variant == "ours" else None,
    }


def bytes_of_logits(options: argparse.Namespace) -> int:
    """Size of one float32 tensor of all logits."""
    return 4 * options.clips * max(options.frames, options.canvas) * int(options.vocabulary)


def check_room(needed: int) -> None:
    """Refuse to take memory that other programs would lack.

    Raises:
        SystemExit: If less than that is available.
    """
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    if available < needed:
        raise SystemExit(
            f"error: the plain loss takes up to {needed / MIB:,.0f} MiB and {available / MIB:,.0f} are free; "
            "give fewer --clips, or wait."
        )


def in_fresh_process(name: str, variant: str, options: argparse.Namespace, gradient: Path) -> dict[str, Any]:
    """Measure in a process of its own.

    Raises:
        SystemExit: If it fails, or there is too little memory for it.
    """
    if variant == "plain" and options.device == "cpu":
        check_room(5 * bytes_of_logits(options))
    command = [sys.executable, __file__, "--child", name, variant, "--gradient", str(gradient)]
    for key in ("clips", "frames", "canvas", "vocabulary", "width", "device"):
        command += [f"--{key}", str(getattr(options, key))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"error: {name}, {variant}: code {done.returncode}\n{done.stderr}")
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def compare(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure both variants of a loss, and how far their gradients are from exact ones."""
    with tempfile.TemporaryDirectory() as folder:
        files = {variant: Path(folder, f"{variant}.npy") for variant in (*VARIANTS, EXACT)}
        found: dict[str, Any] = {
            variant: in_fresh_process(name, variant, options, file) for variant, file in files.items()
        }
        gradients = {variant: np.load(file)[0] for variant, file in files.items()}
    del found[EXACT]
    exact = gradients[EXACT] / options.clips  # the losses are means over clips
    for variant in VARIANTS:
        error = np.abs(gradients[variant] - exact).max() / np.abs(exact).max()
        found[variant]["gradient_error"] = float(f"{error:.2g}")
    values = found["plain"]["value"], found["ours"]["value"]
    return {
        **found,
        "peak_ratio": round(found["plain"]["peak_mib"] / found["ours"]["peak_mib"], 1),
        "value_differs_by": float(f"{abs(values[0] - values[1]) / abs(values[0]):.2g}"),
    }


def describe(options: argparse.Namespace, command: str) -> dict[str, Any]:
    """Say what was measured, and where."""
    import torch

    return {
        "what": (
            "MiB above what the process held before the loss, one forward and backward pass each; errors of "
            "gradients relative to the largest one of the first clip in float64"
        ),
        "command": command,
        "shape": {key: getattr(options, key) for key in ("clips", "frames", "canvas", "vocabulary", "width")},
        "one_float32_tensor_of_logits_mib": round(bytes_of_logits(options) / MIB, 1),
        "machine": {
            "device": options.device if options.device == "cpu" else torch.cuda.get_device_name(),
            "processor": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "load_average_before": os.getloadavg()[0],
        },
        "versions": {"python": platform.python_version(), "torch": version("torch")},
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--frames", type=int, default=188, help="audio tokens of a clip")
    parser.add_argument("--canvas", type=int, default=192, help="canvas positions of a clip")
    parser.add_argument("--vocabulary", type=int, default=262_144)
    parser.add_argument("--width", type=int, default=16, help="of the states")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=LOSSES)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--gradient", type=Path, help=argparse.SUPPRESS)
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = parser.parse_args(arguments)
    if options.child:
        print(json.dumps(measure(options)))
        return 0
    content = describe(options, f"python benchmarks/losses_memory.py {shlex.join(arguments)}")
    content["losses"] = {name: compare(name, options) for name in options.losses}
    text = json.dumps(content, indent=1) + "\n"
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
