"""The interface of diffusion-gemma-asr-small's authors, as a thin layer over this package's own.

model, tok, fe = load("interfaze-ai/diffusion-gemma-asr-small", device="cuda")
print(transcribe(wav, model, tok, fe, max_steps=16))

python -m canvas_asr.inference audio.wav --model tiny
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

# What is heavy is imported by the function that needs it: --help and a missing library are told at once.
from .cli.messages import exit_code
from .cli.model_options import add_model_options, add_place_options, load_arguments
from .errors import CheckpointError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase, WhisperFeatureExtractor

    from .modeling import CanvasASRModel

RELEASED_MODEL = "interfaze-ai/diffusion-gemma-asr-small"
OFFLINE_ADVICE = (
    "without network, give --model with a folder: `canvas-asr convert` makes one of a copied "
    "diffusion_asr_small.pt (backbone and audio encoder copied too), and --model tiny is part of the package"
)


def load(
    path: str | os.PathLike[str] = RELEASED_MODEL, device: str | torch.device | None = None, **options: Any
) -> tuple[CanvasASRModel, PreTrainedTokenizerBase, WhisperFeatureExtractor]:
    """Load a model.

    Args:
        path: Anything that :func:`canvas_asr.load` takes.
        device: A PyTorch device; None takes the GPU if there is one.
        options: Further ones of :func:`canvas_asr.load`, such as ``dtype``, ``revision`` and ``backbone``.

    Returns:
        The model, its tokenizer and its feature extractor.

    Raises:
        CheckpointError: If it cannot be loaded.
        OptionError: If the device does not exist here, or an option is wrong.
    """
    from .transcriber import load

    asr = load(path, device=device, **options)
    return asr.model, asr.processor.tokenizer, asr.processor.feature_extractor


def transcribe(
    wav: Any,
    model: CanvasASRModel,
    tok: PreTrainedTokenizerBase,
    fe: WhisperFeatureExtractor,
    max_steps: int = 16,
) -> str:
    """Transcribe audio of any length; what is longer than the model takes at once is cut at silences.

    Args:
        wav: 16 kHz mono, (N,) float32: a numpy array, or a torch tensor on the CPU.
        model: As :func:`load` gives it.
        tok: Its tokenizer.
        fe: Its feature extractor.
        max_steps: Denoising passes, from noise.

    Raises:
        AudioError: If the samples are no audio.
        CheckpointError: If the audio is long, and the model of voice activity detection missing.
        OptionError: If ``max_steps`` is below 1.
    """
    from .audio import SAMPLE_RATE_HZ
    from .processing import CanvasASRProcessor
    from .transcriber import Transcriber

    asr = Transcriber(model, CanvasASRProcessor(fe, tok))
    return asr.transcribe((wav, SAMPLE_RATE_HZ), steps=max_steps, init="noise").text


def main(argv: Sequence[str] | None = None) -> int:
    """Transcribe a file and print its text.

    Args:
        argv: Arguments; None takes the process's.

    Returns:
        The exit code, as for ``canvas-asr``.
    """
    parser = argparse.ArgumentParser(
        prog="python -m canvas_asr.inference",
        description="Transcribe an audio file as the released model's own script does.",
        epilog=f"The default model is fetched from the hub; {OFFLINE_ADVICE}.",
        allow_abbrev=False,
    )
    parser.add_argument("audio", metavar="AUDIO", help="a file of any format")
    parser.add_argument("--model", default=RELEASED_MODEL, metavar="PATH", help=f"default {RELEASED_MODEL}")
    parser.add_argument("--max-steps", type=int, default=16, help="denoising passes (default 16)")
    add_place_options(parser.add_argument_group("where it runs"))
    add_model_options(parser)
    options = parser.parse_args(argv)
    return exit_code(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    from .audio import load_audio
    from .hub import is_hub_name

    wav = load_audio(options.audio)  # before the model: a bad file costs no download
    try:
        model, tok, fe = load(options.model, **load_arguments(options))
    except CheckpointError as error:
        about, _, _ = str(error).partition(":")
        if Path(options.model).exists() or not is_hub_name(about):
            raise
        raise CheckpointError(f"{error} Otherwise, {OFFLINE_ADVICE}.") from error
    print(transcribe(wav, model, tok, fe, max_steps=options.max_steps))
    return 0


if __name__ == "__main__":
    sys.exit(main())
