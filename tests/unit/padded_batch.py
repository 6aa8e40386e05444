"""What every shape of projector has to keep: padding changes no clip."""

from __future__ import annotations

import torch

from canvas_asr.configuration import CanvasASRConfig
from canvas_asr.projector import AudioProjector


@torch.no_grad()
def check_padded_batch(config: CanvasASRConfig, stride: int) -> None:
    """A clip in a padded batch gives what it gives alone, from frames of 20 numbers to audio tokens of 32."""
    torch.manual_seed(0)
    projector = AudioProjector(config)
    for name, parameter in projector.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)  # as trained: what is added to nothing is not nothing
    frames = torch.randn(3, 29, 20)  # what stands behind a clip is anything but zero
    n_frames = torch.tensor([29, 1, 14])
    tokens, n_audio = projector(frames, n_frames)
    expected = [-(-n // stride) for n in (29, 1, 14)]
    assert n_audio.tolist() == expected
    assert projector.n_audio_tokens(n_frames).tolist() == expected
    assert tokens.shape == (3, expected[0], 32)
    for row, n in enumerate(n_frames.tolist()):
        alone, _ = projector(frames[row : row + 1, :n], n_frames[row : row + 1])
        torch.testing.assert_close(tokens[row, : expected[row]], alone[0], atol=1e-6, rtol=1e-5)
