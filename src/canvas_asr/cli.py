"""The command ``canvas-asr``: transcribe, train, synth, evaluate and info.

    canvas-asr transcribe talk.mp3 --language de --json
    canvas-asr train recipes/tiny/adapter.yaml --set training.max_steps=100
    canvas-asr info tiny

Results go to stdout, everything else to stderr. The exit code is 0 if all went well, 1 if something could not
be done, 2 for wrong usage, 130 after Ctrl-C. What is heavy is imported by the command that needs it.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__
from .errors import AudioError, CanvasASRError, CheckpointError, OptionError
from .result import Transcript

if TYPE_CHECKING:
    from .configuration import CanvasASRConfig

PROGRAM = "canvas-asr"
SAMPLE_RATE_HZ = 16_000  # audio.SAMPLE_RATE_HZ, without what reading audio imports
# Modules of the extras, which training, synthesis and evaluation import.
_EXTRA_MODULES = ("accelerate", "jiwer", "matplotlib", "pypinyin", "whisper_normalizer", "yaml")


def _complain(message: str) -> None:
    print(f"{PROGRAM}: {message}", file=sys.stderr, flush=True)


# transcribe


def _transcribe(options: argparse.Namespace) -> int:
    """Transcribe files and print each result as it comes; 1 if any could not be read."""
    from .transcriber import load

    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that cannot show a letter gets its number
        sys.stdout.reconfigure(errors="backslashreplace")
    transcriber = load(options.model, device=options.device, dtype=options.dtype)
    n_failed = 0
    for result in transcriber.transcribe_files(
        options.files,
        options.language,
        options.steps,
        init=options.init,
        canvas=options.canvas,
        seed=options.seed,
        batch_size=options.batch_size,
    ):
        if isinstance(result, AudioError):
            n_failed += 1
            _complain(f"error: {result}")
            continue
        print(_json_line(result) if options.json else _text_line(result), flush=True)
        if result.truncated:
            _complain(
                f"warning: {result.file}: the text fills the canvas and its end may be missing; "
                "give a longer --canvas, or shorter clips"
            )
    return 1 if n_failed else 0


def _json_line(transcript: Transcript) -> str:
    is_utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    return json.dumps(transcript.to_dict(), ensure_ascii=not is_utf8)


def _text_line(transcript: Transcript) -> str:
    """One line, without what a terminal would obey rather than show."""
    shown = "".join(c if c.isprintable() else " " for c in transcript.text)
    text = " ".join(shown.split()) or "(no speech)"
    language = f"[{transcript.language}]  " if transcript.language else ""
    return f"{transcript.file}  {language}{text}  ({transcript.rtfx:.1f}× real time)"


# train, synth


def _train(options: argparse.Namespace) -> int:
    """Run the stage of a recipe; its module is named like the stage."""
    from .training.recipe import load_recipe

    recipe = load_recipe(options.recipe, _overrides(options.set))
    importlib.import_module(f"{__package__}.training.{recipe.stage}").run(recipe)
    return 0


def _overrides(settings: Sequence[str]) -> dict[str, Any]:
    """Values by key of ``key=value`` settings, the values read as YAML.

    Raises:
        OptionError: If one has no ``=``, or its value is not YAML.
    """
    import yaml

    overrides: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not (key and equals):
            raise OptionError(f"--set {setting}: give key=value, as in training.max_steps=100.")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise OptionError(f"--set {setting}: the value is not valid YAML.") from error
        if isinstance(value, str) and value[:1] in "+-.0123456789":
            try:
                value = float(value)  # YAML takes 1e-3 for a string
            except ValueError:
                pass
        overrides[key] = value
    return overrides


def _synth(options: argparse.Namespace) -> int:
    """Write synthetic speech with its manifest."""
    from .synthesis.corpus import MANIFEST, SKIPPED, synthesize_manifest

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
        _complain(f"{summary.n_skipped} sentences left out, see {options.out / SKIPPED}: {reasons}")
    if not summary.complete:
        _complain("error: the sentences ran out before the number or hours asked for were reached")
    return 0 if summary.complete else 1


# info


def _info(options: argparse.Namespace) -> int:
    """Print geometry and parameters of a checkpoint; its tensors are not read."""
    from .checkpoint import FEATURES_NAME, load_configuration
    from .transcriber import model_folder

    folder = model_folder(options.model)
    config = load_configuration(folder)
    hop_length = 160  # Whisper's own
    features = folder / FEATURES_NAME
    if features.is_file():
        try:
            hop_length = int(json.loads(features.read_text("utf-8"))["hop_length"])
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{features}: no JSON object with hop_length ({error}).") from error
    facts = {
        "model": options.model,
        **_geometry(config, hop_length),
        "parameters": _count_parameters(config),
        "weights here": sum(path.stat().st_size for path in folder.rglob("*.safetensors")),
    }
    print(json.dumps(facts, ensure_ascii=False) if options.json else _facts_table(facts))
    return 0


def _geometry(config: CanvasASRConfig, hop_length: int) -> dict[str, Any]:
    encoder = config.audio_encoder_config
    text: Any = config.backbone_config.text_config
    frames_per_s = SAMPLE_RATE_HZ / hop_length / 2
    return {
        "languages": " ".join(config.language_tags),
        "longest clip": f"{config.max_audio_s:g} s",
        "canvas": f"{config.canvas_length} tokens, at most {config.max_canvas_length}",
        "audio encoder": (
            f"Whisper, {encoder.encoder_layers} layers, {encoder.d_model} wide, "
            f"{encoder.num_mel_bins} mel bins, {frames_per_s:g} frames a second"
        ),
        "projector": (
            f"{config.projector_kind}, {config.projector_width} wide, "
            f"{frames_per_s / config.projector_stride:g} audio tokens a second"
        ),
        "backbone": (
            f"DiffusionGemma, {text.num_hidden_layers} layers, {text.hidden_size} wide, "
            f"{text.num_attention_heads} heads, {text.num_experts or 0} experts "
            f"({text.top_k_experts or 0} active), vocabulary {text.vocab_size}"
        ),
        "LoRA": f"rank {config.lora_rank}, alpha {config.lora_alpha}, on q k v o of encoder and decoder",
    }


def _count_parameters(config: CanvasASRConfig) -> dict[str, float]:
    """Parameters by part, shared ones once, of a model that exists in name only."""
    import torch

    from .modeling import CanvasASRModel

    with torch.device("meta"):
        model = CanvasASRModel(config)
    counts: dict[str, float] = dict.fromkeys(
        ("total", "frozen", "trained", "audio encoder", "backbone", "projector", "CTC tap", "LoRA"), 0
    )
    parts = {"audio_encoder": "audio encoder", "ctc_tap": "CTC tap"}
    for name, parameter in model.named_parameters():
        part = name.partition(".")[0]
        counts["LoRA" if "lora_" in name else parts.get(part, part)] += parameter.numel()
        counts["trained" if parameter.requires_grad else "frozen"] += parameter.numel()
        counts["total"] += parameter.numel()
    return {**counts, "trained share": counts["trained"] / counts["total"]}


def _facts_table(facts: Mapping[str, Any]) -> str:
    parameters = facts["parameters"]
    lines = [(key, value) for key, value in facts.items() if isinstance(value, str)]
    lines.append(("parameters", f"{parameters['total']:,}"))
    for kind, parts in (
        ("frozen", ("audio encoder", "backbone")),
        ("trained", ("projector", "CTC tap", "LoRA")),
    ):
        share = f"{100 * parameters[kind] / parameters['total']:.3g} %"
        lines.append((f"  {kind}", f"{parameters[kind]:,} ({share})"))
        lines += [(f"    {part}", f"{parameters[part]:,}") for part in parts]
    lines.append(("weights here", f"{facts['weights here'] / 1e6:.1f} MB"))
    return "\n".join(f"{key:<19}{value}" for key, value in lines)


# The command


def _evaluate(arguments: Sequence[str]) -> int:
    from .evaluation.evaluate import main as evaluate

    return evaluate(arguments)


def _add_transcribe(commands: Any) -> None:
    parser = commands.add_parser("transcribe", help="audio files to text", allow_abbrev=False)
    parser.set_defaults(run=_transcribe)
    parser.add_argument("files", nargs="+", metavar="FILE", help="audio, or video with sound, of any format")
    parser.add_argument("--model", default="tiny", help="tiny (embedded, the default) or a checkpoint folder")
    parser.add_argument("--language", help="code such as de; detected if not given")
    parser.add_argument("--steps", type=int, default=8, help="denoising passes (default 8)")
    parser.add_argument(
        "--init", default="noise", help="what the canvas starts from: noise (default) or draft"
    )
    parser.add_argument("--canvas", type=int, help="tokens of the canvas (default: the model's)")
    parser.add_argument("--device", help="cpu, cuda, ... (default: the GPU if there is one)")
    parser.add_argument(
        "--dtype", help="float32, bfloat16 or float16 (default: float32 on a CPU, else bfloat16)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default 0)")
    parser.add_argument("--batch-size", type=int, default=8, help="files transcribed together (default 8)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line, tokens included")


def _add_synth(commands: Any) -> None:
    parser = commands.add_parser("synth", help="synthetic speech with its transcripts", allow_abbrev=False)
    parser.set_defaults(run=_synth)
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


def build_parser() -> argparse.ArgumentParser:
    """Make the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description="Speech recognition by parallel denoising.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_transcribe(commands)
    train = commands.add_parser(
        "train", help="one stage of a recipe; resumes where it stopped", allow_abbrev=False
    )
    train.set_defaults(run=_train)
    train.add_argument("recipe", metavar="RECIPE", help="YAML file")
    train.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="replace a value of the recipe, as in training.max_steps=100; may be repeated",
    )
    _add_synth(commands)
    commands.add_parser("evaluate", help="error rates of a model over test sets", add_help=False)
    info = commands.add_parser("info", help="geometry and parameters of a model", allow_abbrev=False)
    info.set_defaults(run=_info)
    info.add_argument("model", metavar="MODEL", help="tiny, or a folder with a checkpoint's config.json")
    info.add_argument("--json", action="store_true", help="as one JSON object")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: Its arguments; None takes the process's.

    Returns:
        The exit code. Wrong usage raises SystemExit(2), as argparse does.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments[:1] == ["evaluate"]:  # it has a parser of its own
            return _evaluate(arguments[1:])
        options = build_parser().parse_args(arguments)
        return int(options.run(options))
    except KeyboardInterrupt:
        _complain("interrupted")
        return 130
    except CanvasASRError as error:
        _complain(f"error: {error}")
    except ModuleNotFoundError as error:
        if error.name not in _EXTRA_MODULES:
            raise
        _complain(f"error: this needs {error.name}; install it with: pip install 'canvas-asr[train,eval]'")
    except BrokenPipeError:  # the reader, say `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        _complain(f"error: {error.filename}: {error.strerror}" if error.filename else f"error: {error}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
