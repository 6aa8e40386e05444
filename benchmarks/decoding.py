"""Decoding side by side in one run: accuracy by passes and strategy, speed against every alternative.

    python benchmarks/decoding.py tiny --testsets data/testsets --sets synthetic

The canvas from noise and from the draft, each strategy alone and all together, autoregressive decoding and
stock ``generate`` of the same weights. Error rates come from the evaluation of the package, whose lines stay
in ``--work``, as do the times of each phase: the same command goes on where it was stopped. Writes
``docs/decoding.json`` and ``docs/decoding.md``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from phases import Phases, check_model

BATCH_SIZE = 16
DOCS = Path(__file__).parents[1] / "docs"
AUTOREGRESSIVE, STOCK = "autoregressive:{}", "stock-generate:{}"
ONE_PASS = "init=draft,steps=1"
WHERE_UNSURE = "init=draft,steps=2,acceptance=threshold"  # a second pass for clips with an unsure token
WITHIN = 0.002  # a rate has converged when it is within 0.2 points of that of the most passes


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        from_noise: Passes from noise.
        from_draft: Passes from the draft.
        strategies: Settings by what is new in them.
        slow: Settings that are read on the fewest clips.
        stock_steps: Steps of stock ``generate`` on our canvas.
        few: Clips of each language for slow settings and stock ``generate`` with its defaults.
        some: Clips of each language for strategies, autoregressive decoding and stock ``generate`` on
            our canvas.
        limit: Clips of each language for passes from noise and from the draft; None: all.
        batches: Clips at once, of the parts.
        canvases: Canvas lengths, of the parts, up to the model's longest; its default is always among them.
        passes: Of the composed times.
        whole_batches: Clips at once, of whole systems.
        n_whole: Clips that whole systems read at least.
        audio_s: Length of the clips that are timed.
        repeats: Timed runs, of which the median counts.
        side: Of the square product beside the floor.
    """

    from_noise: tuple[int, ...] = (1, 2, 4, 8, 16)
    from_draft: tuple[int, ...] = (1, 2, 4)
    strategies: tuple[tuple[str, str], ...] = (
        ("free slots", "init=draft-slots,steps=1"),
        ("soft self-conditioning", f"{ONE_PASS},self_conditioning=posterior"),
        ("no soft self-conditioning", f"{ONE_PASS},self_conditioning=none"),
        ("unsure draft tokens as noise", f"{ONE_PASS},draft_threshold=0.5"),
        ("canvas from the draft", f"{ONE_PASS},canvas=auto"),
        ("fusion with CTC", f"{ONE_PASS},fusion=0.3"),
        ("gate", f"{ONE_PASS},gate=0.95"),
        ("second pass where unsure", WHERE_UNSURE),
        ("leaves when stable", "init=draft,steps=8,stop_entropy=0.05"),
        (
            "together",
            "init=draft,steps=2,acceptance=threshold,canvas=auto,fusion=0.3,gate=0.95,self_conditioning=posterior",
        ),
    )
    slow: tuple[tuple[str, str], ...] = (
        ("entropy bound", "init=noise,steps=16,acceptance=entropy-bound,stop_entropy=0.05"),
        ("minimum Bayes risk of 8", "init=noise,steps=4,candidates=8"),
    )
    stock_steps: tuple[int, ...] = (2, 4, 8, 16)
    few: int = 32
    some: int = 100
    limit: int | None = None
    batches: tuple[int, ...] = (1, 8, 32)
    canvases: tuple[int, ...] = (32, 64, 96, 128, 192)
    passes: tuple[int, ...] = (0, 1, 2, 4, 8, 16)
    whole_batches: tuple[int, ...] = (1, 8)
    n_whole: int = 4
    audio_s: float = 10.0
    repeats: int = 5
    side: int = 2048


SMALL = Plan(
    from_noise=(1, 2),
    from_draft=(1,),
    strategies=(("canvas from the draft", f"{ONE_PASS},canvas=auto"),),
    slow=(("minimum Bayes risk of 2", "init=noise,steps=1,candidates=2"),),
    stock_steps=(1, 2),
    few=1,
    some=2,
    limit=2,
    batches=(1, 2),
    canvases=(8,),
    passes=(0, 1, 2),
    whole_batches=(1, 2),
    n_whole=1,
    audio_s=1.0,
    repeats=1,
    side=64,
)


