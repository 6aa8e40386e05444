"""What was decoded, as a transcript: text, tokens and words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from .audio_files import SAMPLE_RATE_HZ
from .canvas import Vocabulary
from .options import DecodingOptions
from .processing import CanvasASRProcessor
from .result import Decoded, Segment, Token, Transcript, Word
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
        language_probabilities=segment.language_probabilities,
    )


def shift_transcript(transcript: Transcript, n_samples: int) -> Transcript:
    """Move what stands in the transcript of a chunk to where the chunk is; its length stays.

    Args:
        transcript: Its times those of the chunk.
        n_samples: Before the chunk, which seconds are counted from.
    """
    if not n_samples:
        return transcript
    start_s = n_samples / SAMPLE_RATE_HZ
    end_s = (n_samples + round(transcript.audio_s * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ

    def moved(words: Sequence[Word] | None) -> tuple[Word, ...] | None:
        if words is None:
            return None
        return tuple(
            replace(word, start=min(start_s + word.start, end_s), end=min(start_s + word.end, end_s))
            for word in words
        )

    segments = (replace(one, start=start_s, end=end_s, words=moved(one.words)) for one in transcript.segments)
    return replace(transcript, words=moved(transcript.words), segments=tuple(segments))


def join_transcripts(parts: Sequence[Transcript], audio_s: float, options: DecodingOptions) -> Transcript:
    """Give the transcript of a recording from those of its chunks.

    Args:
        parts: In order, their times those of the recording.
        audio_s: Length of the recording in seconds.
        options: Of decoding.

    Returns:
        Texts, tokens, words and passes together. The language is that of most seconds of speech, its
        confidence and all probabilities their means, weighted by seconds. ``seconds`` is 0.
    """
    spoken = [part for part in parts if part.segments]
    if not spoken:
        return replace(
            empty_transcript(options),
            audio_s=audio_s,
            passes=sum(part.passes for part in parts),
            truncated=any(part.truncated for part in parts),
        )
    seconds: dict[str, float] = {}
    for part in spoken:
        seconds[part.language] = seconds.get(part.language, 0.0) + part.audio_s
    language = max(seconds, key=seconds.__getitem__)
    tokens = tuple(token for part in spoken for token in part.tokens)
    words = tuple(word for part in spoken for word in part.words or ())
    codes = {code for part in spoken for code in part.language_probabilities}
    return Transcript(
        text=_join_texts([(part.text, part.language) for part in spoken]),
        language=language,
        language_confidence=_mean(
            [(part.language_confidence, part.audio_s) for part in spoken if part.language == language]
        ),
        tokens=tokens,
        confidence=_mean([(token.confidence, 1.0) for token in tokens]),
        passes=sum(part.passes for part in parts),
        audio_s=audio_s,
        seconds=0.0,
        truncated=any(part.truncated for part in parts),
        draft=_join_texts([(part.draft, part.language) for part in spoken if part.draft]) or spoken[0].draft,
        words=words if options.word_timestamps else None,
        segments=tuple(segment for part in spoken for segment in part.segments),
        language_probabilities={
            code: _mean([(part.language_probabilities.get(code, 0.0), part.audio_s) for part in spoken])
            for code in sorted(codes)
        },
    )


def _join_texts(texts: Iterable[tuple[str, str]]) -> str:
    """Join texts, each with its language."""
    joined = ""
    before: str | None = None
    for text, language in texts:
        if text:
            joined += separator(before, language) + text
            before = language
    return joined


def separator(before: str | None, language: str) -> str:
    """What stands before a text: a space, or nothing where it is the first, or Chinese behind Chinese.

    Args:
        before: Language of the text before; None if there is none.
        language: Of the text.
    """
    return "" if before is None or before == language == "zh" else " "


def _mean(weighted: Sequence[tuple[float, float]]) -> float:
    total = sum(weight for _, weight in weighted)
    return min(1.0, sum(value * weight for value, weight in weighted) / total) if total else 0.0
