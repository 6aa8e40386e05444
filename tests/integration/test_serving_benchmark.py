"""The benchmark of the server, in small: a real server, clients, and a page that says what was found."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import ModuleType

import pytest
from small_models import TINY


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    for name in ("fastapi", "httpx", "websockets"):
        pytest.importorskip(name, reason=f"{name} is not installed: pip install -e '.[dev]'")
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    import serving

    return serving


@pytest.mark.skipif(
    not (TINY / "model.safetensors").is_file(), reason="the embedded model has no weights yet"
)
def test_all_is_measured_in_small(benchmark: ModuleType, tmp_path: Path) -> None:
    figures, page = tmp_path / "serving.json", tmp_path / "serving.md"
    assert benchmark.main(["tiny", "--small", "--json", str(figures), "--markdown", str(page)]) == 0
    found = json.loads(figures.read_text("utf-8"))
    assert len(found["cells"]) == 4
    for cell in found["cells"]:
        assert cell["unexpected"] == 0
        assert cell["latency"]["n"] > 0
        assert 0 <= cell["full_passes_share"] <= 1
        assert 1 <= cell["rows_a_pass"] <= 2
        assert cell["health"]["failed"] == 0
    # Three clients, and a server that holds two requests.
    assert all((cell["refusal"]["n"] > 0) == (cell["clients"] == 3) for cell in found["cells"])
    assert [pairs["same_texts"] for pairs in found["overhead"]] == [2, 1]
    assert found["batching"]["ratio"] > 0
    assert found["beside"]["upload_bytes"] > 0
    assert found["live"][0]["same_texts"] == 1
    assert found["peak_memory_mib"]["children"] > 0
    assert len(found["targets"]) == 8
    text = page.read_text("utf-8")
    assert text.count("\n## ") == 6
    assert "python benchmarks/serving.py tiny --small" in text


def test_connections_are_kept_unless_the_server_closes_them(benchmark: ModuleType) -> None:
    import serving_load

    sent = serving_load.upload("tiny", b"samples")
    opened: list[int] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        opened.append(0)
        for reply in ("200 OK", "429 Full\r\nRetry-After: 1\r\nConnection: close", "200"):
            assert await reader.readexactly(len(sent)) == sent
            if len(opened) == 3:
                break
            writer.write(f"HTTP/1.1 {reply}\r\nContent-Length: 13\r\n\r\n".encode() + b'{"text": "a"}')
        writer.close()

    async def run() -> list[serving_load.Reply]:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server, serving_load.Connections(server.sockets[0].getsockname()[1]) as client:
            return [await serving_load.ask(client, "tiny", place, b"samples") for place in range(5)]

    replies = asyncio.run(run())
    assert [(one.clip, one.status, one.text, one.retry_after) for one in replies] == [
        (0, 200, "a", False),
        (1, 429, "", True),
        (2, 200, "a", False),
        (3, 429, "", True),
        (4, 0, "", False),
    ]
    assert len(opened) == 3


def test_refusals_are_told_from_failures(benchmark: ModuleType) -> None:
    replies = [
        benchmark.Reply(0, 200, 0.0, 2.0, "text"),
        benchmark.Reply(0, 429, 0.5, 0.01, retry_after=True),
        benchmark.Reply(0, 429, 0.5, 0.03),
        benchmark.Reply(0, 500, 1.0, 3.0),
    ]
    found = benchmark.summary(replies, 5.0)
    assert found["statuses"] == {"200": 1, "429": 2, "500": 1}
    assert found["unexpected"] == 2
    assert found["refusal"]["p95_ms"] == pytest.approx(10)
    assert found["audio_s_per_s"] == pytest.approx(5 / 4)
