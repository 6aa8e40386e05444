"""Build the fixed test sets: the same clips for the same seed, as manifests with 16 kHz FLAC beside them.

    python -m canvas_asr.evaluation.testsets --sentences data/text --real data/speech --out data/testsets

writes

    data/testsets/testsets.json             index: every set with the SHA-256 of its manifest
    data/testsets/synthetic/manifest.jsonl  100 unseen sentences a language, in voices kept out of training
    data/testsets/<source>/manifest.jsonl   real speech: the test split of each source that has one
    data/testsets/train_real.jsonl          real speech that training may use: everything else

A source whose name begins with "librispeech" is a public benchmark: all of it is test, none of it may be
trained on. A clip is marked ``seen_speaker`` where its speaker also occurs in ``train_real.jsonl``; synthetic
voices never do. Run again, it builds only what is missing or has other inputs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile as sf
from tqdm import tqdm

from ..audio import SAMPLE_RATE_HZ, load_audio
from ..errors import CanvasASRError, DataError
from ..manifest import MANIFEST_NAME, Clip, read_manifest, write_manifest, write_text
from .index import INDEX_NAME, file_sha256
from .metrics import PRIMARY_METRICS

SYNTHETIC = "synthetic"
TRAINING_NAME = "train_real.jsonl"
TEST_ONLY_PREFIXES = ("librispeech",)

Samples = npt.NDArray[np.float32]
Say = Callable[[str, str, np.random.Generator], "tuple[Samples, Clip] | None"]
Index = dict[str, dict[str, Any]]


def choose_sentences(sentences: Sequence[str], seed: int) -> list[str]:
    """Put distinct sentences in an order drawn by seed, which does not move when others join or leave."""
    return sorted(set(sentences), key=lambda text: _digest(seed, text))


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()


def split_real(root: Path) -> tuple[dict[str, list[Clip]], list[Clip]]:
    """Sort the clips of every source folder under ``root`` into test sets and training.

    Args:
        root: Each subfolder with a ``manifest.jsonl`` is a source and names its set.

    Returns:
        Test clips by source (sources without any are absent), each with ``source`` and ``seen_speaker``; and
        the clips that training may use, with ``source``.

    Raises:
        DataError: If there is no source under ``root``, or a manifest is malformed.
    """
    folders = sorted(path.parent for path in root.glob(f"*/{MANIFEST_NAME}"))
    if not folders:
        raise DataError(
            f"{root}: no folder with a {MANIFEST_NAME} in it; give the folder that holds the sources"
        )
    tests: dict[str, list[Clip]] = {}
    training: list[Clip] = []
    for folder in folders:
        clips = [replace(clip, source=folder.name) for clip in read_manifest(folder / MANIFEST_NAME)]
        test_only = folder.name.startswith(TEST_ONLY_PREFIXES)
        test = [clip for clip in clips if test_only or clip.split == "test"]
        if test:
            tests[folder.name] = test
        training += [
            replace(c, split=c.split or "train") for c in clips if not test_only and c.split != "test"
        ]
    trained = {(clip.source, clip.speaker) for clip in training}
    for name, clips in tests.items():
        tests[name] = [replace(clip, split="test", seen_speaker=_seen(clip, trained)) for clip in clips]
    return tests, training


def _seen(clip: Clip, trained: set[tuple[str | None, str | None]]) -> bool | None:
    if clip.speaker is None and any(source == clip.source for source, _ in trained):
        return None
    return (clip.source, clip.speaker) in trained


def build_real(tests: Mapping[str, Sequence[Clip]], out: Path, index: Index) -> None:
    """Convert each source's test clips to 16 kHz FLAC under ``out`` and write their manifests.

    Raises:
        AudioError: If a clip cannot be read.
    """
    for name, clips in tests.items():
        key = _digest([[clip.audio.name, clip.text, clip.language, clip.seen_speaker] for clip in clips])
        if _is_complete(out, name, key, index):
            continue
        (out / name / "audio").mkdir(parents=True, exist_ok=True)
        written = []
        for i, clip in enumerate(tqdm(clips, desc=name, unit="clip", disable=None)):
            samples = load_audio(clip.audio)
            path = out / name / "audio" / f"{i:04d}_{clip.audio.stem}.flac"
            written.append(_store(path, samples, clip))
        _finish(out, name, key, written, index)


def build_synthetic(
    sentences: Mapping[str, Sequence[str]],
    say: Say,
    out: Path,
    index: Index,
    *,
    n: int,
    seed: int,
    voices: str,
) -> None:
    """Say ``n`` sentences a language and write them as one set.

    Args:
        sentences: Unseen sentences by language.
        say: Speaks one sentence with the randomness of a generator: 16 kHz samples and the clip's line; None
            if it cannot be said, and another one is taken.
        out: Folder of all sets.
        index: Index of all sets, updated.
        n: Sentences a language.
        seed: Draws sentences and voices.
        voices: What distinguishes ``say`` from another one; the set is built again when it changes.

    Raises:
        DataError: If a language has fewer than ``n`` sentences that can be said.
    """
    order = {language: choose_sentences(texts, seed) for language, texts in sentences.items()}
    key = _digest(n, seed, voices, order)
    if _is_complete(out, SYNTHETIC, key, index):
        return
    (out / SYNTHETIC / "audio").mkdir(parents=True, exist_ok=True)
    written = []
    for language, texts in order.items():
        spoken = 0
        for text in tqdm(texts, desc=f"{SYNTHETIC} {language}", total=n, unit="clip", disable=None):
            # From the text, not from its place: leaving one sentence out changes no other clip.
            made = say(text, language, np.random.default_rng((seed, int(_digest(text)[:16], 16))))
            if made is None:
                continue
            samples, clip = made
            path = out / SYNTHETIC / "audio" / f"{language}-{spoken:04d}.flac"
            written.append(_store(path, samples, clip))
            spoken += 1
            if spoken == n:
                break
        if spoken < n:
            raise DataError(
                f"only {spoken} unseen {language} sentences can be said, {n} are wanted; lower --n"
            )
    _finish(out, SYNTHETIC, key, written, index)


def _store(path: Path, samples: Samples, clip: Clip) -> Clip:
    sf.write(path, samples, SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")
    return replace(clip, audio=path.resolve(), duration_s=len(samples) / SAMPLE_RATE_HZ)


def _is_complete(out: Path, name: str, key: str, index: Index) -> bool:
    manifest = out / name / MANIFEST_NAME
    entry = index.get(name)
    if entry is None or entry.get("inputs") != key or not manifest.is_file():
        return False
    if file_sha256(manifest) != entry.get("sha256"):
        return False
    return all(clip.audio.is_file() for clip in read_manifest(manifest))


def _finish(out: Path, name: str, key: str, clips: Sequence[Clip], index: Index) -> None:
    """Write the manifest and its index entry, and remove audio that an earlier build left over."""
    manifest = out / name / MANIFEST_NAME
    write_manifest(manifest, clips)
    kept = {clip.audio.name for clip in clips}
    for path in (out / name / "audio").glob("*.flac"):
        if path.name not in kept:
            path.unlink()
    index[name] = {"inputs": key, "sha256": file_sha256(manifest), "n_clips": len(clips)}
    _write_index(out, index)


def _read_index_entries(out: Path) -> Index:
    try:
        entries = json.loads((out / INDEX_NAME).read_text(encoding="utf-8"))["sets"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # none yet, or not ours: everything is built again
    return dict(entries) if isinstance(entries, dict) else {}


def _write_index(out: Path, index: Index) -> None:
    write_text(out / INDEX_NAME, json.dumps({"sets": index}, indent=1) + "\n")


def _held_out_voices() -> tuple[Say, str]:
    """Say with the synthesiser's held-out voices; and a text that changes when those do."""
    # Here, not above: reading test sets must not need the synthesiser's library.
    from ..synthesis.corpus import Synthesizer
    from ..synthesis.voices import voices

    synthesizer = Synthesizer(split="test")

    def say(text: str, language: str, rng: np.random.Generator) -> tuple[Samples, Clip] | None:
        try:
            spoken = synthesizer.say(text, language, rng)
        except DataError as error:
            print(f"left out: {error}", file=sys.stderr)
            return None
        phonemes = None if spoken.phonemes is None else tuple(spoken.phonemes)
        clip = Clip(
            audio=Path(),
            text=text,
            language=language,
            speaker=spoken.voice,
            split="test",
            source=SYNTHETIC,
            seen_speaker=False,
            phonemes=phonemes,
        )
        return spoken.samples, clip

    return say, _digest({language: voices(language, "test") for language in PRIMARY_METRICS})


