"""Hotwords: how many rare names are read with and without them, and how many are read that nobody said.

    python benchmarks/hotwords.py tiny --n 10

Invented and rare names in six languages (``benchmarks/hotwords_sentences.json``) are said in sentences by
espeak-ng, in voices kept out of training. Each language lists its names and as many others that nobody says.
Every sentence is said again with common words in place of the name. Read are all of them without hotwords
and with each boost; counted are names that were said and are read (recall), and listed names that were not
said and are read (false insertions). Writes ``docs/hotwords.json`` and ``docs/hotwords.md``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from one_model import add_options, circumstances, load_on_cpu, write

from canvas_asr.card_sections import table
from canvas_asr.evaluation.metrics import score
from canvas_asr.options import DecodingOptions
from canvas_asr.synthesis.synthesizer import Synthesizer
from canvas_asr.words import split_words

SENTENCES = Path(__file__).parent / "hotwords_sentences.json"
BOOSTS = (1.0, 2.0, 3.0, 5.0, 8.0)
DECODINGS = {
    "draft": {"init": "draft", "steps": 0},
    "from-draft-1": {"init": "draft", "steps": 1},
    "noise-8": {"steps": 8},
}
BATCH_SIZE = 8
Record = dict[str, Any]


@dataclass(frozen=True)
class Sentence:
    """A sentence as it is said.

    Attributes:
        text: What is said.
        language: Its code.
        name: The name in it; None: none.
        samples: 16 kHz mono.
    """

    text: str
    language: str
    name: str | None
    samples: np.ndarray


def say(words: Record, languages: Sequence[str], n: int) -> list[Sentence]:
    """Say the first names of each language, and as many sentences without a name."""
    synthesizer = Synthesizer("test")
    said = []
    for language in languages:
        pairs = words[language]["sentences"]
        for k, name in enumerate(words[language]["names"][:n]):
            form, common = pairs[k % len(pairs)]
            for spoken, listed in ((name, name), (common, None)):
                text = form.format(spoken)
                samples = synthesizer.say(text, language, np.random.default_rng((0, k))).samples
                said.append(Sentence(text, language, listed, samples))
    return said


def units(text: str) -> list[str]:
    """Words of a text, characters where a script has no spaces, without marks and in lower case."""
    plain = unicodedata.normalize("NFC", text).lower()
    words = (plain[first:last] for first, last in split_words(plain.replace("-", " ")))
    letters = ("".join(c for c in word if unicodedata.category(c)[0] in "LMN") for word in words)
    return [word for word in letters if word]


def times_read(name: str, text: str) -> int:
    """How often a name stands in a text, as whole words."""
    wanted, found = units(name), units(text)
    return sum(found[i : i + len(wanted)] == wanted for i in range(len(found)))


def count(said: Sequence[Sentence], read: Sequence[str], words: Record) -> Record:
    """Count names read, and names read that were not said, in one language or all."""
    n_said = n_found = n_false = 0
    for sentence, text in zip(said, read, strict=True):
        listed = words[sentence.language]
        for name in (*listed["names"], *listed["others"]):
            n = times_read(name, text)
            n_here = times_read(name, sentence.text)
            n_said += n_here
            n_found += min(n, n_here)
            n_false += max(0, n - n_here)
    return {"n_sentences": len(said), "n_names": n_said, "n_found": n_found, "n_false": n_false}


def error_rates(said: Sequence[Sentence], read: Sequence[str]) -> Record:
    """Error rate of each language, of sentences with a name and without."""
    found: Record = {}
    for language in dict.fromkeys(sentence.language for sentence in said):
        for kind, has_name in (("with", True), ("without", False)):
            pairs = [
                (sentence.text, text)
                for sentence, text in zip(said, read, strict=True)
                if sentence.language == language and (sentence.name is not None) == has_name
            ]
            references, hypotheses = zip(*pairs, strict=True)
            found.setdefault(language, {})[kind] = score(references, hypotheses, language).primary
    return found


def measure(asr: Any, said: Sequence[Sentence], words: Record, decoding: Record, boost: float) -> Record:
    """Read all sentences, with a boost or (0) without hotwords."""
    languages = dict.fromkeys(sentence.language for sentence in said)
    read: dict[int, str] = {}
    started = time.perf_counter()
    for language in languages:
        places = [k for k, sentence in enumerate(said) if sentence.language == language]
        options: Record = {}
        if boost:
            listed = [*words[language]["names"], *words[language]["others"]]
            options = {"hotwords": listed, "hotword_boost": boost}
        clips = [said[k].samples for k in places]
        found = asr.transcribe_arrays(clips, batch_size=BATCH_SIZE, **decoding, **options)
        read |= {k: transcript.text for k, transcript in zip(places, found, strict=True)}
    seconds = time.perf_counter() - started
    texts = [read[k] for k in range(len(said))]
    by_language = {}
    for language in languages:
        mine = [k for k, sentence in enumerate(said) if sentence.language == language]
        by_language[language] = count([said[k] for k in mine], [texts[k] for k in mine], words)
    return {
        "boost": boost,
        "seconds": seconds,
        "all": count(said, texts, words),
        "by_language": by_language,
        "error_rates": error_rates(said, texts),
        "texts": texts,
    }


_INTRODUCTION = """\
# Hotwords

    asr.transcribe("talk.wav", hotwords=["Zelkova Brandt", "Wexmoor"])
    canvas-asr transcribe talk.wav --hotword "Zelkova Brandt" --hotwords names.txt --hotword-boost 3

