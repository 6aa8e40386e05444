"""Audio files with damage, for tests that read them."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
from audio_files import ENCODERS, write_audio

SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a")
HEADER_BYTES = 200


def write_originals(folder: Path, seconds: float = 0.5, channels: tuple[int, ...] = (1, 2)) -> list[Path]:
    """Write noise in each format, mono and stereo."""
    paths = []
    for suffix in SUFFIXES:
        rate_hz = ENCODERS.get(suffix, ("", 44_100))[1]
        for n_channels in channels:
            noise = np.random.default_rng(n_channels).normal(0, 0.1, (round(rate_hz * seconds), n_channels))
            path = folder / f"original{n_channels}{suffix}"
            paths.append(write_audio(path, noise.astype(np.float32), rate_hz))
    return paths


def mutate(content: bytes, other: bytes, rng: random.Random) -> bytes:
    """Damage a file in one to three ways; half of them in the header, where a byte does most.

    Args:
        content: Of the file.
        other: Of a file whose end may be joined to a beginning of this one.
        rng: Decides.
    """
    data = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        end = min(HEADER_BYTES, len(data)) if rng.random() < 0.5 else len(data)
        at = rng.randrange(max(1, end))
        n = rng.choice((1, 2, 4, 16, 256))
        match rng.randrange(7):
            case 0:
                data[at : at + n] = rng.randbytes(n)
            case 1:
                data[at : at + n] = bytes([rng.choice((0, 0x7F, 0x80, 0xFF))]) * n
            case 2:
                del data[at : at + n]
            case 3:
                data[at:at] = rng.randbytes(n)
            case 4:
                data[at:at] = data[at : at + n * 16]
            case 5:
                for _ in range(n):
                    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            case 6:
                data[at:] = other[rng.randrange(len(other)) :]
        if len(data) < 16 or rng.random() < 0.1:
            del data[rng.randrange(len(data) + 1) :]
            break
    return bytes(data)