def accuracy(options: argparse.Namespace, plan: Plan, asr: Any) -> dict[str, Any]:
    """Have every setting read the sets; figures by model and setting, and the differences that matter."""
    from decoding_accuracy import Job, difference, evaluate, passes_needed, read_all

    from canvas_asr.evaluation.sets import read_sets

    model, ours = options.model, options.ours
    steps = tuple(f"steps={n},canvas={asr.model.config.canvas_length}" for n in plan.stock_steps)
    curve = (
        *(_setting("noise", n) for n in plan.from_noise),
        *(_setting("draft", n) for n in plan.from_draft),
    )
    jobs = (
        Job(model, tuple(dict.fromkeys(("draft", *curve, ours, WHERE_UNSURE))), plan.limit),
        Job(model, _texts(plan.strategies), plan.some),
        Job(AUTOREGRESSIVE.format(model), ("default",), plan.some),
        Job(STOCK.format(model), steps, plan.some),
        Job(STOCK.format(model), ("default",), plan.few),
        Job(model, _texts(plan.slow), plan.few),
    )
    sets, _ = read_sets(options.testsets, options.sets, options.set)
    for job in jobs:
        evaluate(job, options.work, sets, BATCH_SIZE, lambda *_: asr, options.tell)
    reads = read_all(options.work)
    noise = {n: reads[model, _setting("noise", n)] for n in plan.from_noise}
    draft = {n: reads[model, _setting("draft", n)] for n in plan.from_draft}
    most = noise[max(plan.from_noise)]
    names = [(job.model, setting) for job in jobs for setting in job.settings]
    return {
        "figures": [
            {
                "model": name,
                "setting": setting,
                **reads[name, setting].figures(),
                "against_draft": difference(reads[model, "draft"], reads[name, setting]),
                "against_noise": difference(most, reads[name, setting]),
                "against_ours": difference(reads[model, ours], reads[name, setting]),
                "words_against_draft": difference(reads[model, "draft"], reads[name, setting], "words"),
                "words_against_noise": difference(most, reads[name, setting], "words"),
            }
            for name, setting in dict.fromkeys(names)
        ],
        "passes": {"noise": passes_needed(noise, WITHIN), "draft": passes_needed(draft, WITHIN)},
    }


def _setting(init: str, steps: int) -> str:
    return f"init={init},steps={steps}"


