"""When the tokens of a text were said: CTC forced alignment to the posteriors of the audio tokens.

The likeliest path through the states of a known text, blanks between its tokens: Graves et al. 2006,
"Connectionist temporal classification", section 4.1, with maxima in place of sums (Viterbi).

Letters: T audio tokens of a clip, S tokens of its text, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .audio import SAMPLE_RATE_HZ
from .configuration import CanvasASRConfig
from .encoder import n_encoder_frames
from .modeling import CanvasASRModel

Logs = NDArray[np.float64]
Span = tuple[float, float]

# Audio tokens that are read at once: with a large vocabulary the logits of a whole clip are large.
CHUNK_TOKENS = 64


def best_path(log_blank: Logs, log_tokens: Logs, ids: Sequence[int]) -> NDArray[np.int64]:
    """Likeliest CTC path of a text, all states of a frame at once.

    Args:
        log_blank: Log posterior of the blank, (T,).
        log_tokens: Of each token of the text, (T, S).
        ids: The tokens, S >= 1; T is at least S, and one more for every two equal neighbours.

    Returns:
        State of every frame, (T,): 2k + 1 is token k, even ones are the blanks around them.
    """
    n_frames, n_tokens = log_tokens.shape
    n_states = 2 * n_tokens + 1
    heard = np.empty((n_frames, n_states))
    heard[:, 0::2], heard[:, 1::2] = log_blank[:, None], log_tokens
    # A blank is left out between different tokens only: two equal ones would be read as one.
    skips = np.full(n_states, -np.inf)
    skips[3::2] = np.where(np.asarray(ids[1:]) != np.asarray(ids[:-1]), 0.0, -np.inf)
    moves = np.zeros((n_frames, n_states), np.int64)
    came = np.full((3, n_states), -np.inf)  # scores by how many states the path has moved on
    score = np.full(n_states, -np.inf)
    score[:2] = heard[0, :2]
    states = np.arange(n_states)
    for t in range(1, n_frames):
        came[0], came[1, 1:], came[2, 2:] = score, score[:-1], score[:-2] + skips[2:]
        moves[t] = came.argmax(axis=0)
        score = came[moves[t], states] + heard[t]
    path = np.empty(n_frames, np.int64)
    state = n_states - 1 if score[-1] >= score[-2] else n_states - 2
    for t in range(n_frames - 1, -1, -1):
        path[t] = state
        state -= moves[t, state]
    return path


def align(log_blank: Logs, log_tokens: Logs, ids: Sequence[int]) -> list[Span]:
    """Find the frames in which each token of a text was said.

    A text that needs more frames than there are (one a token, and one more between equal neighbours) is
    aligned to frames that are cut into as many equal parts as it takes: its times are crowded, but in order.

    Args:
        log_blank: Log posterior of the blank, (T,), T >= 1.
        log_tokens: Of each token of the text, (T, S).
        ids: The tokens.

    Returns:
        For each token its first frame and the one behind its last; fractions where frames were cut. No two
        overlap.
    """
    if not len(ids):
        return []
    n_needed = len(ids) + sum(ids[k] == ids[k - 1] for k in range(1, len(ids)))
    n_parts = -(-n_needed // len(log_blank))
    path = best_path(log_blank.repeat(n_parts), log_tokens.repeat(n_parts, axis=0), ids)
    tokens = 2 * np.arange(len(ids)) + 1
    starts, ends = (np.searchsorted(path, tokens, side=side) / n_parts for side in ("left", "right"))
    return list(zip(starts.tolist(), ends.tolist(), strict=True))


def audio_token_s(config: CanvasASRConfig, hop_length: int) -> float:
    """Seconds from one audio token to the next.

    Args:
        config: Of the model.
        hop_length: Samples from one feature frame to the next, of which the audio encoder makes one of two.
    """
    n_features = config.projector_stride * (1 if config.reads_waveform else 2)
    return n_features * hop_length / SAMPLE_RATE_HZ


class Aligner:
    """Aligns texts to the audio tokens of one model."""

    def __init__(self, model: CanvasASRModel, hop_length: int) -> None:
        """Prepare.

        Args:
            model: In evaluation mode; its CTC tap is read.
            hop_length: Samples from one feature frame to the next.
        """
        self.model = model
        self.token_s = audio_token_s(model.config, hop_length)

    def clips(self, audio_tokens: Tensor, n_features: Tensor) -> list[Tensor]:
        """Cut a batch into its clips, without padding and without silence that was put behind a clip.

        Args:
            audio_tokens: (B, A, D).
            n_features: Valid feature frames of each clip, (B,) int64.

        Returns:
            B times (T, D).
        """
        n_frames = n_features if self.model.takes_frames else n_encoder_frames(n_features)
        lengths = self.model.projector.n_audio_tokens(n_frames).tolist()
        return [row[:n] for row, n in zip(audio_tokens, lengths, strict=True)]

    @torch.no_grad()
    def log_posteriors(self, ids: Sequence[int], audio_tokens: Tensor) -> Logs:
        """Read the CTC tap.

        Args:
            ids: Tokens, S of them.
            audio_tokens: Of a clip, (T, D).

        Returns:
            Log posteriors of the blank, then of each of the tokens, (T, 1 + S).
        """
        columns = torch.tensor([self.model.config.blank_token_id, *ids], device=audio_tokens.device)
        parts = []
        for chunk in torch.split(audio_tokens, CHUNK_TOKENS):
            logits = self.model.ctc_logits(chunk[None])[0].float()  # (<= CHUNK_TOKENS, V)
            parts.append(logits[:, columns] - logits.logsumexp(dim=-1, keepdim=True))
        logs: Logs = torch.cat(parts).double().cpu().numpy()
        return logs

    def __call__(self, ids: Sequence[int], audio_tokens: Tensor) -> list[Span]:
        """Find when each token of a text was said.

        Args:
            ids: Tokens of the text.
            audio_tokens: Of its clip, (T, D).

        Returns:
            Start and end of each in seconds of the clip.
        """
        logs = self.log_posteriors(ids, audio_tokens)
        spans = align(logs[:, 0], logs[:, 1:], ids)
        return [(start * self.token_s, end * self.token_s) for start, end in spans]
