"""Word times against the exact ones of a synthesiser, by language.

    python benchmarks/word_times.py tiny --manifest data/testsets/synthetic/manifest.jsonl

Sentences of the manifest are said again by espeak-ng in voices kept out of training; it reports where in the
samples each word begins and ends. Compared are the words of the transcript that were recognised correctly,
and the reference text aligned to the same audio; both again behind ten seconds of silence. Writes
``docs/word_times.json`` and ``docs/word_times.md``.
"""

from __future__ import annotations

import argparse
import re
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
from one_model import add_options, circumstances, load_on_cpu, write
from word_times_report import ALL, Record, markdown

from canvas_asr.audio import SAMPLE_RATE_HZ
from canvas_asr.result import Word
from canvas_asr.synthesis.synthesizer import Synthesizer, Utterance, spoken_text
from canvas_asr.words import make_words, split_words

AIM_MEDIAN_S, AIM_95_S = 0.1, 0.3
BATCH_SIZE = 8
_SYLLABLE = re.compile(r"[a-zê]+[1-5]")


@dataclass(frozen=True)
class Said:
    """A word of a sentence with the time the synthesiser said it.

    Attributes:
        text: As it stands in the sentence.
        start: In seconds; None where the synthesiser tells none (of the second word of "of the", say).
        end: Likewise; None too where words that have no time of their own follow.
    """

    text: str
    start: float | None
    end: float | None


@dataclass
class Errors:
    """Differences from the exact times in seconds, and what was compared.

    Attributes:
        onsets: Found less exact start of each word.
        ends: Found less exact end.
        n_words: Words with an exact time, found or not.
    """

    onsets: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    n_words: int = 0

    def compare(self, said: Said, word: Word, offset_s: float) -> None:
        """Add a word that was found."""
        if said.start is not None:
            self.onsets.append(word.start - offset_s - said.start)
        if said.end is not None:
            self.ends.append(word.end - offset_s - said.end)

    def figures(self) -> Record:
        """Median and 95th percentile of the absolute errors, and the median of the signed ones."""
        found: Record = {"n_words": self.n_words, "n_compared": len(self.onsets)}
        for name, errors in (("onset", self.onsets), ("end", self.ends)):
            if errors:
                found |= {
                    f"{name}_median_s": float(np.median(np.abs(errors))),
                    f"{name}_95_s": float(np.quantile(np.abs(errors), 0.95)),
                    f"{name}_bias_s": float(np.median(errors)),
                }
        return found


def plain(text: str) -> str:
    """What has to agree for a word to be recognised: letters, their signs and digits, in lower case."""
    return "".join(c for c in text.lower() if unicodedata.category(c)[0] in "LMN")


def matches(reference: Sequence[str], found: Sequence[str]) -> dict[int, int]:
    """Words found that are right, with their places in the reference, as a word error rate counts hits."""
    if not reference or not found:
        return {}
    texts = (" ".join(plain(word) or "-" for word in words) for words in (reference, found))
    return {
        chunk.hyp_start_idx + i: chunk.ref_start_idx + i
        for chunk in jiwer.process_words(*texts).alignments[0]
        if chunk.type == "equal"
        for i in range(chunk.ref_end_idx - chunk.ref_start_idx)
    }


def said_words(utterance: Utterance) -> list[Said] | None:
    """Words of an utterance with their exact times; None where its characters are not its syllables."""
    text = utterance.text
    words = [text[first:last] for first, last in split_words(text)]
    if utterance.language == "zh":
        spoken = spoken_text(text, "zh")
        places = [match.start() for match in _SYLLABLE.finditer(spoken)]
        if len(places) != len(words):
            return None
        owner = {place: k for k, place in enumerate(places)}
    else:
        owner, behind = {}, 0
        for k, (_, last) in enumerate(split_words(text)):
            # Marks behind the last letter belong to the next word here: the "-" of "one - not" begins "not".
            end = max((i + 1 for i in range(behind, last) if plain(text[i])), default=last)
            owner |= dict.fromkeys(range(behind, end), k)
            behind = end
    times: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for place, start, end_s in utterance.words:
        if place in owner:
            times[owner[place]].append((start, end_s))
    found = []
    for k, word in enumerate(words):
        runs_on = k + 1 < len(words) and k + 1 not in times
        start_s = times[k][0][0] if k in times else None
        found.append(Said(word, start_s, None if k not in times or runs_on else times[k][-1][1]))
    return found


class Figures:
    """Errors and confidences by language."""

    def __init__(self) -> None:
        self.recognised: dict[str, Errors] = defaultdict(Errors)
        self.reference: dict[str, Errors] = defaultdict(Errors)
        self.right: list[float] = []  # confidences of the words found
        self.wrong: list[float] = []

    def add(
        self, language: str, said: list[Said], found: Sequence[Word], aligned: Sequence[Word], offset_s: float
    ) -> None:
        """Compare one clip.

        Args:
            language: Of the clip.
            said: What was said.
            found: Words of the transcript.
            aligned: Words of the reference text, as many as were said; or none.
            offset_s: Silence before the speech.
        """
        n_timed = sum(word.start is not None for word in said)
        hits = matches([word.text for word in said], [word.text for word in found])
        for name in (language, ALL):
            self.recognised[name].n_words += n_timed
            self.reference[name].n_words += n_timed
            for k, place in hits.items():
                self.recognised[name].compare(said[place], found[k], offset_s)
            for word, heard in zip(said, aligned, strict=False):
                self.reference[name].compare(word, heard, offset_s)
        for k, word in enumerate(found):
            (self.right if k in hits else self.wrong).append(word.confidence)

    def content(self) -> Record:
        """All figures, JSON-ready."""
        return {
            "recognised": {name: errors.figures() for name, errors in self.recognised.items()},
            "reference": {name: errors.figures() for name, errors in self.reference.items()},
            "confidence": self._confidence(),
        }

    def _confidence(self) -> Record | None:
        """How sure the model is of right and of wrong words; None where it found none of one kind."""
        right, wrong = np.array(self.right), np.array(self.wrong)
        if not len(right) or not len(wrong):
            return None
        above, equal = right[:, None] > wrong[None], right[:, None] == wrong[None]
        return {
            "n_right": len(right),
            "n_wrong": len(wrong),
            "mean_right": float(right.mean()),
            "mean_wrong": float(wrong.mean()),
            "ranked_right": float((above + equal / 2).mean()),
        }


