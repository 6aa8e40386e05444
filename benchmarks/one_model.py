"""What benchmarks of one model on the CPU share: options, circumstances, and where the result goes."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs"


def load_on_cpu(model: str) -> Any:
    """Turn a name into a ``Transcriber``."""
    import canvas_asr

    return canvas_asr.load(model, device="cpu")


def add_options(parser: argparse.ArgumentParser, name: str) -> None:
    """Add the model, threads, and the result's place: ``docs/<name>.json``."""
    parser.add_argument("model", help="as canvas-asr transcribe takes it")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch (default 1)")
    parser.add_argument("--out", type=Path, default=DOCS / f"{name}.json", help="JSON; a page beside it")


def circumstances(name: str, argv: Sequence[str] | None, options: argparse.Namespace) -> dict[str, Any]:
    """Set the threads, and say what is run and where; JSON-ready.

    Args:
        name: Of the script, without its ending.
        argv: Its arguments; None takes the process's.
        options: As parsed.
    """
    import torch

    from canvas_asr.evaluation.machine import describe_machine, installed_versions

    torch.set_num_threads(options.threads)
    arguments = sys.argv[1:] if argv is None else argv
    return {
        "command": shlex.join(["python", f"benchmarks/{name}.py", *arguments]),
        "model": options.model,
        "environment": {
            **describe_machine(),
            "n_threads": torch.get_num_threads(),
            "load_average_before": os.getloadavg()[0],
            "versions": installed_versions(),
        },
    }


def write(out: Path, content: dict[str, Any], page: str) -> None:
    """Write the result and its page, and print the page."""
    out.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    out.with_suffix(".md").write_text(page, encoding="utf-8")
    print(page)
