"""What the passes make of a canvas, for those who watch.

``asr.transcribe("talk.mp3", on_canvas=lambda view: print(view.step, view.text))`` prints every pass.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from .result import Token

if TYPE_CHECKING:
    from .clip_batch import ClipBatch
    from .decoding import CanvasDecoder

# Called with the clip's place in the list (0 for one clip), the number of the pass from 1, the text so far.
OnPass: TypeAlias = Callable[[int, int, str], None]


@dataclass(frozen=True)
class CanvasView:
    """A canvas after a pass.

    Attributes:
        place: The clip's place in the list; 0 for one clip.
        step: Number of the pass, from 1.
        tokens: What the pass predicts: the text up to the first end token, with the confidences of this pass.
        kept: Which of the tokens stand on the canvas that the next pass reads; the places of the others hold
            noise again. None where no pass follows.
        before: What stood at every place of the canvas when the pass began: noise, or what was kept. Empty
            for an id that is no text; the end tokens of the tail are left out.
        language: Code on the canvas; empty where it carries none, or for silence.
    """

    place: int
    step: int
    tokens: tuple[Token, ...]
    kept: tuple[bool, ...] | None
    before: tuple[str, ...]
    language: str = ""

    @property
    def text(self) -> str:
        """The tokens as a text."""
        return "".join(token.text for token in self.tokens).strip()


OnCanvas: TypeAlias = Callable[[CanvasView], None]


@dataclass(frozen=True)
class Watchers:
    """Who is told of every pass; where nobody is, a pass costs nothing more.

    Attributes:
        on_pass: Takes texts.
        on_canvas: Takes canvases.
    """

    on_pass: OnPass | None = None
    on_canvas: OnCanvas | None = None

    def tell(self, batch: ClipBatch, place_of: Callable[[Any], int] = int) -> None:
        """Tell of what the last pass made of its clips.

        Args:
            batch: With the clips.
            place_of: Gives a clip's place from its key.
        """
        if self.on_pass is not None:
            last, decoder = batch.shown(), batch.decoder
            for key, step, ids in zip(last.keys, last.steps, last.canvas.tolist(), strict=True):
                self.on_pass(place_of(key), step, decoder.processor.text(ids[decoder.text_span(ids)]))
        if self.on_canvas is not None:
            for view in view_canvases(batch, place_of):
                self.on_canvas(view)


NOBODY = Watchers()


def view_canvases(
    batch: ClipBatch, place_of: Callable[[Any], int] = int, watched: Container[Any] | None = None
) -> Iterator[CanvasView]:
    """Read what the last pass of a batch made of its clips.

    Args:
        batch: With the clips.
        place_of: Gives a clip's place from its key.
        watched: Keys of the clips to read; None: all.
    """
    last, decoder = batch.shown(), batch.decoder
    if watched is not None:
        last = last.select([row for row, key in enumerate(last.keys) if key in watched])
    codes = {tag: code for code, tag in decoder.languages.items()}
    confidences = last.confidence.tolist()
    stays = [None] * len(last.keys) if last.kept is None else last.kept.tolist()
    for row, ids in enumerate(last.canvas.tolist()):
        span = decoder.text_span(ids)
        texts = spelled(decoder, ids[span])
        known = zip(ids[span], texts, confidences[row][span], strict=True)
        kept = stays[row] if last.goes_on[row] else None
        yield CanvasView(
            place=place_of(last.keys[row]),
            step=last.steps[row],
            tokens=tuple(Token(*token) for token in known),
            kept=None if kept is None else tuple(kept[span]),
            before=_texts(decoder, last.before[row, : last.lengths[row]].tolist()),
            language=codes.get(ids[0], "") if codes else batch.given_language(last.keys[row]),
        )


def _texts(decoder: CanvasDecoder, ids: Sequence[int]) -> tuple[str, ...]:
    """What stands at the places of a canvas behind its tag; empty for ids that are no text."""
    vocabulary = decoder.vocabulary
    first = int(bool(decoder.languages))
    last = max((place for place, i in enumerate(ids) if i != vocabulary.eos), default=-1)
    return spelled(decoder, ids[first : last + 1])


def spelled(decoder: CanvasDecoder, ids: Sequence[int]) -> tuple[str, ...]:
    """Say what each place adds to the text; empty for the blank and for ids that are no text."""
    allowed = decoder.vocabulary.text[list(ids)].tolist()
    writes = [ok and i != decoder.config.blank_token_id for i, ok in zip(ids, allowed, strict=True)]
    texts = iter(decoder.processor.token_texts([i for i, ok in zip(ids, writes, strict=True) if ok]))
    return tuple(next(texts) if ok else "" for ok in writes)
