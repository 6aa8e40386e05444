"""The whole recipe of the embedded model on one machine, in one call that can be repeated.

    python -m canvas_asr.training.pipeline --sentences data/text --real data/speech --work runs/gpu --out out
    python -m canvas_asr.training.pipeline --join out --into somewhere     # somewhere/checkpoint

``scripts/train_tiny_gpu.sh`` calls this with the machine made ready. Every job is a process of its own with a
log in ``<work>/logs``. Those that do not depend on each other run at the same time: the backbone learns to
read while speech is synthesised and the audio encoder trains. Minutes are counted over all calls; a stage
ends when its own are used up, its learning rate then at zero. After every job ``--out`` holds all that is
worth keeping so far, and a call that is repeated goes on from there.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import yaml

import canvas_asr
from canvas_asr.errors import CanvasASRError, DataError, OptionError

from .jobs import GOAL, JOBS, MINUTES, SMALL_MINUTES, Settings
from .parcels import join, log_files, machine, pack, progress, worth_keeping

GRACE_MINUTES = 1.5
POLL_S = 0.2
EXPORT_S = 120.0
SUMMARY = "summary.json"
_PARENT_DEATH_SIGNAL = 1  # of Linux's prctl: a job does not outlive a pipeline that was killed


@dataclass
class Record:
    """What is known of one job.

    Attributes:
        minutes: Wall-clock minutes over all calls.
        done: Whether it finished.
        cut: Whether its time ran out before it had finished.
    """

    minutes: float = 0.0
    done: bool = False
    cut: bool = False


@dataclass
class State:
    """What is known of all jobs, kept in ``<work>/state.json``."""

    path: Path
    records: dict[str, Record] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> State:
        """Read the state of earlier calls; none is an empty one.

        Raises:
            DataError: If the file is there and is not a state.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
            return cls(path, {name: Record(**record) for name, record in content.items()})
        except (ValueError, TypeError, AttributeError) as error:
            raise DataError(f"{path}: not a state of this pipeline ({error}); use another --work.") from error

    def write(self) -> None:
        """Write it in one step."""
        partial = self.path.with_suffix(".partial")
        content = {name: asdict(record) for name, record in self.records.items()}
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        partial.replace(self.path)

    def of(self, name: str) -> Record:
        """Record of a job, made where there is none."""
        return self.records.setdefault(name, Record())


def _work(name: str, settings: Settings, minutes_before: float) -> None:
    """Run one job in a process of its own, its output in its log."""
    os.setsid()  # so that its own helpers can be ended with it
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    log = (settings.work / "logs" / f"{name}.log").open("a", buffering=1, encoding="utf-8")
    for descriptor in (1, 2):
        os.dup2(log.fileno(), descriptor)
    sys.stdout = sys.stderr = log
    try:
        JOBS[name].run(name, settings, minutes_before)
    except CanvasASRError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def _tail(path: Path, n_lines: int = 12) -> str:
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return "\n".join(text.splitlines()[-n_lines:])


