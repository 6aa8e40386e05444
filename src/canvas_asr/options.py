"""Options of decoding: their names, defaults and bounds, in one place for every interface.

Values are checked here, without a model; what depends on one (its longest canvas, its languages, whether it
has a draft) is checked by :class:`~canvas_asr.decoding.CanvasDecoder`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import TypedDict

from .errors import OptionError

STARTS = ("noise", "draft", "draft-slots")
SELF_CONDITIONING = ("none", "draft", "posterior")
ACCEPTANCES = ("confidence", "entropy-bound", "threshold")
RISKS = ("tokens", "words", "characters")
AUTO = "auto"
MAX_BOOST = 20.0  # nats a token: a factor of 5e8, which no posterior withstands
MAX_HOTWORDS = 1000
MAX_HOTWORD_LENGTH = 100  # characters
MAX_PROMPT_TOKENS = 224  # of ``prompt``, as in Whisper
RELEASED_INIT = "noise"
# Passes where the start alone is said: the released system's; from a draft one is enough (docs/decoding.md).
USUAL_STEPS = {"noise": 8, "draft": 1, "draft-slots": 1}


class StrategyOptions(TypedDict, total=False):
    """Those options of :class:`DecodingOptions` that few calls need."""

    self_conditioning: str | None
    draft_threshold: float | None
    acceptance: str
    entropy_bound: float
    accept_threshold: float
    stop_entropy: float | None
    stability: int
    fusion: float
    gate: float | None
    candidates: int
    risk: str
    word_timestamps: bool
    hotwords: Sequence[str]
    hotword_boost: float
    prompt: str | None


class DecodingKeywords(StrategyOptions, total=False):
    """Those that are given by keyword only: all but language and steps."""

    init: str | None
    canvas: int | str | None
    seed: int


@dataclass(frozen=True)
class DecodingOptions:
    """How clips are decoded.

    ``steps`` alone means passes from noise, ``init`` alone as many passes as `USUAL_STEPS` says. Where
    neither is given, the checkpoint's defaults hold, which :meth:`~canvas_asr.decoding.CanvasDecoder.resolve`
    fills in: ``decoding_init`` and ``decoding_steps`` of its configuration, else 8 passes from noise, the
    released system's. Those are taken too where an option is given that is without effect in one pass from
    the draft: ``acceptance``, ``stop_entropy`` or ``candidates``.

    Attributes:
        language: Code of all clips; None finds each one's.
        steps: Most passes a clip takes; 0, with ``init="draft"`` only, gives the draft as it is, in no
            language but the one given. None: see above.
        init: What the canvas starts from. ``noise``: random tokens. ``draft``: the CTC draft, laid end to
            end, the end token filling the tail. ``draft-slots``: the draft with a random token before,
            between and behind its tokens, where the model may insert what the draft missed. None: see above.
        canvas: Tokens of the canvas; ``auto``: from the draft's length, rounded up to one of a few sizes, and
            a text that fills it is decoded again on one of twice the length, up to the model's longest; None:
            the model's default.
        seed: Of the noise.
        self_conditioning: Soft embeddings that the first pass is given, laid like the draft. ``none``.
            ``draft``: the draft tokens' own. ``posterior``: those expected under the CTC posteriors. None:
            from noise none, from the draft as the checkpoint says, ``decoding_self_conditioning``.
        draft_threshold: Draft tokens of a lower CTC posterior are replaced by noise; None keeps all.
        acceptance: Which predictions stay for the next pass while the rest is re-randomised. ``confidence``:
            the most confident, a share that grows with every pass (the released system's). ``entropy-bound``:
            those of least entropy, up to a budget (DiffusionGemma's). ``threshold``: those that are sure
            enough; a clip in which all are is done.
        entropy_bound: Budget in nats, for ``entropy-bound``.
        accept_threshold: Least probability that is sure enough, for ``threshold``.
        stop_entropy: A clip is done once its text is stable and the mean entropy of it is below this many
            nats; None takes all the passes.
        stability: Passes in a row that must have given the same text for it to be stable, the start counted
            as one; 0: entropy alone decides.
        fusion: Weight of the CTC log posteriors that are added to the log probabilities of every pass.
        gate: A clip whose CTC frames are all at least this certain gets its draft, in no pass and no language
            but the one given; None: every clip takes passes.
        candidates: Canvases a clip, the j-th denoised as the seed plus j would; the answer is that of minimum
            Bayes risk among them.
        risk: What the edit distance between candidates counts: ``tokens``, ``words`` or ``characters``.
        word_timestamps: Whether the text is aligned to the CTC posteriors, which tells when each word was
            said.
        hotwords: Words and phrases, as they are to be written, that the CTC reading is bent towards
            (:mod:`canvas_asr.biasing`), and every pass where the reading has them; a checkpoint that takes a
            prompt is told them too.
        hotword_boost: Nats that a listed word gains for each of its tokens.
        prompt: Text to go by, names or the sentence before, for a checkpoint that was trained with such text.
    """

    language: str | None = None
    steps: int | None = None
    init: str | None = None
    canvas: int | str | None = None
    seed: int = 0
    self_conditioning: str | None = None
    draft_threshold: float | None = None
    acceptance: str = "confidence"
    entropy_bound: float = 0.1
    accept_threshold: float = 0.9
    stop_entropy: float | None = None
    stability: int = 1
    fusion: float = 0.0
    gate: float | None = None
    candidates: int = 1
    risk: str = "tokens"
    word_timestamps: bool = False
    hotwords: Sequence[str] = ()
    hotword_boost: float = 3.0
    prompt: str | None = None

    def __post_init__(self) -> None:
        """Choose what follows from others; raise OptionError for a value that nothing can be decoded with."""
        if self.init is None and (self.steps is not None or self._needs_noise):
            object.__setattr__(self, "init", RELEASED_INIT)
        if self.init in STARTS and self.steps is None:
            object.__setattr__(self, "steps", USUAL_STEPS[self.init])
        for name, allowed in (
            ("init", STARTS),
            ("self_conditioning", SELF_CONDITIONING),
            ("acceptance", ACCEPTANCES),
            ("risk", RISKS),
        ):
            value = getattr(self, name)
            is_open = value is None and name in ("init", "self_conditioning")
            if value not in allowed and not is_open:
                raise OptionError(f"{name} is {value!r}; choose one of {', '.join(allowed)}.")
        self._check_whole_numbers()
        for name in ("draft_threshold", "accept_threshold", "gate"):
            value = getattr(self, name)
            if value is not None and not 0 < _number(name, value) <= 1:
                raise OptionError(f"{name} is {value!r}; give a probability above 0, at most 1.")
        for name in ("entropy_bound", "stop_entropy"):
            value = getattr(self, name)
            if value is not None and not _number(name, value) > 0:
                raise OptionError(f"{name} is {value!r}; give a number of nats above 0.")
        if _number("fusion", self.fusion) < 0:
            raise OptionError(f"fusion is {self.fusion!r}; give a weight of at least 0.")
        for name in ("entropy_bound", "accept_threshold"):
            if getattr(self, name) is None:
                raise OptionError(f"{name} is None; give a number.")
        if not isinstance(self.word_timestamps, bool):
            raise OptionError(f"word_timestamps is {self.word_timestamps!r}; give True or False.")
        if self.draft_threshold is not None and self.init == "noise":
            raise OptionError("draft_threshold is given, but init='noise' starts from no draft.")
        if self.prompt is not None and not isinstance(self.prompt, str):
            raise OptionError(f"prompt is {self.prompt!r}; give a text.")
        object.__setattr__(self, "hotwords", _hotwords(self.hotwords))
        if not 0 < _number("hotword_boost", self.hotword_boost) <= MAX_BOOST:
            raise OptionError(
                f"hotword_boost is {self.hotword_boost!r}; give nats above 0, at most {MAX_BOOST:g}."
            )

    def _check_whole_numbers(self) -> None:
        fewest = 0 if self.init == "draft" else 1
        for name, least in (
            ("steps", fewest),
            ("canvas", 2),
            ("seed", None),
            ("stability", 0),
            ("candidates", 1),
        ):
            value = getattr(self, name)
            if (name == "canvas" and value in (None, AUTO)) or (name == "steps" and value is None):
                continue
            try:
                number = operator.index(value)
            except TypeError as error:
                hint = f"a whole number, or {AUTO!r}" if name == "canvas" else "a whole number"
                raise OptionError(f"{name} is {value!r}; give {hint}.") from error
            if least is not None and number < least:
                unit = " tokens" if name == "canvas" else ""
                raise OptionError(f"{name} is {value}{unit}; give at least {least}.")

    @property
    def _needs_noise(self) -> bool:
        """Whether an option is given that changes nothing in one pass from the draft."""
        return self.acceptance != ACCEPTANCES[0] or self.stop_entropy is not None or self.candidates != 1

    def resolved(
        self, init: str | None = None, steps: int | None = None, self_conditioning: str = "none"
    ) -> DecodingOptions:
        """Fill in start, passes and self-conditioning where they are not given.

        Args:
            init: Of the checkpoint; None without ``steps``: as in the released system.
            steps: Of the checkpoint; None: as usual for that start.
            self_conditioning: Of the checkpoint, from the draft.

        Raises:
            OptionError: If they are impossible, or the other options do not go with that start.
        """
        chosen = self
        if self.init is None:
            own = RELEASED_INIT if init is None and steps is None else init
            chosen = replace(self, init=own, steps=steps)
        if chosen.self_conditioning is None:
            shown = "none" if chosen.init == RELEASED_INIT else self_conditioning
            chosen = replace(chosen, self_conditioning=shown)
        return chosen

    @property
    def draft_alone(self) -> bool:
        """Whether the draft is asked for as it is."""
        return self.steps == 0

    @property
    def described(self) -> str:
        """Start and passes in words, such as ``8 passes from noise``; of resolved options."""
        if self.draft_alone:
            return "the CTC draft alone"
        start = {"noise": "noise", "draft": "the draft"}.get(self.init or "", "the draft with free slots")
        return f"{self.steps} pass{'es' if self.steps != 1 else ''} from {start}"

    @property
    def needs_draft(self) -> str:
        """The option that needs a draft, as ``name=value``; empty if none does."""
        for name, value, off in (
            ("init", self.init, ("noise", None)),
            ("canvas", self.canvas if self.canvas == AUTO else None, (None,)),
            ("self_conditioning", self.self_conditioning, ("none", None)),
            ("fusion", self.fusion, (0,)),
            ("gate", self.gate, (None,)),
            ("word_timestamps", self.word_timestamps, (False,)),
            ("hotwords", ", ".join(self.hotwords), ("",)),
        ):
            if value not in off:
                return f"{name}={value}"
        return ""


def _hotwords(words: object) -> tuple[str, ...]:
    """Give listed words without the spaces around them.

    Raises:
        OptionError: If they are no list of texts, one is empty or too long, or there are too many.
    """
    if isinstance(words, str) or not isinstance(words, Sequence):
        raise OptionError(f"hotwords is {words!r}; give a list of words or phrases.")
    if len(words) > MAX_HOTWORDS:
        raise OptionError(f"hotwords are {len(words)}; give at most {MAX_HOTWORDS}.")
    found = []
    for word in words:
        if not isinstance(word, str) or not any(character.isalnum() for character in word):
            raise OptionError(f"hotwords: {word!r} is no word; give texts with a letter or digit.")
        found.append(" ".join(word.split()))
        if len(found[-1]) > MAX_HOTWORD_LENGTH:
            raise OptionError(
                f"hotwords: {word[:20]!r}... is longer than {MAX_HOTWORD_LENGTH} characters; shorten it."
            )
    return tuple(found)


def _number(name: str, value: object) -> float:
    """Give a finite number.

    Raises:
        OptionError: If it is none.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise OptionError(f"{name} is {value!r}; give a number.")
    return float(value)
