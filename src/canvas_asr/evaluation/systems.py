"""What is evaluated: models of this package, other recognisers beside them, and hypotheses from a file.

==========================  =================================================================================
``tiny``, a folder, a name  what `canvas_asr.load` takes
``autoregressive:MODEL``    such a model, decoded token by token by its causal side
``stock-generate:MODEL``    such a model, decoded by ``generate`` of `transformers`
``pipeline:NAME``           any speech recognition pipeline of `transformers`, by name on the hub or folder
``faster-whisper:NAME``     a Whisper model in faster-whisper, if that is installed
``pocketsphinx``            its English model, which comes with its wheel, if that is installed
``file:PATH``               hypotheses made elsewhere, one a clip, in the order of the set
==========================  =================================================================================
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NoReturn, Protocol

from ..errors import CheckpointError, OptionError
from ..options import DecodingOptions
from .modes import DEFAULT_SETTINGS, PLAIN, Recogniser, Samples, Setting, TranscriptLike, Value

LoadModel = Callable[[str, "str | None"], Recogniser]


@dataclass(frozen=True)
class Utterance:
    """One clip as it is given to a model.

    Attributes:
        place: Of the clip in its set, from 0.
        samples: 16 kHz mono, (N,).
    """

    place: int
    samples: Samples


@dataclass(frozen=True)
class Request:
    """Clips of one language of a set, and how to read them.

    Attributes:
        utterances: The clips.
        testset: Name of the set.
        setting: How to decode.
        language: Code; told to the model only where the setting gives it.
        batch_size: Clips a batch.
        seed: Of noise.
    """

    utterances: Sequence[Utterance]
    testset: str
    setting: Setting
    language: str
    batch_size: int
    seed: int


@dataclass(frozen=True)
class Reading:
    """What a recogniser that is not of this package made of a clip."""

    text: str
    language: str = ""
    passes: int = 0
    truncated: bool = False
    seconds: float = 0.0


class System(Protocol):
    """Something that reads clips."""

    @property
    def max_audio_s(self) -> float | None:
        """The longest clip it takes, in seconds; None if there is no limit."""

    def read(self, request: Request) -> Sequence[TranscriptLike]:
        """Read clips, in order.

        Raises:
            DataError: If it cannot.
        """


@dataclass(frozen=True)
class Kind:
    """A kind of system, as far as it is known before one is loaded.

    Attributes:
        options: Options of decoding that a setting may have.
        has_draft: Whether there is a CTC draft to start from.
        hears: Whether it hears the audio: hypotheses of a file have no speed, and no other audio can be
            given.
        takes_language: Whether it can be told the language.
        counts_passes: Whether it says how many passes a clip took, or tokens that were written one by one.
        languages: Which it knows; None: any.
        defaults: Settings where none is asked for.
        check: Raises OptionError for a setting whose values no system of the kind can follow.
    """

    options: tuple[str, ...] = ()
    has_draft: bool = False
    hears: bool = True
    takes_language: bool = True
    counts_passes: bool = False
    languages: tuple[str, ...] | None = None
    defaults: tuple[Setting, ...] = (PLAIN,)
    check: Callable[[Setting], None] = lambda setting: None


@cache
def _canvas_kind() -> Kind:
    names = (field.name for field in dataclasses.fields(DecodingOptions))
    options = tuple(name for name in names if name not in ("language", "seed"))
    return Kind(options, True, counts_passes=True, defaults=DEFAULT_SETTINGS, check=_check_decoding)


def _check_decoding(setting: Setting) -> None:
    """Raise OptionError for options that no model of this package can follow, naming the setting."""
    options: dict[str, Any] = dict(setting.options)
    try:
        DecodingOptions(**options)
    except OptionError as error:
        raise OptionError(f"setting {setting.name!r}: {error}") from error


def whole_number(setting: str, name: str, value: Value) -> int:
    """The value of an option that counts something.

    Args:
        setting: Name of the setting.
        name: Of the option.
        value: As it was given.

    Raises:
        OptionError: If it is no whole number of at least 1.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise OptionError(f"setting {setting!r}: {name} is {value!r}; give a whole number of at least 1")
    return value


def _check_baseline(setting: Setting) -> None:
    """Raise OptionError for a value that no baseline can be asked with: before anything is decoded."""
    for name, value in setting.options:
        if name == "temperature":
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
                raise OptionError(f"setting {setting.name!r}: {name} is {value!r}; give 0 to 1")
        elif name == "vad_filter":
            if not isinstance(value, bool):
                raise OptionError(f"setting {setting.name!r}: {name} is {value!r}; give true or false")
        else:
            whole_number(setting.name, name, value)


BASELINES = {
    "autoregressive": Kind(("max_tokens",), counts_passes=True, check=_check_baseline),
    "stock-generate": Kind(
        ("steps", "canvas"), takes_language=False, counts_passes=True, check=_check_baseline
    ),
    "pipeline": Kind(("num_beams", "max_new_tokens"), check=_check_baseline),
    "faster-whisper": Kind(("beam_size", "temperature", "vad_filter"), check=_check_baseline),
    "pocketsphinx": Kind(languages=("en",)),
    "file": Kind(hears=False),
}