def utterances(manifest: Path, limit: int) -> Iterator[Utterance]:
    """Say the first sentences of each language."""
    from canvas_asr.manifest import read_manifest

    synthesizer = Synthesizer("test")
    counts: dict[str, int] = defaultdict(int)
    for place, clip in enumerate(read_manifest(manifest)):
        if clip.text and counts[clip.language] < limit:
            counts[clip.language] += 1
            yield synthesizer.say(clip.text, clip.language, np.random.default_rng((0, place)))


def in_batches(items: Iterable[Utterance]) -> Iterator[list[Utterance]]:
    """Cut a stream into lists."""
    stream = iter(items)
    while batch := list(islice(stream, BATCH_SIZE)):
        yield batch


def align_texts(asr: Any, clips: Sequence[np.ndarray], texts: Sequence[str]) -> list[tuple[Word, ...]]:
    """Words of given texts, aligned to their clips."""
    import torch

    processor, aligner = asr.processor, asr.decoder.aligner
    with torch.no_grad():
        mel, n_mel = processor.features(clips)
        sounds = aligner.clips(asr.model.audio_tokens(mel.to(asr.device), n_mel.to(asr.device))[0], n_mel)
    found = []
    for clip, text, sound in zip(clips, texts, sounds, strict=True):
        ids = processor.text_ids(text)
        spans = aligner(ids, sound)
        sure = [1.0] * len(ids)
        found.append(make_words(processor.token_texts(ids), sure, spans, len(clip) / SAMPLE_RATE_HZ))
    return found


def measure(asr: Any, spoken: Iterable[Utterance], silence_s: float, decoding: Record) -> Record:
    """Compare every utterance, with silence before it.

    Args:
        asr: A transcriber.
        spoken: Utterances.
        silence_s: Seconds of silence before each.
        decoding: Options.
    """
    figures, n_left_out, n_clips = Figures(), 0, 0
    silence = np.zeros(round(silence_s * SAMPLE_RATE_HZ), np.float32)
    for batch in in_batches(spoken):
        clips = [np.concatenate([silence, utterance.samples]) for utterance in batch]
        read = asr.transcribe_arrays(clips, batch_size=BATCH_SIZE, word_timestamps=True, **decoding)
        aligned = align_texts(asr, clips, [utterance.text for utterance in batch])
        for utterance, transcript, words in zip(batch, read, aligned, strict=True):
            said = said_words(utterance)
            n_clips += 1
            if said is None or len(said) != len(words):
                n_left_out += 1
                continue
            figures.add(utterance.language, said, transcript.words, words, silence_s)
    return {"silence_s": silence_s, "n_clips": n_clips, "n_left_out": n_left_out, **figures.content()}


def targets(content: Record) -> list[Record]:
    """Compare every language's figures with the aims."""
    found = []
    for place, run in enumerate(content["runs"]):
        for kind in ("recognised", "reference"):
            for name, figures in run[kind].items():
                reached = None  # nothing to compare
                if figures["n_compared"]:
                    median, most = figures["onset_median_s"], figures["onset_95_s"]
                    reached = median <= AIM_MEDIAN_S and most <= AIM_95_S
                found.append({"run": place, "words": kind, "language": name, "reached": reached})
    return found


def main(argv: Sequence[str] | None = None, load_model: Callable[[str], Any] = load_on_cpu) -> int:
    """Run the command; returns the exit code.

    Args:
        argv: Its arguments; None takes the process's.
        load_model: Turns a name into a ``Transcriber``.
    """
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_options(parser, "word_times")
    parser.add_argument("--manifest", type=Path, required=True, help="clips whose texts are said again")
    parser.add_argument("--n", type=int, default=100, help="sentences a language (default 100)")
    parser.add_argument("--n-silence", type=int, default=20, help="those behind silence (default 20)")
    parser.add_argument("--silence-s", type=float, default=10.0, help="length of the silence (default 10)")
    parser.add_argument("--init", default="draft", help="of the decoding (default draft)")
    parser.add_argument("--steps", type=int, default=1, help="of the decoding (default 1)")
    options = parser.parse_args(argv)

    setting = circumstances("word_times", argv, options)
    asr = load_model(options.model)
    decoding = {"init": options.init, "steps": options.steps}
    runs = [
        measure(asr, utterances(options.manifest, n), silence_s, decoding)
        for n, silence_s in ((options.n, 0.0), (options.n_silence, options.silence_s))
        if n
    ]
    content: Record = {
        **setting,
        "decoding": f"init={options.init}, steps={options.steps}",
        "audio_token_s": asr.decoder.aligner.token_s,
        "runs": runs,
    }
    content["targets"] = targets(content)
    write(options.out, content, markdown(content))
    return 0


if __name__ == "__main__":
    sys.exit(main())
