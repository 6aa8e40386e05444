"""What tensors cannot tell of an adapter: explicit settings, and the guess that stands in for each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from canvas_asr.configuration import ACTIVATION_OF_KIND
from canvas_asr.processing import CanvasASRProcessor

from .files import Value

# Text before and after the audio slots, in the control tokens of the backbone's tokenizer; the first is the
# default: audio between the tokens that open and close it, as transformers' processor of Gemma 4 has it. The
# released system's model.py has the ids of the same three tokens, 256000, 258881 and 258883; the text around
# them is not known. It has the soft-cap of the backbone's logits too; whether CTC was trained with it is not.
FRAMINGS: dict[str, tuple[str, str]] = {
    "marked": ("<bos><|turn>user\n<|audio>", "<audio|>Transcribe the audio.<turn|>\n<|turn>model\n"),
    "turn": ("<bos><|turn>user\n", "Transcribe the audio.<turn|>\n<|turn>model\n"),
    "text-first": ("<bos><|turn>user\nTranscribe the audio.", "<turn|>\n<|turn>model\n"),
    "bare": ("<bos>", ""),
}


@dataclass(frozen=True)
class ImportSettings:
    """Fields of ``CanvasASRConfig`` that no tensor tells; None takes the guess, which the report prints.

    Attributes:
        lora_alpha: LoRA scale times the rank; guess: what the file states, else twice the rank.
        projector_activation: Guess: ``gelu`` for convolutions and chains, ``silu`` for the MLP.
        prompt_prefix: Text before the audio slots; guess: a user's turn, and the token that opens audio.
        prompt_suffix: Text after them; guess: the token that closes audio, the request, and the start of the
            model's turn.
        audio_token: Placeholder of an audio token; guess: ``<|audio|>``.
        language_tag_place: ``canvas`` or ``none``; guess: ``none``.
        blank_token_id: CTC blank; guess: the backbone's padding token.
        ctc_softcap: Whether the logit soft-cap applies to the CTC reading; guess: no.
        pad_to_30s: Whether clips are padded to 30 s; guess: yes, as stock Whisper does.
        canvas_length: Guess: 192.
        max_canvas_length: Guess: 256.
        first_side: Whose LoRA comes first where a bare list of matrices does not say; guess: ``encoder``, the
            order of the backbone's modules.
        activation_after: Where the activations of a projector stand that is a chain of layers: ``maps``,
            ``norms`` or ``convs`` (:data:`canvas_asr.conversion.chain.ACTIVATION_PLACES`); guess: where the
            numbers of a ``Sequential`` leave room, else ``maps``.
    """

    lora_alpha: int | None = None
    projector_activation: str | None = None
    prompt_prefix: str | None = None
    prompt_suffix: str | None = None
    audio_token: str | None = None
    language_tag_place: str | None = None
    blank_token_id: int | None = None
    ctc_softcap: bool | None = None
    pad_to_30s: bool | None = None
    canvas_length: int | None = None
    max_canvas_length: int | None = None
    first_side: str | None = None
    activation_after: str | None = None


def resolve(
    settings: ImportSettings, values: Mapping[str, Value], *, rank: int, kind: str, pad_token_id: int | None
) -> tuple[dict[str, Any], dict[str, str]]:
    """Fill what is not given.

    Args:
        settings: As given.
        values: Plain values of the file.
        rank: LoRA rank.
        kind: Kind of the projector.
        pad_token_id: The backbone's padding token.

    Returns:
        Configuration fields, and where each value is from: ``given``, ``in the file`` or ``guess``.
    """
    prefix, suffix = next(iter(FRAMINGS.values()))
    guesses: dict[str, Any] = {
        "lora_alpha": 2 * rank,
        "projector_activation": ACTIVATION_OF_KIND[kind],
        "prompt_prefix": prefix,
        "prompt_suffix": suffix,
        "audio_token": "<|audio|>",
        "language_tag_place": "none",
        "blank_token_id": pad_token_id or 0,
        "ctc_softcap": False,
        "pad_to_30s": True,
        "canvas_length": 192,
        "max_canvas_length": 256,
    }
    origins = dict.fromkeys(guesses, "guess")
    stated = _stated_alpha(values)
    if stated is not None:
        guesses["lora_alpha"], origins["lora_alpha"] = stated, "in the file"
    fields = {}
    for name, guess in guesses.items():
        given = getattr(settings, name)
        fields[name] = guess if given is None else given
        if given is not None:
            origins[name] = "given"
    # A canvas longer than guessed is a wish that the guessed limit must not refuse.
    if origins["max_canvas_length"] == "guess":
        fields["max_canvas_length"] = max(fields["max_canvas_length"], fields["canvas_length"])
    return fields, origins


def unknown_tokens(processor: CanvasASRProcessor, *texts: str) -> list[str]:
    """List the control tokens, such as ``<bos>``, that texts name and the tokenizer does not have."""
    unknown = []
    for token in re.findall(r"<[^<>\s]*>", "".join(texts)):
        try:
            processor.token_id(token)
        except ValueError:
            unknown.append(token)
    return unknown


def _stated_alpha(values: Mapping[str, Value]) -> int | None:
    """LoRA alpha as the file states it, if it states one."""
    stated = {
        int(value)
        for name, value in values.items()
        if name.rpartition(".")[2] in ("lora_alpha", "alpha")
        and isinstance(value, (int, float))
        and not isinstance(value, bool)
        and float(value).is_integer()
        and value > 0
    }
    return stated.pop() if len(stated) == 1 else None