def split_name(model: str) -> tuple[str, str]:
    """The kind of a model, empty for one of this package, and what is left of its name."""
    kind, colon, name = model.partition(":")
    return (kind, name) if kind in BASELINES and (colon or kind == "pocketsphinx") else ("", model)


def kind_of(model: str) -> Kind:
    """What is known of a model by its name alone."""
    kind, _ = split_name(model)
    return BASELINES[kind] if kind else _canvas_kind()


def settings_of(models: Sequence[str], settings: Sequence[Setting]) -> dict[str, list[Setting]]:
    """Which settings each model is asked in: those whose options it has, or its own where there are none.

    Raises:
        OptionError: If no model can be asked in a setting, a value is impossible, or a setting starts from a
            draft and no model has a draft head.
    """
    kinds = {model: kind_of(model) for model in models}
    for setting in settings:
        if not any(_fits(setting, kind) for kind in kinds.values()):
            _refuse(setting, kinds)
    chosen = {}
    for model, kind in kinds.items():
        fitting = [setting for setting in settings if _fits(setting, kind)]
        chosen[model] = fitting or list(kind.defaults if not settings else (PLAIN,))
        for setting in chosen[model]:
            kind.check(setting)
    return chosen


def _fits(setting: Setting, kind: Kind) -> bool:
    return (
        set(dict(setting.options)) <= set(kind.options)
        and (kind.hears or not setting.shuffled)
        and (kind.takes_language or not setting.language_given)
    )


def _refuse(setting: Setting, kinds: dict[str, Kind]) -> NoReturn:
    """Raise OptionError: say why no model can be asked in a setting."""
    what, models = f"setting {setting.name!r}", ", ".join(kinds)
    known = dict.fromkeys(option for kind in kinds.values() for option in kind.options)
    if setting.wants_draft and not any(kind.has_draft for kind in kinds.values()):
        raise OptionError(
            f"{what} starts from a draft, and {models} has no draft head; leave the setting out, or give a "
            "model of this package"
        )
    if unknown := [name for name in dict(setting.options) if name not in known]:
        raise OptionError(
            f"{what}: unknown option {unknown[0]!r}; {models} has {', '.join(known) or 'no options'}"
        )
    raise OptionError(
        f"{what}: none of {models} can be asked so; each has other options, hears no audio, or is not told "
        "the language"
    )


def load_canvas_model(model: str, device: str | None) -> Recogniser:
    """Load a model of this package."""
    # Here, not above: it imports torch, which --help and a wrong option need not wait for.
    from ..transcriber import load

    return load(model, device=device)


def open_system(model: str, device: str | None, load_model: LoadModel = load_canvas_model) -> System:
    """Load a system by its name.

    Raises:
        CheckpointError: If it cannot be had; what to do is said.
        DataError: If it is a file that cannot be read.
    """
    kind, name = split_name(model)
    if not kind:
        return _Canvas(model, load_model(model, device))
    if not name and kind != "pocketsphinx":
        raise CheckpointError(f"{model}: says no name; give {kind}:NAME")
    if kind in ("autoregressive", "stock-generate"):
        return _same_weights(kind, load_model(name, device))
    from . import baselines

    makers: dict[str, Callable[[], System]] = {
        "pipeline": lambda: baselines.Pipeline(name, device),
        "faster-whisper": lambda: baselines.FasterWhisper(name, device),
        "pocketsphinx": baselines.PocketSphinx,
        "file": lambda: baselines.HypothesisFile(name),
    }
    return makers[kind]()


def _same_weights(kind: str, recogniser: Recogniser) -> System:
    from ..transcriber import Transcriber
    from .same_weights import Autoregressive, StockGenerate

    if not isinstance(recogniser, Transcriber):
        raise CheckpointError(f"{kind}: needs a model of this package")
    return Autoregressive(recogniser) if kind == "autoregressive" else StockGenerate(recogniser)


class _Canvas:
    """A model of this package; what is longer than it takes at once is read in pieces."""

    max_audio_s: float | None = None

    def __init__(self, name: str, recogniser: Recogniser) -> None:
        self.name = name
        self.recogniser = recogniser

    def read(self, request: Request) -> Sequence[TranscriptLike]:
        """Decode."""
        setting = request.setting
        if setting.wants_draft and not getattr(self.recogniser, "has_draft", True):
            raise OptionError(
                f"setting {setting.name!r} starts from a draft, and {self.name} has no draft head; name "
                "others with --setting, such as noise-8"
            )
        options: dict[str, Any] = dict(setting.options)
        try:
            return self.recogniser.transcribe_arrays(
                [utterance.samples for utterance in request.utterances],
                **options,
                language=request.language if setting.language_given else None,
                batch_size=request.batch_size,
                seed=request.seed,
            )
        except OptionError as error:  # one that only a loaded model can find
            raise OptionError(f"{self.name}, setting {setting.name!r}: {error}") from error
