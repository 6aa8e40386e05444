"""Voice activity: how likely each 32 ms of audio hold speech, by the Silero model of ``silero-vad``.

    detector = SileroDetector()
    probabilities = [detector(block) for block in blocks]

The weights are those of the package's TorchScript file (its safetensors file holds others), and the network
is written here, because the package's runs a frame at a time: here the convolutions see all frames of a
block at once and only the LSTM goes along time. Its first layer, a convolution with the waves of a windowed
Fourier transform, is that transform, in a third of the time. The probabilities are the same (a test compares
them). Neither the package, whose import sets torch to one thread, nor torchaudio is imported.

Letters: F frames of a block.
"""

from __future__ import annotations

import importlib.util
import warnings
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from .audio_files import Samples
from .errors import CheckpointError

FRAME_SAMPLES = 512  # 32 ms at 16 kHz, which is what the model was trained on
_CONTEXT_SAMPLES = 64  # of the frame before, which the model hears again
_WIDTH = 128
_N_FFT, _HOP = 256, 128

_BASIS = "_model.stft.forward_basis_buffer"  # (258, 1, 256): cosines, then sines
_NAMES = {  # ours: theirs
    **{f"conv{i + 1}.{w}": f"encoder.{i}.reparam_conv.{w}" for i in range(4) for w in ("weight", "bias")},
    **{f"lstm.{w}_l0": f"decoder.rnn.{w}" for w in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")},
    "out.weight": "decoder.decoder.2.weight",
    "out.bias": "decoder.decoder.2.bias",
}

Scores = npt.NDArray[np.float32]


class Detector(Protocol):
    """Scores the frames of a stream, block by block."""

    def __call__(self, samples: Samples) -> Scores:
        """Score the next frames.

        Args:
            samples: The next of the stream, (F * FRAME_SAMPLES,).

        Returns:
            A score for each frame, (F,), 0 to 1.
        """
        ...


class SileroNetwork(nn.Module):
    """The 16 kHz network of Silero VAD 6: magnitudes, four convolutions, an LSTM."""

    window: Tensor

    def __init__(self) -> None:
        """Lay out the layers."""
        super().__init__()
        self.register_buffer("window", torch.zeros(_N_FFT))
        self.conv1 = nn.Conv1d(129, 128, 3, padding=1)
        self.conv2 = nn.Conv1d(128, 64, 3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, 3, stride=2, padding=1)
        self.conv4 = nn.Conv1d(64, 128, 3, padding=1)
        self.lstm = nn.LSTM(_WIDTH, _WIDTH)
        self.out = nn.Conv1d(_WIDTH, 1, 1)

    def forward(self, frames: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Score consecutive frames.

        Args:
            frames: Each behind its context, (F, 576).
            state: Of the LSTM, two of (1, 128).

        Returns:
            Probabilities (F,), and the state behind the last frame.
        """
        padded = nn.functional.pad(frames[:, None], (0, 64), mode="reflect")
        windows = padded[:, 0].unfold(1, _N_FFT, _HOP) * self.window  # (F, 4, 256)
        hidden = torch.fft.rfft(windows).abs().mT  # (F, 129, 4)
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
            hidden = layer(hidden).relu()
        steps, state = self.lstm(hidden.squeeze(-1), state)  # (F, 128): a sequence, not a batch
        return self.out(steps.relu().unsqueeze(-1)).sigmoid().flatten(), state


class SileroDetector:
    """The model with its memory of one stream, which stays the same size however long that is."""

    def __init__(self) -> None:
        """Start a stream.

        Raises:
            CheckpointError: If the ``silero-vad`` package is missing, too old or damaged.
        """
        self._network = _network()
        self._context = torch.zeros(_CONTEXT_SAMPLES)
        self._state = torch.zeros(1, _WIDTH), torch.zeros(1, _WIDTH)

    @torch.inference_mode()
    def __call__(self, samples: Samples) -> Scores:
        """Give the probability of speech in each of the next frames; see :class:`Detector`."""
        joined = torch.cat([self._context, torch.from_numpy(samples)])
        if not len(samples):
            return np.zeros(0, np.float32)
        self._context = joined[-_CONTEXT_SAMPLES:].clone()
        frames = joined.unfold(0, _CONTEXT_SAMPLES + FRAME_SAMPLES, FRAME_SAMPLES)
        probabilities, self._state = self._network(frames, self._state)
        return np.asarray(probabilities.numpy(), dtype=np.float32)


class LoudnessDetector:
    """Scores by loudness, where no speech is to be looked for: a quiet point is a place to cut, no more."""

    def __call__(self, samples: Samples) -> Scores:
        """Give the loudness of the next frames: 0 at -100 dB of full scale and below, 1 at 0 dB."""
        power = np.square(samples.reshape(-1, FRAME_SAMPLES)).mean(axis=1, dtype=np.float64)
        return np.asarray(np.clip(1 + np.log10(power + 1e-12) / 10, 0, 1), dtype=np.float32)


@cache
def _network() -> SileroNetwork:
    """Read the model once a process.

    Raises:
        CheckpointError: If its file is missing or does not fit.
    """
    spec = importlib.util.find_spec("silero_vad")  # finds the package and does not import it
    folders = spec.submodule_search_locations if spec else None
    path = Path(folders[0] if folders else "silero_vad") / "data" / "silero_vad.jit"
    hint = "install it with `pip install 'silero-vad>=6'`, or give vad=False"
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file, and voice activity detection needs it; {hint}.")
    network = SileroNetwork()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript itself is
            stored = torch.jit.load(path, map_location="cpu").state_dict()  # type: ignore[no-untyped-call]
        weights = {name: stored[f"_model.{theirs}"] for name, theirs in _NAMES.items()}
        network.load_state_dict(weights | {"window": _window(stored[_BASIS])})
    except (KeyError, OSError, RuntimeError) as error:
        raise CheckpointError(f"{path}: is damaged, or of another version ({error}); {hint}.") from error
    return network.requires_grad_(False).eval()


def _window(basis: Tensor) -> Tensor:
    """Read the window, (256,), from the waves of a Fourier transform that it is in.

    Raises:
        RuntimeError: If they are other waves.
    """
    window = basis[0, 0]  # the wave of frequency 0
    waves = torch.fft.rfft(torch.diag(window.double())).mT  # (129, 256)
    if not torch.allclose(torch.cat([waves.real, waves.imag]), basis[:, 0].double(), atol=1e-6):
        raise RuntimeError("its first layer is no Fourier transform")
    return window
