"""What every test runs under: one thread, no network, GPU and network tests only when asked for.

The environment is set when this file is imported, before the conftest of a folder below it or a test imports
torch or huggingface_hub, which read it once; the commands that tests start inherit it.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

import pytest

OPT_IN = {"gpu": "--run-gpu", "network": "--run-network"}
# What Python reports of sockets, and which argument says where to.
REACHES_OUT = {"socket.connect": 1, "socket.sendto": 1, "socket.getaddrinfo": 0, "socket.gethostbyname": 0}

attempts: list[str] = []
opted_in: list[bool] = []  # not empty while a test runs that may connect


def keep_hub_offline(offline: bool) -> None:
    os.environ["HF_HUB_OFFLINE"] = str(int(offline))
    if constants := sys.modules.get("huggingface_hub.constants"):  # a plugin of pytest was earlier
        constants.HF_HUB_OFFLINE = offline


keep_hub_offline(True)
if hasattr(signal, "pthread_sigmask"):  # a runner may block them, and what tests start would inherit that
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT, signal.SIGTERM])
# Small models gain nothing from more threads, and on a busy machine lose time to them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-gpu", action="store_true", help="run the tests marked gpu")
    parser.addoption("--run-network", action="store_true", help="run the tests marked network")


def pytest_configure(config: pytest.Config) -> None:
    keep_hub_offline(not config.getoption("--run-network"))
    sys.addaudithook(refuse_to_connect)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        for marker, option in OPT_IN.items():
            if marker in item.keywords and not config.getoption(option):
                item.add_marker(pytest.mark.skip(reason=f"marked {marker}: runs only with {option}"))


def pytest_unconfigure(config: pytest.Config) -> None:
    """Name what failed in the very last line: some logs keep no more than that."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    reports = [r for kind in ("failed", "error") for r in reporter.stats.get(kind, [])] if reporter else []
    if reports:
        reporter.write_line(f"failed: {' '.join(report.nodeid for report in reports[:20])}")


def refuse_to_connect(event: str, arguments: tuple[Any, ...]) -> None:
    """Fail what reaches for another machine, wherever it does: in a fixture, a library or a thread."""
    if event not in REACHES_OUT or opted_in:
        return
    target = arguments[REACHES_OUT[event]]
    if isinstance(arguments[0], socket.socket):
        if arguments[0].family not in (socket.AF_INET, socket.AF_INET6):
            return
        target = target[0]
    if not is_here(target):
        attempts.append(str(target))
        pytest.fail(f"a test without the network marker connects to {target}")


def is_here(host: str | bytes | None) -> bool:
    name = os.fsdecode(host or "")
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return name in ("", "localhost", socket.gethostname())


@pytest.fixture(autouse=True)
def no_network(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """Fail a test that tried to connect, even where the failure got lost, unless it is marked network."""
    if request.node.get_closest_marker("network"):
        opted_in.append(True)
    yield attempts
    opted_in.clear()
    tried = [*attempts]
    attempts.clear()
    if tried:
        pytest.fail(f"it tried to connect to {', '.join(tried)}")
