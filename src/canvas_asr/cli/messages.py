"""What the commands say on stderr, and the exit codes that errors become."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from canvas_asr.errors import CanvasASRError

PROGRAM = "canvas-asr"
# Modules of the extras, which training, synthesis and evaluation import.
_EXTRA_MODULES = ("accelerate", "jiwer", "matplotlib", "pypinyin", "whisper_normalizer", "yaml")


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
        return run()
    except KeyboardInterrupt:
        complain("interrupted")
        return 130
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
