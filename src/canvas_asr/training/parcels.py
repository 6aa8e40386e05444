"""What a run leaves to carry away: folders as tar files in small parts, and back.

index = pack({"checkpoint": Path("runs/gpu/checkpoint")}, Path("out"), "checkpoint")
join(index, Path("out"), Path("here"))                      # here/checkpoint
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from canvas_asr.errors import DataError

from .jobs import JOBS, TRACKS, Settings, lines

PART_BYTES = 15_000_000


def pack(
    members: Mapping[str, Path], out: Path, name: str, *, part_bytes: int = PART_BYTES
) -> list[dict[str, Any]]:
    """Write ``<name>.tar.000``, ``.001`` ... (gzipped) and remove the parts of an earlier, longer one.

    Args:
        members: Files and folders by their path in the tar.
        out: Folder to write to, made if missing.
        name: Of the parts.
        part_bytes: Most bytes of a part.

    Returns:
        ``file``, ``bytes`` and ``sha256`` of every part, in order: what :func:`join` needs.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as tar:
        for place, path in members.items():
            tar.add(path, arcname=place)
    content = buffer.getvalue()
    out.mkdir(parents=True, exist_ok=True)
    index = []
    for number, start in enumerate(range(0, len(content), part_bytes)):
        part = content[start : start + part_bytes]
        file = out / f"{name}.tar.{number:03d}"
        partial = file.with_suffix(".partial")
        partial.write_bytes(part)
        partial.replace(file)
        index.append({"file": file.name, "bytes": len(part), "sha256": hashlib.sha256(part).hexdigest()})
    kept = {entry["file"] for entry in index}
    for file in out.glob(f"{name}.tar.[0-9]*"):
        if file.name not in kept:
            file.unlink()
    return index


def join(index: Sequence[Mapping[str, Any]], folder: Path, into: Path) -> None:
    """Put the parts together and unpack them.

    Args:
        index: As :func:`pack` gave it.
        folder: Where the parts lie.
        into: Folder to unpack in, made if missing.

    Raises:
        DataError: If a part is missing or damaged; the message names it.
    """
    content = bytearray()
    for entry in index:
        path = folder / str(entry["file"])
        if not path.is_file():
            raise DataError(f"{path}: this part is missing; fetch it again.")
        part = path.read_bytes()
        if hashlib.sha256(part).hexdigest() != entry["sha256"]:
            raise DataError(f"{path}: this part is damaged (its SHA-256 differs); fetch it again.")
        content += part
    into.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(bytes(content))) as tar:
        # Pythons before 3.10.12 and 3.11.4, Debian 12's too, have no filter; the sums say who made this.
        safely: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        tar.extractall(into, **safely)


def progress(settings: Settings, name: str) -> dict[str, Any]:
    """Steps and newest evaluation of a stage, read from its log; nothing for other jobs."""
    found: dict[str, Any] = {}
    for line in lines(settings.work / name / "log.jsonl"):
        record = json.loads(line)
        found["step"] = record["step"]
        if figures := {key: value for key, value in record.items() if key.startswith("eval_")}:
            found["evaluation"] = {"step": record["step"], **figures}
    return found


def machine(settings: Settings) -> Any:
    """What :func:`check` noted of the machine; None before it ran."""
    path = settings.work / "machine.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def worth_keeping(settings: Settings) -> dict[str, Path]:
    """Find what another machine could go on from: the last stages done, and the stage at work."""
    work = settings.work
    kept = {"state.json": work / "state.json"}
    for track in TRACKS:
        done = [stage for stage in track if (work / JOBS[stage].output).exists()]
        for stage in done if track == TRACKS[-1] else done[-1:]:  # its stages need all of those before
            for place in (JOBS[stage].output, f"{stage}/preprocessor_config.json"):
                kept[place] = work / place
    waiting = [stage for stage in TRACKS[-1] if not (work / JOBS[stage].output).exists()]
    saved = [path.parent for path in work.glob(f"{waiting[0]}/checkpoint-*/complete")] if waiting else []
    if saved:
        newest = max(saved, key=lambda path: int(path.name.rsplit("-", 1)[1]))
        # The optimiser's state is twice as large as all the rest, and soon made again.
        files = [path for path in newest.iterdir() if path.is_file() and path.name != "optimizer.pt"]
        kept |= {f"{waiting[0]}/{newest.name}/{path.name}": path for path in files}
    return {place: path for place, path in kept.items() if path.exists()}


def log_files(settings: Settings) -> dict[str, Path]:
    """Find every log."""
    found = [*settings.work.glob("logs/*.log"), *settings.work.glob("*/log.jsonl")]
    found += settings.work.glob("evaluation/hypotheses.jsonl")
    places = {path.relative_to(settings.work).as_posix(): path for path in sorted(found)}
    return {place if place.startswith("logs/") else f"logs/{place}": path for place, path in places.items()}
