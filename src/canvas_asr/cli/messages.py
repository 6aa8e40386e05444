"""What the commands say on stderr, and the exit codes that errors and Ctrl-C become."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from canvas_asr.errors import CanvasASRError

PROGRAM = "canvas-asr"
INTERRUPTED = 130  # exit code, as shells have it
# Modules of the extras, which training, synthesis and evaluation import.
_EXTRA_MODULES = ("accelerate", "jiwer", "matplotlib", "pypinyin", "whisper_normalizer", "yaml")


class CtrlC:
    """Ctrl-C that is not lost: Python drops a KeyboardInterrupt raised in a destructor or a native callback.

    The first one raises KeyboardInterrupt where the program stands, as ever, and is kept for :meth:`check`,
    which loops over much work call. A second one ends the process at once.
    """

    def __init__(self) -> None:
        self.arrived = False
        self._process = 0

    def check(self) -> None:
        """Raise KeyboardInterrupt if it came and was dropped."""
        if self.arrived:
            raise KeyboardInterrupt

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep it while a command runs, and raise it at the end of one that went on all the same.

        Python tells the main thread alone, and a program that calls a command may have a handler of its own:
        elsewhere nothing is changed.
        """
        is_main = threading.current_thread() is threading.main_thread()
        if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            yield
            return
        tell = sys.unraisablehook

        def tell_of_others(dropped: sys.UnraisableHookArgs) -> None:
            if dropped.exc_type is not KeyboardInterrupt:
                tell(dropped)

        self._process = os.getpid()
        sys.unraisablehook = tell_of_others
        signal.signal(signal.SIGINT, self._take)
        try:
            yield
            self.check()
        except Exception:
            self.check()  # what broke may be what it fell into
            raise
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            sys.unraisablehook = tell
            self.arrived = False

    def _take(self, _number: int, _frame: FrameType | None) -> None:
        if self.arrived and os.getpid() == self._process:  # and no copy of it that loads data
            with suppress(OSError):
                os.write(2, f"{PROGRAM}: interrupted\n".encode())
            os._exit(INTERRUPTED)
        self.arrived = True
        raise KeyboardInterrupt


ctrl_c = CtrlC()


def complain(message: str) -> None:
    """Print a message on stderr, behind the program's name."""
    print(f"{PROGRAM}: {message}", file=sys.stderr, flush=True)


def exit_code(run: Callable[[], int]) -> int:
    """Run a command; what it raises on purpose becomes one line and a code.

    Args:
        run: Gives the exit code where all went well.

    Returns:
        That code; 1 after an error, 130 after Ctrl-C.
    """
    try:
        with ctrl_c.kept():
            return _exit_code(run)
    except KeyboardInterrupt:
        complain("interrupted")
        return INTERRUPTED


def _exit_code(run: Callable[[], int]) -> int:
    try:
        return run()
    except CanvasASRError as error:
        complain(f"error: {error}")
    except ModuleNotFoundError as error:
        if error.name not in _EXTRA_MODULES:
            raise
        complain(f"error: this needs {error.name}; install it with: pip install 'canvas-asr[train,eval]'")
    except BrokenPipeError:  # the reader, say `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        complain(f"error: {error.filename}: {error.strerror}" if error.filename else f"error: {error}")
    return 1
