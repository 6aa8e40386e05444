"""Where an audio container says that its audio ends, to tell a whole file from one that was cut off.

Decoders read what is there and say nothing of what is not. These few header fields do; nothing here decodes.
"""

from __future__ import annotations

import os
import struct
from typing import BinaryIO

# Programs that write to a pipe cannot know the length, and put a size near 2 or 4 GiB in the header.
UNKNOWN_SIZE_BYTES = 0x7FFF_0000
# Some recorders count the header as samples: less than 3 ms of audio.
HEADER_SLACK_BYTES = 44
MAX_OGG_PAGE_BYTES = 27 + 255 + 255 * 255

_MP4_BOXES = (
    b"ftyp",
    b"moov",
    b"mdat",
    b"moof",
    b"mfra",
    b"free",
    b"skip",
    b"wide",
    b"sidx",
    b"styp",
    b"uuid",
)
_MPEG1_KBITS = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0)
_MPEG2_KBITS = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0)
_MPEG1_RATES_HZ = (44_100, 48_000, 32_000)


def promised_end(file: BinaryIO, n_bytes: int) -> int | None:
    """Return the offset at which the container says that its audio ends.

    Args:
        file: An open file; its position is moved.
        n_bytes: Its length.

    Returns:
        An offset in bytes, more than ``n_bytes`` in a file that was cut off; None if the container does not
        say, makes no sense, or is not known here (WAV, AIFF, Ogg, Matroska, MP4, MP3 with an Info frame are).
    """
    file.seek(0)
    head = file.read(12)
    try:
        if head[8:] == b"WAVE" and head[:4] in (b"RIFF", b"RIFX", b"RF64"):
            return _chunk_end(file, b"data", ">" if head[:4] == b"RIFX" else "<")
        if head[:4] == b"FORM":
            return _chunk_end(file, b"SSND", ">")
        if head[:4] == b"OggS":
            return _last_ogg_page_end(file, n_bytes)
        if head[:4] == b"\x1aE\xdf\xa3":
            return _matroska_end(file)
        if head[4:8] == b"ftyp":
            return _mp4_end(file)
        return _mp3_end(file)
    except (struct.error, IndexError):  # the header itself is cut or forged: the decoder says what is wrong
        return None


def mp3_frame_bytes(header: bytes) -> int | None:
    """Return the length of the MPEG layer III frame that starts with these 4 bytes.

    Returns:
        A length in bytes, 0 if the frame is of free format and does not tell, None if no frame starts so.
    """
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:
        return None
    version = header[1] >> 3 & 3  # 3 is MPEG-1, 2 is MPEG-2, 0 is MPEG-2.5
    kbits = (_MPEG1_KBITS if version == 3 else _MPEG2_KBITS)[header[2] >> 4]
    rate_index = header[2] >> 2 & 3
    if version == 1 or rate_index == 3 or header[2] >> 4 == 15:
        return None
    if kbits == 0:
        return 0
    rate_hz = _MPEG1_RATES_HZ[rate_index] >> {3: 0, 2: 1, 0: 2}[version]
    padding = header[2] >> 1 & 1
    return (144_000 if version == 3 else 72_000) * kbits // rate_hz + padding


def _chunk_end(file: BinaryIO, wanted: bytes, order: str) -> int | None:
    """Walk the chunks of a RIFF or AIFF file to the one with the samples."""
    position = 12
    while True:
        file.seek(position)
        name, size = struct.unpack(order + "4sI", file.read(8))
        if name == wanted:
            return None if size >= UNKNOWN_SIZE_BYTES else position + 8 + size - HEADER_SLACK_BYTES
        position += 8 + size + size % 2


def _last_ogg_page_end(file: BinaryIO, n_bytes: int) -> int | None:
    """Add up the last page's segments. A missing end-of-stream flag is no sign: recorders leave it out."""
    start = max(0, n_bytes - MAX_OGG_PAGE_BYTES)
    file.seek(start)
    tail = file.read()
    page = tail.rfind(b"OggS")
    if page < 0:
        return None
    n_segments = tail[page + 26] if len(tail) > page + 26 else 0
    segments = tail[page + 27 : page + 27 + n_segments]
    if not n_segments or len(segments) < n_segments:
        return start + page + 27 + max(1, n_segments)
    return start + page + 27 + n_segments + sum(segments)


def _matroska_end(file: BinaryIO) -> int | None:
    """Return the end of the segment; live recordings leave its size open."""
    file.seek(4)
    header_size = _matroska_size(file)
    if header_size is None:
        return None
    file.seek(header_size, os.SEEK_CUR)
    if file.read(4) != b"\x18S\x80g":
        return None
    size = _matroska_size(file)
    return None if size is None else file.tell() + size


def _matroska_size(file: BinaryIO) -> int | None:
    """Read a variable-length size, whose leading zeros count the bytes that follow; all ones is unknown."""
    first = file.read(1)[0]
    n_more = 8 - first.bit_length()
    n_bits = 7 * (n_more + 1)
    value = int.from_bytes(bytes([first]) + file.read(n_more), "big") & ((1 << n_bits) - 1)
    return None if value == (1 << n_bits) - 1 else value


def _mp4_end(file: BinaryIO) -> int | None:
    """Walk the top-level boxes to the end of the last one known; junk may follow it."""
    position, end = 0, None
    while True:
        file.seek(position)
        head = file.read(16)
        if len(head) < 8:
            return end
        size, kind = struct.unpack(">I4s", head[:8])
        if size == 1:
            (size,) = struct.unpack(">Q", head[8:])
        if size < 8 or kind not in _MP4_BOXES:
            return end
        position += size
        end = position


def _mp3_end(file: BinaryIO) -> int | None:
    """Read the length from the Xing or Info frame, which encoders put first, behind any ID3 tags."""
    position = 0
    file.seek(0)
    head = file.read(10)
    while head[:3] == b"ID3":
        size = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
        position += 10 + size + (10 if head[5] & 0x10 else 0)
        file.seek(position)
        head = file.read(10)
    if mp3_frame_bytes(head[:4]) is None:
        return None
    file.seek(position)
    frame = file.read(64)
    mark = max(frame.find(b"Xing"), frame.find(b"Info"))
    if mark < 0:
        return None
    (flags,) = struct.unpack(">I", frame[mark + 4 : mark + 8])
    if not flags & 2:
        return None
    at = mark + 8 + 4 * (flags & 1)  # the count of frames stands before the count of bytes
    (size,) = struct.unpack(">I", frame[at : at + 4])
    return position + int(size)
