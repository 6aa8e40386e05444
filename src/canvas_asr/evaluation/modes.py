"""What an evaluation asks of a model: the model's side of it, and the settings it is asked in.

A setting is written as options of decoding, ``steps=8,init=noise``, with two more that are the evaluation's
own: ``language=given`` tells the model the language, ``audio=shuffled`` gives each clip the audio of another
one of its set and language: a model that listens must fail there. Some have names: see `PRESETS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from ..errors import OptionError

Samples = npt.NDArray[np.float32]
Speakers = Literal["seen", "unseen", "unknown"]
Value = int | float | bool | str


class TranscriptLike(Protocol):
    """What evaluation reads of a transcript (`canvas_asr.Transcript` has it)."""

    @property
    def text(self) -> str:
        """The final text."""

    @property
    def language(self) -> str:
        """Language code, detected or given; empty if neither."""

    @property
    def passes(self) -> int:
        """Denoising passes used."""

    @property
    def truncated(self) -> bool:
        """Whether the text filled the canvas."""

    @property
    def seconds(self) -> float:
        """The clip's share of the work; only its proportion to that of the other clips is used."""


class Recogniser(Protocol):
    """The model side (`canvas_asr.Transcriber` has it)."""

    @property
    def transcribe_arrays(self) -> Callable[..., Sequence[TranscriptLike]]:
        """Transcribes 16 kHz mono clips, (n,) each, and returns one transcript for each, in order.

        By keyword it takes ``language`` (None to detect it), ``batch_size``, ``seed``, and the options of a
        setting.
        """


@dataclass(frozen=True)
class Setting:
    """One way of asking a model.

    Attributes:
        name: Column name in the report.
        options: Of decoding, by name, in order; which there are depends on the model.
        shuffled: Give each clip the audio of another one.
        language_given: Tell the model the language instead of letting it detect it.
    """

    name: str
    options: tuple[tuple[str, Value], ...] = ()
    shuffled: bool = False
    language_given: bool = False

    @property
    def wants_draft(self) -> bool:
        """Whether it starts from a draft."""
        return dict(self.options).get("init") in ("draft", "draft-slots")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "name": self.name,
            "options": dict(self.options),
            "shuffled": self.shuffled,
            "language_given": self.language_given,
        }


def _preset(name: str, init: str, steps: int, *, shuffled: bool = False, given: bool = False) -> Setting:
    return Setting(name, (("init", init), ("steps", steps)), shuffled, given)


DEFAULT_SETTINGS = (
    _preset("draft", "draft", 0),
    *(_preset(f"noise-{n}", "noise", n) for n in (1, 2, 4, 8, 16)),
    *(_preset(f"from-draft-{n}", "draft", n) for n in (1, 2, 4)),
    _preset("noise-8-language-given", "noise", 8, given=True),
    _preset("shuffled-noise-8", "noise", 8, shuffled=True),
)
"""What a canvas model is asked by itself: the CTC draft alone, passes from noise and from the draft."""
PLAIN = Setting("default")
"""A model as it decodes by itself."""
PRESETS = {setting.name: setting for setting in (*DEFAULT_SETTINGS, PLAIN)}
_OWN = {"audio": ("own", "shuffled"), "language": ("detected", "given")}


def parse_setting(text: str) -> Setting:
    """Read a setting: a name of `PRESETS`, or ``key=value,key=value``.

    Raises:
        OptionError: If it is neither, a key stands twice, or a value is impossible.
    """
    if text in PRESETS:
        return PRESETS[text]
    options: dict[str, Value] = {}
    own = {key: values[0] for key, values in _OWN.items()}
    seen = set()
    for part in text.split(","):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not (key and equals and value):
            raise OptionError(
                f"unknown setting {text!r}: give options as in steps=8,init=noise, or one of "
                f"{', '.join(PRESETS)}"
            )
        if key in seen:
            raise OptionError(f"setting {text!r}: {key} stands twice")
        seen.add(key)
        if key not in _OWN:
            options[key] = _value(value)
        elif value not in _OWN[key]:
            raise OptionError(f"setting {text!r}: {key} is {value!r}; use {' or '.join(_OWN[key])}")
        else:
            own[key] = value
    shuffled, given = own["audio"] == "shuffled", own["language"] == "given"
    return Setting(text, tuple(options.items()), shuffled, given)


def _value(text: str) -> Value:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
