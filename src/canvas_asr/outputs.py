"""Files that transcripts are written to: names that never collide, one run a file, whole files or none.

In an output folder the subfolder ``.canvas-asr`` has a mark for every file that was begun: which audio it is
and which outputs are its. The run that works on it holds a lock on the mark, which the system takes back from
a process that dies. Outputs are written there too, then moved to their places.
"""

from __future__ import annotations

import fcntl
import json
import os
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Literal

from .errors import OptionError
from .formats import FORMATS
from .result import Transcript
from .subtitles import Layout

MARKS = ".canvas-asr"


def output_names(files: Sequence[tuple[Path, PurePath]]) -> list[str]:
    """Give every file of a list a name of its own, from which the names of its outputs are made.

    It is the file's path below the folder it was found in, without suffix: ``talk`` of ``talk.mp3``. Where
    two files share one, they keep their suffixes; where they share these too, the folders in which they
    differ.

    Args:
        files: Absolute path of each, all different, and its path below the folder it was found in.

    Returns:
        Names in the order of the files, with ``/`` between folders.
    """
    if not files:
        return []
    common = os.path.commonpath([path.parent for path, _ in files])
    choices = [
        (_without_suffix(below).as_posix(), below.as_posix(), path.relative_to(common).as_posix())
        for path, below in files
    ]
    levels = [0] * len(files)
    while True:
        users = defaultdict(list)
        for place, level in enumerate(levels):
            users[_key(choices[place][level], exact=level == 2)].append(place)
        shared = [place for group in users.values() if len(group) > 1 for place in group]
        if not shared:
            return [choice[level] for choice, level in zip(choices, levels, strict=True)]
        for place in shared:
            levels[place] = min(levels[place] + 1, 2)


def _without_suffix(path: PurePath) -> PurePath:
    """Leave out the suffix, unless nothing but dots would be left."""
    return path.with_name(path.stem) if path.stem.strip(".") else path


def _key(name: str, *, exact: bool) -> str:
    """What a file system may take for the same name."""
    return name if exact else unicodedata.normalize("NFC", name).casefold()


