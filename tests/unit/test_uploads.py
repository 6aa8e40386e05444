"""Uploads decoded in processes that hang, run out of memory or are killed, and a server that goes on."""

from __future__ import annotations

import os
import signal
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from audio_files import tone, write_audio

from canvas_asr import load_audio
from canvas_asr.audio_stream import AudioStream
from canvas_asr.errors import AudioError
from canvas_asr.serving import uploads
from canvas_asr.serving.uploads import AudioTooLong, DecodedUpload, DecoderPool, DecodersBusy

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, or needs Linux's memory limits")


@pytest.fixture(autouse=True)
def _short_read_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "READ_AHEAD_S", 5.0)


@pytest.fixture(scope="module")
def pool() -> Iterator[DecoderPool]:
    pool = DecoderPool(1)
    pool.start()
    yield pool
    pool.close()


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    return write_audio(tmp_path / "speech.wav", tone(16_000, 1.0), 16_000)


@pytest.fixture
def lecture(tmp_path: Path) -> Path:
    """Longer than what is read ahead."""
    return write_audio(tmp_path / "lecture.flac", tone(8_000, 40.0), 8_000)


def read(pool: DecoderPool, path: Path, max_audio_s: float | None = None) -> np.ndarray:
    upload = pool.open(path, max_audio_s=max_audio_s)
    try:
        return np.concatenate(list(upload))
    finally:
        upload.close()


def stop(pool: DecoderPool) -> None:
    """Make every decoder hang, as an endless loop would."""
    for pid in pool.pids():
        os.kill(pid, signal.SIGSTOP)


def rss_mib(pid: int | str = "self", peak: bool = False) -> float:
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    (line,) = [line for line in status if line.startswith("VmHWM:" if peak else "VmRSS:")]
    return int(line.split()[1]) / 2**10


def reset_peak(pid: int | str = "self") -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


# What is decoded


@pytest.mark.parametrize("suffix", [".wav", ".ogg", ".m4a", ".mp3"])
def test_a_clip_is_what_the_library_reads(pool: DecoderPool, tmp_path: Path, suffix: str) -> None:
    path = write_audio(tmp_path / f"clip{suffix}", tone(44_100, 1.0), 44_100)
    upload = pool.open(path)
    samples = np.concatenate(list(upload))
    np.testing.assert_array_equal(samples, load_audio(path))
    assert upload.duration_s == len(samples) / 16_000
    assert upload.gaps == []
    assert samples.dtype == np.float32
    assert samples.flags.writeable  # torch warns of others


def test_a_long_file_is_what_the_library_reads_gaps_included(pool: DecoderPool, tmp_path: Path) -> None:
    path = write_audio(tmp_path / "talk.mp3", tone(44_100, 32.0), 44_100)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 20_000] = bytes(20_000)
    path.write_bytes(data)
    stream = AudioStream(path)
    expected = np.concatenate(list(stream))
    upload = pool.open(path)
    np.testing.assert_array_equal(np.concatenate(list(upload)), expected)
    assert upload.gaps == stream.gaps
    assert upload.gaps


def test_a_file_object_is_copied_to_a_private_file_that_is_gone_at_once(
    pool: DecoderPool, speech: Path, lecture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "private"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"no audio at all")
    for path in (speech, lecture):
        with path.open("rb") as file:
            upload = pool.open(file)
        assert [*folder.iterdir()] == []
        np.testing.assert_array_equal(np.concatenate(list(upload)), load_audio(path))
    with bad.open("rb") as file, pytest.raises(AudioError):
        pool.open(file)
    assert [*folder.iterdir()] == []


def test_a_long_upload_that_waits_keeps_no_other_from_being_decoded(
    pool: DecoderPool, lecture: Path, speech: Path
) -> None:
    waiting = [pool.open(lecture) for _ in range(2)]  # the pool has one worker
    assert len(read(pool, speech)) == 16_000
    assert len(pool.pids()) == 3
    for upload in waiting:
        assert upload.duration_s == 40.0
        assert sum(map(len, upload)) == 40 * 16_000
        upload.close()
    assert len(pool.pids()) == 1


