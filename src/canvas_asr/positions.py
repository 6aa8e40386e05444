"""Positions of a prompt whose audio tokens stand on the canvas's own axis.

A stock prompt gives every audio token a position of its own, and the canvas follows behind: to find the sound
of its i-th word, a canvas position has to count how many words the audio tokens before it spell. With
``audio_positions="spikes"`` the CTC reading counts instead: positions advance by one from each spike, the
first frame of a CTC token, to the next, and the canvas starts where the audio starts. Text token k, wherever
it stands on the canvas, then has its sound at distance zero, up to what the reading misses or adds.

Rotary position embeddings take any real number, so frames between two spikes share out the step between them.

Letters: B clips, A audio tokens, P prompt positions.
"""

from __future__ import annotations

import torch
from torch import Tensor


def spike_positions(labels: Tensor, n_labels: Tensor, blank: int) -> tuple[Tensor, Tensor]:
    """Count CTC spikes along each row, with fractions between them.

    Args:
        labels: Likeliest CTC label of every audio token, (B, A) int64.
        n_labels: Valid audio tokens, (B,) int64.
        blank: Id of the blank.

    Returns:
        Positions, (B, A) float32: k at the k-th spike, counted from 1, evenly spaced from one spike to the
        next, above 0 and below the number of spikes plus 1; and the number of spikes, (B,) int64.
    """
    places = torch.arange(labels.shape[1], device=labels.device)[None, :]
    before = torch.cat([torch.full_like(labels[:, :1], blank), labels[:, :-1]], dim=1)
    spikes = (labels != blank) & (labels != before) & (places < n_labels[:, None])
    n_passed = spikes.cumsum(dim=1)
    last = torch.where(spikes, places, -1).cummax(dim=1).values
    end = n_labels[:, None]
    upcoming = torch.where(spikes, places, end).flip(1).cummin(dim=1).values.flip(1)
    following = torch.cat([upcoming[:, 1:], end], dim=1)
    share = (places - last) / (following - last).clamp(min=1)
    return (n_passed + share.clamp(max=1.0)).float(), n_passed[:, -1]


def prompt_positions(slots: Tensor, labels: Tensor, n_labels: Tensor, blank: int) -> Tensor:
    """Place the tokens of prompts: text as usual, audio tokens by their spikes.

    Args:
        slots: Which places of the prompt hold audio tokens, one run of them in each row, (B, P) bool.
        labels: Likeliest CTC label of every audio token, (B, A) int64.
        n_labels: Valid audio tokens, (B,) int64: as many as the row has slots.
        blank: Id of the blank.

    Returns:
        (B, P) float32. With f tokens before the audio, spike k stands at f - 1 + k, and the text behind the
        audio starts at f + the number of spikes.
    """
    audio, n_spikes = spike_positions(labels, n_labels, blank)
    places = torch.arange(slots.shape[1], device=slots.device)[None, :]
    first = slots.int().argmax(dim=1, keepdim=True)
    index = (places - first).clamp(0, labels.shape[1] - 1)
    on_audio = first - 1 + audio.gather(1, index)
    positions = torch.where(slots, on_audio, places.float())
    behind = places >= first + n_labels[:, None]
    return torch.where(behind, (places + (n_spikes - n_labels)[:, None]).float(), positions)
