"""Have models read sets in every setting and condition, and keep each result.

RTFx is seconds of audio by wall-clock seconds, both summed, from waveform to text: features, prefix, all
passes and detokenising count; reading files, loading the model and one warm-up call a setting do not. The
time of a call is shared by its clips.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..audio import SAMPLE_RATE_HZ
from ..errors import DataError
from ..manifest import Clip
from .conditions import Condition
from .machine import describe_setup
from .metrics import PRIMARY_METRICS
from .modes import Samples, Setting, Speakers, TranscriptLike
from .store import Line, Store
from .systems import Kind, Reading, Request, System, Utterance

BATCHES_AT_ONCE = 16
"""Batches whose audio is in memory, and that are lost when a run is stopped."""
_LIMIT_ROUNDING_S = 0.001


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


def speakers_of(clip: Clip) -> Speakers:
    """Whether the clip's speaker is in the training data."""
    if clip.seen_speaker is None:
        return "unknown"
    return "seen" if clip.seen_speaker else "unseen"


@dataclass(frozen=True)
class Group:
    """Clips of one language and kind of speaker of a set.

    Attributes:
        testset: Name of the set.
        language: Of the clips.
        speakers: Kind of speaker.
        places: Of the clips in the set.
        clips: In the order of the set.
    """

    testset: str
    language: str
    speakers: Speakers
    places: tuple[int, ...]
    clips: tuple[Clip, ...]


def grouped(testset: str, clips: Sequence[Clip], limit: int | None = None) -> list[Group]:
    """Clips of a set by language and kind of speaker, languages in the usual order.

    Args:
        testset: Name of the set.
        clips: All of it.
        limit: Use only the first so many of each group.
    """
    order = list(PRIMARY_METRICS)
    members: dict[tuple[int, Speakers], list[int]] = {}
    for place, clip in enumerate(clips):
        members.setdefault((order.index(clip.language), speakers_of(clip)), []).append(place)
    return [
        Group(testset, order[code], speakers, tuple(places[:limit]), tuple(clips[i] for i in places[:limit]))
        for (code, speakers), places in sorted(members.items())
    ]


@dataclass
class Plan:
    """How one model is evaluated.

    Attributes:
        model: As it was named.
        kind: What kind of system it is.
        open_system: Loads it; not called where all is there already.
        settings: Of decoding.
        conditions: That clips are heard under.
        load: Reads a clip's samples.
        batch_size: Clips a batch, passed on to the model.
        seed: Canvas noise, shuffling of audio, noise of conditions.
        device: Of the model, for the record.
    """

    model: str
    kind: Kind
    open_system: Callable[[], System]
    settings: Sequence[Setting]
    conditions: Sequence[Condition]
    load: Callable[[Clip], Samples]
    batch_size: int
    seed: int
    device: str | None = "cpu"


