"""Languages found: how often, which for which, and how sure.

    python benchmarks/languages.py tiny --testsets data/testsets

Every clip of the test sets is transcribed without being told its language. Writes ``docs/languages.json``
and ``docs/languages.md``: for synthetic and for real speech a table of true languages by those found.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from one_model import add_options, circumstances, load_on_cpu, write

from canvas_asr.card_sections import table
from canvas_asr.languages import LANGUAGES
from canvas_asr.manifest import MANIFEST_NAME, Clip, read_manifest

SYNTHETIC = "synthetic"
AIM = 0.95  # on synthetic speech
BATCH_SIZE = 8
Record = dict[str, Any]


@dataclass(frozen=True)
class Found:
    """What was found of one clip.

    Attributes:
        testset: Its set.
        language: The true one.
        found: The one found.
        probabilities: Of every language that the model knows.
    """

    testset: str
    language: str
    found: str
    probabilities: dict[str, float]


def choose(clips: Iterable[Clip], limit: int | None) -> list[Clip]:
    """Take the first clips of each language in which something is said."""
    counts: Counter[str] = Counter()
    chosen = []
    for clip in clips:
        if clip.text and (limit is None or counts[clip.language] < limit):
            counts[clip.language] += 1
            chosen.append(clip)
    return chosen


def find(asr: Any, testset: str, clips: Sequence[Clip], decoding: Record) -> list[Found]:
    """Find the language of clips that the model can take whole."""
    from canvas_asr.audio import SAMPLE_RATE_HZ, load_audio

    found: list[Found] = []
    stream = iter(clips)
    while batch := list(islice(stream, BATCH_SIZE)):
        heard = [(clip, load_audio(clip.audio)) for clip in batch]
        heard = [one for one in heard if 0 < len(one[1]) <= asr.max_audio_s * SAMPLE_RATE_HZ]
        read = asr.transcribe_arrays([samples for _, samples in heard], batch_size=BATCH_SIZE, **decoding)
        found += [
            Found(testset, clip.language, one.language, one.language_probabilities)
            for (clip, _), one in zip(heard, read, strict=True)
        ]
    return found


def figures(found: Sequence[Found]) -> Record:
    """Confusions, share of clips that are right, and the mean probability of the true language."""
    confusion: dict[str, Counter[str]] = defaultdict(Counter)
    sure: dict[str, list[float]] = defaultdict(list)
    for one in found:
        confusion[one.language][one.found] += 1
        sure[one.language].append(one.probabilities.get(one.language, 0.0))
    n_right = sum(counts[language] for language, counts in confusion.items())
    return {
        "n_clips": len(found),
        "right": n_right / max(1, len(found)),
        "by_language": {
            language: {
                "n_clips": len(sure[language]),
                "right": confusion[language][language] / len(sure[language]),
                "probability": sum(sure[language]) / len(sure[language]),
                "found": dict(confusion[language]),
            }
            for language in LANGUAGES
            if language in confusion
        },
        "by_set": {
            name: sum(one.language == one.found for one in found if one.testset == name)
            / sum(one.testset == name for one in found)
            for name in dict.fromkeys(one.testset for one in found)
        },
    }


_INTRODUCTION = """\
# Languages, measured

The first token of a canvas names the language (or, given with `language=`, is set): its probabilities over
the languages that the model knows are `Transcript.language_probabilities`, and those of each chunk of a long
file `Segment.language_probabilities`. Here each clip was transcribed without being told its language; clips
without speech, and longer than the model takes at once, are left out. *Right*: share of clips; *p*: mean
probability of the true language. Columns: the language found.

Model `{model}`, {decoding}, {cpu}, threads: {n_threads}. Made by

    {command}

Aim: at least {aim:.0f} % on synthetic speech. {verdict} Most of the recordings are of speakers that
the training heard, each in one language: there a known voice gives the language away.
"""


def _section(title: str, kind: Record) -> list[str]:
    rows = [
        [
            language,
            str(one["n_clips"]),
            f"{100 * one['right']:.1f} %",
            f"{one['probability']:.2f}",
            *(str(one["found"].get(other, 0)) for other in LANGUAGES),
        ]
        for language, one in kind["by_language"].items()
    ]
    sets = ", ".join(f"{name} {100 * right:.1f} %" for name, right in kind["by_set"].items())
    return [
        f"\n## {title}\n",
        f"{kind['n_clips']} clips, {100 * kind['right']:.1f} % right: {sets}.\n",
        *table(["language", "clips", "right", "p", *LANGUAGES], rows, 1),
    ]


def markdown(content: Record) -> str:
    """Write the page."""
    verdict = "No synthetic speech was read."
    if SYNTHETIC in content["kinds"]:
        right = content["kinds"][SYNTHETIC]["right"]
        verdict = f"**{'Reached' if right >= AIM else 'Missed'}**: {100 * right:.1f} %."
    lines = [
        _INTRODUCTION.format(**content, **content["environment"], aim=100 * AIM, verdict=verdict),
    ]
    for kind, title in ((SYNTHETIC, "Synthetic speech"), ("real", "Recordings of people")):
        if kind in content["kinds"]:
            lines += _section(title, content["kinds"][kind])
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None, load_model: Callable[[str], Any] = load_on_cpu) -> int:
    """Run the command; returns the exit code.

    Args:
        argv: Its arguments; None takes the process's.
        load_model: Turns a name into a ``Transcriber``.
    """
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_options(parser, "languages")
    parser.add_argument("--testsets", type=Path, required=True, help="folder of sets, each with its manifest")
    parser.add_argument("--sets", nargs="+", help="only these")
    parser.add_argument("--limit", type=int, help="only so many clips of each set and language")
    parser.add_argument("--init", default="draft", help="of the decoding (default draft)")
    parser.add_argument("--steps", type=int, default=1, help="of the decoding (default 1)")
    options = parser.parse_args(argv)

    manifests = sorted(options.testsets.glob(f"*/{MANIFEST_NAME}"))
    chosen = [path for path in manifests if options.sets is None or path.parent.name in options.sets]
    if not chosen:
        parser.error(f"{options.testsets}: no set with a {MANIFEST_NAME} in it")
    setting = circumstances("languages", argv, options)
    asr = load_model(options.model)
    decoding = {"init": options.init, "steps": options.steps}
    found: list[Found] = []
    for path in chosen:
        found += find(asr, path.parent.name, choose(read_manifest(path), options.limit), decoding)
    kinds = {
        kind: [one for one in found if (one.testset == SYNTHETIC) == (kind == SYNTHETIC)]
        for kind in (SYNTHETIC, "real")
    }
    content: Record = {
        **setting,
        "decoding": f"init={options.init}, steps={options.steps}",
        "kinds": {kind: figures(own) for kind, own in kinds.items() if own},
    }
    write(options.out, content, markdown(content))
    return 0


if __name__ == "__main__":
    sys.exit(main())