def build(
    sentences: Path, real: Path | None, out: Path, *, n: int = 100, seed: int = 0
) -> dict[str, list[Clip]]:
    """Build everything this module's documentation lists; returns the sets by name.

    Args:
        sentences: Folder with ``<language>.txt[.gz]``.
        real: Folder of the real sources; None for synthetic speech only.
        out: Folder to write to, made if missing.
        n: Synthetic sentences a language.
        seed: Draws sentences and voices.

    Raises:
        DataError: If an input is missing or malformed, or there are too few sentences.
        AudioError: If a real clip cannot be read.
    """
    from ..training.sentences import read_sentences

    if n < 1:
        raise DataError(f"n must be at least 1, got {n}")
    tests, training = split_real(real) if real is not None else ({}, [])
    if SYNTHETIC in tests:
        raise DataError(f"{real}: rename the source {SYNTHETIC!r}, the synthetic set has this name")
    lists = read_sentences(sentences)
    out.mkdir(parents=True, exist_ok=True)
    earlier = _read_index_entries(out)
    index = {name: entry for name, entry in earlier.items() if name == SYNTHETIC or name in tests}
    say, voices = _held_out_voices()
    build_synthetic(lists.test, say, out, index, n=n, seed=seed, voices=voices)
    build_real(tests, out, index)
    _write_index(out, index)
    if real is not None:
        write_manifest(out / TRAINING_NAME, training)
    return {name: read_manifest(out / name / MANIFEST_NAME) for name in index}


