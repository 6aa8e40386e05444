"""What was decoded, as a transcript: text, tokens and words."""

from __future__ import annotations

from .canvas import Vocabulary
from .options import DecodingOptions
from .processing import CanvasASRProcessor
from .result import Decoded, Segment, Token, Transcript
from .words import make_words


def empty_transcript(options: DecodingOptions) -> Transcript:
    """Give the transcript of a clip of zero samples."""
    language = options.language or ""
    words = () if options.word_timestamps else None
    return Transcript("", language, float(bool(language)), (), 0.0, 0, 0.0, 0.0, draft="", words=words)


def read_transcript(
    decoded: Decoded,
    audio_s: float,
    processor: CanvasASRProcessor,
    vocabulary: Vocabulary,
    *,
    has_draft: bool,
) -> Transcript:
    """Write what was decoded from a clip as text.

    Args:
        decoded: Of the clip; a draft may hold ids that are no text.
        audio_s: Length of the clip in seconds.
        processor: Of the checkpoint.
        vocabulary: Which ids are text.
        has_draft: Whether the model has a CTC draft.
    """
    kept = [k for k, i in enumerate(decoded.ids) if vocabulary.text[i]]
    ids = [decoded.ids[k] for k in kept]
    texts, sure = processor.token_texts(ids), [decoded.confidences[k] for k in kept]
    words = None
    if decoded.spans is not None:
        words = make_words(texts, sure, [decoded.spans[k] for k in kept], audio_s)
    segment = Segment(
        start=0.0,
        end=audio_s,
        text=processor.text(ids),
        language=decoded.language,
        language_confidence=decoded.language_confidence,
        language_probabilities=decoded.language_probabilities,
        tokens=tuple(Token(i, text, p) for i, text, p in zip(ids, texts, sure, strict=True)),
        confidence=sum(sure) / max(1, len(sure)),
        passes=decoded.passes,
        truncated=decoded.truncated,
        words=words,
    )
    return Transcript(
        text=segment.text,
        language=segment.language,
        language_confidence=segment.language_confidence,
        tokens=segment.tokens,
        confidence=segment.confidence,
        passes=segment.passes,
        audio_s=audio_s,
        seconds=0.0,
        truncated=segment.truncated,
        draft=processor.text([i for i in decoded.draft if vocabulary.text[i]]) if has_draft else None,
        words=words,
        segments=(segment,) if segment.text else (),
    )
