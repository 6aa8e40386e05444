"""Scripts that start a Ray of their own, a dozen processes: a test that runs one gives it ten minutes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import canvas_asr


def run_with_ray(folder: Path, script: str, arguments: object, **environment: str) -> None:
    """Run a script, to its end and without an error.

    Args:
        folder: Where it is written.
        script: Its text.
        arguments: Its first argument, as JSON.
        environment: Further variables.
    """
    path = folder / "script.py"
    path.write_text(script)
    # A short name: those of Ray's sockets may have no more than a hundred letters.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as short:
        run = subprocess.run(
            [sys.executable, str(path), json.dumps(arguments)],
            capture_output=True,
            encoding="utf-8",
            timeout=550,
            check=False,
            env=os.environ
            | {
                "PYTHONPATH": str(Path(canvas_asr.__file__).parents[1]),
                "RAY_USAGE_STATS_ENABLED": "0",
                "RAY_worker_niceness": "0",  # on a busy machine the processes would not start in time
                "RAY_TMPDIR": short,
            }
            | environment,
        )
    assert run.returncode == 0, run.stderr[-3000:]
