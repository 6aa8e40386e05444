"""Long files block by block: whole ones as they are, damaged ones past the damage, at the right time."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import soundfile as sf
from numpy.typing import NDArray

from canvas_asr import AudioError, load_audio
from canvas_asr.audio_stream import AudioStream, header_seconds

RATE_HZ = 16_000
SECONDS = 24


@pytest.fixture(scope="module")
def noise() -> NDArray[np.float32]:
    """Noise that swells and fades, of which every second is unlike the others."""
    rng = np.random.default_rng(0)
    white = rng.normal(0, 1, SECONDS * RATE_HZ)
    smooth = np.convolve(white, np.hanning(9) / 4, mode="same")
    return (0.1 * smooth).astype(np.float32)


def write(path: Path, samples: NDArray[np.float32]) -> Path:
    """Write a file of the kind that its name says, with FFmpeg where libsndfile cannot."""
    codecs = {".mp3": "libmp3lame", ".m4a": "aac", ".webm": "libopus"}
    if path.suffix not in codecs:
        sf.write(path, samples, RATE_HZ)
        return path
    with av.open(path, "w") as container:
        stream = container.add_stream(codecs[path.suffix], rate=RATE_HZ)
        stream.layout = "mono"
        resampler = av.AudioResampler(format=stream.codec_context.format, layout="mono", rate=RATE_HZ)
        pcm = (samples * 32767).astype(np.int16)[None]
        for at in range(0, pcm.shape[1], 960):
            frame = av.AudioFrame.from_ndarray(pcm[:, at : at + 960], format="s16", layout="mono")
            frame.sample_rate, frame.pts = RATE_HZ, at
            for resampled in resampler.resample(frame):
                container.mux(stream.encode(resampled))
        container.mux(stream.encode(None))
    return path


def read(path: Path) -> tuple[NDArray[np.float32], AudioStream]:
    stream = AudioStream(path)
    return np.concatenate(list(stream)), stream


def lag_s(samples: NDArray[np.float32], original: NDArray[np.float32], at_s: float) -> float:
    """How much later than it should a stretch of the original stands in samples."""
    first, margin = round(at_s * RATE_HZ), RATE_HZ // 2
    part = original[first : first + 2 * RATE_HZ]
    around = samples[first - margin : first + len(part) + margin]
    return (int(np.correlate(around, part, mode="valid").argmax()) - margin) / RATE_HZ


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3", "a.m4a", "a.webm"])
def test_a_whole_file_has_no_gaps(name: str, noise: NDArray[np.float32], tmp_path: Path) -> None:
    path = write(tmp_path / name, noise[: 8 * RATE_HZ])
    samples, stream = read(path)
    assert stream.gaps == []
    assert stream.duration_s == pytest.approx(8, abs=0.1)
    np.testing.assert_allclose(samples, load_audio(path), atol=2e-3)


@pytest.mark.parametrize("name", ["a.flac", "a.ogg", "a.mp3", "a.m4a", "a.webm"])
@pytest.mark.parametrize("kind", ["zeros", "noise"])
def test_a_corrupt_middle_costs_that_place_only(
    name: str, kind: str, noise: NDArray[np.float32], tmp_path: Path
) -> None:
    path = write(tmp_path / name, noise)
    content = bytearray(path.read_bytes())
    first, n_bytes = len(content) // 2, len(content) // 12
    junk = bytes(n_bytes) if kind == "zeros" else np.random.default_rng(1).bytes(n_bytes)
    content[first : first + n_bytes] = junk
    path.write_bytes(content)
    samples, stream = read(path)
    assert abs(len(samples) / RATE_HZ - SECONDS) < 0.1
    assert 1.0 < sum(gap.end - gap.start for gap in stream.gaps) < 5.5
    for gap in stream.gaps:
        assert gap.reason
        assert 10.5 < gap.start <= gap.end < 17.5
        inside = samples[round((gap.start + 0.1) * RATE_HZ) : round((gap.end - 0.1) * RATE_HZ)]
        assert np.abs(inside).max(initial=0) < 1e-3
    for at_s in (4.0, 20.0):
        assert lag_s(samples, noise, at_s) == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp3", "a.ogg"])
def test_a_missing_end_is_a_gap(name: str, noise: NDArray[np.float32], tmp_path: Path) -> None:
    path = write(tmp_path / name, noise)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    samples, stream = read(path)
    assert 14 < len(samples) / RATE_HZ < 17
    assert lag_s(samples, noise, 10.0) == pytest.approx(0, abs=0.02)
    if name != "a.mp3":  # whose header estimates by its size
        assert stream.gaps[-1].start == pytest.approx(len(samples) / RATE_HZ, abs=0.1)
    if name in ("a.wav", "a.flac"):
        assert stream.gaps[-1].end == pytest.approx(SECONDS, abs=0.1)


def test_samples_that_are_no_numbers_are_a_gap(noise: NDArray[np.float32], tmp_path: Path) -> None:
    samples = noise[: 10 * RATE_HZ].copy()
    samples[5 * RATE_HZ : 5 * RATE_HZ + 160] = np.nan
    sf.write(tmp_path / "a.wav", samples, RATE_HZ, subtype="FLOAT")
    found, stream = read(tmp_path / "a.wav")
    (gap,) = stream.gaps
    assert (gap.start, gap.end) == pytest.approx((5.0, 5.01), abs=1e-4)
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found, np.nan_to_num(samples))


def test_other_rates_and_channels_are_those_of_load_audio(noise: NDArray[np.float32], tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    sf.write(path, np.stack([noise, 0.5 * noise], axis=1)[: 3 * 44_100], 44_100)
    found, stream = read(path)
    np.testing.assert_array_equal(found, load_audio(path))
    assert stream.duration_s == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "the file is empty"),
        (b"text, no sound\n" * 99, "cannot be read as audio"),
    ],
)
def test_what_is_no_audio_is_refused(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.mp3"
    if content is not None:
        path.write_bytes(content)
    assert header_seconds(str(path)) is None
    with pytest.raises(AudioError, match=rf"a\.mp3: .*{message}"):
        list(AudioStream(path))


def test_a_video_without_sound_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 32
        for _ in range(10):
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(AudioError, match="has no audio in it"):
        list(AudioStream(path))
