"""A projector as a chain of layers: how a configuration writes it down, and what follows from that.

Each layer is a short text: ``linear 1280`` and ``conv 1280`` (stride 2, kernel 3) with the width they give,
``norm`` (LayerNorm) and ``activation``, which keep the width they get.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

CHANGES_WIDTH = ("linear", "conv")
KEEPS_WIDTH = ("norm", "activation")


@dataclass(frozen=True)
class ChainLayer:
    """One layer.

    Attributes:
        kind: ``linear``, ``conv``, ``norm`` or ``activation``.
        n_in: Width that it takes.
        n_out: Width that it gives.
    """

    kind: str
    n_in: int
    n_out: int


def parse_layers(layers: Sequence[str] | None, d_audio: int, hidden_size: int) -> list[ChainLayer]:
    """Read the layers of a chain.

    Args:
        layers: Their texts, from the audio encoder on.
        d_audio: Width that the first takes.
        hidden_size: Width that the last has to give.

    Raises:
        ValueError: If there are none, one cannot be read, or they do not end at ``hidden_size``.
    """
    if not isinstance(layers, (list, tuple)) or not layers:
        raise ValueError(f"projector_layers is {layers!r}; a chain is a list of texts such as 'conv 1280'.")
    width, parsed = d_audio, []
    for text in layers:
        kind, _, number = str(text).partition(" ")
        if kind in CHANGES_WIDTH and number.isdecimal() and int(number) > 0:
            parsed.append(ChainLayer(kind, width, int(number)))
            width = int(number)
        elif text in KEEPS_WIDTH:
            parsed.append(ChainLayer(kind, width, width))
        else:
            raise ValueError(
                f"projector_layers has {text!r}; write 'linear WIDTH', 'conv WIDTH', 'norm' or 'activation'."
            )
    if width != hidden_size or not any(layer.kind in CHANGES_WIDTH for layer in parsed):
        raise ValueError(
            f"projector_layers is {list(layers)}; it has to lead from {d_audio} to the backbone's "
            f"{hidden_size}."
        )
    return parsed


def stride_of(layers: Sequence[ChainLayer]) -> int:
    """Encoder frames per audio token: every convolution halves their number."""
    return int(2 ** sum(layer.kind == "conv" for layer in layers))


def width_of(layers: Sequence[ChainLayer]) -> int:
    """Width of the chain's inside: the first that a layer gives."""
    return next(layer.n_out for layer in layers if layer.kind in CHANGES_WIDTH)


def describe_layers(layers: Sequence[str], activation: str) -> str:
    """Tell a chain in one line: ``linear 1280, 3 × conv 1280 + gelu, linear 2816``."""
    told: list[str] = []
    for text in layers:
        if text == "activation" and told:
            told[-1] += f" + {activation}"
        else:
            told.append(activation if text == "activation" else text)
    counted = [(text, len(list(same))) for text, same in groupby(told)]
    return ", ".join(f"{count} × {text}" if count > 1 else text for text, count in counted)
