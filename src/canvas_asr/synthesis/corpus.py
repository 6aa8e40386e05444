"""Sentences to utterances with varied voices, and to folders of WAV files with a manifest.

    Synthesizer("train").say("guten Morgen", "de", np.random.default_rng(0))
    write_manifest("speech/train", [("guten Morgen", "de")], n=1)
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import wave
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soxr
from numpy.typing import NDArray

from canvas_asr.errors import DataError
from canvas_asr.synthesis import chinese, espeak
from canvas_asr.synthesis.voices import SPLITS, voices

SAMPLE_RATE_HZ = 16_000
RATE_WPM = (130, 210)
PITCH = (25, 75)
PITCH_RANGE = (30, 70)
RESAMPLING = 0.08
MAX_FILES_PER_FOLDER = 1000
MANIFEST = "manifest.jsonl"
SKIPPED = "skipped.jsonl"
OPTIONS = "options.json"


@dataclass(frozen=True)
class Utterance:
    """One synthetic clip.

    Attributes:
        samples: float32, mono, 16 kHz, in [-1, 1], (N,).
        text: What is said, as written.
        language: One of en, de, fr, es, hi, zh.
        voice: Voice that said it.
        phonemes: (symbol, start in seconds) in order of time, "" is silence; None if the voice gives none.
    """

    samples: NDArray[np.float32]
    text: str
    language: str
    voice: str
    phonemes: list[tuple[str, float]] | None

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return len(self.samples) / SAMPLE_RATE_HZ


def spoken_text(text: str, language: str) -> str:
    """What the synthesiser is given for a written sentence (pinyin for Chinese)."""
    return chinese.to_pinyin(text) if language == "zh" else text


class Synthesizer:
    """Says sentences in randomly drawn voices of one split.

    Args:
        split: "train", "test" (held-out speakers) or "test-accent" (held-out accents too).
        seed: Seeds the generator used when `say` is not given one.

    Raises:
        DataError: If the split is unknown.
    """

    def __init__(self, split: str = "train", seed: int = 0) -> None:
        if split not in SPLITS:
            raise DataError(f"unknown split {split!r}; choose from {', '.join(SPLITS)}")
        self.split = split
        self._rng = np.random.default_rng(seed)

    def say(self, text: str, language: str, rng: np.random.Generator | None = None) -> Utterance:
        """Say a sentence in a voice, rate, pitch and playback speed drawn from ``rng``.

        Raises:
            DataError: If the language has no voice in this split, the library is missing, the text cannot be
                read, or nothing in it is spoken.
        """
        rng = self._rng if rng is None else rng
        choices = voices(language, self.split)
        voice = choices[int(rng.integers(len(choices)))]
        rate = int(rng.integers(RATE_WPM[0], RATE_WPM[1] + 1))
        pitch = int(rng.integers(PITCH[0], PITCH[1] + 1))
        pitch_range = int(rng.integers(PITCH_RANGE[0], PITCH_RANGE[1] + 1))
        speed = float(rng.uniform(1 - RESAMPLING, 1 + RESAMPLING))
        speech = espeak.say(spoken_text(text, language), voice, rate, pitch, pitch_range)
        if not any(symbol for _, symbol in speech.phonemes):
            raise DataError(f"nothing in {text!r} is spoken in {language!r}; leave the sentence out")
        rate_hz = speech.sample_rate_hz * speed
        samples = soxr.resample(speech.samples.astype(np.float32) / 32768.0, rate_hz, SAMPLE_RATE_HZ, quality="MQ")
        phonemes = [(symbol, start / rate_hz) for start, symbol in speech.phonemes]
        return Utterance(np.clip(samples, -1.0, 1.0).astype(np.float32), text, language, voice, phonemes)


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
        skipped: How many sentences were skipped for each kind of reason.
    """

    n_written: int = 0
    n_earlier: int = 0
    n_skipped: int = 0
    hours: float = 0.0
    complete: bool = False
    skipped: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Job:
    folder: str
    split: str
    seed: int
    sentences: tuple[tuple[int, str, str], ...]  # (index, text, language)


def _audio_path(index: int, language: str) -> str:
    return f"{index // MAX_FILES_PER_FOLDER:05d}/{language}-{index:08d}.wav"


def _run_job(job: _Job) -> list[dict[str, Any]]:
    """Synthesise a run of sentences; a record without "audio" is a skipped sentence with its reason."""
    synthesizer = Synthesizer(job.split)
    records: list[dict[str, Any]] = []
    for index, text, language in job.sentences:
        record: dict[str, Any] = {"index": index, "text": text, "language": language}
        try:
            utterance = synthesizer.say(text, language, np.random.default_rng((job.seed, index)))
        except DataError as error:
            records.append({**record, "reason": str(error)})
            continue
        audio = _audio_path(index, language)
        path = Path(job.folder, audio)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_wav(path, utterance.samples)
        phonemes = utterance.phonemes
        record |= {
            "audio": audio,
            "speaker": utterance.voice,
            "duration": round(utterance.duration_s, 4),
            "split": job.split,
            "phonemes": None if phonemes is None else [[symbol, round(start, 4)] for symbol, start in phonemes],
        }
        records.append(record)
    return records


