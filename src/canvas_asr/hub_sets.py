"""Data sets of the hub, through ``datasets``: LibriSpeech, FLEURS, VoxPopuli by name, any other by columns.

Audio is left undecoded there (``Audio(decode=False)``) and decoded by this package. Which text is taken:

- LibriSpeech: ``text``, the only one; it is in capitals, and lower-cased here.
- FLEURS: ``raw_transcription``, cased and punctuated; ``transcription`` has neither, and spaces between the
  characters of Chinese.
- VoxPopuli: ``normalized_text``, lower-case; ``raw_text`` is cased, but empty for part of the clips.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .audio import Samples, audio_seconds, decode_audio, load_audio
from .errors import AudioError, DataError, RecipeError
from .languages import LANGUAGES
from .manifest import Clip

# Where the hub keeps a converted copy of sets that were published as a loading script.
CONVERTED = "refs/convert/parquet"


@dataclass(frozen=True)
class StoredClip(Clip):
    """A clip whose audio lies in a table; ``audio`` only names it.

    Attributes:
        table: Of ``datasets``, or anything that gives a row's cells by name; audio is not decoded there.
        row: In the table.
        column: Of the audio: ``bytes``, and ``path`` where those are in a file.
    """

    table: Any = field(default=None, repr=False, compare=False)
    row: int = 0
    column: str = "audio"


def clip_content(clip: Clip) -> bytes:
    """Give the content of a clip's audio file.

    Raises:
        AudioError: If it cannot be read, naming the clip.
    """
    path: Path | None = clip.audio
    if isinstance(clip, StoredClip):
        cell = clip.table[clip.row][clip.column]
        if cell["bytes"]:
            return bytes(cell["bytes"])
        path = Path(cell["path"]) if cell["path"] else None
    try:
        if path is None:
            raise AudioError(f"{clip.audio}: its row has no audio; leave it out.")
        return path.read_bytes()
    except OSError as error:
        raise AudioError(f"{clip.audio}: cannot be read ({error.strerror}); check the path.") from error


def clip_samples(clip: Clip) -> Samples:
    """Decode a clip: 16 kHz mono, (N,).

    Raises:
        AudioError: If its audio cannot be read, naming the clip.
    """
    if isinstance(clip, StoredClip):
        return decode_audio(clip_content(clip), str(clip.audio))
    return load_audio(clip.audio)


@dataclass(frozen=True)
class HubSet:
    """How a data set of the hub is laid out.

    Attributes:
        name: Of its repository, or a folder with a copy.
        text: Column of the transcript.
        audio: Column of the audio.
        language: Column of the language's code; empty: a configuration, or all, is one language.
        speaker: Column of the speaker, where there is one.
        configs: Configuration by language; empty: one configuration has all that is asked for.
        lower: Whether the transcripts are lower-cased.
        licence: As its card states it.
    """

    name: str
    text: str = "text"
    audio: str = "audio"
    language: str = ""
    speaker: str = "speaker_id"
    configs: Mapping[str, str] = field(default_factory=dict)
    lower: bool = False
    licence: str = ""


HUB_SETS = {
    "librispeech": HubSet("openslr/librispeech_asr", lower=True, licence="CC BY 4.0"),
    "fleurs": HubSet(
        "google/fleurs",
        text="raw_transcription",
        configs={
            "en": "en_us",
            "de": "de_de",
            "fr": "fr_fr",
            "es": "es_419",
            "hi": "hi_in",
            "zh": "cmn_hans_cn",
        },
        licence="CC BY 4.0",
    ),
    "voxpopuli": HubSet(
        "facebook/voxpopuli",
        text="normalized_text",
        configs={code: code for code in ("en", "de", "fr", "es")},
        licence="CC0",
    ),
}


@dataclass(frozen=True)
class HubRequest:
    """What is asked of a set.

    Attributes:
        layout: Of the set.
        config: Configuration, where languages do not name it.
        split: Name of the split, also a part of it as ``datasets`` writes it: ``train[:10%]``.
        languages: Which; empty: all that the set's configurations have.
        revision: Branch, tag or commit.
        streaming: Read it as it arrives, without a copy on disk.
    """

    layout: HubSet
    config: str
    split: str
    languages: tuple[str, ...]
    revision: str
    streaming: bool = False

    def parts(self) -> list[tuple[str, str]]:
        """Give the configurations to read, each with its language, empty where a column tells.

        Raises:
            RecipeError: If the set lacks a language, or it is not said which language it is in.
        """
        layout = self.layout
        if layout.configs and not self.config:
            languages = self.languages or tuple(layout.configs)
            if missing := [code for code in languages if code not in layout.configs]:
                known = ", ".join(layout.configs)
                raise RecipeError(f"{layout.name} has no language {missing[0]!r}; it has {known}.")
            return [(layout.configs[code], code) for code in languages]
        if layout.language:
            return [(self.config, "")]
        of_config = {config: code for code, config in layout.configs.items()}
        languages = (of_config[self.config],) if self.config in of_config else self.languages
        if len(languages) != 1:
            raise RecipeError(f"{layout.name}: which language is it in? Give languages with one code.")
        return [(self.config, languages[0])]


def load_table(request: HubRequest, config: str) -> Any:
    """Load a split of a configuration, its audio undecoded.

    Returns:
        A ``Dataset`` or ``IterableDataset`` of ``datasets``.

    Raises:
        DataError: If there is no such set, configuration or split, it cannot be had, or lacks a column.
    """
    layout = request.layout
    place = " ".join(filter(None, (layout.name, config, request.split)))
    try:
        from datasets import Audio
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise DataError("data sets of the hub need datasets; pip install datasets.") from error
    try:
        table = _load(request, config)
        if table.column_names is None:  # a stream whose first rows have not been seen
            table = table._resolve_features()
        needed = [layout.audio, layout.text, *([layout.language] if layout.language else [])]
        for column in needed:
            if column not in table.column_names:
                what = "transcripts" if column == layout.text else f"column {column!r}"
                raise DataError(
                    f"{place}: has no {what}: its columns are {', '.join(table.column_names)}; name the "
                    "right one under columns (audio, text, language, speaker)."
                )
        return table.cast_column(layout.audio, Audio(decode=False))
    except DataError:
        raise
    except (DatasetsError, OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise DataError(
            f"{place}: cannot be loaded ({' '.join(str(error).split())}); check set, config and split, or "
            f"give path with the folder of a copy (hf download --repo-type dataset {layout.name})."
        ) from error


def _load(request: HubRequest, config: str) -> Any:
    import datasets

    def load(revision: str | None) -> Any:
        return datasets.load_dataset(
            request.layout.name,
            config or None,
            split=request.split,
            revision=revision,
            streaming=request.streaming,
        )

    try:
        return load(request.revision or None)
    except RuntimeError as error:
        # "Dataset scripts are no longer supported": datasets 4 and later run none.
        if request.revision or "script" not in str(error):
            raise
        return load(CONVERTED)


def _measure(cell: dict[str, Any]) -> dict[str, Any]:
    """Name and length of a cell of audio; a length of -1 where it cannot be read."""
    name = str(cell["path"] or "")
    content = cell["bytes"]
    try:
        return {"name": name, "seconds": audio_seconds(content or name, name or "a clip")}
    except AudioError:
        return {"name": name, "seconds": -1.0}


@dataclass(frozen=True)
class _Rows:
    """Makes clips of the rows of one configuration."""

    request: HubRequest
    config: str
    language: str

    @property
    def source(self) -> str:
        return " ".join(filter(None, (self.request.layout.name, self.config, self.request.split)))

    def wanted(self, code: str) -> bool:
        return not self.request.languages or code in self.request.languages

    def clip(self, row: Mapping[str, Any], measured: Mapping[str, Any], table: Any, place: int) -> StoredClip:
        """Make a clip of a row's text, language and speaker."""
        layout = self.request.layout
        text = row[layout.text] or ""
        code = str(row[layout.language]) if layout.language else self.language
        if code not in LANGUAGES:
            raise DataError(
                f"{self.source}: its language column has {code!r}; give languages, some of "
                f"{', '.join(LANGUAGES)}, to leave others out."
            )
        speaker = row.get(layout.speaker)
        return StoredClip(
            audio=Path(self.source.replace(" ", "/"), Path(measured["name"]).name or str(place)),
            text=text.lower() if layout.lower else text,
            language=code,
            speaker=None if speaker is None else str(speaker),
            duration_s=float(measured["seconds"]),
            split=self.request.split,
            source=self.source,
            table=table,
            row=place,
            column=layout.audio,
        )


