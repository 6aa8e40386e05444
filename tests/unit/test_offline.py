"""No test reaches the network: the hub is offline however tests are run, and a connection fails its test."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest

ROOT = Path(__file__).parents[2]
OTHER_MACHINE = ("192.0.2.1", 80)  # RFC 5737: nobody's


def test_the_hub_is_offline() -> None:
    assert huggingface_hub.constants.HF_HUB_OFFLINE is True
    assert huggingface_hub.is_offline_mode()


def test_it_is_so_for_a_single_file_of_a_folder_with_a_conftest() -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        f"{__file__}::{test_the_hub_is_offline.__name__}",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def look_up() -> object:
    return socket.getaddrinfo("huggingface.co", 443)


def connect() -> object:
    return socket.create_connection(OTHER_MACHINE, timeout=1)


def send() -> object:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        return one.sendto(b"x", OTHER_MACHINE)


@pytest.mark.parametrize("reach_out", [look_up, connect, send])
def test_reaching_out_fails_the_test(reach_out: Callable[[], object], no_network: list[str]) -> None:
    with pytest.raises(pytest.fail.Exception, match="without the network marker connects to"):
        reach_out()
    assert len(no_network) == 1
    no_network.clear()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_what_a_thread_tries_is_not_lost(no_network: list[str]) -> None:
    thread = threading.Thread(target=connect)
    thread.start()
    thread.join()
    assert no_network == [OTHER_MACHINE[0]]
    no_network.clear()


def test_this_machine_may_be_connected_to() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()
