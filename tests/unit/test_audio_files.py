"""load_audio of files: containers give the same sound; what is bad, missing or no audio one clear error."""

from __future__ import annotations

import os
import struct
import sys
import tracemalloc
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile as sf
from audio_files import ENCODERS, SUFFIXES, level_db, middle, peak_hz, tone, write_audio

from canvas_asr.audio import SAMPLE_RATE_HZ, audio_seconds, decode_audio, load_audio
from canvas_asr.errors import AudioError

# What is read


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


# What is refused


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
