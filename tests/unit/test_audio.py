"""load_audio: rates, channels, sample types and containers give the same sound; bad input one clear error."""

from __future__ import annotations

import os
import struct
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest
import soundfile as sf
from audio_files import ENCODERS, SUFFIXES, tone, write_audio

from canvas_asr.audio import SAMPLE_RATE_HZ, audio_seconds, decode_audio, load_audio
from canvas_asr.errors import AudioError

RATES_HZ = (8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000)


def middle(samples: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Cut 50 ms off both ends, where a tone that starts at once is no tone."""
    return samples[SAMPLE_RATE_HZ // 20 : -SAMPLE_RATE_HZ // 20]


def level_db(samples: npt.NDArray[Any]) -> float:
    return 20 * np.log10(np.sqrt(np.mean(np.square(samples, dtype=np.float64))) + 1e-12)


def peak_hz(samples: npt.NDArray[Any]) -> float:
    n_fft = 1 << 19  # bins of 0.03 Hz
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples)), n_fft))
    return float(np.argmax(spectrum)) * SAMPLE_RATE_HZ / n_fft


# Rates, channels and sample types


@pytest.mark.parametrize("rate_hz", RATES_HZ)
def test_tone_keeps_its_pitch_and_level_at_every_rate(rate_hz: int) -> None:
    samples = load_audio((tone(rate_hz, 2.0), rate_hz))
    assert samples.dtype == np.float32
    assert abs(len(samples) - 2 * SAMPLE_RATE_HZ) <= 1
    assert peak_hz(middle(samples)) == pytest.approx(1000, abs=1)
    assert level_db(middle(samples)) == pytest.approx(level_db(tone(16_000)), abs=0.5)


@pytest.mark.parametrize("rate_hz", [rate for rate in RATES_HZ if rate > SAMPLE_RATE_HZ])
def test_what_lies_above_8_khz_is_removed(rate_hz: int) -> None:
    for tone_hz in np.linspace(8_050, 0.49 * rate_hz, 12):
        loud = tone(rate_hz, 0.5, tone_hz, gain=0.5)
        assert level_db(middle(load_audio((loud, rate_hz)))) - level_db(loud) <= -60, tone_hz


def test_what_lies_below_7_khz_is_kept() -> None:
    for tone_hz in np.linspace(50, 7_000, 12):
        loud = tone(44_100, 0.5, tone_hz)
        assert level_db(middle(load_audio((loud, 44_100)))) == pytest.approx(level_db(loud), abs=0.5), tone_hz


@pytest.mark.parametrize("rate_hz", [16_000, 44_100])
@pytest.mark.parametrize(
    "dtype", ["int8", "uint8", "<i2", ">i2", "<i4", ">i4", "<f2", "<f4", ">f4", "<f8", ">f8"]
)
def test_sample_types_agree(dtype: str, rate_hz: int) -> None:
    exact = tone(rate_hz)
    kind = np.dtype(dtype)
    if kind.kind == "f":
        array = exact.astype(kind)
    else:
        scaled = np.round(exact.astype(np.float64) * 2 ** (8 * kind.itemsize - 1))
        array = (scaled + (128 if kind.kind == "u" else 0)).astype(kind)
    step = 2.0 ** (1 - 8 * kind.itemsize) if kind.itemsize == 1 else 0
    np.testing.assert_allclose(load_audio((array, rate_hz)), load_audio((exact, rate_hz)), atol=1e-3 + step)


@pytest.mark.parametrize("n_channels", [1, 2, 6])
@pytest.mark.parametrize("as_rows", [False, True])
def test_channels_are_averaged_whichever_axis_they_are(n_channels: int, as_rows: bool) -> None:
    gains = np.linspace(0.2, 1.8, n_channels, dtype=np.float32) if n_channels > 1 else np.ones(1, np.float32)
    columns = tone(48_000)[:, None] * gains
    expected = load_audio((tone(48_000), 48_000))
    np.testing.assert_allclose(load_audio((columns.T if as_rows else columns, 48_000)), expected, atol=1e-5)


def test_more_than_a_block_is_the_same_as_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (200_000, 2)).astype(np.float32)
    whole = load_audio((noise, 44_100))
    monkeypatch.setattr("canvas_asr.audio.BLOCK_SAMPLES", 999)
    np.testing.assert_allclose(load_audio((noise, 44_100)), whole, atol=1e-6)


def test_a_rate_by_keyword_is_the_same_as_in_a_tuple() -> None:
    array = tone(8_000)
    np.testing.assert_array_equal(load_audio(array, sample_rate_hz=8_000), load_audio((array, 8_000)))
    np.testing.assert_array_equal(
        load_audio((array, 8_000), sample_rate_hz=8_000), load_audio((array, 8_000))
    )
    np.testing.assert_array_equal(load_audio((array, np.float64(8_000))), load_audio((array, 8_000)))


def test_a_torch_tensor_is_an_array() -> None:
    torch = pytest.importorskip("torch")
    array = tone(16_000)
    np.testing.assert_array_equal(load_audio((torch.from_numpy(array), 16_000)), array)
    with pytest.raises(AudioError, match="numpy array"):
        load_audio((torch.from_numpy(array).requires_grad_(), 16_000))


def test_the_source_array_is_left_as_it_was() -> None:
    array = tone(16_000, gain=1.5)
    before = array.copy()
    samples = load_audio((array, 16_000))
    samples[:] = 0
    np.testing.assert_array_equal(array, before)


def test_floats_a_little_over_full_scale_are_clipped() -> None:
    samples = load_audio((tone(16_000, gain=1.5), 16_000))
    assert samples.max() == 1.0
    assert samples.min() == -1.0


@pytest.mark.parametrize("shape", [(0,), (0, 2), (2, 0), (0, 0)])
@pytest.mark.parametrize("rate_hz", [16_000, 44_100])
def test_an_empty_array_gives_no_samples(shape: tuple[int, ...], rate_hz: int) -> None:
    samples = load_audio((np.zeros(shape, np.float32), rate_hz))
    assert samples.shape == (0,)
    assert samples.dtype == np.float32


@pytest.mark.parametrize("n", [1, 2, 320])
@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 48_000])
def test_a_few_samples_are_enough(n: int, rate_hz: int) -> None:
    samples = load_audio((np.full(n, 0.1, np.float32), rate_hz))
    assert abs(len(samples) - n * SAMPLE_RATE_HZ / rate_hz) <= 1


# Arrays that are refused


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros(100, np.float32), r"sample rate.*\(samples, rate\).*sample_rate_hz"),
        ((np.zeros(100, np.float32),), r"tuple must be \(samples, sample_rate_hz\)"),
        ((16_000, np.zeros(100, np.float32)), r"tuple must be \(samples, sample_rate_hz\)"),
        ((np.int64(16_000), np.zeros(100, np.float32)), r"tuple must be \(samples, sample_rate_hz\)"),
        (([0.0, 0.1], 16_000), r"tuple must be \(samples, sample_rate_hz\)"),
        ((np.zeros(100), "16000"), "rate must be a number"),
        ((np.zeros(100), True), "rate must be a number"),
        ((np.zeros(100), None), "does not say its sample rate"),
        ((np.zeros(100), 16), "16 Hz is outside 4000 to 768000"),
        ((np.zeros(100), -16_000), "outside 4000 to 768000"),
        ((np.zeros(100), float("nan")), "outside 4000 to 768000"),
        ((np.zeros(100), 10**400), "outside 4000 to 768000"),
        ((np.zeros(100), 16_000.5), "whole number"),
        ((np.zeros((2, 2)), 16_000), r"shape \(2, 2\) is ambiguous"),
        ((np.zeros((16, 6)), 16_000), r"shape \(16, 6\) is ambiguous"),
        ((np.zeros((100, 100)), 16_000), r"shape \(100, 100\) has no axis of at most 16"),
        ((np.zeros((2, 3, 100)), 16_000), r"shape \(2, 3, 100\)"),
        ((np.zeros(100, np.int64), 16_000), "type int64: convert to int16"),
        ((np.zeros(100, np.uint16), 16_000), "type uint16"),
        ((np.zeros(100, bool), 16_000), "type bool"),
        ((np.zeros(100, complex), 16_000), "type complex128"),
        ((np.array(["a"] * 100), 16_000), "cannot use samples of type"),
        ((np.array([object()] * 100), 16_000), "type object"),
        (b"RIFF", "cannot read audio from bytes"),
        ([0.1, 0.2], "cannot read audio from list"),
        (None, "cannot read audio from NoneType"),
        ((tone(16_000) * 32_768, 16_000), "samples reach 8192 where full scale is 1.0"),
    ],
)
def test_bad_array_is_refused_with_a_reason(source: Any, message: str) -> None:
    with pytest.raises(AudioError, match=message):
        load_audio(source)


def test_two_different_rates_are_refused() -> None:
    with pytest.raises(AudioError, match="two rates for one array: 8000 in the tuple, sample_rate_hz=16000"):
        load_audio((np.zeros(100), 8_000), sample_rate_hz=16_000)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "infinite"), (-np.inf, "infinite")])
def test_the_first_sample_that_is_no_number_is_named(value: float, word: str, dtype: type) -> None:
    array = np.zeros((150_000, 2), dtype)
    array[140_000:, 0] = np.nan
    array[123_456, 1] = value
    with pytest.raises(AudioError, match=f"the array: sample 123456 is {word}"):
        load_audio((array, 48_000))


# Files


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("n_channels", [1, 2])
def test_every_container_gives_the_tone(suffix: str, n_channels: int, tmp_path: Path) -> None:
    rate_hz = ENCODERS.get(suffix, ("", 44_100))[1]
    source = np.repeat(tone(rate_hz, 2.0)[:, None], n_channels, axis=1)
    samples = load_audio(write_audio(tmp_path / f"a{suffix}", source, rate_hz))
    assert len(samples) == pytest.approx(2 * SAMPLE_RATE_HZ, abs=0.06 * SAMPLE_RATE_HZ)  # codecs pad
    assert peak_hz(middle(samples)) == pytest.approx(1000, abs=1)
    assert level_db(samples[8_000:24_000]) == pytest.approx(level_db(source), abs=0.5)


@pytest.mark.parametrize("rate_hz", [8_000, 96_000])
@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_files_of_unusual_rates(suffix: str, rate_hz: int, tmp_path: Path) -> None:
    path = write_audio(tmp_path / f"a{suffix}", tone(rate_hz, 2.0), rate_hz)
    assert peak_hz(middle(load_audio(path))) == pytest.approx(1000, abs=1)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".m4a"])
def test_six_channels_are_averaged(suffix: str, tmp_path: Path) -> None:
    channels = np.zeros((88_200, 6), np.float32)
    channels[:, 0] = tone(44_100, 2.0, gain=0.6)  # the others are silent
    samples = load_audio(write_audio(tmp_path / f"a{suffix}", channels, 44_100))
    assert level_db(samples[8_000:24_000]) == pytest.approx(level_db(tone(16_000, gain=0.1)), abs=0.5)


@pytest.mark.parametrize(
    "subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"]
)
@pytest.mark.parametrize("endian", ["LITTLE", "BIG"])
def test_wav_encodings_agree(subtype: str, endian: str, tmp_path: Path) -> None:
    atol = 2e-2 if subtype in ("PCM_U8", "ULAW", "ALAW") else 1e-4
    path = tmp_path / "a.wav"
    sf.write(path, tone(16_000), 16_000, subtype=subtype, endian=endian)
    np.testing.assert_allclose(load_audio(path), tone(16_000), atol=atol)


def test_the_content_decides_not_the_name(tmp_path: Path) -> None:
    path = write_audio(tmp_path / "a.flac", tone(16_000), 16_000)
    renamed = path.rename(tmp_path / "a.mp3")
    np.testing.assert_allclose(load_audio(str(renamed)), tone(16_000), atol=1e-4)


def test_names_with_odd_characters(tmp_path: Path) -> None:
    names = ["-i.wav", "file:a%d.mp3", "मौसम 天气 ü.m4a", "a\n.flac"]
    if sys.platform == "linux":  # macOS allows UTF-8 only
        names.append(os.fsdecode(b"\xff\xfe.webm"))
    for name in names:
        suffix = Path(name).suffix
        plain = write_audio(tmp_path / f"plain{suffix}", tone(48_000), ENCODERS.get(suffix, ("", 48_000))[1])
        assert len(load_audio(plain.rename(tmp_path / name))) > 0


@pytest.mark.parametrize("suffix", [".mp3", ".m4a", ".mka", ".caf"])
def test_tags_that_are_not_utf_8_do_no_harm(suffix: str, tmp_path: Path) -> None:
    rate_hz = ENCODERS[suffix][1]
    path = write_audio(tmp_path / f"a{suffix}", tone(rate_hz), rate_hz, title="Mueller")
    content = path.read_bytes()
    assert b"Mueller" in content
    path.write_bytes(content.replace(b"Mueller", b"M\xfcller "))
    assert len(load_audio(path)) == pytest.approx(SAMPLE_RATE_HZ, abs=1_200)


def test_a_rate_for_a_file_is_refused(tmp_path: Path) -> None:
    path = write_audio(tmp_path / "a.wav", tone(16_000), 16_000)
    with pytest.raises(AudioError, match=r"a\.wav: a file states its own rate"):
        load_audio(path, sample_rate_hz=16_000)


def test_memory_stays_near_the_size_of_the_result(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    sf.write(path, np.zeros((44_100 * 60, 2), np.int16), 44_100)
    load_audio(path)
    tracemalloc.start()
    samples = load_audio(path)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes <= 1.25 * samples.nbytes + 4 * 2**20


# Files that are refused


def refused(path: Path) -> str:
    with pytest.raises(AudioError) as caught:
        load_audio(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert ";" in message  # what is wrong; what to do
    return message


def test_missing_file_and_directory(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "none.wav")
    assert "is a directory" in refused(tmp_path)
    (tmp_path / "a.wav").touch()
    assert "cannot be read" in refused(tmp_path / "a.wav" / "b.wav")
    for odd in ("", "a\0b.wav", "http://localhost/a.wav", "x" * 5_000):
        with pytest.raises(AudioError):
            load_audio(odd)


def test_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    assert "not a regular file" in refused(tmp_path / "pipe.wav")


def test_no_permission(tmp_path: Path) -> None:
    path = write_audio(tmp_path / "a.wav", tone(16_000), 16_000)
    path.chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65_534)  # root may read everything
    try:
        assert "no permission" in refused(path)
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("suffix", [".wav", ".mp3", ".flac", ".ogg", ".m4a", ".webm", ".txt", ""])
def test_files_that_are_not_audio(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"")
    assert "the file is empty" in refused(path)
    for content in (
        b"x",
        b"Hello, this is a text.\n" * 500,
        b"\0" * 4_000,
        np.random.default_rng(1).bytes(4_000),
    ):
        path.write_bytes(content)
        refused(path)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3", ".m4a"])
def test_a_file_without_samples(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix in (".wav", ".flac", ".ogg"):
        sf.write(path, np.zeros(0, np.float32), 44_100)
    else:
        write_audio(path, np.zeros(0, np.float32), 44_100)
    refused(path)


def test_a_video_without_sound(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 64
        frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert "has no audio in it" in refused(tmp_path / "a.mp4")


def test_a_playlist_cannot_open_other_files(tmp_path: Path) -> None:
    secret = write_audio(tmp_path / "secret.wav", tone(16_000), 16_000)
    for name, text in {
        "a.ffconcat": "ffconcat version 1.0\nfile secret.wav\n",
        "a.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n",
        "a.wav": f"ffconcat version 1.0\nfile {secret}\n",
    }.items():
        (tmp_path / name).write_text(text)
        refused(tmp_path / name)


def test_a_codec_that_nobody_decodes(tmp_path: Path) -> None:
    content = bytearray(write_audio(tmp_path / "a.wav", tone(16_000), 16_000).read_bytes())
    content[20:22] = b"\x01\x12"  # the format tag
    (tmp_path / "a.wav").write_bytes(content)
    assert "has no decoder" in refused(tmp_path / "a.wav")


def test_bad_samples_and_rates_in_a_file(tmp_path: Path) -> None:
    samples = tone(16_000)
    samples[1_234] = np.nan
    sf.write(tmp_path / "nan.wav", samples, 16_000, subtype="FLOAT")
    assert "sample 1234 is NaN" in refused(tmp_path / "nan.wav")
    sf.write(tmp_path / "loud.wav", tone(16_000) * 32_768, 16_000, subtype="FLOAT")
    assert "samples reach 8192" in refused(tmp_path / "loud.wav")
    header = bytearray(write_audio(tmp_path / "rate.wav", tone(16_000), 16_000).read_bytes())
    header[24:28] = struct.pack("<I", 16)
    (tmp_path / "rate.wav").write_bytes(header)
    with pytest.raises(AudioError, match=r"rate\.wav: a sample rate of 16 Hz is outside"):
        load_audio(tmp_path / "rate.wav")


# Content in memory


@pytest.mark.parametrize("suffix", [".flac", ".mp3", ".m4a"])
def test_content_in_memory_is_what_the_file_is(suffix: str, tmp_path: Path) -> None:
    path = write_audio(tmp_path / f"a{suffix}", tone(44_100), 44_100)
    content = path.read_bytes()
    samples = load_audio(path)
    np.testing.assert_array_equal(decode_audio(content, "row 3"), samples)
    for source in (content, path):
        assert audio_seconds(source, "row 3") == pytest.approx(len(samples) / SAMPLE_RATE_HZ, abs=0.06)
    with pytest.raises(AudioError, match=r"row 3: "):
        decode_audio(content[: len(content) // 2], "row 3")


def test_content_that_is_not_audio_is_named() -> None:
    for read in (decode_audio, audio_seconds):
        with pytest.raises(AudioError, match=r"row 7: cannot be read as audio"):
            read(b"no audio at all, " * 50, "row 7")