@linux
def test_a_waiting_decoder_holds_no_more_than_was_read_ahead(pool: DecoderPool, tmp_path: Path) -> None:
    path = tmp_path / "long.flac"
    sf.write(path, np.zeros(8_000 * 1200, np.int16), 8_000)
    before = rss_mib()
    upload = pool.open(path)
    peaks = [rss_mib(pid, peak=True) for pid in pool.pids()]
    assert rss_mib() - before < 30  # all of it are 73 MiB
    assert max(peaks) < 150
    upload.close()


# What is refused


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"These are words, not audio. " * 50, "cannot be read as audio"),
        (b"\x89PNG\r\n\x1a\n" + bytes(500), "audio"),
    ],
)
def test_what_is_no_audio_is_refused_without_naming_the_file(
    pool: DecoderPool, tmp_path: Path, content: bytes, reason: str
) -> None:
    path = tmp_path / "<script>alert(1).wav"
    path.write_bytes(content)
    with pytest.raises(AudioError, match=reason) as caught:
        pool.open(path)
    assert str(caught.value).startswith("the audio cannot be decoded: ")
    assert not any(part in str(caught.value) for part in (str(tmp_path), "script", "Traceback", "/"))


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg"])
def test_a_clip_that_is_cut_off_is_refused(pool: DecoderPool, tmp_path: Path, suffix: str) -> None:
    path = write_audio(tmp_path / f"clip{suffix}", tone(16_000, 2.0), 16_000)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(AudioError, match="cannot be decoded: "):
        pool.open(path)


def test_a_missing_file_is_refused(pool: DecoderPool, tmp_path: Path) -> None:
    with pytest.raises(AudioError, match="no such file"):
        pool.open(tmp_path / "none.wav")


def test_a_header_that_says_too_much_is_believed(pool: DecoderPool, lecture: Path) -> None:
    with pytest.raises(AudioTooLong, match="longer than 39 s"):
        pool.open(lecture, max_audio_s=39.0)
    assert len(read(pool, lecture, 40.0)) == 40 * 16_000


def opus_bomb(path: Path) -> Path:
    """Two minutes of silence in few bytes, whose last page says that it is one second."""
    write_audio(path, np.zeros(48_000 * 120, np.float32), 48_000)
    data = bytearray(path.read_bytes())
    last = data.rindex(b"OggS")
    data[last + 6 : last + 14] = struct.pack("<Q", 48_000)
    path.write_bytes(data)
    return path


def forged_flac(path: Path) -> Path:
    """Two minutes at 96 kHz, whose header says 4 kHz and not how many: decoded, they could be 48 minutes."""
    sf.write(path, np.zeros(96_000 * 120, np.int16), 96_000)
    data = bytearray(path.read_bytes())
    about = int.from_bytes(data[18:26], "big")  # 20 bits of rate, 8 of channels and depth, 36 of length
    about = 4_000 << 44 | about & ((1 << 44) - (1 << 36))
    data[18:26] = about.to_bytes(8, "big")
    path.write_bytes(data)
    return path


@linux
@pytest.mark.parametrize("make", [opus_bomb, forged_flac])
def test_a_bomb_is_refused_in_bounded_memory(pool: DecoderPool, tmp_path: Path, make: object) -> None:
    path = make(tmp_path / ("bomb.opus" if make is opus_bomb else "bomb.flac"))  # type: ignore[operator]
    (child,) = pool.pids()
    before, child_before = rss_mib(), rss_mib(child)
    reset_peak()
    reset_peak(child)
    child_peak, is_refused = 0.0, False
    try:
        for _ in pool.open(path, max_audio_s=40.0):
            child_peak = max(child_peak, rss_mib(child, peak=True))
    except AudioTooLong:
        is_refused = True
    assert is_refused
    assert rss_mib(peak=True) - before < 50
    assert child_peak - child_before < 250


# What becomes of decoders


