"""Other ways of computing on a CPU, beside float32: time and errors of each, side by side in one run.

    python benchmarks/cpu_paths.py tiny --testsets data/testsets --sets synthetic

bfloat16; linear layers in int8, what they are given quantised as they are called; layers compiled by
``torch.compile``, which needs a C++ compiler. Whole systems are timed in turn on clips of 10 s; errors are
those of the package's evaluation, whose lines stay in ``--work``. Writes ``docs/decoding_cpu.md``.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs"
FIRST = "float32"
PATHS = (FIRST, "bfloat16", "int8", "compiled")
SETTING = "init=draft,steps=1"
AUDIO_S = 10.0
CANVAS = 64
BATCHES = (1, 8)
BATCH_SIZE = 16  # of the evaluation
LAYERS = (
    "audio_encoder.layers",
    "backbone.model.encoder.language_model.layers",
    "backbone.model.decoder.layers",
)


def open_path(path: str, load_model: Callable[[str], Any]) -> Any:
    """Load a model and make it compute so.

    Args:
        path: One of `PATHS`.
        load_model: Gives a ``Transcriber`` by dtype.
    """
    import torch
    from torch import nn

    asr = load_model("bfloat16" if path == "bfloat16" else "float32")
    model = asr.model
    stacks = [model.get_submodule(name) for name in LAYERS]
    if path == "int8":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is to move to another package
            for module in (*stacks, model.projector):
                for part in module.modules():
                    if isinstance(part, nn.Linear):
                        part.__class__ = nn.Linear  # else it is not recognised
                torch.ao.quantization.quantize_dynamic(module, {nn.Linear}, torch.qint8, inplace=True)
    elif path == "compiled":
        asr.decoder.threads.is_on = False  # one thread compiles
        for layers in stacks:
            for layer in layers:
                layer.compile()
    return asr


def timed(systems: Mapping[str, Any], clips: Sequence[Any], options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each path: of its first run, a clip by batch, and of a further pass of the largest batch.

    Args:
        systems: Transcribers by path.
        clips: Of one length.
        options: ``rounds`` and ``tell``.
    """
    from decoding_speed import Parts, in_turn

    figures: dict[str, Any] = {path: {} for path in systems}
    for path, asr in systems.items():
        started = time.perf_counter()
        for batch in BATCHES:
            read(asr, clips, batch)
        figures[path]["first_s"] = time.perf_counter() - started
    for batch in BATCHES:
        runs = {path: partial(read, asr, clips, batch) for path, asr in systems.items()}
        for path, found in in_turn(runs, options.rounds, options.tell).items():
            figures[path][f"batch {batch}"] = found["median_s"] / len(clips)
    batch = clips[: max(BATCHES)]
    for path, asr in systems.items():
        found = Parts(asr, options.rounds).measure(
            batch, [min(CANVAS, asr.model.config.max_canvas_length)], []
        )
        figures[path]["pass_s"] = next(iter(found["canvases"].values()))["next_s"]
    return figures


def read(asr: Any, clips: Sequence[Any], batch: int) -> object:
    """Read clips, from waveforms to texts."""
    return asr.transcribe_arrays(clips, steps=1, init="draft", batch_size=batch)


