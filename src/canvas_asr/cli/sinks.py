"""Where the results of ``canvas-asr transcribe`` go: lines or a format on stdout, files in a folder."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Protocol

from canvas_asr.errors import AudioError
from canvas_asr.formats import FORMATS
from canvas_asr.outputs import Claim, OutputFolder, output_names
from canvas_asr.result import Transcript
from canvas_asr.subtitles import Layout

from .inputs import AudioInput
from .jobs import File, Result
from .messages import complain
from .progress import Progress

# After these no file can be written any more.
_FATAL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
_JOINERS = "\u200c\u200d"  # letters of Hindi need them


class Sink(Protocol):
    """Takes results."""

    keeps_order: bool  # whether results are wanted in the order of the list

    def files(self) -> Iterator[File]:
        """Give the files that are to be transcribed, as they are asked for."""

    def take(self, place: int, result: Result) -> None:
        """Take the result of a file."""

    def close(self, *, is_whole: bool) -> int:
        """Report what is to be reported; the exit code. ``is_whole``: unless the work was broken off."""


class PrintedSink:
    """Prints each result when it comes, and complains of each file that failed at once."""

    keeps_order = True

    def __init__(
        self,
        files: Sequence[File],
        progress: Progress,
        *,
        form: str = "",
        layout: Layout | None = None,
        with_words: bool = True,
    ) -> None:
        """Begin.

        Args:
            files: All.
            progress: Told of each result.
            form: ``lines``: a line a file, and below one for each time that a speaker speaks, and one a word;
                ``json``: JSON on one line; or another format.
            layout: Of subtitles.
            with_words: Whether ``lines`` have words.
        """
        self._files = files
        self._progress = progress
        self._form = form
        self._layout = layout or Layout()
        self._with_words = with_words

    def files(self) -> Iterator[File]:
        """See :class:`Sink`."""
        yield from self._files

    def take(self, place: int, result: Result) -> None:
        """See :class:`Sink`."""
        failed = isinstance(result, AudioError)
        with self._progress.aside():
            if isinstance(result, AudioError):
                complain(f"error: {result}")
            else:
                print(self._text(result), end="", flush=True)
                warn(result)
        self._progress.finish(0.0 if isinstance(result, AudioError) else result.audio_s, failed=failed)

    def _text(self, transcript: Transcript) -> str:
        if self._form == "json":
            return _json_line(transcript) + "\n"
        if self._form == "lines":
            words = word_lines(transcript) if self._with_words else []
            return "".join(
                f"{line}\n" for line in (text_line(transcript), *speaker_lines(transcript), *words)
            )
        return FORMATS[self._form](transcript, self._layout)

    def close(self, *, is_whole: bool) -> int:
        """See :class:`Sink`."""
        return 1 if self._progress.n_failed else 0


class FolderSink:
    """Writes files, passes over what is done or belongs to another run, and reports at the end."""

    keeps_order = False

    def __init__(
        self,
        inputs: Sequence[AudioInput],
        places: Sequence[int],
        folder: OutputFolder,
        progress: Progress,
    ) -> None:
        """Make sure that files can be written.

        Args:
            inputs: All files of the list, all different; the names of outputs depend on it.
            places: Of those that are to be transcribed.
            folder: Where to.
            progress: Told of each result.

        Raises:
            OptionError: If nothing can be written there, or something would be overwritten.
        """
        names = output_names([(one.absolute, one.below) for one in inputs])
        self._names = {place: names[place] for place in places}
        self._inputs = inputs
        self._folder = folder
        self._progress = progress
        self._claims: dict[int, Claim] = {}
        self._failures: list[str] = []
        self._n_done = 0
        self._n_elsewhere = 0
        folder.prepare()
        folder.check_free(list(self._names.values()))

    def files(self) -> Iterator[File]:
        """See :class:`Sink`."""
        for place, name in self._names.items():
            one = self._inputs[place]
            try:
                claim = self._folder.claim(name, one.absolute)
            except OSError as error:
                self._fail(one.path, error)
                continue
            if claim.verdict == "taken":
                self._claims[place] = claim
                yield place, one.path
                continue
            is_shared = claim.verdict == "busy" and self._folder.resume
            self._n_done += claim.verdict == "done"
            self._n_elsewhere += is_shared
            if claim.verdict != "done" and not is_shared:
                self._failures.append(f"{one.path}: {claim.reason}.")
            self._progress.finish(0.0, failed=claim.verdict != "done" and not is_shared)

    def take(self, place: int, result: Result) -> None:
        """See :class:`Sink`; raises OSError if there is no room for any file."""
        claim = self._claims.pop(place)
        try:
            if isinstance(result, AudioError):
                self._failures.append(str(result))
                self._progress.finish(0.0, failed=True)
                return
            self._folder.write(claim, result)
        except OSError as error:
            self._fail(self._inputs[place].path, error)
            return
        finally:
            claim.release()
        with self._progress.aside():
            warn(result)
        self._progress.finish(result.audio_s)

    def _fail(self, path: str, error: OSError) -> None:
        if error.errno in _FATAL:
            raise OSError(error.errno, error.strerror, str(self._folder.folder)) from error
        self._failures.append(f"{path}: its outputs cannot be written: {error.strerror or error}.")
        self._progress.finish(0.0, failed=True)

    def close(self, *, is_whole: bool) -> int:
        """See :class:`Sink`; nothing is said of work that was broken off before a file was done."""
        for claim in self._claims.values():
            claim.release()
        if not is_whole and not self._progress.n_done:
            return 1
        for failure in self._failures:
            complain(f"error: {failure}")
        written = self._progress.n_done - self._progress.n_failed - self._n_done - self._n_elsewhere
        parts = [self._progress.summary(written)] if written else []
        if self._n_done:
            parts.append(f"{self._n_done} done before")
        if self._n_elsewhere:
            parts.append(f"{self._n_elsewhere} left to another run on this folder")
        if self._failures:
            parts.append(f"{len(self._failures)} failed")
        left = len(self._names) - self._progress.n_done
        if not is_whole and left:
            parts.append(f"{left} not begun or not finished (--resume goes on)")
        complain(f"{self._folder.folder}: {'; '.join(parts) or 'no files to transcribe'}")
        return 1 if self._failures else 0


def warn(transcript: Transcript) -> None:
    """Say what of a file may be missing."""
    if transcript.truncated:
        complain(
            f"warning: {transcript.file}: the text fills the canvas and its end may be missing; "
            "give a longer --canvas, or shorter clips"
        )
    for gap in transcript.gaps:
        complain(
            f"warning: {transcript.file}: nothing read from {gap.start:.1f} to {gap.end:.1f} s: {gap.reason}"
        )


def _json_line(transcript: Transcript) -> str:
    is_utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    return json.dumps(transcript.to_dict(), ensure_ascii=not is_utf8)


def shown_text(text: str) -> str:
    """Give a text as one line, without what a terminal would obey rather than show."""
    return " ".join("".join(c if c.isprintable() or c in _JOINERS else " " for c in text).split())


def text_line(transcript: Transcript) -> str:
    """Give the line of a file."""
    text = shown_text(transcript.text) or "(no speech)"
    language = f"[{transcript.language}]  " if transcript.language else ""
    return f"{transcript.file}  {language}{text}  ({transcript.rtfx:.1f}× real time)"


def speaker_lines(transcript: Transcript) -> list[str]:
    """One line a segment, where speakers are known: start and end in seconds, speaker, text."""
    if not any(segment.speaker for segment in transcript.segments):
        return []
    rows = ((one, shown_text(one.speaker or "?"), shown_text(one.text)) for one in transcript.segments)
    return [f"{one.start:10.2f} {one.end:7.2f}  {speaker}: {text}" for one, speaker, text in rows]


def word_lines(transcript: Transcript) -> list[str]:
    """One line a word, where words were asked for: start and end in seconds, confidence, text."""
    return [
        f"{word.start:10.2f} {word.end:7.2f}  {100 * word.confidence:3.0f} %  {shown_text(word.text)}"
        for word in transcript.words or ()
    ]
