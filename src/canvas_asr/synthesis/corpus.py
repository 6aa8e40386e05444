"""Sentences to folders of WAV files with a manifest, by several processes, resumable.

write_manifest("speech/train", [("guten Morgen", "de"), ("", "de")], seed=1, n_workers=4)
synthesize_manifest("speech/train", {"de": "sentences.de.txt.gz"}, hours=10, n_workers=4)
"""

from __future__ import annotations

import gzip
import itertools
import json
import multiprocessing
import os
import wave
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from canvas_asr.audio import SAMPLE_RATE_HZ
from canvas_asr.errors import DataError, OptionError
from canvas_asr.synthesis.augment import AugmentationConfig
from canvas_asr.synthesis.synthesizer import Synthesizer, Utterance
from canvas_asr.synthesis.voices import ACCENTS

__all__ = [
    "ManifestSummary",
    "Synthesizer",
    "Utterance",
    "read_sentences",
    "synthesize_manifest",
    "write_manifest",
]

MAX_FILES_PER_FOLDER = 1000
MANIFEST = "manifest.jsonl"
SKIPPED = "skipped.jsonl"
MAX_IN_VAIN = 1000
OPTIONS = "options.json"


def write_wav(path: Path, samples: NDArray[np.float32]) -> None:
    """Write 16 kHz mono 16-bit PCM; a file under its final name is complete."""
    partial = path.with_name(path.name + ".partial")
    with wave.open(str(partial), "wb") as file:
        file.setparams((1, 2, SAMPLE_RATE_HZ, 0, "NONE", "not compressed"))
        file.writeframes(np.round(np.clip(samples, -1, 1) * 32767.0).astype("<i2").tobytes())
    os.replace(partial, path)


@dataclass
class ManifestSummary:
    """What `write_manifest` did.

    Attributes:
        n_written: Utterances in the manifest, earlier runs included.
        n_earlier: How many of them an earlier run had written.
        n_skipped: Sentences that could not be said; listed with reasons in ``skipped.jsonl``.
        hours: Audio in the manifest.
        complete: Whether the asked number or hours were reached before the sentences ran out.
        reasons: How many sentences were skipped for each kind of reason.
    """

    n_written: int = 0
    n_earlier: int = 0
    n_skipped: int = 0
    hours: float = 0.0
    complete: bool = False
    reasons: dict[str, int] = field(default_factory=dict)

    def count(self, record: Mapping[str, Any]) -> None:
        """Add one line of the manifest or of the skipped sentences."""
        if "audio" in record:
            self.n_written += 1
            self.hours += record["duration"] / 3600
        else:
            self.n_skipped += 1
            reason = record["reason"].split(" in ")[0]
            self.reasons[reason] = self.reasons.get(reason, 0) + 1


@dataclass(frozen=True)
class _Options:
    """What decides the audio of sentence i."""

    split: str
    seed: int
    recorded_share: float
    augmentation: AugmentationConfig | None

    def synthesizer(self) -> Synthesizer:
        return Synthesizer(self.split, recorded_share=self.recorded_share, augmentation=self.augmentation)


@dataclass(frozen=True)
class _Job:
    folder: str
    options: _Options
    sentences: tuple[tuple[int, str, str], ...]  # (index, text, language)


def _run_job(job: _Job) -> list[dict[str, Any]]:
    """Synthesise a run of sentences; a record without "audio" is a skipped sentence with its reason."""
    synthesizer = job.options.synthesizer()
    records: list[dict[str, Any]] = []
    for index, text, language in job.sentences:
        record: dict[str, Any] = {"index": index, "text": text, "language": language}
        try:
            utterance = synthesizer.say(text, language, np.random.default_rng((job.options.seed, index)))
        except DataError as error:
            records.append({**record, "reason": str(error)})
            continue
        audio = f"{index // MAX_FILES_PER_FOLDER:05d}/{language}-{index:08d}.wav"
        path = Path(job.folder, audio)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_wav(path, utterance.samples)
        record |= {
            "audio": audio,
            "speaker": utterance.voice,
            "duration": round(utterance.duration_s, 4),
            "split": job.options.split,
            "phonemes": [[symbol, round(start, 4)] for symbol, start in utterance.phonemes],
        }
        records.append(record)
    return records


