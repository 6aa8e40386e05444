"""Settings of the server: their names, defaults and bounds, in one place."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from ipaddress import ip_address
from pathlib import Path

from ..errors import OptionError
from ..options import DecodingOptions

MIB = 1 << 20
MAX_STEPS = 64  # that a request may ask for: a pass is work, and more than this helps nobody
_POSITIVE = (
    "max_batch",
    "max_upload_bytes",
    "max_audio_s",
    "upload_timeout_s",
    "request_timeout_s",
    "decode_workers",
    "decode_timeout_s",
    "decode_memory_bytes",
)


def split_keys(text: str) -> tuple[str, ...]:
    """Give the keys in a text that separates them by commas."""
    return tuple(key.strip() for key in text.split(",") if key.strip())


def is_loopback(host: str) -> bool:
    """Whether a name or an address is of this machine alone."""
    try:
        return host.lower() == "localhost" or ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class ServerSettings:
    """How the server runs.

    Attributes:
        model: What was loaded: ``tiny``, a folder, a name of the hub, or an adapter file.
        model_names: What requests may call it; empty: its own name, which holds no folder.
        host: Address that is listened at.
        port: Likewise; 0 takes a free one.
        api_keys: Any of them is asked for; empty: nobody is asked.
        allowed_hosts: Names that requests may be for, besides this machine's own, where nobody is asked for a
            key and ``host`` is this machine's alone: those of a proxy before it.
        max_batch: Clips that share a pass.
        max_queue: Requests that wait; one more is refused with 429.
        max_upload_bytes: Of a request's body; more is refused with 413.
        max_audio_s: Seconds of audio that a file may hold once it is decoded.
        upload_timeout_s: Seconds that a body may take to arrive; longer is refused with 408.
        request_timeout_s: Seconds that a request may take from then on; longer is given up with 504.
        drain_s: Seconds that requests in work get to end when the server is stopped.
        decode_workers: Processes that decode uploads.
        decode_timeout_s: Seconds in which a decoder has to get further with a file; others wait as long.
        decode_memory_bytes: What one file may take of such a process, beside what that needs without any.
        steps: Most denoising passes, where a request says nothing; None: as the model is meant to be run.
        init: What a canvas starts from, where a request says nothing; None likewise.
        canvas: Tokens of a canvas; ``auto``: as the draft needs; None: the model's default.
    """

    model: str = "tiny"
    model_names: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    max_batch: int = 8
    max_queue: int = 32
    max_upload_bytes: int = 25 * MIB
    max_audio_s: float = 14400.0
    upload_timeout_s: float = 60.0
    request_timeout_s: float = 600.0
    drain_s: float = 30.0
    decode_workers: int = 2
    decode_timeout_s: float = 10.0
    decode_memory_bytes: int = 256 * MIB
    steps: int | None = None
    init: str | None = None
    canvas: int | str | None = None

    def __post_init__(self) -> None:
        """Raise OptionError for a setting that no server can run with."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise OptionError(f"{field.name} is {value!r}; give a number.")
        for name in _POSITIVE:
            if getattr(self, name) <= 0:
                raise OptionError(f"{name} is {getattr(self, name)}; give more than 0.")
        for name in ("max_queue", "drain_s"):
            if getattr(self, name) < 0:
                raise OptionError(f"{name} is {getattr(self, name)}; give at least 0.")
        if not 0 <= self.port <= 65535:
            raise OptionError(f"port is {self.port}; give one from 0 to 65535.")
        if self.steps is not None and self.steps > MAX_STEPS:
            raise OptionError(f"steps is {self.steps}; give at most {MAX_STEPS}.")
        for key in self.api_keys:
            # Other characters cannot stand in a header, and an empty key would let everybody in.
            if not key or not all("!" <= character <= "~" for character in key):
                raise OptionError("api_key: give keys of printable ASCII characters without spaces.")
        if any(not name.strip() for name in self.model_names):
            raise OptionError("model_names: give names that are not empty.")
        self.decoding()

    @property
    def served_names(self) -> tuple[str, ...]:
        """What requests may call the model, the usual name first; never a path."""
        if self.model_names:
            return self.model_names
        path = Path(self.model)
        return (path.stem if path.is_file() else path.resolve().name,) if path.exists() else (self.model,)

    def decoding(self) -> DecodingOptions:
        """Give the options of decoding that hold where a request says nothing.

        Raises:
            OptionError: If one of them is out of range.
        """
        return DecodingOptions(steps=self.steps, init=self.init, canvas=self.canvas)