class Evaluator:
    """Fills a store with what one model reads."""

    def __init__(self, plan: Plan, store: Store) -> None:
        self.plan = plan
        self.store = store
        self._system: System | None = None
        self._warm: set[Setting] = set()

    def jobs(self, group: Group) -> Iterator[tuple[Condition, Setting, list[int]]]:
        """What is asked of a group: condition, setting, and whose audio each clip is given."""
        kind = self.plan.kind
        if kind.languages is not None and group.language not in kind.languages:
            return
        own = list(range(len(group.clips)))
        for condition in self.plan.conditions:
            if not kind.hears and condition.family != "clean":
                continue
            for setting in self.plan.settings:
                if setting.shuffled and (len(own) < 2 or condition.silent):
                    continue
                shuffled = (
                    derangement([clip.text for clip in group.clips], self.plan.seed)
                    if setting.shuffled
                    else own
                )
                yield condition, setting, shuffled

    def run(self, group: Group) -> Iterator[int]:
        """Decode what is missing of a group; yields how many clips are done, setting by setting."""
        jobs = list(self.jobs(group))
        at_once = BATCHES_AT_ONCE * self.plan.batch_size
        for start in range(0, len(group.clips), at_once):
            block = range(start, min(start + at_once, len(group.clips)))
            cache: dict[int, Samples] = {}
            for condition, setting, order in jobs:
                facts = {i: self._facts(group, condition, setting, i, order[i]) for i in block}
                missing = [i for i in block if not self.store.has(facts[i])]
                if missing:
                    for i in missing:
                        if order[i] not in cache:
                            cache[order[i]] = self.plan.load(group.clips[order[i]])
                    heard = [condition.apply(cache[order[i]], self.plan.seed) for i in missing]
                    utterances = [Utterance(group.places[i], h) for i, h in zip(missing, heard, strict=True)]
                    self.store.add(self._read(group, setting, utterances, [facts[i] for i in missing]))
                yield len(block)

    def _facts(
        self, group: Group, condition: Condition, setting: Setting, i: int, heard: int
    ) -> dict[str, Any]:
        """The fields of a line that are known before a clip is read."""
        return {
            "model": self.plan.model,
            "testset": group.testset,
            "mode": setting.name,
            "condition": condition.name,
            "place": group.places[i],
            "audio": group.clips[heard].audio.name,
            "reference_audio": group.clips[i].audio.name,
            "language": group.language,
            "speakers": group.speakers,
            "reference": "" if condition.silent else group.clips[i].text,
            "options": dict(setting.options),
            "shuffled": setting.shuffled,
            "language_given": setting.language_given,
            "seed": self.plan.seed,
        }

    def _read(
        self,
        group: Group,
        setting: Setting,
        utterances: Sequence[Utterance],
        facts: Sequence[Mapping[str, Any]],
    ) -> list[Line]:
        system = self._opened()
        limit = system.max_audio_s
        lengths = [len(utterance.samples) / SAMPLE_RATE_HZ for utterance in utterances]
        fits = [limit is None or length <= limit + _LIMIT_ROUNDING_S for length in lengths]
        taken = [u for u, length, fit in zip(utterances, lengths, fits, strict=True) if fit and length]
        read = iter(self._timed(system, group, setting, taken))
        setup = describe_setup(self.plan.device, self.plan.batch_size) if self.plan.kind.hears else ""
        lines = []
        for fact, length, fit in zip(facts, lengths, fits, strict=True):
            transcript, seconds = next(read) if fit and length else (Reading(""), 0.0)
            lines.append(
                Line(
                    **fact,
                    detected=transcript.language,
                    hypothesis=transcript.text,
                    passes=transcript.passes,
                    truncated=transcript.truncated,
                    too_long=not fit,
                    audio_s=length,
                    seconds=seconds if self.plan.kind.hears else None,
                    setup=setup,
                )
            )
        return lines

    def close(self) -> None:
        """Let go of the model."""
        self._system = None

    def _opened(self) -> System:
        if self._system is None:
            self._system = self.plan.open_system()
        return self._system

    def _timed(
        self, system: System, group: Group, setting: Setting, utterances: Sequence[Utterance]
    ) -> list[tuple[TranscriptLike, float]]:
        """Read clips, each with its share of the wall-clock time.

        Text on the host means that the device has finished, so nothing else has to be synchronised.

        Raises:
            DataError: If the model does not return one transcript for each clip.
        """
        if not utterances:
            return []

        def read(some: Sequence[Utterance]) -> Sequence[TranscriptLike]:
            return system.read(
                Request(some, group.testset, setting, group.language, self.plan.batch_size, self.plan.seed)
            )

        if setting not in self._warm:
            read(utterances[:1])
            self._warm.add(setting)
        started = time.perf_counter()
        transcripts = read(utterances)
        seconds = time.perf_counter() - started
        if len(transcripts) != len(utterances):
            raise DataError(
                f"{self.plan.model}, setting {setting.name!r}: {len(transcripts)} transcripts came back for "
                f"{len(utterances)} clips"
            )
        shares = [transcript.seconds for transcript in transcripts]
        if not sum(shares):
            shares = [1.0] * len(shares)
        total = sum(shares)
        return [(one, seconds * share / total) for one, share in zip(transcripts, shares, strict=True)]
