"""Strategies of the sampler: how a canvas starts, what a pass keeps, when it is done, what is chosen.

Each is a small object; a :class:`SamplerConfig` joins them, and no loop asks which one it has.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import OptionError
from ..options import DecodingOptions
from .acceptance import Acceptance, EntropyBound, MostConfident, StableAndConfident, StopRule, SureEnough
from .starts import Start, make_start

_RELEASED = MostConfident()


@dataclass(frozen=True)
class SamplerConfig:
    """How a canvas is denoised.

    Attributes:
        steps: Most denoising passes, at least 1.
        canvas_length: Tokens of the canvas C.
        init: ``noise`` starts from random tokens, ``draft`` from the CTC draft, ``draft-slots`` from the
            draft with places of noise between its tokens.
        seed: Of the noise.
        draft_threshold: Draft tokens of a lower CTC posterior are left as noise; None: none.
        acceptance: Chooses the predictions that stay.
        stops: A canvas that one of these calls done takes no further pass.
        fusion: Weight of the CTC log posteriors; 0: off.
    """

    steps: int = 8
    canvas_length: int = 96
    init: str = "noise"
    seed: int = 0
    draft_threshold: float | None = None
    acceptance: Acceptance = _RELEASED
    stops: tuple[StopRule, ...] = ()
    fusion: float = 0.0

    def __post_init__(self) -> None:
        """Raise OptionError for values that cannot be sampled with."""
        if self.steps < 1:
            raise OptionError(f"steps is {self.steps}; give at least 1 (8 is usual).")
        if self.canvas_length < 2:
            raise OptionError(f"canvas is {self.canvas_length} tokens; give at least 2.")
        make_start(self.init)

    @property
    def start(self) -> Start:
        """What lays the canvas."""
        return make_start(self.init, self.draft_threshold)

    @property
    def wants_entropy(self) -> bool:
        """Whether a strategy reads the entropy of every place."""
        return self.acceptance.wants_entropy or any(rule.wants_entropy for rule in self.stops)


def sampler_config(options: DecodingOptions, canvas_length: int) -> SamplerConfig:
    """Choose the strategies that options name.

    Args:
        options: Resolved; for the draft alone the number of passes plays no part.
        canvas_length: Of canvases whose length is not chosen clip by clip.

    Raises:
        ValueError: If the options leave start and passes to a checkpoint.
    """
    if options.steps is None or options.init is None:
        raise ValueError("start and passes are open; CanvasDecoder.resolve fills them in.")
    stops: list[StopRule] = []
    acceptance: Acceptance = _RELEASED
    if options.acceptance == "entropy-bound":
        acceptance = EntropyBound(options.entropy_bound)
    elif options.acceptance == "threshold":
        acceptance = sure = SureEnough(options.accept_threshold)
        stops.append(sure)
    if options.stop_entropy is not None:
        stops.append(StableAndConfident(options.stop_entropy, options.stability))
    return SamplerConfig(
        steps=max(1, options.steps),
        canvas_length=canvas_length,
        init=options.init,
        seed=options.seed,
        draft_threshold=options.draft_threshold,
        acceptance=acceptance,
        stops=tuple(stops),
        fusion=options.fusion,
    )