def _results(jobs: Iterator[_Job], n_workers: int) -> Iterator[list[dict[str, Any]]]:
    """Results in the order of the jobs, with at most a few jobs ahead of the reader."""
    if n_workers == 1:
        yield from map(_run_job, jobs)
        return
    # spawn: the caller may have threads (torch), which a fork would copy half-alive.
    pool = ProcessPoolExecutor(n_workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        running: deque[Future[list[dict[str, Any]]]] = deque()
        for job in jobs:
            running.append(pool.submit(_run_job, job))
            if len(running) >= 3 * n_workers:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _Folder:
    """The files of one manifest, and what earlier runs left there."""

    def __init__(self, path: Path, options: _Options) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        self._check(json.loads(json.dumps(asdict(options))))
        self.earlier = {r["index"]: r for name in (MANIFEST, SKIPPED) for r in self._read(name)}

    def _check(self, options: dict[str, Any]) -> None:
        file = self.path / OPTIONS
        if file.exists():
            earlier = json.loads(file.read_text("utf-8"))
            if earlier != options:
                names = ", ".join(k for k in options if earlier.get(k) != options[k])
                raise DataError(
                    f"{file}: written with other options ({names}); use another folder or equal options"
                )
        elif (self.path / MANIFEST).exists():
            raise DataError(f"{self.path}: has a {MANIFEST} that was not written here; use another folder")
        else:
            file.write_text(json.dumps(options, indent=1) + "\n", "utf-8")

    def _read(self, name: str) -> list[dict[str, Any]]:
        """Complete lines of a JSON-lines file; a line cut by a kill is removed from the file."""
        file = self.path / name
        if not file.exists():
            return []
        data = file.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) != len(data):
            file.write_bytes(whole)
        return [json.loads(line) for line in whole.decode("utf-8").splitlines()]

    def missing(self, sentences: Iterable[tuple[str, str]]) -> Iterator[tuple[int, str, str]]:
        """Sentences not yet done, with their places.

        Raises:
            DataError: If a sentence differs from what stood in its place before.
        """
        for index, (text, language) in enumerate(sentences):
            record = self.earlier.get(index)
            if record is None:
                yield index, text, language
            elif (record["text"], record["language"]) != (text, language):
                was = record["text"]
                raise DataError(f"{self.path}: sentence {index} was {was!r}, is {text!r}; use another folder")

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one line of the manifest, or of the skipped sentences."""
        name = MANIFEST if "audio" in record else SKIPPED
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _keep(
    records: Iterable[dict[str, Any]], folder: _Folder, summary: ManifestSummary, full: Callable[[], bool]
) -> None:
    """Write and count records until the manifest is full; clips made ahead of the limit are deleted.

    Raises:
        DataError: If too many sentences in a row cannot be said; they may be drawn without end.
    """
    n_in_vain = 0
    for record in records:
        n_in_vain = 0 if "audio" in record else n_in_vain + 1
        if n_in_vain == MAX_IN_VAIN:
            raise DataError(
                f"{folder.path}: the last {MAX_IN_VAIN} sentences could not be said; see {SKIPPED}"
            )
        if not full():
            folder.append(record)
            summary.count(record)
        elif "audio" in record:
            (folder.path / record["audio"]).unlink()


def write_manifest(
    out_dir: str | os.PathLike[str],
    sentences: Iterable[tuple[str, str]],
    *,
    n: int | None = None,
    hours: float | None = None,
    split: str = "train",
    seed: int = 0,
    n_workers: int = 1,
    recorded_share: float = 0.0,
    augmentation: AugmentationConfig | None = None,
    chunk: int = 32,
) -> ManifestSummary:
    """Write 16-bit WAV files of at most 1,000 a folder, and ``manifest.jsonl`` with text and phonemes.

    Sentence i gets the same voice, rate and pitch for the same options, whatever the number of workers.
    Called again with the same arguments on the same folder, it goes on where it was stopped. Sentences that
    cannot be said are listed in ``skipped.jsonl`` and counted.

    Args:
        out_dir: Folder, made if missing.
        sentences: (text, language) pairs; the same, in the same order, when resuming. An empty text is a clip
            without speech.
        n: Stop after this many utterances.
        hours: Stop when this much audio is written; with neither, all sentences are said.
        split: Voices of "train", "test" or "test-accent".
        seed: Seed of voices, rates, pitches and augmentation.
        n_workers: Processes; 1 works in this process.
        recorded_share: Share of voices made from recordings, where a language has them.
        augmentation: Noise, rooms and so on; None leaves clips clean.
        chunk: Sentences given to a worker at a time.

    Raises:
        OptionError: If an option is out of range.
        DataError: If the folder was written with other options or sentences, no engine is installed, or 1,000
            sentences in a row cannot be said.
    """
    if (n is not None and n < 1) or (hours is not None and not hours > 0) or n_workers < 1 or chunk < 1:
        raise OptionError("n, hours, n_workers and chunk must be positive")
    options = _Options(split, seed, recorded_share, augmentation)
    options.synthesizer()  # refuses bad options before anything is written
    folder = _Folder(Path(out_dir), options)
    summary = ManifestSummary()
    for record in folder.earlier.values():
        summary.count(record)
    summary.n_earlier = summary.n_written

    def full() -> bool:
        return (n is not None and summary.n_written >= n) or (hours is not None and summary.hours >= hours)

    def jobs() -> Iterator[_Job]:
        waiting = folder.missing(sentences)
        while not full() and (block := tuple(itertools.islice(waiting, chunk))):
            yield _Job(str(folder.path), options, block)

    _keep(itertools.chain.from_iterable(_results(jobs(), n_workers)), folder, summary, full)
    summary.complete = full() or (n is None and hours is None)
    return summary


def read_sentences(path: str | os.PathLike[str]) -> list[str]:
    """Sentences of a text file, one a line, plain or gzip; empty lines are left out.

    Raises:
        DataError: If the file is missing, is not UTF-8 text, or holds no sentence.
    """
    try:
        data = Path(path).read_bytes()
        text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as sentences, one a line ({error})") from error
    sentences = [line.strip() for line in text.splitlines() if line.strip()]
    if not sentences:
        raise DataError(f"{path}: holds no sentence")
    return sentences


def mixed_sentences(
    texts: Mapping[str, list[str]], seed: int, non_speech_share: float
) -> Iterator[tuple[str, str]]:
    """(text, language) without end: languages in turn, the sentences of each in a new order every round.

    Args:
        texts: Sentences of each language.
        seed: Seed of the order.
        non_speech_share: Share of pairs with an empty text.
    """
    rng = np.random.default_rng(seed)
    orders: dict[str, deque[int]] = {language: deque() for language in texts}
    while True:
        for language, sentences in texts.items():
            if rng.random() < non_speech_share:
                yield "", language
                continue
            if not orders[language]:
                orders[language].extend(rng.permutation(len(sentences)).tolist())
            yield sentences[orders[language].popleft()], language


def synthesize_manifest(
    out_dir: str | os.PathLike[str],
    texts: Mapping[str, str | os.PathLike[str]],
    *,
    n: int | None = None,
    hours: float | None = None,
    split: str = "train",
    seed: int = 0,
    n_workers: int = 1,
    recorded_share: float = 0.3,
    non_speech_share: float = 0.0,
    augment: bool = False,
    augmentation: AugmentationConfig | None = None,
) -> ManifestSummary:
    """Say sentences of text files, languages in equal numbers, into a manifest (`canvas-asr synth`).

    Args:
        out_dir: Folder, made if missing; the same call on the same folder resumes.
        texts: A file of sentences, one a line, plain or gzip, for each language code.
        n: Utterances in all.
        hours: Hours of audio in all; give n, hours or both (the first reached counts).
        split: Voices of "train", "test" or "test-accent".
        seed: Seed of everything.
        n_workers: Processes.
        recorded_share: Share of voices made from recordings (flite, festival), where a language has them.
        non_speech_share: Share of clips without speech, whose text is empty.
        augment: Whether to add noise, rooms, colour and gain with the default strengths.
        augmentation: Strengths other than the default; implies ``augment``.

    Returns:
        What was written; ``complete`` tells whether n or hours were reached.

    Raises:
        OptionError: If an option is out of range, or neither n nor hours is given.
        DataError: If a language or file is unusable, an engine is missing, or the folder holds other audio.
    """
    if n is None and hours is None:
        raise OptionError("give n (utterances) or hours (of audio)")
    if not 0 <= non_speech_share < 1:
        raise OptionError(f"non_speech_share must lie in [0, 1), not {non_speech_share}")
    unknown = sorted(set(texts) - set(ACCENTS))
    if unknown or not texts:
        raise DataError(
            f"no synthetic voice for {', '.join(unknown) or 'no language'}; choose from {', '.join(ACCENTS)}"
        )
    if augment and augmentation is None:
        augmentation = AugmentationConfig()
    pairs = mixed_sentences(
        {lang: read_sentences(path) for lang, path in texts.items()}, seed, non_speech_share
    )
    return write_manifest(
        out_dir, pairs, n=n, hours=hours, split=split, seed=seed, n_workers=n_workers,
        recorded_share=recorded_share, augmentation=augmentation,
    )  # fmt: skip
