"""`canvas-asr serve`: started, used and stopped as a service; and what keeps it from starting."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from running_server import http_client, openai_client

from canvas_asr.cli import build_parser, main
from canvas_asr.cli.serve import server_settings
from canvas_asr.serving.settings import ServerSettings

SPEECH = Path(__file__).parents[2] / "examples" / "en.flac"
COMMAND = [sys.executable, "-m", "canvas_asr.cli", "serve"]


@contextmanager
def started(*arguments: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start the command; gives the process and what it said until it could be reached."""
    command = [*COMMAND, "--port", "0", "--decode-workers", "1", *arguments]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=os.environ | environment
    ) as process:
        try:
            assert process.stderr is not None
            said = ""
            for line in process.stderr:
                said += line
                if "is served at" in line:
                    break
            yield process, said
        finally:
            process.kill()


def address(said: str) -> str:
    found = re.search(r"tiny is served at (http://127\.0\.0\.1:\d+)/v1, with a page at \1/", said)
    assert found, said
    return found[1]


def test_it_serves_until_it_is_told_to_stop() -> None:
    with started(CANVAS_ASR_API_KEY="one, two") as (process, said):
        for key in ("one", "two"):
            with openai_client(address(said), key) as client:
                assert [model.id for model in client.models.list().data] == ["tiny"]
        with openai_client(address(said), "two") as client:
            assert client.audio.transcriptions.create(model="tiny", file=SPEECH).text
        with http_client(address(said)) as anybody:
            assert anybody.get("/v1/models").status_code == 401
            assert anybody.get("/").status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_the_defaults_of_the_command_are_those_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CANVAS_ASR_API_KEY", raising=False)
    parse = build_parser().parse_args
    assert server_settings(parse(["serve"])) == ServerSettings()
    monkeypatch.setenv("CANVAS_ASR_API_KEY", "two, ,three")
    given = parse(["serve", "--api-key", "one", "--max-upload-mib", "0.5", "--canvas", "auto"])
    assert server_settings(given) == ServerSettings(
        api_keys=("one", "two", "three"), max_upload_bytes=1 << 19, canvas="auto"
    )


def test_an_address_that_others_reach_is_warned_of_without_a_key(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = (socket.AF_INET, socket.SOCK_STREAM, 0, "", ("0.0.0.0", 0))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [found])
    arguments = ["serve", "--host", "0.0.0.0", "--port", "0", "--model", "no/such/folder"]
    assert main(arguments) == 1
    warning = capsys.readouterr().err.splitlines()[0]
    assert warning.startswith("canvas-asr: warning: 0.0.0.0 can be reached from other machines")
    assert "CANVAS_ASR_API_KEY" in warning
    monkeypatch.setenv("CANVAS_ASR_API_KEY", "key")
    assert main(arguments) == 1
    assert "warning" not in capsys.readouterr().err


def test_a_port_in_use_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main(["serve", "--port", str(port)]) == 1
    assert capsys.readouterr().err == (
        f"canvas-asr: error: cannot listen at 127.0.0.1, port {port} (Address already in use); choose "
        "another with --host or --port.\n"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--host", "no.such.host.invalid"], "cannot listen at no.such.host.invalid"),
        (["--port", "70000"], "port is 70000; give one from 0 to 65535."),
        (["--max-batch", "0"], "max_batch is 0; give more than 0."),
        (["--max-queue", "-1"], "max_queue is -1; give at least 0."),
        (["--request-timeout-s", "nan"], "request_timeout_s is nan; give a number."),
        (["--steps", "65"], "steps is 65; give at most 64."),
        (["--api-key", ""], "api_key: give keys of printable ASCII characters without spaces."),
        (["--served-name", " "], "model_names: give names that are not empty."),
        (["--port", "0", "--model", "no/such/folder"], "no/such/folder"),
    ],
)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_what_it_cannot_run_with_is_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lookup_here(socket.getaddrinfo))
    assert main(["serve", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("canvas-asr: error: ")
    assert said in error
    assert error.count("\n") == 1


def lookup_here(getaddrinfo):  # type: ignore[no-untyped-def]
    """Names are not looked up on the network."""

    def lookup(host: str, *arguments: object, **options: object) -> object:
        if host.endswith(".invalid"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return getaddrinfo(host, *arguments, **options)

    return lookup


@pytest.mark.parametrize(
    "missing", ["fastapi", "uvicorn", "python_multipart", "prometheus_client", "websockets"]
)
def test_a_missing_package_is_named_with_what_to_install(
    missing: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("canvas_asr.serving")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    assert main(["serve", "--port", "0"]) == 1
    assert capsys.readouterr().err == (
        "canvas-asr: error: this needs the server's packages; install them with: pip install "
        "'canvas-asr[serve]'\n"
    )