def test_a_killed_decoder_is_replaced(pool: DecoderPool, speech: Path, lecture: Path) -> None:
    upload = pool.open(lecture)
    for pid in pool.pids():
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(AudioError, match="the decoder crashed"):
        list(upload)
    time.sleep(0.1)  # until the idle one is dead, too
    assert len(read(pool, speech)) == 16_000
    assert len(pool.pids()) == 1


def test_a_decoder_that_hangs_is_given_up_in_time(speech: Path) -> None:
    pool = DecoderPool(1, max_file_s=0.3)
    pool.start()
    stop(pool)
    started = time.monotonic()
    with pytest.raises(AudioError, match="no progress"):
        pool.open(speech)
    assert time.monotonic() - started < 5.0
    assert pool.stats.n_stalled == 1
    pool.close()


def test_who_finds_no_decoder_free_is_told_when_to_come_again(speech: Path, lecture: Path) -> None:
    pool = DecoderPool(1, max_file_s=1.0, max_parked=0)
    pool.start()
    upload = pool.open(lecture)
    with pytest.raises(DecodersBusy) as caught:
        pool.open(speech)
    assert caught.value.retry_after_s == 1
    upload.close()
    assert len(read(pool, speech)) == 16_000
    pool.close()


@linux
def test_memory_of_a_decoder_is_limited() -> None:
    from canvas_asr.serving.decoder_process import _limit_resources

    child = os.fork()
    if child == 0:
        _limit_resources(64 << 20)
        try:
            bytearray(32 << 20)
            bytearray(128 << 20)
        except MemoryError:
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


@linux
def test_a_decoder_lives_under_limits() -> None:
    pool = DecoderPool(1, max_memory_bytes=64 << 20)
    pool.start()
    (pid,) = pool.pids()
    limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
    soft = {line[:26].strip(): line[26:].split()[0] for line in limits[1:]}
    assert 64 << 20 < int(soft["Max data size"]) < 256 << 20
    assert soft["Max file size"] == soft["Max core file size"] == "0"
    pool.close()


def test_closing_an_upload_wakes_who_reads_it(lecture: Path) -> None:
    pool = DecoderPool(1)
    pool.start()
    upload = pool.open(lecture)
    stop(pool)
    ends: list[type[BaseException]] = []

    def consume(upload: DecodedUpload) -> None:
        try:
            list(upload)
        except AudioError as error:
            ends.append(type(error))

    reader = threading.Thread(target=consume, args=(upload,))
    reader.start()
    time.sleep(0.2)
    started = time.monotonic()
    upload.close()
    reader.join(10)
    assert ends == [AudioError]
    assert time.monotonic() - started < 1.0
    assert pool.stats.n_died == pool.stats.n_stalled == 0
    pool.close()


def test_a_closed_pool_leaves_no_process(speech: Path, lecture: Path) -> None:
    pool = DecoderPool(2)
    pool.start()
    upload = pool.open(lecture)
    pids = pool.pids()
    pool.close()
    with pytest.raises(AudioError):
        list(upload)
    assert pool.pids() == []
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    with pytest.raises(RuntimeError, match="closed"):
        pool.open(speech)


def test_signals_to_the_service_let_decoders_finish(pool: DecoderPool, lecture: Path, speech: Path) -> None:
    upload = pool.open(lecture)
    read(pool, speech)  # the other decoder is there by now
    for pid in pool.pids():
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGINT)
    assert sum(map(len, upload)) == 40 * 16_000


@linux
def test_decoders_know_no_secret_and_no_model(pool: DecoderPool, speech: Path) -> None:
    for pid in pool.pids():
        environment = Path(f"/proc/{pid}/environ").read_bytes()
        names = {entry.split(b"=")[0].decode() for entry in environment.split(b"\0") if entry}
        assert names <= {"HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "PYTHONHOME", "TMPDIR"} | {
            "PYTHONPATH", "PYTHONSAFEPATH", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"
        }  # fmt: skip
        assert "torch" not in Path(f"/proc/{pid}/maps").read_text()