def summary(sets: Mapping[str, Sequence[Clip]]) -> str:
    """One line for each set, language and kind of speaker: clips and minutes."""
    clips: Counter[tuple[str, str, str]] = Counter()
    seconds: Counter[tuple[str, str, str]] = Counter()
    for name, members in sets.items():
        for clip in members:
            kind = {True: "seen", False: "unseen", None: "unknown"}[clip.seen_speaker]
            clips[name, clip.language, kind] += 1
            seconds[name, clip.language, kind] += round((clip.duration_s or 0) * 1000)
    lines = [f"{'set':32}{'language':10}{'speakers':10}{'clips':>8}{'minutes':>9}"]
    for row, count in clips.items():
        name, language, kind = row
        lines.append(f"{name:32}{language:10}{kind:10}{count:8}{seconds[row] / 60_000:9.1f}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m canvas_asr.evaluation.testsets", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--sentences", type=Path, required=True, help="folder with <language>.txt[.gz]")
    parser.add_argument(
        "--real", type=Path, help="folder whose subfolders hold real speech and a manifest.jsonl"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--n", type=int, default=100, help="synthetic sentences a language (default 100)")
    parser.add_argument("--seed", type=int, default=0, help="draws sentences and voices (default 0)")
    options = parser.parse_args(argv)
    try:
        sets = build(options.sentences, options.real, options.out, n=options.n, seed=options.seed)
    except CanvasASRError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(summary(sets))
    return 0


if __name__ == "__main__":
    sys.exit(main())