class Pipeline:
    """Runs the jobs that are not done, each when those it needs are."""

    def __init__(self, settings: Settings) -> None:
        """Read what earlier calls left.

        Args:
            settings: Of all jobs.

        Raises:
            DataError: If another call is at work in the same folder, or its state cannot be read.
        """
        self.settings = settings
        (settings.work / "logs").mkdir(parents=True, exist_ok=True)
        self.lock = (settings.work / "lock").open("w")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(
                f"{settings.work}: another run is at work here; end it or wait for it."
            ) from error
        self.state = State.read(settings.work / "state.json")
        for name, record in self.state.records.items():
            record.done = record.done and name in JOBS and (settings.work / JOBS[name].output).exists()
        # A CUDA context does not survive a fork; on a CPU a fork saves every job the import of torch.
        self.context: Any = multiprocessing.get_context("fork" if settings.small else "spawn")
        self.running: dict[str, tuple[BaseProcess, float, float]] = {}  # process, its start, minutes before
        self.exported_at = time.monotonic()

    def run(self) -> None:
        """Run everything.

        Raises:
            DataError: If a job fails; the message holds the end of its log.
        """
        try:
            while wanted := self._wanted():
                self._start_ready(wanted)
                time.sleep(POLL_S)
                for name in list(self.running):
                    self._check(name)
                self.state.write()
                if time.monotonic() - self.exported_at > EXPORT_S:
                    self.export()
        finally:
            for name in list(self.running):
                self._end(name)
            self.export()

    def _wanted(self) -> set[str]:
        """Jobs that are not done and that the last one, or one it waits for, needs."""
        wanted: set[str] = set()
        waiting = [GOAL]
        while waiting:
            name = waiting.pop()
            if name not in wanted and not self.state.of(name).done:
                wanted.add(name)
                waiting += JOBS[name].needs
        return wanted

    def _start_ready(self, wanted: set[str]) -> None:
        for name, job in JOBS.items():
            if self.settings.small and self.running:
                return  # one at a time on a small machine
            ready = name in wanted and name not in self.running
            if ready and all(self.state.of(need).done for need in job.needs):
                before = self.state.of(name).minutes
                process = self.context.Process(target=_work, args=(name, self.settings, before))
                process.start()
                self.running[name] = (process, time.monotonic(), before)
                print(
                    f"{name}: started, {before:.1f} of {self.settings.minutes[name]:g} min used", flush=True
                )

    def _check(self, name: str) -> None:
        process, start, before = self.running[name]
        record, job = self.state.of(name), JOBS[name]
        record.minutes = round(before + (time.monotonic() - start) / 60, 3)
        if process.is_alive():
            if record.minutes < self.settings.minutes[name] + GRACE_MINUTES:
                return
            self._end(name)
            if not job.may_be_cut or not (self.settings.work / job.output).exists():
                raise DataError(f"{name}: still running {GRACE_MINUTES} min after its time; see its log.")
            record.cut = True
        else:
            del self.running[name]
            if process.exitcode != 0:
                log = self.settings.work / "logs" / f"{name}.log"
                raise DataError(f"{name} failed (code {process.exitcode}). The end of {log}:\n{_tail(log)}")
        record.done = True
        print(f"{name}: done after {record.minutes:.1f} min", flush=True)
        self.export()

    def _end(self, name: str) -> None:
        process = self.running.pop(name)[0]
        if process.pid is not None and process.is_alive():
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:  # it had not yet made its group
                process.kill()
        process.join()

    def export(self) -> None:
        """Write to ``--out`` what is worth keeping so far."""
        settings = self.settings
        self.state.write()
        parcels = {}
        if self.state.of("checkpoint").done:
            parcels["checkpoint"] = pack(
                {"checkpoint": settings.work / "checkpoint"}, settings.out, "checkpoint"
            )
            for stale in settings.out.glob("unfinished.tar.*"):
                stale.unlink()
        else:
            parcels["unfinished"] = pack(worth_keeping(settings), settings.out, "unfinished")
        parcels["logs"] = pack(log_files(settings), settings.out, "logs")
        for report in ("evaluation.json", "evaluation.md"):
            if (path := settings.work / "evaluation" / report).is_file():
                (settings.out / report).write_bytes(path.read_bytes())
        summary = {
            "canvas_asr": canvas_asr.__version__,
            "complete": self.state.of(GOAL).done,
            "machine": machine(settings),
            "settings": {key: str(v) if isinstance(v, Path) else v for key, v in asdict(settings).items()},
            "jobs": {name: {**asdict(self.state.of(name)), **progress(settings, name)} for name in JOBS},
            "parcels": parcels,
        }
        text = json.dumps(summary, ensure_ascii=False, indent=1, default=str) + "\n"
        (settings.out / SUMMARY).write_text(text, encoding="utf-8")
        self.exported_at = time.monotonic()


