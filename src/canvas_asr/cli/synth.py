"""``canvas-asr synth``: synthetic speech with its transcripts."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from canvas_asr.errors import OptionError

from .messages import complain


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers of the program."""
    parser = commands.add_parser("synth", help="synthetic speech with its transcripts", allow_abbrev=False)
    parser.set_defaults(run=run)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder; the same command resumes there")
    parser.add_argument(
        "--text",
        action="append",
        required=True,
        metavar="LANGUAGE=FILE",
        help="sentences of a language (en de fr es hi zh), one a line, plain or gzip; may be repeated",
    )
    parser.add_argument("--n", type=int, help="clips in all")
    parser.add_argument("--hours", type=float, help="hours of audio in all")
    parser.add_argument("--split", default="train", help="voices of: train (default), test or test-accent")
    parser.add_argument("--seed", type=int, default=0, help="of everything (default 0)")
    parser.add_argument("--workers", type=int, default=1, help="processes (default 1)")
    parser.add_argument(
        "--recorded-share",
        type=float,
        default=0.3,
        help="share of voices made from recordings, where a language has them (default 0.3)",
    )
    parser.add_argument(
        "--non-speech-share", type=float, default=0.0, help="share of clips without speech (default 0)"
    )
    parser.add_argument("--augment", action="store_true", help="add noise, rooms, colour and gain")


def run(options: argparse.Namespace) -> int:
    """Write synthetic speech with its manifest."""
    from canvas_asr.synthesis.corpus import MANIFEST, SKIPPED, synthesize_manifest

    texts = {}
    for text in options.text:
        language, equals, path = text.partition("=")
        if not (language and equals and path):
            raise OptionError(f"--text {text}: give LANGUAGE=FILE, as in de=sentences.txt.")
        texts[language] = path
    summary = synthesize_manifest(
        options.out,
        texts,
        n=options.n,
        hours=options.hours,
        split=options.split,
        seed=options.seed,
        n_workers=options.workers,
        recorded_share=options.recorded_share,
        non_speech_share=options.non_speech_share,
        augment=options.augment,
    )
    print(f"{options.out / MANIFEST}: {summary.n_written} clips, {summary.hours:.2f} hours")
    if summary.n_skipped:
        reasons = ", ".join(f"{reason} ({n})" for reason, n in sorted(summary.reasons.items()))
        complain(f"{summary.n_skipped} sentences left out, see {options.out / SKIPPED}: {reasons}")
    if not summary.complete:
        complain("error: the sentences ran out before the number or hours asked for were reached")
    return 0 if summary.complete else 1
