"""What is to be transcribed: files, the audio files of folders, and those of lists."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from canvas_asr.errors import OptionError
from canvas_asr.manifest import read_audio_paths

LIST_SUFFIX = ".jsonl"
# What a folder is searched for; a file that is named itself may be called anything.
AUDIO_SUFFIXES = frozenset(
    (
        *(".3g2", ".3gp", ".aac", ".ac3", ".aif", ".aifc", ".aiff", ".alac", ".amr", ".ape", ".asf", ".au"),
        *(".avi", ".awb", ".caf", ".dts", ".eac3", ".flac", ".flv", ".gsm", ".m2ts", ".m4a", ".m4b", ".m4v"),
        *(".mka", ".mkv", ".mov", ".mp1", ".mp2", ".mp3", ".mp4", ".mpeg", ".mpg", ".mpga", ".mts", ".oga"),
        *(".ogg", ".ogv", ".opus", ".ra", ".rf64", ".rm", ".snd", ".sph", ".spx", ".tta", ".voc", ".w64"),
        *(".wav", ".wave", ".webm", ".wma", ".wmv", ".wv"),
    )
)


@dataclass(frozen=True)
class AudioInput:
    """A file to be transcribed.

    Attributes:
        path: As it was given or found.
        below: Its path below the folder or list it was found in; its name, if it was given itself.
    """

    path: str
    below: PurePath

    @property
    def absolute(self) -> Path:
        """Its absolute path, links not followed."""
        return Path(os.path.abspath(self.path))


@dataclass(frozen=True)
class Inputs:
    """What was found.

    Attributes:
        files: In the order of the arguments; within a folder, sorted.
        n_others: Files of folders that are no audio by their names.
    """

    files: tuple[AudioInput, ...]
    n_others: int = 0

    def distinct(self) -> Inputs:
        """Leave out files that stand there before."""
        first = {one.absolute: one for one in reversed(self.files)}
        return Inputs(tuple(one for one in self.files if first[one.absolute] is one), self.n_others)


def find_inputs(sources: Sequence[str]) -> Inputs:
    """Find the files that arguments stand for.

    Args:
        sources: Files, of which nothing is asked here; folders; lists that end in ``.jsonl``.

    Raises:
        OptionError: If a folder cannot be read, or has no audio.
        DataError: If a list cannot be read.
    """
    files: list[AudioInput] = []
    n_others = 0
    for source in sources:
        if os.path.isdir(source):
            found = list(_walk(source))
            audio = [one for one in found if one.below.suffix.lower() in AUDIO_SUFFIXES]
            if not audio:
                raise OptionError(
                    f"{source}: is a directory in which no file has the name of audio or video."
                )
            n_others += len(found) - len(audio)
            files += audio
        elif source.lower().endswith(LIST_SUFFIX):
            files += _listed(source)
        else:
            files.append(AudioInput(source, PurePath(os.path.basename(source))))
    return Inputs(tuple(files), n_others)


def take_shard(files: Sequence[AudioInput], part: tuple[int, int] | None) -> list[int]:
    """Choose every n-th file from the i-th, counted from 1; places in the list.

    Args:
        files: All.
        part: i and n; None: all of them.
    """
    first, step = part or (1, 1)
    return list(range(first - 1, len(files), step))


def _walk(folder: str) -> Iterator[AudioInput]:
    """Every file of a folder and those below, but for hidden ones."""

    def refuse(error: OSError) -> None:
        raise OptionError(f"{error.filename}: cannot be read ({error.strerror}).") from error

    for where, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(_shown(folders))
        for name in sorted(_shown(names)):
            path = os.path.join(where, name)
            yield AudioInput(path, PurePath(os.path.relpath(path, folder)))


def _shown(names: Iterable[str]) -> list[str]:
    return [name for name in names if not name.startswith(".")]


def _listed(source: str) -> Iterator[AudioInput]:
    folder = Path(source).parent.resolve()
    for path in read_audio_paths(source):
        absolute = Path(os.path.abspath(path))
        is_below = absolute.is_relative_to(folder)
        below = absolute.relative_to(folder) if is_below else PurePath(absolute.name)
        yield AudioInput(os.fspath(path), below)