def join_all(folder: Path, into: Path) -> list[str]:
    """Unpack every parcel of an output folder.

    Args:
        folder: As ``--out`` was left.
        into: Folder to unpack in. Unfinished work unpacks to a ``--work`` to go on with.

    Returns:
        Names of the parcels.

    Raises:
        DataError: If there is no summary, or a part is missing or damaged.
    """
    path = folder / SUMMARY
    if not path.is_file():
        raise DataError(f"{path}: no such file; give the output folder of a training run.")
    parcels = json.loads(path.read_text(encoding="utf-8"))["parcels"]
    for index in parcels.values():
        join(index, folder, into)
    return list(parcels)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="train_tiny_gpu.sh", description="The whole recipe of the embedded model on one machine."
    )
    parser.add_argument("--sentences", type=Path, help="folder with <language>.txt[.gz]")
    parser.add_argument(
        "--real", type=Path, help="folder whose subfolders hold real speech and a manifest.jsonl"
    )
    parser.add_argument("--work", type=Path, help="folder for everything made on the way")
    parser.add_argument("--out", type=Path, help="folder for the results")
    parser.add_argument("--recipes", type=Path, default=Path("recipes/tiny"), help="folder of the recipes")
    parser.add_argument(
        "--tokenizer", type=Path, default=Path(canvas_asr.__file__).parent / "models" / "tiny"
    )
    parser.add_argument("--small", action="store_true", help="a miniature of everything, for two CPU cores")
    parser.add_argument("--device", default="", help="cuda or cpu (default cuda; cpu with --small)")
    parser.add_argument(
        "--n-workers", type=int, default=0, help="processes that make data (default: by cores)"
    )
    parser.add_argument("--n-clips", type=int, default=0, help="synthetic clips, if there is time for them")
    parser.add_argument(
        "--limit", type=int, default=0, help="clips evaluated of each set, language and speakers"
    )
    parser.add_argument("--minutes", nargs="+", default=[], metavar="JOB=N", help="time of a job")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="STAGE.KEY=VALUE", help="change a recipe's value"
    )
    parser.add_argument(
        "--join", type=Path, metavar="OUT", help="unpack the parts of an output folder, and stop"
    )
    parser.add_argument("--into", type=Path, help="where --join unpacks")
    return parser


def _pairs(items: Sequence[str], what: str, known: Mapping[str, Any]) -> list[tuple[str, str, Any]]:
    """Split ``name[.key]=value`` items; the value is read as YAML."""
    pairs = []
    for item in items:
        left, equals, value = item.partition("=")
        name, _, key = left.partition(".")
        if not equals or name not in known:
            raise OptionError(f"{what} {item!r}: expected one of {', '.join(known)}, and '=' and a value.")
        pairs.append((name, key, yaml.safe_load(value)))
    return pairs


def _settings(options: argparse.Namespace) -> Settings:
    for name in ("sentences", "work", "out"):
        if getattr(options, name) is None:
            raise OptionError(f"--{name} is missing.")
    minutes = dict.fromkeys(MINUTES, SMALL_MINUTES) if options.small else dict(MINUTES)
    for name, _, value in _pairs(options.minutes, "--minutes", JOBS):
        if not isinstance(value, (int, float)) or value <= 0:
            raise OptionError(f"--minutes {name}={value}: give a number above 0.")
        minutes[name] = float(value)
    overrides: dict[str, dict[str, Any]] = {}
    stages = {name: None for name in JOBS if JOBS[name].is_stage}
    for name, key, value in _pairs(options.set, "--set", stages):
        overrides.setdefault(name, {})[key] = value
    small, n_cores = options.small, os.cpu_count() or 1
    device = options.device or ("cpu" if small else "cuda")
    if device == "cpu":  # the trainer takes a GPU wherever it sees one
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    return Settings(
        sentences=options.sentences.resolve(),
        real=options.real.resolve() if options.real else None,
        work=options.work.resolve(),
        out=options.out.resolve(),
        recipes=options.recipes.resolve(),
        tokenizer=options.tokenizer.resolve(),
        small=small,
        device=device,
        n_workers=options.n_workers or (1 if small else max(1, n_cores - 4)),
        n_clips=options.n_clips or (48 if small else 120_000),
        limit=options.limit or (2 if small else 100),
        minutes=minutes,
        overrides=overrides,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    options = _parser().parse_args(argv)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    try:
        if options.join is not None:
            names = join_all(options.join, options.into or Path())
            print(f"unpacked {', '.join(names)} in {options.into or Path()}")
            return 0
        Pipeline(_settings(options)).run()
    except CanvasASRError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same call goes on from here.", file=sys.stderr)
        return 130
    print((options.out / SUMMARY).read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
