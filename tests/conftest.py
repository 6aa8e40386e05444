"""What every test runs under: one thread, no network, GPU and network tests only when asked for.

The environment is set before any test imports torch or huggingface_hub, which read it once; the commands that
tests start inherit it.
"""

from __future__ import annotations

import os
import socket
from ipaddress import ip_address
from typing import Any

import pytest

OPT_IN = {"gpu": "--run-gpu", "network": "--run-network"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-gpu", action="store_true", help="run the tests marked gpu")
    parser.addoption("--run-network", action="store_true", help="run the tests marked network")


def pytest_configure(config: pytest.Config) -> None:
    # Small models gain nothing from more threads, and on a busy machine lose time to them.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not config.getoption("--run-network"):
        os.environ["HF_HUB_OFFLINE"] = "1"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        for marker, option in OPT_IN.items():
            if marker in item.keywords and not config.getoption(option):
                item.add_marker(pytest.mark.skip(reason=f"marked {marker}: runs only with {option}"))


@pytest.fixture(autouse=True)
def _no_network(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail a test that opens a connection to another machine, unless it is marked network."""
    if request.node.get_closest_marker("network"):
        return
    connect = socket.socket.connect

    def connect_here_only(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_loopback(address[0]):
            pytest.fail(f"a test without the network marker connects to {address[0]}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_here_only)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
