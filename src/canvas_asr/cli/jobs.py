"""Processes that share a list of files: each has the model, and asks for the next file when it has room.

Who asks is answered by the process that started them, which alone reads the list, prints and writes files. It
knows what each of them has at any time, so that a file whose process dies is reported and none is lost.
"""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, TypeAlias

from canvas_asr.errors import AudioError, CanvasASRError
from canvas_asr.result import Transcript

Result: TypeAlias = "Transcript | AudioError"
File: TypeAlias = tuple[int, str]  # its place in the list, and its path


@dataclass(frozen=True)
class Work:
    """How files are transcribed, in whatever process.

    Attributes:
        load: Arguments of :func:`canvas_asr.load`.
        decoding: Arguments of :meth:`Transcriber.transcribe_files`.
        likes_words: Whether words are timed too, if the model can.
    """

    load: dict[str, Any]
    decoding: dict[str, Any]
    likes_words: bool = False

    def open(self, device: str | None = None) -> Any:
        """Load the model.

        Args:
            device: In place of the one in ``load``.
        """
        from canvas_asr.transcriber import load

        return load(**(self.load | ({} if device is None else {"device": device})))

    def transcribe(
        self, transcriber: Any, paths: Iterator[str], on_progress: Callable[[float, float], None]
    ) -> Iterator[Result]:
        """Transcribe files as they come; results in the order of the files."""
        found: Iterator[Result] = transcriber.transcribe_files(
            paths, on_progress=on_progress, **self.arguments(transcriber)
        )
        return found

    def arguments(self, transcriber: Any) -> dict[str, Any]:
        """Those of ``decoding``, and words timed if the model can and that is liked."""
        timed = self.likes_words and transcriber.has_draft
        return self.decoding | ({"word_timestamps": True} if timed else {})


@dataclass
class _Worker:
    """A process, and the files it has."""

    place: int
    process: Any
    connection: Connection
    files: deque[File]


def share_files(
    work: Work, files: Iterator[File], n_jobs: int, on_progress: Callable[[float, int], None]
) -> Iterator[tuple[int, Result]]:
    """Transcribe files in several processes.

    Args:
        work: How.
        files: Read as the processes ask for them.
        n_jobs: Processes.
        on_progress: Called with the seconds of audio that a worker has done, and its number.

    Yields:
        The place of each file and its result, as they come.

    Raises:
        CanvasASRError: If the model cannot be loaded, or an option is wrong.
    """
    context = multiprocessing.get_context("spawn")  # CUDA and threads do not survive a fork
    workers = {}
    try:
        for place in range(n_jobs):
            ours, theirs = context.Pipe()
            process = context.Process(target=_run, args=(theirs, work, place, n_jobs), daemon=True)
            process.start()
            theirs.close()
            workers[ours] = _Worker(place, process, ours, deque())
        while workers:
            for ready in wait(list(workers)):
                worker = workers[ready]  # type: ignore[index]
                try:
                    kind, value = worker.connection.recv()
                except (EOFError, OSError):
                    del workers[worker.connection]
                    yield from _lost(worker)
                    continue
                if kind == "next":
                    _hand_out(worker, files)
                elif kind == "done":
                    yield worker.files.popleft()[0], value
                elif kind == "progress":
                    on_progress(value, worker.place)
                else:
                    raise value
        for place, path in files:
            yield place, AudioError(f"{path}: not transcribed, all processes have ended; --resume goes on.")
    finally:
        for worker in workers.values():
            worker.process.terminate()
        for worker in workers.values():
            worker.process.join()


def _hand_out(worker: _Worker, files: Iterator[File]) -> None:
    """Answer a process that asks for a file; None tells it that there are no more."""
    file = next(files, None)
    if file is not None:
        worker.files.append(file)
    try:
        worker.connection.send(None if file is None else file[1])
    except OSError:  # it has died: that is found when its connection is read
        return


def _lost(worker: _Worker) -> Iterator[tuple[int, Result]]:
    """Report the files of a process that has ended; none after a good end."""
    worker.process.join()
    code = worker.process.exitcode
    how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
    for place, path in worker.files:
        hint = "if memory ran out, give fewer --jobs or a smaller --batch-size"
        yield place, AudioError(f"{path}: its process {how}; {hint}.")


def _run(connection: Connection, work: Work, place: int, n_jobs: int) -> None:
    """Transcribe, in a process of its own, what the other end of the connection hands out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    sending = threading.Lock()  # files may be asked for by a thread that reads ahead

    def send(kind: str, value: Any = None) -> None:
        with sending:
            connection.send((kind, value))

    def paths() -> Iterator[str]:
        while True:
            send("next")
            path = connection.recv()
            if path is None:
                return
            yield path

    try:
        transcriber = work.open(_own_device(work.load, place, n_jobs))
        for result in work.transcribe(transcriber, paths(), lambda done, _all: send("progress", done)):
            send("done", result)
    except CanvasASRError as error:
        send("error", error)
    except (EOFError, BrokenPipeError):  # nobody waits for it any more
        return


def _own_device(load: dict[str, Any], place: int, n_jobs: int) -> str | None:
    """Share GPUs and processor cores; None leaves the device as it was said."""
    import torch

    torch.set_num_threads(max(1, torch.get_num_threads() // n_jobs))
    device, n_gpus = load.get("device"), torch.cuda.device_count()
    if n_gpus > 1 and device in (None, "cuda") and load.get("device_map") is None:
        return f"cuda:{place % n_gpus}"
    return None
