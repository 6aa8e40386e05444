"""Run a model over the fixed test sets in every mode and write down what it read.

    python -m canvas_asr.evaluation.evaluate tiny --testsets data/testsets --out runs/evaluation

writes ``evaluation.json`` (every figure, and what made it), ``hypotheses.jsonl`` (every transcript) and
``evaluation.md`` (the tables of the model card).

Modes: the CTC draft alone; 1 to 16 passes from noise; 1 to 4 passes from the draft; and "shuffled", where
each clip is given the audio of another clip of its set and language: a model that listens must fail there.

RTFx is seconds of audio by wall-clock seconds, both summed, from waveform to text: features, prefix, all
passes and detokenising count; reading files, loading the model and one warm-up call do not.
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..audio import SAMPLE_RATE_HZ, load_audio
from ..errors import CanvasASRError, DataError, OptionError
from ..manifest import Clip, write_text
from .index import read_index, read_testsets
from .metrics import PRIMARY_METRICS, score
from .modes import DEFAULT_MODES, EvaluationMode, Recogniser, Result, Samples, Speakers, TranscriptLike
from .report import describe_run, render_markdown


def derangement(texts: Sequence[str], seed: int) -> list[int]:
    """Give each clip another one: a permutation without fixed point, drawn by seed.

    No clip gets one with the same text either, unless that text is more than half of the set (short words
    recur).

    Args:
        texts: Reference of each clip.
        seed: Draws the permutation.

    Returns:
        ``order`` with ``order[i] != i``: clip i is given the audio of clip ``order[i]``.

    Raises:
        DataError: If there are fewer than two clips.
    """
    if len(texts) < 2:
        raise DataError("shuffled audio needs at least two clips of a language in a set")
    groups: dict[str, list[int]] = {}
    for i, text in enumerate(texts):
        groups.setdefault(text, []).append(i)
    shuffler = random.Random(seed)
    blocks = list(groups.values())
    shuffler.shuffle(blocks)
    for block in blocks:
        shuffler.shuffle(block)
    line = [i for block in blocks for i in block]
    # Equal texts stand together; a rotation by the largest block moves every clip out of its own.
    shift = max(len(block) for block in blocks) % len(line) or 1
    order = [0] * len(line)
    for place, i in enumerate(line):
        order[i] = line[(place + shift) % len(line)]
    return order


def run_mode(
    recogniser: Recogniser,
    arrays: Sequence[Samples],
    mode: EvaluationMode,
    language: str,
    *,
    batch_size: int,
    seed: int,
) -> tuple[list[TranscriptLike], float]:
    """Transcribe the clips of one language in one mode.

    Returns:
        The transcripts in order, and the wall-clock seconds of the call. Text on the host means that the
        device has finished, so nothing else has to be synchronised.

    Raises:
        DataError: If the model does not return one transcript for each clip.
    """
    started = time.perf_counter()
    transcripts = recogniser.transcribe_arrays(
        arrays,
        init="noise" if mode.kind == "noise" else "draft",
        steps=mode.passes,
        language=language if mode.language_given else None,
        batch_size=batch_size,
        seed=seed,
    )
    seconds = time.perf_counter() - started
    if len(transcripts) != len(arrays):
        raise DataError(
            f"mode {mode.name!r}: {len(transcripts)} transcripts came back for {len(arrays)} clips"
        )
    return list(transcripts), seconds


def _speakers(clip: Clip) -> Speakers:
    if clip.seen_speaker is None:
        return "unknown"
    return "seen" if clip.seen_speaker else "unseen"


def grouped(clips: Sequence[Clip]) -> dict[tuple[str, Speakers], list[Clip]]:
    """Clips by language and kind of speaker, languages in the usual order; empty groups are absent."""
    groups: dict[tuple[str, Speakers], list[Clip]] = {}
    order = list(PRIMARY_METRICS)
    for clip in sorted(clips, key=lambda c: (order.index(c.language), _speakers(c))):
        groups.setdefault((clip.language, _speakers(clip)), []).append(clip)
    return groups


def evaluate(
    recogniser: Recogniser,
    testsets: Mapping[str, Sequence[Clip]],
    modes: Sequence[EvaluationMode] = DEFAULT_MODES,
    *,
    load: Callable[[Path], Samples],
    batch_size: int = 16,
    seed: int = 0,
    limit: int | None = None,
    record: Callable[[dict[str, Any]], None] | None = None,
) -> Iterator[Result]:
    """Run every mode on every set, language and kind of speaker; yield each result as it is measured.

    Args:
        recogniser: The model.
        testsets: Clips by name of the set.
        modes: What to run.
        load: Reads one audio file to 16 kHz mono float32 (`canvas_asr.load_audio`).
        batch_size: Clips a batch, passed on to the model.
        seed: Canvas noise and the shuffling of audio.
        limit: Use only the first so many clips of each group. A group of one clip has no shuffled result.
        record: Called with every transcript, as a JSON-ready dict.

    Raises:
        DataError: If the model returns the wrong number of transcripts.
        AudioError: If a clip cannot be read.
    """
    warm: set[EvaluationMode] = set()
    for name, clips in testsets.items():
        for (language, speakers), group in grouped(clips).items():
            chosen = group[:limit]
            arrays = [load(clip.audio) for clip in chosen]
            for mode in modes:
                if mode.shuffled and len(chosen) < 2:
                    continue
                if mode not in warm:
                    run_mode(recogniser, arrays[:1], mode, language, batch_size=batch_size, seed=seed)
                    warm.add(mode)
                order = list(range(len(chosen)))
                if mode.shuffled:
                    order = derangement([clip.text for clip in chosen], seed)
                heard = [arrays[i] for i in order]
                read, seconds = run_mode(recogniser, heard, mode, language, batch_size=batch_size, seed=seed)
                if record is not None:
                    for clip, source, transcript in zip(chosen, order, read, strict=True):
                        record(_record(name, mode, clip, chosen[source], transcript))
                audio_s = sum(len(array) for array in heard) / SAMPLE_RATE_HZ
                yield _result(name, speakers, mode, chosen, read, audio_s, seconds)


def _record(
    testset: str, mode: EvaluationMode, clip: Clip, heard: Clip, transcript: TranscriptLike
) -> dict[str, Any]:
    return {
        "testset": testset,
        "mode": mode.name,
        "audio": heard.audio.name,
        "reference_audio": clip.audio.name,
        "language": clip.language,
        "detected": transcript.language,
        "reference": clip.text,
        "hypothesis": transcript.text,
        "passes": transcript.passes,
        "truncated": transcript.truncated,
    }


def _result(
    testset: str,
    speakers: Speakers,
    mode: EvaluationMode,
    clips: Sequence[Clip],
    read: Sequence[TranscriptLike],
    audio_s: float,
    seconds: float,
) -> Result:
    language = clips[0].language
    detected = sum(transcript.language == language for transcript in read) / len(read)
    return Result(
        testset=testset,
        language=language,
        speakers=speakers,
        mode=mode,
        scores=score([clip.text for clip in clips], [transcript.text for transcript in read], language),
        language_accuracy=None if mode.language_given or mode.shuffled or not mode.passes else detected,
        mean_passes=sum(transcript.passes for transcript in read) / len(read),
        n_truncated=sum(transcript.truncated for transcript in read),
        audio_s=audio_s,
        seconds=seconds,
    )


def choose_modes(names: Sequence[str]) -> list[EvaluationMode]:
    """The default modes of these names, in the order given.

    Raises:
        OptionError: If a name is unknown.
    """
    known = {mode.name: mode for mode in DEFAULT_MODES}
    for name in names:
        if name not in known:
            raise OptionError(f"--modes: unknown mode {name!r}: use some of {', '.join(known)}")
    return [known[name] for name in names]


def run(options: argparse.Namespace, command: str, load_model: Callable[[str, str], Recogniser]) -> None:
    """Evaluate as the command's options say and write the three files.

    Raises:
        CanvasASRError: If an option, a test set, an audio file or the model is not usable.
    """
    modes = choose_modes(options.modes) if options.modes else list(DEFAULT_MODES)
    testsets = read_testsets(options.testsets)
    if options.sets:
        if unknown := set(options.sets) - set(testsets):
            raise OptionError(f"--sets: no test set {unknown.pop()!r}: use some of {', '.join(testsets)}")
        testsets = {name: testsets[name] for name in options.sets}
    for name, value in (("--limit", options.limit), ("--batch-size", options.batch_size)):
        if value is not None and value < 1:
            raise OptionError(f"{name} must be at least 1, got {value}")
    recogniser = load_model(options.model, options.device)
    options.out.mkdir(parents=True, exist_ok=True)
    description = describe_run(command, options.model, options.batch_size, options.seed, options.limit)
    digests = read_index(options.testsets)
    description["testsets"] = {name: {"sha256": digests[name]} for name in testsets}
    results: list[Result] = []
    total = len(modes) * sum(len(grouped(clips)) for clips in testsets.values())
    with (options.out / "hypotheses.jsonl").open("w", encoding="utf-8") as lines:

        def record(entry: dict[str, Any]) -> None:
            lines.write(json.dumps(entry, ensure_ascii=False) + "\n")

        measured = evaluate(
            recogniser,
            testsets,
            modes,
            load=load_audio,
            batch_size=options.batch_size,
            seed=options.seed,
            limit=options.limit,
            record=record,
        )
        for result in tqdm(measured, total=total, desc="evaluation", unit="row", disable=None):
            results.append(result)
            lines.flush()
            _write_report(options.out, description, results)


def _write_report(out: Path, description: Mapping[str, Any], results: Sequence[Result]) -> None:
    """Write both reports; after every row, so that a run that is stopped leaves what it measured."""
    figures = {**description, "results": [result.to_dict() for result in results]}
    write_text(out / "evaluation.json", json.dumps(figures, ensure_ascii=False, indent=1) + "\n")
    write_text(out / "evaluation.md", render_markdown(description, results))


def _load_model(model: str, device: str) -> Recogniser:
    # Here, not above: it imports torch, which --help and a wrong option need not wait for.
    from ..transcriber import load

    return load(model, device=device)


def main(
    argv: Sequence[str] | None = None, load_model: Callable[[str, str], Recogniser] = _load_model
) -> int:
    """Run the command; returns the exit code.

    Args:
        argv: Arguments; None takes the process's.
        load_model: Turns model and device into the model side.
    """
    program = "python -m canvas_asr.evaluation.evaluate"
    parser = argparse.ArgumentParser(prog=program, description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", help='name or folder, as canvas_asr.load takes it: "tiny"')
    parser.add_argument("--testsets", type=Path, required=True, help="folder written by evaluation.testsets")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--sets", nargs="+", metavar="SET", help="only these test sets")
    parser.add_argument("--modes", nargs="+", metavar="MODE", help="only these modes (default: all)")
    parser.add_argument(
        "--limit", type=int, help="only so many clips of each set, language and kind of speaker"
    )
    parser.add_argument("--batch-size", type=int, default=16, help="clips a batch (default 16)")
    parser.add_argument("--seed", type=int, default=0, help="canvas noise and shuffling (default 0)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ... (default cpu)")
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = parser.parse_args(arguments)
    try:
        run(options, f"{program} {shlex.join(arguments)}", load_model)
    except CanvasASRError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print((options.out / "evaluation.md").read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
