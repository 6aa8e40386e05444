"""The errors this package raises on purpose.

Every one carries a single readable sentence that names the file, key or option at fault and says what to do,
so a command line can print ``str(error)`` and exit. Those that come from a bad value are ``ValueError`` too.
"""

from __future__ import annotations


class CanvasASRError(Exception):
    """Base of every error raised on purpose by canvas-asr: catch this one to catch them all."""


class AudioError(CanvasASRError, ValueError):
    """Audio that cannot be read or used; the message names the file, or says what is wrong with the array."""


class OptionError(CanvasASRError, ValueError):
    """An option of a call or command that is unknown, out of range, or contradicts another."""


class CheckpointError(CanvasASRError, ValueError):
    """A model folder or file that is missing, damaged, or does not fit; the message names the key."""


class RecipeError(CanvasASRError, ValueError):
    """A training recipe with an unknown, missing or impossible setting; the message names the key."""


class DataError(CanvasASRError, ValueError):
    """A manifest line, text or voice that training, evaluation or synthesis cannot use."""