def errors(systems: Mapping[str, Any], sets: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Error rate of each path over all clips, and its difference to the first path's."""
    from decoding_accuracy import Job, difference, evaluate, read_all

    for path, asr in systems.items():
        job = Job(f"{options.model} {path}", (SETTING,), options.limit)
        evaluate(job, options.work, sets, BATCH_SIZE, lambda *_, asr=asr: asr, options.tell)
    reads = read_all(options.work)
    own = {path: reads[f"{options.model} {path}", SETTING] for path in systems}
    return {
        path: {**found.figures(), "against_first": difference(own[FIRST], found)}
        for path, found in own.items()
    }


def markdown(
    speed: Mapping[str, Any],
    rates: Mapping[str, Any],
    machine: Mapping[str, Any],
    options: argparse.Namespace,
) -> str:
    """Write the page."""
    from canvas_asr.card_sections import percent, table

    first, rows = speed[FIRST], []
    for path, figures in speed.items():
        cells = [path]
        for name in (*(f"batch {batch}" for batch in BATCHES), "pass_s"):
            cells.append(f"{1000 * figures[name]:.1f} ({figures[name] / first[name]:.2f})")
        found = rates[path]["against_first"]
        change = "–"
        if path != FIRST and found is not None:
            change = (
                f"{100 * found['difference']:+.2f} ({100 * found['low']:+.2f} to {100 * found['high']:+.2f})"
            )
        rows.append([*cells, f"{figures['first_s']:.1f}", percent(rates[path]["rates"]["all"]), change])
    header = ["Path", *(f"Batch {batch}, ms a clip" for batch in BATCHES), "Further pass, ms"]
    header += ["First run, s", "Errors, %", "Change, points"]
    lines = [
        "# Other ways of computing on a CPU",
        "",
        f"Model `{options.model}`, `{SETTING}`, clips of {options.audio_s:g} s; {machine['cpu']}, "
        f"{options.threads} threads. Made by",
        "",
        f"    {options.command}",
        "",
        f"with torch {machine['torch']}. In brackets: by the time of {FIRST}. The further pass is one of "
        f"batch {max(BATCHES)}, canvas {CANVAS}. In the first run layers are compiled. Errors are those of "
        f"{rates[FIRST]['n_clips']} clips, Whisper-normalised, words of en, de, fr, es and characters of hi, "
        "zh; their change has its 95 % interval by paired bootstrap.",
        "",
        *table(header, rows, 1),
        "",
    ]
    return "\n".join(lines)


def measure(options: argparse.Namespace, load_model: Callable[[str], Any]) -> str:
    """Measure all paths; returns the page."""
    from decoding_speed import long_clips

    from canvas_asr.evaluation.machine import describe_machine, installed_versions
    from canvas_asr.evaluation.sets import load_clip, read_sets

    sets, _ = read_sets(options.testsets, options.sets, options.set)
    source = [load_clip(clip) for clips in sets.values() for clip in clips[: 8 * max(BATCHES)]]
    systems = {path: open_path(path, load_model) for path in dict.fromkeys((FIRST, *options.paths))}
    options.audio_s = min(AUDIO_S, *(asr.max_audio_s for asr in systems.values()))
    speed = timed(systems, long_clips(source, max(BATCHES), options.audio_s), options)
    rates = errors(systems, sets, options)
    machine = {"cpu": describe_machine()["cpu"], "torch": installed_versions()["torch"]}
    return markdown(speed, rates, machine, options)


def _load(options: argparse.Namespace, dtype: str) -> Any:
    import canvas_asr

    return canvas_asr.load(options.model, device="cpu", dtype=dtype)


def main(argv: Sequence[str] | None = None, load_model: Callable[[str], Any] | None = None) -> int:
    """Run the command; returns the exit code.

    Args:
        argv: Its arguments; None takes the process's.
        load_model: Gives a ``Transcriber`` by dtype; None: the named model's.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", help='name or folder, as canvas_asr.load takes it: "tiny"')
    parser.add_argument("--testsets", type=Path, help="folder written by canvas_asr.evaluation.testsets")
    parser.add_argument("--sets", nargs="+", default=[], help="only these sets of --testsets")
    parser.add_argument("--set", nargs="+", default=[], help="manifests")
    parser.add_argument("--paths", nargs="+", choices=PATHS, default=PATHS, help="which (default: all)")
    parser.add_argument("--limit", type=int, default=100, help="clips of each language (default 100)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    parser.add_argument("--rounds", type=int, default=7, help="timed runs, of which the median counts")
    parser.add_argument("--work", type=Path, default=Path("runs/cpu_paths"), help="lines of the evaluation")
    parser.add_argument("--markdown", type=Path, default=DOCS / "decoding_cpu.md")
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = parser.parse_args(arguments)
    options.command = f"python benchmarks/cpu_paths.py {shlex.join(arguments)}"
    options.tell = lambda text: print(text, flush=True)
    from canvas_asr.errors import CanvasASRError

    try:
        if load_model is None:
            import torch

            torch.set_num_threads(options.threads)
            load_model = partial(_load, options)
        page = measure(options, load_model)
    except CanvasASRError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    options.markdown.parent.mkdir(parents=True, exist_ok=True)
    options.markdown.write_text(page, encoding="utf-8")
    options.tell(f"wrote {options.markdown}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
