"""The raw results of an evaluation: one JSON line for every clip, setting and condition, kept as they come.

A run that was stopped goes on where it was: what has a line is not decoded again. All figures are made from
these lines, so they can be made again, or otherwise, without a model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import DataError
from .modes import Speakers, Value

LINES_NAME = "hypotheses.jsonl"
_Key = tuple[str, str, str, str, int]


@dataclass(frozen=True)
class Line:
    """What one clip was read as.

    Attributes:
        model: As it was named.
        testset: Name of the set.
        mode: Name of the setting.
        condition: That the clip was heard under.
        place: Of the clip in its set, from 0.
        audio: Name of the file that was heard.
        reference_audio: Name of the clip's own file, another one where audio is shuffled.
        language: Of the reference.
        speakers: Whether the clip's speaker is in the training data.
        detected: Language that was detected, or given; empty if neither.
        reference: What was said, as written.
        hypothesis: What was recognised, as written.
        passes: Denoising passes.
        truncated: Whether the text filled the canvas.
        too_long: Whether the clip is longer than the model takes; its hypothesis is empty then.
        audio_s: Length of what was heard, in seconds.
        seconds: The clip's share of the wall-clock time; None if there is none.
        options: Of decoding.
        shuffled: Whether another clip's audio was heard.
        language_given: Whether the model was told the language.
        seed: Of the run.
        setup: Machine and batch that the time was taken with; empty if that is not known.
    """

    model: str
    testset: str
    mode: str
    condition: str
    place: int
    audio: str
    reference_audio: str
    language: str
    speakers: Speakers
    detected: str
    reference: str
    hypothesis: str
    passes: int
    truncated: bool
    too_long: bool
    audio_s: float
    seconds: float | None
    options: Mapping[str, Value]
    shuffled: bool
    language_given: bool
    seed: int
    setup: str = ""

    @property
    def key(self) -> _Key:
        """What it is the result of."""
        return self.model, self.testset, self.mode, self.condition, self.place


_FIELDS = frozenset(field.name for field in fields(Line)) - {"setup"}  # earlier versions did not write it
_SAME = ("reference", "language", "audio", "options", "shuffled", "language_given", "seed")


class Store:
    """The lines of one folder."""

    def __init__(self, folder: Path) -> None:
        """Read what is there.

        Args:
            folder: Made when the first line is written.

        Raises:
            DataError: If a line is damaged; one that a stopped run left unfinished at the end is dropped.
        """
        self.path = folder / LINES_NAME
        self._lines: dict[_Key, Line] = {}
        self._references: dict[tuple[str, str, int], str] = {}
        for line in self._read():
            self._keep(line)

    def _read(self) -> Iterator[Line]:
        if not self.path.exists():
            return
        content = self.path.read_bytes()  # a stopped run may have left half a character
        whole, newline, rest = content.rpartition(b"\n")
        if rest:
            os.truncate(self.path, len(content) - len(rest))
        for number, text in enumerate(whole.split(b"\n") if newline else (), start=1):
            try:
                entry = json.loads(text)
                yield Line(**{name: entry[name] for name in _FIELDS}, setup=entry.get("setup", ""))
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{self.path}:{number}: is not a line of this evaluation ({error!r}); give another "
                    "folder, or remove the file"
                ) from error

    def _keep(self, line: Line) -> None:
        self._lines[line.key] = line
        self._references[line.testset, line.condition, line.place] = line.reference

    def __len__(self) -> int:
        """Number of lines."""
        return len(self._lines)

    def __iter__(self) -> Iterator[Line]:
        """Every line, in the order in which they came."""
        return iter(self._lines.values())

    def add(self, lines: Iterable[Line]) -> None:
        """Append lines, and see them written."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            for line in lines:
                file.write(json.dumps(asdict(line), ensure_ascii=False) + "\n")
                self._keep(line)

    def has(self, wanted: Mapping[str, Any]) -> bool:
        """Whether there is a result of this already.

        Args:
            wanted: Fields of a `Line` that are known before it is decoded.

        Raises:
            DataError: If there is one, but of another reference, audio or seed.
        """
        clip = wanted["testset"], wanted["condition"], wanted["place"]
        found = {"reference": self._references.get(clip, wanted["reference"])}
        line = self._lines.get((wanted["model"], clip[0], wanted["mode"], *clip[1:]))
        if line is not None:
            found |= {name: getattr(line, name) for name in _SAME}
        for name, value in found.items():
            if value != wanted[name]:
                raise DataError(
                    f"{self.path}: was made with another {name} ({value!r}, now {wanted[name]!r}) for clip "
                    f"{wanted['place']} of {wanted['testset']}; give another --out"
                )
        return line is not None


def write_manifests(store: Iterable[Line], folder: Path) -> None:
    """Write the lines once more as the Open ASR Leaderboard's own scorer reads them, one file a result.

    Names and keys are its own (and NeMo's): ``MODEL_…_DATASET_….jsonl`` with ``audio_filepath``,
    ``duration``, ``time``, ``text`` and ``pred_text``.
    """
    files: dict[str, list[dict[str, Any]]] = {}
    for line in store:
        dataset = "_".join((line.testset, line.language, line.mode, line.condition))
        name = f"MODEL_{line.model}_DATASET_{dataset}".replace("/", "-").replace(":", "-")
        entry = {"audio_filepath": line.audio, "duration": line.audio_s, "time": line.seconds}
        files.setdefault(name, []).append({**entry, "text": line.reference, "pred_text": line.hypothesis})
    folder.mkdir(parents=True, exist_ok=True)
    for name, entries in files.items():
        lines = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