def _read_records(path: Path) -> list[dict[str, Any]]:
    """Complete lines of a JSON-lines file; a line cut by a kill is removed from the file."""
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) != len(data):
        path.write_bytes(whole)
    return [json.loads(line) for line in whole.decode("utf-8").splitlines()]


def _check_options(folder: Path, options: dict[str, Any]) -> None:
    path = folder / OPTIONS
    if path.exists():
        earlier = json.loads(path.read_text("utf-8"))
        if earlier != options:
            raise DataError(f"{path} was written with {earlier}, not {options}; use another folder or equal options")
    elif (folder / MANIFEST).exists():
        raise DataError(f"{folder} has a {MANIFEST} but no {OPTIONS}; it was not written here, use another folder")
    else:
        path.write_text(json.dumps(options), "utf-8")


def _results(jobs: Iterator[_Job], n_workers: int) -> Iterator[list[dict[str, Any]]]:
    """Results in the order of the jobs, with at most a few jobs ahead of the reader."""
    if n_workers <= 1:
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


def write_manifest(
    out_dir: str | os.PathLike[str],
    sentences: Iterable[tuple[str, str]],
    *,
    n: int | None = None,
    hours: float | None = None,
    split: str = "train",
    seed: int = 0,
    n_workers: int = 1,
    chunk: int = 32,
) -> ManifestSummary:
    """Write 16-bit WAV files of at most 1,000 a folder, and ``manifest.jsonl`` with text and phonemes.

    Sentence i is said the same way for the same seed, whatever the number of workers. Called again with the same
    arguments on the same folder, it goes on where it was stopped. Sentences that cannot be said are listed in
    ``skipped.jsonl`` and counted.

    Args:
        out_dir: Folder, made if missing.
        sentences: (text, language) pairs; the same, in the same order, when resuming.
        n: Stop after this many utterances.
        hours: Stop when this much audio is written; with neither, all sentences are said.
        split: Voices of "train", "test" or "test-accent".
        seed: Seed of voices, rates and pitches.
        n_workers: Processes; 1 works in this process.
        chunk: Sentences given to a worker at a time.

    Raises:
        DataError: If an option is out of range, or the folder was written with other options or sentences.
    """
    if split not in SPLITS:
        raise DataError(f"unknown split {split!r}; choose from {', '.join(SPLITS)}")
    if (n is not None and n < 1) or (hours is not None and not hours > 0) or n_workers < 1 or chunk < 1:
        raise DataError("n, hours, n_workers and chunk must be positive")
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    _check_options(folder, {"split": split, "seed": seed})
    earlier = {r["index"]: r for name in (MANIFEST, SKIPPED) for r in _read_records(folder / name)}
    summary = ManifestSummary()

    def full() -> bool:
        return (n is not None and summary.n_written >= n) or (hours is not None and summary.hours >= hours)

    def fresh() -> Iterator[tuple[int, str, str]]:
        for index, (text, language) in enumerate(sentences):
            record = earlier.get(index)
            if record is None:
                yield index, text, language
            elif (record["text"], record["language"]) != (text, language):
                raise DataError(f"sentence {index} of {folder} is {record['text']!r}, not {text!r}: other sentences")

    def jobs() -> Iterator[_Job]:
        waiting = fresh()
        while block := tuple(itertools.islice(waiting, chunk)):
            yield _Job(str(folder), split, seed, block)

    for record in earlier.values():
        _count(summary, record)
    summary.n_earlier = summary.n_written
    if not full():
        with open(folder / MANIFEST, "a", encoding="utf-8") as kept, open(folder / SKIPPED, "a", encoding="utf-8") as no:
            for record in itertools.chain.from_iterable(_results(jobs(), n_workers)):
                if full():
                    if "audio" in record:  # made ahead of the limit
                        (folder / record["audio"]).unlink()
                    continue
                file = kept if "audio" in record else no
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
                file.flush()
                _count(summary, record)
    summary.complete = full() or (n is None and hours is None)
    return summary


def _count(summary: ManifestSummary, record: dict[str, Any]) -> None:
    if "audio" in record:
        summary.n_written += 1
        summary.hours += record["duration"] / 3600
    else:
        summary.n_skipped += 1
        reason = record["reason"].split(" in ")[0]
        summary.skipped[reason] = summary.skipped.get(reason, 0) + 1
