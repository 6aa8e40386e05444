"""What a benchmark keeps between its runs, so that the same command goes on where it was stopped."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def check_model(folder: Path, model: Any) -> None:
    """Refuse to go on with what another model of the same name has left behind.

    Raises:
        OptionError: If the folder is another model's.
    """
    import torch

    from canvas_asr.errors import OptionError

    sums = [(name, float(p.detach().sum(dtype=torch.float64))) for name, p in model.named_parameters()]
    digest = hashlib.sha256(json.dumps(sums).encode()).hexdigest()
    path = folder / "model.sha256"
    if path.is_file() and path.read_text("utf-8").strip() != digest:
        raise OptionError(f"--work {folder}: was made with another model; give another folder, or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(digest + "\n", encoding="utf-8")


class Phases:
    """Results of the phases, kept on disk: a phase that was done with the same plan is not done again."""

    def __init__(self, path: Path, tell: Callable[[str], None]) -> None:
        self.path, self.tell = path, tell
        self.found: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}

    def __call__(self, name: str, what: Any, measure: Callable[[], Any]) -> Any:
        """Give the result of a phase.

        Args:
            name: Of the phase.
            what: All that it depends on; JSON-ready.
            measure: Gives a result that JSON can hold.
        """
        digest = hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()
        kept = self.found.get(name, {})
        if kept.get("digest") == digest:
            self.tell(f"{name}: kept from an earlier run")
            return kept["result"]
        started = time.perf_counter()
        result = json.loads(json.dumps(measure()))
        self.found[name] = {"digest": digest, "result": result}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.found, indent=1) + "\n", encoding="utf-8")
        self.tell(f"{name}: {time.perf_counter() - started:.1f} s")
        return result
