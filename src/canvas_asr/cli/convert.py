"""``canvas-asr convert``: an adapter file of another program to a checkpoint folder."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .messages import complain
from .model_options import (
    AUDIO_ENCODER,
    BACKBONE,
    HUB_ACCOUNT,
    add_part_options,
    add_place_options,
    part_arguments,
    place_arguments,
)

if TYPE_CHECKING:
    from canvas_asr.conversion import ImportedAdapter, ImportSettings
    from canvas_asr.conversion.probe import Score

# Options that are fields of ImportSettings.
_SETTINGS = (
    "lora_alpha",
    "projector_activation",
    "activation_after",
    "prompt_prefix",
    "prompt_suffix",
    "audio_token",
    "language_tag_place",
    "blank_token_id",
    "ctc_softcap",
    "pad_to_30s",
    "canvas_length",
    "first_side",
)


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers of the program."""
    parser = commands.add_parser(
        "convert",
        help="an adapter file (.pt, .bin, .safetensors) to a checkpoint folder",
        description=(
            "Recognise the tensors of an adapter file and write them as a checkpoint folder. What tensors do "
            "not tell is an option; the value of one not given is a guess, and printed as such."
        ),
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    parser.add_argument("file", type=Path, metavar="FILE", help="the adapter; nothing in it is executed")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an adapter that lies at OUT")
    parts = parser.add_argument_group("frozen parts, which the checkpoint then names", HUB_ACCOUNT)
    add_part_options(parts, f"default {BACKBONE}", f"default {AUDIO_ENCODER}")
    parts.add_argument("--tokenizer", metavar="NAME", help="folder or hub name (default: with the backbone)")
    _add_settings(parser.add_argument_group("what tensors do not tell"))
    probe = parser.add_argument_group("probe: try usual values of the settings not given (loads the weights)")
    probe.add_argument(
        "--probe",
        action="append",
        default=[],
        nargs=2,
        metavar=("AUDIO", "TEXT"),
        help="a clip and what is said in it; best repeated, else its audio is compared with noise",
    )
    probe.add_argument("--language", help="code of the clips, to try its tag")
    add_place_options(probe)


def _add_settings(group: Any) -> None:
    group.add_argument("--lora-alpha", type=int, help="LoRA scale times the rank")
    group.add_argument("--projector-activation", help="gelu, gelu_pytorch_tanh, relu or silu")
    group.add_argument(
        "--activation-after",
        metavar="PLACE",
        help="in a projector that is a chain: maps (all but the last), norms (behind LayerNorms) or convs",
    )
    group.add_argument("--prompt-prefix", type=_text, help=r"text before the audio; \n is a line break")
    group.add_argument("--prompt-suffix", type=_text, help="text behind it")
    group.add_argument("--audio-token", help="placeholder of an audio token")
    group.add_argument("--language-tag-place", help="canvas (its first token) or none")
    group.add_argument("--blank-token-id", type=int, help="CTC blank")
    group.add_argument(
        "--ctc-softcap", action=argparse.BooleanOptionalAction, help="soft-cap the logits of CTC"
    )
    group.add_argument(
        "--pad-to-30s", action=argparse.BooleanOptionalAction, help="pad clips as stock Whisper does"
    )
    group.add_argument("--canvas-length", type=int, help="tokens of the canvas")
    group.add_argument("--first-side", help="whose LoRA a list without names begins with: encoder or decoder")


def _text(value: str) -> str:
    """A text whose line breaks may be written as they are in code."""
    return value.replace(r"\n", "\n")


def run(options: argparse.Namespace) -> int:
    """Convert an adapter, print its mapping, and score settings if asked."""
    from canvas_asr.conversion import ImportSettings
    from canvas_asr.conversion.convert import convert
    from canvas_asr.hub import HubAccess
    from canvas_asr.parts import OtherParts

    settings = ImportSettings(**{name: getattr(options, name) for name in _SETTINGS})
    imported = convert(
        options.file,
        options.out,
        settings,
        others=OtherParts(**part_arguments(options)),
        tokenizer=options.tokenizer,
        access=HubAccess(local_files_only=options.local_files_only),
        overwrite=options.overwrite,
    )
    print(imported.report)
    print(f"written: {options.out}")
    if options.probe:
        _probe(options, settings)
    elif imported.guesses:
        _advise(imported)
    return 0


def _advise(imported: ImportedAdapter) -> None:
    complain(
        f"{len(imported.guesses)} settings are guesses; check them with --probe AUDIO TEXT, a clip and what "
        "is said in it"
    )


def _probe(options: argparse.Namespace, settings: ImportSettings) -> None:
    """Score the grid of settings on the clips, and say which to take."""
    from canvas_asr.conversion.probe import candidates, probe, table
    from canvas_asr.transcriber import load

    # By the names that the checkpoint now has for its parts.
    asr = load(options.out, local_files_only=options.local_files_only, **place_arguments(options))
    clips = [(asr.read(audio), text) for audio, text in options.probe]
    tried = candidates(settings, asr.model, asr.processor, language=options.language)
    scores = probe(asr.model, asr.processor, clips, tried, language=options.language)
    print(table(scores))
    _judge(scores, "another clip's audio" if len(clips) > 1 else "noise", options)


def _judge(scores: list[Score], other: str, options: argparse.Namespace) -> None:
    """Say which candidate is best, and warn where none listens."""
    from canvas_asr.configuration import load_configuration
    from canvas_asr.conversion.probe import Candidate

    best = next((score for score in scores if score.listens), None)
    if best is None:
        complain(
            f"warning: with no candidate is a text likelier given its own audio than given {other}: the "
            "adapter, its frozen parts or the settings that were given do not belong together"
        )
        return
    chosen = Candidate.of(load_configuration(options.out))
    if best.candidate == chosen:
        print("best: the settings written")
        return
    changes = " ".join(
        f"--{name.replace('_', '-')} {value!r}"
        for name, value in vars(best.candidate).items()
        if value != getattr(chosen, name)
    )
    complain(f"warning: other settings score better; convert again with --overwrite {changes}")
