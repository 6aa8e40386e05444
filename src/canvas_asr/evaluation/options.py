"""The options of an evaluation, for the command and for ``python -m canvas_asr.evaluation.evaluate``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add them; nothing that is slow to import is needed for it."""
    parser.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="tiny, a folder or a name on the hub; the same weights decoded otherwise: autoregressive:MODEL, "
        "stock-generate:MODEL; pipeline:NAME (transformers), faster-whisper:NAME, pocketsphinx, or file:PATH "
        "with hypotheses made elsewhere",
    )
    _add_what(parser.add_argument_group("what is read"))
    _add_how(parser.add_argument_group("how"))
    _add_result(parser.add_argument_group("what comes out"))


def _add_what(what: Any) -> None:
    what.add_argument(
        "--set",
        dest="manifests",
        nargs="+",
        action="extend",
        default=[],
        metavar="SET",
        help="a manifest, or a set of the hub: librispeech/clean, fleurs, fleurs/hi, voxpopuli/de@validation",
    )
    what.add_argument("--testsets", type=Path, metavar="DIR", help="folder written by evaluation.testsets")
    what.add_argument("--sets", nargs="+", default=[], metavar="NAME", help="only these sets of --testsets")
    what.add_argument(
        "--limit", type=int, help="only so many clips of each set, language and kind of speaker"
    )
    what.add_argument(
        "--robustness",
        nargs="*",
        metavar="CONDITION",
        help="also under noise, reverberation, a telephone's band, other speeds, silence; or only the "
        "ones named",
    )


def _add_how(how: Any) -> None:
    how.add_argument(
        "--setting",
        "--modes",
        dest="settings",
        nargs="+",
        action="extend",
        default=[],
        metavar="SETTING",
        help="options of decoding as in steps=8,init=noise,canvas=auto, also language=given and "
        "audio=shuffled; or a name: draft, noise-8, from-draft-1, ... (default: each model's usual ones)",
    )
    how.add_argument("--batch-size", type=int, default=16, help="clips a batch (default 16)")
    how.add_argument("--seed", type=int, default=0, help="of noise, shuffling and bootstrap (default 0)")
    how.add_argument("--device", default="cpu", help="cpu, cuda, ... (default cpu)")


def _add_result(result: Any) -> None:
    result.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder; what is there already is not decoded again",
    )
    result.add_argument(
        "--metric",
        default="primary",
        help="the rate that settings are judged and compared by: primary (Whisper-normalised; WER, and "
        "CER for hi and zh; the default), raw_wer, marks_cer, leaderboard_wer, ...",
    )
    result.add_argument(
        "--against",
        metavar="SETTING",
        help="setting that the others are compared with, behind its model where several have it, as in "
        "'tiny draft' (default: the first)",
    )