Words and phrases as they are to be written, at most 1,000; in a file, one a line. Nothing is trained: a word
spotter goes over the posteriors of the CTC tap (`canvas_asr/biasing.py`, after CTC-WS, arXiv 2406.07096). A
listed word is read where what it gains, `hotword_boost` nats for each token that the tokenizer makes of it,
is more than what its letters lack against the greedy reading, in whichever tokens it is heard best. It takes
the place of whole words. The draft then has it, a prompt that is made of the CTC reading is told it, and
every pass adds to its tokens, from noise as from a draft; their confidences tell of that help too. Without
hotwords nothing changes. Where a checkpoint takes text in its prompt, the list stands there as well
([prompt.md](prompt.md)).

A larger boost finds more of the listed words and inserts more that nobody said: list what may be said, and
raise the boost only for a short list.

## Measured

{n_names} sentences with an invented or rare name and as many with common words in its place, in
{n_languages} languages, said by espeak-ng in voices kept out of training
([`hotwords_sentences.json`](../benchmarks/hotwords_sentences.json)). Each language lists {n_listed} names, of
which {n_said} are said. *Recall*: names that were said and are read, whole and in their spelling but for case
and marks; then names read of names said by language. *False*: listed names that are read where they were not
said, a hundred sentences. *Error rate*: mean over the languages of WER (CER for hi and zh),
Whisper-normalised, of the sentences with a name and of those without. *Time*: against the same decoding
without hotwords. Boosts are nats a token; the default is {default:g}.

Model `{model}`, {cpu}, threads: {n_threads}, batches of {batch_size}; other processes ran
beside it (load average {load_average_before:.1f} before). Made by

    {command}
"""


def _mean_rate(run: Record, kind: str) -> str:
    rates = [rates[kind] for rates in run["error_rates"].values()]
    return f"{100 * sum(rates) / len(rates):.1f} %"


def markdown(content: Record) -> str:
    """Write the page."""
    parts = [_INTRODUCTION.format(**content, **content["environment"])]
    header = ["boost", "recall", *content["codes"], "false", "error rate with a name", "without", "time"]
    for decoding, runs in content["runs"].items():
        rows = []
        for run in runs:
            found, n_sentences = run["all"], run["all"]["n_sentences"]
            rows.append(
                [
                    f"{run['boost']:g}" if run["boost"] else "off",
                    f"{100 * found['n_found'] / found['n_names']:.0f} %",
                    *(f"{one['n_found']}/{one['n_names']}" for one in run["by_language"].values()),
                    f"{100 * found['n_false'] / n_sentences:.1f}",
                    _mean_rate(run, "with"),
                    _mean_rate(run, "without"),
                    f"× {run['seconds'] / runs[0]['seconds']:.2f}",
                ]
            )
        options = ", ".join(f"{name}={value}" for name, value in DECODINGS[decoding].items())
        parts.append("\n".join([f"### {options}\n", *table(header, rows, 1), ""]))
    return "\n".join(parts)


def main(argv: Sequence[str] | None = None, load_model: Callable[[str], Any] = load_on_cpu) -> int:
    """Run the command; returns the exit code.

    Args:
        argv: Its arguments; None takes the process's.
        load_model: Turns a name into a ``Transcriber``.
    """
    words = json.loads(SENTENCES.read_text(encoding="utf-8"))
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_options(parser, "hotwords")
    parser.add_argument("--n", type=int, default=10, help="names a language (default 10, all)")
    parser.add_argument("--languages", nargs="+", choices=list(words), default=list(words))
    parser.add_argument("--decodings", nargs="+", choices=list(DECODINGS), default=list(DECODINGS))
    parser.add_argument("--boosts", nargs="+", type=float, default=list(BOOSTS), help="nats a token")
    options = parser.parse_args(argv)

    setting = circumstances("hotwords", argv, options)
    said = say(words, options.languages, options.n)
    asr = load_model(options.model)
    asr.transcribe_arrays([said[0].samples], steps=1)  # what is done once is not timed
    runs = {
        name: [measure(asr, said, words, DECODINGS[name], boost) for boost in (0.0, *options.boosts)]
        for name in options.decodings
    }
    listed = words[options.languages[0]]
    content: Record = {
        **setting,
        "n_languages": len(options.languages),
        "codes": options.languages,
        "n_names": sum(sentence.name is not None for sentence in said),
        "n_said": min(options.n, len(listed["names"])),
        "n_listed": len(listed["names"]) + len(listed["others"]),
        "default": DecodingOptions().hotword_boost,
        "batch_size": BATCH_SIZE,
        "sentences": [{"text": s.text, "language": s.language, "name": s.name} for s in said],
        "runs": runs,
    }
    write(options.out, content, markdown(content))
    return 0


if __name__ == "__main__":
    sys.exit(main())