def read_table(request: HubRequest, config: str, language: str) -> list[Clip]:
    """Read a split as clips whose audio stays in the table; lengths are measured once and cached.

    Args:
        request: What is asked for.
        config: Configuration.
        language: Of all clips; empty: each row's own.

    Returns:
        Clips in the table's order; a length of -1 marks audio that cannot be read.

    Raises:
        DataError: If it cannot be had, or has no transcripts.
    """
    layout, rows = request.layout, _Rows(request, config, language)
    table = load_table(request, config)
    measured = table.map(
        _measure, input_columns=[layout.audio], remove_columns=table.column_names, desc="lengths of clips"
    )
    columns = {layout.text, layout.language, layout.speaker} & set(table.column_names)
    cells = table.select_columns(sorted(columns))
    if not any(cells[layout.text]):
        raise DataError(
            f"{rows.source}: column {layout.text!r} is empty in every row, so it has no transcripts."
        )
    return [
        rows.clip(row, length, table, place)
        for place, (row, length) in enumerate(zip(cells, measured, strict=True))
        if not layout.language or rows.wanted(str(row[layout.language]))
    ]


def stream_clips(
    table: Iterable[Mapping[str, Any]], request: HubRequest, config: str, language: str
) -> Iterator[Clip]:
    """Read a stream as clips that hold their audio.

    Args:
        table: Rows of :func:`load_table`, or those of them that a process reads.
        request: What was asked for.
        config: Configuration.
        language: Of all clips; empty: each row's own.
    """
    layout, rows = request.layout, _Rows(request, config, language)
    for place, row in enumerate(table):
        if not layout.language or rows.wanted(str(row[layout.language])):
            # The clip keeps its own audio: place 0 of a table of one row.
            yield replace(rows.clip(row, _measure(row[layout.audio]), [row], place), row=0)