def _texts(pairs: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    return tuple(text for _, text in pairs)


def best_stock(figures: Sequence[Mapping[str, Any]], model: str) -> str:
    """The setting of stock ``generate`` on our canvas with the fewest steps within 0.2 points of its best.

    Raises:
        DataError: If no clip has a reference text.
    """
    from canvas_asr.errors import DataError

    own = [f for f in figures if f["model"] == STOCK.format(model) and f["setting"] != "default"]
    rates = {str(f["setting"]): f["rates"]["all"] for f in own if f["rates"]["all"] is not None}
    if not rates:
        raise DataError("no clip has a reference text: nothing can be judged; give other sets")
    return next(setting for setting, rate in rates.items() if rate <= min(rates.values()) + WITHIN)


def speed(options: argparse.Namespace, plan: Plan, asr: Any, phases: Phases, stock: str) -> dict[str, Any]:
    """Time parts and whole systems on clips of one length, and the floor of a pass."""
    from decoding_speed import Parts, floor, in_turn, long_clips, products_of_a_pass

    from canvas_asr.evaluation.sets import load_clip, read_sets

    sets, _ = read_sets(options.testsets, options.sets, options.set)
    source = [load_clip(clip) for clips in sets.values() for clip in clips[: 8 * max(plan.batches)]]
    audio_s = min(plan.audio_s, asr.max_audio_s)
    clips = long_clips(source, max(plan.n_whole, *plan.batches), audio_s)
    config = asr.model.config
    canvases = sorted({config.canvas_length, *(n for n in plan.canvases if n <= config.max_canvas_length)})
    # Not to be kept from a run on other clips, or elsewhere; code that has changed is not noticed.
    heard = hashlib.sha256(b"".join(clip.tobytes() for clip in clips)).hexdigest()
    here = {name: value for name, value in environment(options).items() if name != "load_average_before"}
    key = [options.model, asdict(plan), options.threads, options.ours, stock, heard, here]
    parts = Parts(asr, plan.repeats)
    found = {
        f"batch {n}": phases(
            f"parts of batch {n}", [key, n], lambda n=n: parts.measure(clips[:n], canvases, plan.passes)
        )
        for n in plan.batches
    }
    whole = {}
    for n in plan.whole_batches:
        some = clips[: max(plan.n_whole, n)]
        systems = _systems(options, plan, asr, some, n, stock)
        timed = phases(
            f"systems at batch {n}", [key, n], lambda s=systems: in_turn(s, plan.repeats, options.tell)
        )
        for figures in timed.values():
            figures["clip_s"] = figures["median_s"] / len(some)
            figures["rtfx"] = audio_s / figures["clip_s"]
        whole[str(n)] = timed
    batch = max(n for n in plan.batches if n <= 8)
    prefix = parts.prefix(clips[:batch])
    dtype = asr.model.ctc_tap.scale.dtype
    floors = {
        name: phases(
            f"floor, {name}",
            [key, name],
            lambda wants=wants: floor(
                products_of_a_pass(asr, prefix, config.canvas_length, wants_soft=wants),
                asr.device,
                dtype,
                plan.repeats,
                plan.side,
            ),
        )
        for name, wants in (("last pass", False), ("pass with another behind it", True))
    }
    return {"audio_s": audio_s, "parts": found, "whole": whole, "floor": {"batch": batch, **floors}}


def _systems(
    options: argparse.Namespace, plan: Plan, asr: Any, clips: Sequence[Any], batch: int, stock: str
) -> dict[str, Callable[[], object]]:
    """Every system that is timed whole, from waveforms to texts, by model and setting."""
    from canvas_asr.evaluation.modes import parse_setting
    from canvas_asr.evaluation.systems import Request, Utterance, open_system

    utterances = [Utterance(place, clip) for place, clip in enumerate(clips)]
    model = options.model
    together = plan.strategies[-1][1]
    asked = [(model, s) for s in dict.fromkeys(["draft", options.ours, together])]
    asked += [(model, _setting("noise", n)) for n in (1, max(plan.from_noise))]
    asked += [(AUTOREGRESSIVE.format(model), "default"), (STOCK.format(model), stock)]
    asked.append((STOCK.format(model), "default"))
    systems: dict[str, Callable[[], object]] = {}
    for name, text in asked:
        request = Request(utterances, "clips", parse_setting(text), "en", batch, 0)
        system = open_system(name, None, lambda *_: asr)
        systems[f"{name} {text}"] = partial(system.read, request)
    return systems


def environment(options: argparse.Namespace) -> dict[str, Any]:
    """What the figures were measured with."""
    import torch

    from canvas_asr.evaluation.machine import describe_machine, installed_versions

    return {
        **describe_machine(),
        "n_threads": torch.get_num_threads(),
        "load_average_before": options.load_before,
        "versions": installed_versions(),
    }


def measure(options: argparse.Namespace, plan: Plan, command: str, load_model: Callable[..., Any]) -> Any:
    """Measure all, and write JSON and Markdown."""
    from decoding_report import markdown, targets

    asr = load_model(options.model)
    check_model(options.work, asr.model)
    phases = Phases(options.work / "speed.json", options.tell)
    content: dict[str, Any] = {
        "command": command,
        "model": options.model,
        "ours": options.ours,
        "one_pass": ONE_PASS,
        "where_unsure": WHERE_UNSURE,
        "canvas": asr.model.config.canvas_length,
        "audio_positions": asr.model.config.audio_positions,
        "batch_size": BATCH_SIZE,
        "plan": asdict(plan),
        "environment": environment(options),
        "accuracy": accuracy(options, plan, asr),
    }
    content["stock"] = stock = best_stock(content["accuracy"]["figures"], options.model)
    content["speed"] = speed(options, plan, asr, phases, stock)
    content["targets"] = targets(content)
    for path, text in (
        (options.json, json.dumps(content, ensure_ascii=False, indent=1) + "\n"),
        (options.markdown, markdown(content)),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        options.tell(f"wrote {path}")
    return content


def _load(model: str) -> Any:
    import canvas_asr

    return canvas_asr.load(model, device="cpu")


def main(argv: Sequence[str] | None = None, load_model: Callable[..., Any] = _load) -> int:
    """Run the command; returns the exit code.

    Args:
        argv: Its arguments; None takes the process's.
        load_model: Turns a name into a ``Transcriber``.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", help='name or folder, as canvas_asr.load takes it: "tiny"')
    parser.add_argument("--testsets", type=Path, help="folder written by canvas_asr.evaluation.testsets")
    parser.add_argument("--sets", nargs="+", default=[], help="only these sets of --testsets")
    parser.add_argument("--set", nargs="+", default=[], help="manifests")
    parser.add_argument("--ours", default=ONE_PASS, help=f"the default that is judged ({ONE_PASS})")
    parser.add_argument(
        "--limit",
        type=int,
        help="clips of each language (default: all, and 100 where strategies are read)",
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    parser.add_argument("--work", type=Path, default=Path("runs/decoding"), help="what is kept between runs")
    parser.add_argument("--json", type=Path, default=DOCS / "decoding.json")
    parser.add_argument("--markdown", type=Path, default=DOCS / "decoding.md")
    parser.add_argument("--small", action="store_true", help="a few clips and one run of each, to try it")
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = parser.parse_args(arguments)
    plan = SMALL if options.small else Plan()
    if options.small and DOCS in (options.json.parent, options.markdown.parent):
        parser.error("--small measures nothing worth keeping in docs/: give --json and --markdown")
    if options.limit is not None:
        few, some = (min(n, options.limit) for n in (plan.few, plan.some))
        plan = replace(plan, limit=options.limit, few=few, some=some)
    started = time.perf_counter()
    options.tell = lambda text: print(f"{time.perf_counter() - started:7.1f} s  {text}", flush=True)
    options.load_before = round(os.getloadavg()[0], 2)
    from canvas_asr.errors import CanvasASRError

    try:
        if load_model is _load:
            import torch

            torch.set_num_threads(options.threads)
        measure(options, plan, f"python benchmarks/decoding.py {shlex.join(arguments)}", load_model)
    except CanvasASRError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
