"""A file that was cut off is refused; a file that only looks odd is not."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from audio_files import ENCODERS, tone, write_audio

from canvas_asr.audio import load_audio
from canvas_asr.containers import mp3_frame_bytes, promised_end
from canvas_asr.errors import AudioError

# What each writer is told, so that both ways in which a format can state its length are met.
CASES = {
    "wav": ("a.wav", {}),
    "aiff": ("a.aiff", {}),
    "flac": ("a.flac", {}),
    "vorbis": ("a.ogg", {}),
    "mp3 with an info frame": ("a.mp3", {}),
    "mp3 without": ("a.mp3", {"write_xing": "0", "id3v2_version": "0"}),
    "aac": ("a.aac", {}),
    "m4a, index last": ("a.m4a", {}),
    "m4a, index first": ("a.m4a", {"movflags": "faststart"}),
    "m4a in fragments": ("a.m4a", {"movflags": "frag_keyframe+empty_moov", "frag_duration": "200000"}),
    "webm": ("a.webm", {}),
    "flac in matroska": ("a.mka", {}),
    "caf": ("a.caf", {}),
}


def write_case(case: str, folder: Path) -> tuple[Path, bytes]:
    name, options = CASES[case]
    rate_hz = ENCODERS.get(Path(name).suffix, ("", 44_100))[1]
    hiss = np.random.default_rng(0).uniform(-0.1, 0.1, 2 * rate_hz).astype(np.float32)
    path = write_audio(folder / name, tone(rate_hz, 2.0) + hiss, rate_hz, **options)
    return path, path.read_bytes()


@pytest.mark.parametrize("case", CASES)
def test_a_whole_file_is_read_and_a_cut_one_refused(case: str, tmp_path: Path) -> None:
    path, content = write_case(case, tmp_path)
    assert load_audio(path).size >= 31_900
    for share in (0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97, 0.99):
        cut = int(len(content) * share)
        if case in ("mp3 without", "aac"):  # into a frame: between two it cannot be told
            cut = content.rfind(content[:2], 0, cut) + 20
        path.write_bytes(content[:cut])
        with pytest.raises(AudioError) as caught:
            load_audio(path)
        assert str(caught.value).startswith(f"{path}: "), share


@pytest.mark.parametrize("case", ["wav", "flac", "mp3 with an info frame", "m4a, index first", "webm"])
def test_a_file_whose_header_states_its_length_may_not_lose_its_last_bytes(case: str, tmp_path: Path) -> None:
    path, content = write_case(case, tmp_path)
    path.write_bytes(content[:-100])
    with pytest.raises(AudioError, match=f"{path.name}: (damaged or )?cut off"):
        load_audio(path)


@pytest.mark.parametrize("case", ["mp3 without", "aac", "vorbis"])
def test_a_cut_between_two_frames_of_a_stream_without_length_is_a_shorter_file(
    case: str, tmp_path: Path
) -> None:
    path, content = write_case(case, tmp_path)
    whole = load_audio(path)
    mark = {"mp3 without": content[:2], "aac": content[:2], "vorbis": b"OggS"}[case]
    if case == "mp3 without":
        frame_bytes = mp3_frame_bytes(content[:4])
        assert frame_bytes
        cut = 40 * frame_bytes
        while content[cut : cut + 2] != mark:  # frames differ by a byte of padding
            cut += 1
    else:
        cut = content.rfind(mark)
    path.write_bytes(content[:cut])
    assert 0 < load_audio(path).size < whole.size


@pytest.mark.parametrize("case", ["mp3 with an info frame", "mp3 without", "wav", "m4a, index first"])
def test_tags_and_junk_behind_the_audio_do_no_harm(case: str, tmp_path: Path) -> None:
    path, content = write_case(case, tmp_path)
    whole = load_audio(path)
    id3v1 = b"TAG" + b"title".ljust(125, b"\0")
    for junk in (id3v1, b"\0" * 500):
        path.write_bytes(content + junk)
        assert load_audio(path).size == whole.size


def test_a_recording_that_begins_within_a_frame_is_read(tmp_path: Path) -> None:
    hiss = np.random.default_rng(0).uniform(-0.3, 0.3, 88_200).astype(np.float32)
    path = write_audio(tmp_path / "a.mp3", hiss, 44_100, write_xing="0", id3v2_version="0")
    path.write_bytes(path.read_bytes()[2_050:])
    assert load_audio(path).size > 25_000


def test_a_broken_frame_in_the_middle_of_an_mp3_is_no_silence(tmp_path: Path) -> None:
    path, content = write_case("mp3 without", tmp_path)
    at = content.index(content[:2], len(content) // 2)
    path.write_bytes(content[:at] + b"\0" * 4 + content[at + 4 :])
    with pytest.raises(AudioError, match="damaged or cut off"):
        load_audio(path)


@pytest.mark.parametrize("footer", [b"", b"3DI".ljust(10, b"\0")])
def test_id3_tags_before_the_info_frame_are_skipped(footer: bytes, tmp_path: Path) -> None:
    _, content = write_case("mp3 with an info frame", tmp_path)
    flags = 0x10 if footer else 0
    size = bytes(100_000 >> shift & 127 for shift in (21, 14, 7, 0))
    tag = b"ID3\x04\0" + bytes([flags]) + size + bytes(100_000) + footer
    assert promised_end(io.BytesIO(tag + content), 0) == len(tag) + len(content)


@pytest.mark.parametrize("size", [0x7FFF_F000, 0x8000_0000, 0xFFFF_FFFF])
def test_a_wav_that_was_streamed_states_no_length(size: int, tmp_path: Path) -> None:
    path, content = write_case("wav", tmp_path)
    whole = load_audio(path)
    at = content.index(b"data") + 4
    path.write_bytes(
        content[:4] + struct.pack("<I", size) + content[8:at] + struct.pack("<I", size) + content[at + 4 :]
    )
    np.testing.assert_array_equal(load_audio(path), whole)


def test_a_flac_that_was_streamed_states_no_length(tmp_path: Path) -> None:
    path, content = write_case("flac", tmp_path)
    whole = load_audio(path)
    info = bytearray(content)
    info[21] &= 0xF0  # the count of samples is 36 bits at 21.5
    info[22:26] = bytes(4)
    path.write_bytes(info)
    np.testing.assert_allclose(load_audio(path), whole, atol=1e-6)


def test_fewer_frames_than_promised_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = write_case("flac", tmp_path)
    monkeypatch.setattr(sf.SoundFile, "frames", 88_201)
    with pytest.raises(AudioError, match=r"a\.flac: cut off at 2\.0 s of 2\.0 s"):
        load_audio(path)


def test_a_flac_that_promises_more_samples_than_it_has(tmp_path: Path) -> None:
    path, content = write_case("flac", tmp_path)
    info = bytearray(content)
    info[25] += 100  # of 88,200
    path.write_bytes(info)
    with pytest.raises(AudioError, match=r"a\.flac: (damaged or )?cut off"):
        load_audio(path)


def test_a_chunk_of_odd_length_is_padded(tmp_path: Path) -> None:
    _, content = write_case("wav", tmp_path)
    padded = content[:12] + b"note" + struct.pack("<I", 3) + b"abc\0" + content[12:]
    assert promised_end(io.BytesIO(padded), 0) == len(padded) - 44


def test_an_mp4_box_may_have_a_long_size() -> None:
    boxes = b"\0\0\0\x10ftypM4A \0\0\0\0" + b"\0\0\0\x01mdat" + struct.pack(">Q", 2**33)
    assert promised_end(io.BytesIO(boxes), 0) == 16 + 2**33


def test_a_recorder_that_counts_the_header_as_samples_is_forgiven(tmp_path: Path) -> None:
    path, content = write_case("wav", tmp_path)
    at = content.index(b"data") + 4
    path.write_bytes(content[:at] + struct.pack("<I", len(content)) + content[at + 4 :])
    assert load_audio(path).size == 32_000


def test_damage_in_the_middle_of_a_flac_is_no_silence(tmp_path: Path) -> None:
    path, content = write_case("flac", tmp_path)
    path.write_bytes(content[:60_000] + b"\x55" * 20 + content[60_020:])
    with pytest.raises(AudioError, match="damaged or cut off somewhere after"):
        load_audio(path)


@pytest.mark.parametrize(
    ("header", "frame_bytes"),
    [
        (b"\xff\xfb\x90\x00", 417),  # MPEG-1, 128 kbit/s at 44.1 kHz: 144 * 128000 / 44100
        (b"\xff\xfb\x92\x00", 418),  # with padding
        (b"\xff\xfb\xe4\x00", 960),  # 320 kbit/s at 48 kHz
        (b"\xff\xf3\x84\x00", 192),  # MPEG-2, 64 kbit/s at 24 kHz: 72 * 64000 / 24000
        (b"\xff\xe3\x48\x00", 288),  # MPEG-2.5, 32 kbit/s at 8 kHz
        (b"\xff\xfb\x00\x00", 0),  # free format
        (b"\xff\xfb\xf0\x00", None),  # no such bit rate
        (b"\xff\xfb\x9c\x00", None),  # no such sample rate
        (b"\xff\xfd\x90\x00", None),  # layer II
        (b"TAG\x00", None),
        (b"\xff\xfb", None),
    ],
)
def test_mp3_frame_lengths(header: bytes, frame_bytes: int | None) -> None:
    assert mp3_frame_bytes(header) == frame_bytes


@pytest.mark.parametrize(
    "content", [b"", b"RIFF", b"RIFF\0\0\0\0WAVEdata", b"OggS", b"\x1aE\xdf\xa3", b"ID3", b"\xff\xfb\x90"]
)
def test_a_header_cut_short_promises_nothing_wrong(content: bytes) -> None:
    end = promised_end(io.BytesIO(content), len(content))
    assert end is None or end > len(content)


def test_ulaw_and_adpcm_lengths_are_in_bytes(tmp_path: Path) -> None:
    for subtype in ("ULAW", "IMA_ADPCM", "MS_ADPCM", "GSM610"):
        path = tmp_path / f"{subtype}.wav"
        sf.write(path, tone(8_000), 8_000, subtype=subtype)
        assert load_audio(path).size == pytest.approx(16_000, abs=1_000)