@dataclass
class Claim:
    """What became of the wish to write the outputs of a file.

    Attributes:
        verdict: ``taken``: they are to be written, and the claim is to be released. ``done``: they are there.
            ``busy``: another run is at it. ``refused``: something else is in the way.
        reason: Why not, for a message; empty where it was taken.
        outputs: Names of the files to be written, below the output folder.
    """

    verdict: Literal["taken", "done", "busy", "refused"]
    reason: str = ""
    outputs: tuple[str, ...] = ()
    _descriptor: int | None = None
    _state: dict[str, Any] | None = None

    def release(self) -> None:
        """Let other runs have it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


@dataclass(frozen=True)
class OutputFolder:
    """A folder that transcripts are written to.

    Attributes:
        folder: Made if it is not there.
        formats: Of each transcript: names of :data:`canvas_asr.formats.FORMATS`.
        layout: Of subtitles.
        overwrite: Whether what is there is replaced.
        resume: Whether files whose outputs are there are passed over.
    """

    folder: Path
    formats: tuple[str, ...]
    layout: Layout
    overwrite: bool = False
    resume: bool = False

    def prepare(self) -> None:
        """Make the folder and try it.

        Raises:
            OptionError: If nothing can be written there.
        """
        marks = self.folder / MARKS
        trial = marks / f"trial-{os.getpid()}"
        try:
            marks.mkdir(parents=True, exist_ok=True)
            with trial.open("wb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                file.write(b"canvas-asr\n")
                file.flush()
                os.fsync(file.fileno())
            trial.unlink()
        except OSError as error:
            with suppress(OSError):
                trial.unlink()
            raise OptionError(
                f"{self.folder}: nothing can be written there ({error.strerror or error}); "
                "choose another --output-dir."
            ) from error

    def outputs(self, name: str) -> list[str]:
        """Names of the outputs of a file, below the folder."""
        return [f"{name}.{suffix}" for suffix in self.formats]

    def check_free(self, names: Sequence[str]) -> None:
        """See that nothing would be overwritten.

        Raises:
            OptionError: If an output is there already and may be neither replaced nor passed over.
        """
        if self.overwrite or self.resume:
            return
        outputs = [output for name in names for output in self.outputs(name)]
        there = [output for output in outputs if os.path.lexists(self.folder / output)]
        if there:
            raise OptionError(
                f"{self.folder / there[0]}: exists already ({len(there)} of {len(outputs)} outputs do); "
                "--resume keeps what is there and does the rest, --overwrite replaces it."
            )

    def claim(self, name: str, file: Path) -> Claim:
        """Ask for the outputs of a file.

        Args:
            name: From :func:`output_names`.
            file: The audio file.

        Raises:
            OSError: If its mark cannot be written.
        """
        mark = self.folder / MARKS / f"{name}.json"
        mark.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(mark, os.O_RDWR | os.O_CREAT, 0o666)
        claim = Claim("busy", "another run is writing its outputs")
        try:
            with suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                claim = self._judge(name, file, _read_mark(descriptor))
            if claim.verdict == "taken":
                claim._descriptor = descriptor
                _write_mark(claim, is_done=False)
                return claim
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return claim

    def _judge(self, name: str, file: Path, state: dict[str, Any]) -> Claim:
        """Compare what is there with its mark, which is ours now."""
        wanted = self.outputs(name)
        known = [file.name, _n_bytes(file)]
        kept: list[str] = []
        if not self.overwrite:
            left = () if state.get("done") else state.get("outputs", ())  # by a run that died
            kept = [o for o in wanted if o not in left and os.path.lexists(self.folder / o)]
        missing = tuple(output for output in wanted if output not in kept)
        if kept and not self.resume:
            return Claim("refused", f"{self.folder / kept[0]} exists; --overwrite replaces it")
        if kept and (state.get("of") != known if state else missing):
            other = f"is of another file, {state['file']}" if state else "is not known to be of this file"
            return Claim("refused", f"{self.folder / kept[0]} {other}; --overwrite replaces it")
        if not missing:
            return Claim("done")
        owned = [*(kept if state else ()), *missing]
        state = {"file": os.fspath(file), "of": known, "outputs": owned}
        return Claim("taken", outputs=missing, _state=state)

    def write(self, claim: Claim, transcript: Transcript) -> None:
        """Write the outputs of a claim, all aside before the first is moved to its place.

        Raises:
            OSError: If they cannot be written; nothing half is left.
        """
        aside = [self.folder / MARKS / f"{output}.partial" for output in claim.outputs]
        try:
            for output, partial in zip(claim.outputs, aside, strict=True):
                text = FORMATS[output.rpartition(".")[2]](transcript, self.layout)
                with partial.open("w", encoding="utf-8", newline="\n") as file:
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
            for output, partial in zip(claim.outputs, aside, strict=True):
                final = self.folder / output
                final.parent.mkdir(parents=True, exist_ok=True)
                partial.replace(final)
            _write_mark(claim, is_done=True)
        finally:
            for partial in aside:
                partial.unlink(missing_ok=True)


def _n_bytes(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:  # what is wrong with it is said when it is read
        return -1


def _read_mark(descriptor: int) -> dict[str, Any]:
    """Read a mark; one that was not written to its end counts for nothing."""
    try:
        found = json.loads(os.pread(descriptor, os.fstat(descriptor).st_size, 0))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _write_mark(claim: Claim, *, is_done: bool) -> None:
    if claim._descriptor is not None:
        content = json.dumps({**(claim._state or {}), "done": is_done}).encode()
        os.ftruncate(claim._descriptor, 0)
        os.pwrite(claim._descriptor, content, 0)
