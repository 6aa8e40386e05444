"""What a recipe trains on and is judged by: entries of ``train`` and ``dev``, read into clips.

train:
- {path: talks/manifest.jsonl, weight: 2}
- {set: librispeech, config: clean, split: train.100}
- {set: fleurs, languages: [de, hi], split: train, language_weights: {hi: 3}}
- {set: common_voice, path: cv-corpus-21.0, languages: [es], split: train}
- {set: owner/name, split: train, languages: [de], columns: {audio: sound, text: sentence}}
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from canvas_asr.errors import DataError, RecipeError
from canvas_asr.hub_sets import HUB_SETS, HubRequest, HubSet, read_table
from canvas_asr.languages import LANGUAGES
from canvas_asr.manifest import Clip, read_manifest

from .common_voice import LICENCE as COMMON_VOICE_LICENCE
from .common_voice import read_common_voice
from .recipe import from_mapping

COMMON_VOICE = "common_voice"
COLUMNS = ("audio", "text", "language", "speaker")


@dataclass(frozen=True)
class DataSource:
    """An entry of ``train`` or ``dev``.

    Attributes:
        path: A manifest; for a set, the folder of a copy of it.
        set: ``librispeech``, ``fleurs``, ``voxpopuli``, ``common_voice``, or another data set of the hub.
        config: Configuration of a set of the hub, where languages do not name it.
        split: Of a set; of a manifest, only clips of this split, empty takes all.
        languages: Only these.
        weight: How often an epoch has each clip (see ``Mixture``); of a stream, how often it is drawn from.
        language_weights: Further factors by language.
        revision: Branch, tag or commit of a set of the hub.
        columns: Column names of another set: audio, text, language, speaker.
    """

    path: str = ""
    set: str = ""
    config: str = ""
    split: str = ""
    languages: tuple[str, ...] = ()
    weight: float = 1.0
    language_weights: dict[str, float] = field(default_factory=dict)
    revision: str = ""
    columns: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse entries that name nothing, or what is not known."""
        if not (self.path or self.set):
            raise RecipeError("a data source needs path (a manifest) or set (a data set's name).")
        if self.set and not self.split:
            raise RecipeError(f"data source {self.set}: give split, as in split: train.")
        if self.set == COMMON_VOICE and not self.path:
            raise RecipeError("data source common_voice: give path, the folder of an unpacked corpus.")
        for code in (*self.languages, *self.language_weights):
            if code not in LANGUAGES:
                raise RecipeError(
                    f"data source {self.name}: language {code!r} is none of {', '.join(LANGUAGES)}."
                )
        for weight in (self.weight, *self.language_weights.values()):
            if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < math.inf:
                raise RecipeError(f"data source {self.name}: weight {weight!r} must be above 0.")
        if unknown := sorted(set(self.columns) - set(COLUMNS)):
            raise RecipeError(
                f"data source {self.name}: columns has unknown key {unknown[0]!r}; known are "
                f"{', '.join(COLUMNS)}."
            )

    @property
    def name(self) -> str:
        """What reports call it."""
        return " ".join(filter(None, (self.set or self.path, self.config, self.split)))

    @property
    def licence(self) -> str:
        """As the set's card states it; empty where not known here."""
        if self.set == COMMON_VOICE:
            return COMMON_VOICE_LICENCE
        return HUB_SETS[self.set].licence if self.set in HUB_SETS else ""

    def weight_of(self, clip: Clip) -> float:
        """How often an epoch has a clip."""
        return self.weight * self.language_weights.get(clip.language, 1.0)

    def request(self, *, streaming: bool = False) -> HubRequest:
        """Say what is asked of the hub."""
        known = HUB_SETS.get(self.set, HubSet(self.set, speaker=""))
        changes: dict[str, Any] = {**self.columns, "name": self.path or known.name}
        layout = replace(known, **changes)
        config = self.config or ("clean" if self.set == "librispeech" else "")
        languages = self.languages or (("en",) if self.set == "librispeech" else ())
        return HubRequest(layout, config, self.split, languages, self.revision, streaming)


def parse_sources(entries: Sequence[Any], key: str) -> list[DataSource]:
    """Read the entries of ``train`` or ``dev``, before anything is loaded.

    Args:
        entries: Of a recipe.
        key: Where they stand, for errors.

    Raises:
        RecipeError: If there are none, or one has an unknown, missing or impossible key.
    """
    if not entries:
        raise RecipeError(f"{key} is empty; give at least one data source.")
    sources = [from_mapping(DataSource, entry, f"{key}[{i}]") for i, entry in enumerate(entries)]
    for source in sources:
        if source.set and source.set != COMMON_VOICE:
            source.request().parts()
    return sources


def read_source(source: DataSource) -> list[Clip]:
    """Read all clips of a source.

    Raises:
        DataError: If it cannot be read, lacks what is asked for, or has no transcripts.
        RecipeError: If it is not said which language a set is in.
    """
    if source.set == COMMON_VOICE:
        clips = read_common_voice(Path(source.path), source.split, source.languages)
    elif source.set:
        request = source.request()
        clips = [clip for config, code in request.parts() for clip in read_table(request, config, code)]
    else:
        clips = _read_manifest(source)
    _find_audio(clips, source)
    if source.set and clips and not any(clip.text for clip in clips):
        raise DataError(f"{source.name}: no clip has a transcript, so there is nothing to learn from it.")
    return clips


def _read_manifest(source: DataSource) -> list[Clip]:
    path = Path(source.path)
    if path.is_dir():
        raise DataError(
            f"{path}: is a folder; give the manifest in it, or set: {path} for a data set as the hub has it."
        )
    clips = [
        clip
        for clip in read_manifest(path)
        if source.split in ("", clip.split) and (not source.languages or clip.language in source.languages)
    ]
    for clip in clips:
        if clip.duration_s is None:
            raise DataError(
                f"{path}: key 'duration' is missing for {clip.audio}; training sorts clips by it."
            )
    return clips


def _find_audio(clips: Sequence[Clip], source: DataSource) -> None:
    """Look for audio files before the first step asks for one."""
    missing = [clip for clip in clips if type(clip) is Clip and not clip.audio.is_file()]
    if missing:
        raise DataError(
            f"{source.name}: {len(missing)} of {len(clips)} audio files are missing, such as "
            f"{missing[0].audio}; get them, or take their lines out."
        )


def duration_s(clip: Clip) -> float:
    """Length of a clip that a source gave, seconds; -1: its audio cannot be read."""
    return -1.0 if clip.duration_s is None else clip.duration_s
