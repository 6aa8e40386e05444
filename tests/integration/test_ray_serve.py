"""Several replicas of the server behind one address, on a local Ray: deploy/ray_serve.py."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from ray_script import run_with_ray
from small_models import small_model, small_processor

import canvas_asr
from canvas_asr.checkpoint import save_checkpoint

DEPLOY = Path(__file__).parents[2] / "deploy"
# What a client gets that has a key, and one that has none; and the replicas that ran.
SCRIPT = """
import asyncio, json, os, socket, sys
import httpx, ray
from ray import serve
from websockets.asyncio.client import connect

model, paths, out, deploy = json.loads(sys.argv[1])
sys.path.insert(0, deploy)
from ray_serve import build

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
ray.init(num_cpus=2, include_dashboard=False, object_store_memory=80 * 2**20, log_to_driver=False)
serve.start(http_options={"host": "127.0.0.1", "port": port})
serve.run(build({"model": model, "replicas": "2", "max_queue": "8"}))


async def ask(client, path, **fields):
    files = {"file": ("clip.wav", open(path, "rb").read())}
    reply = await client.post("/v1/audio/transcriptions", data={"model": name, **fields}, files=files)
    return [reply.status_code, reply.text]


async def main():
    global name
    found = {}
    base = f"http://127.0.0.1:{port}"
    async with httpx.AsyncClient(base_url=base, timeout=120) as stranger:
        found["health"] = (await stranger.get("/health")).status_code
        found["no_key"] = (await stranger.get("/v1/models")).status_code
    headers = {"Authorization": "Bearer open-sesame"}
    async with httpx.AsyncClient(base_url=base, timeout=120, headers=headers) as client:
        name = (await client.get("/v1/models")).json()["data"][0]["id"]
        every = await asyncio.gather(*(ask(client, path) for path in paths for _ in range(3)))
        found["texts"] = [[status, json.loads(text)["text"]] for status, text in every]
        found["stream"] = await ask(client, paths[0], stream="true")
        found["metrics"] = (await client.get("/metrics")).text
    live = f"ws://127.0.0.1:{port}/v1/live"
    async with connect(live, additional_headers=headers, proxy=None) as speech:
        await speech.send(bytes(2 * 8000))
        await speech.send('{"type": "end"}')
        found["live"] = [json.loads(message)["type"] async for message in speech]
    (application,) = serve.status().applications.values()
    (deployment,) = application.deployments.values()
    found["replicas"] = {str(getattr(k, "value", k)): n for k, n in deployment.replica_states.items()}
    with open(out, "w") as file:
        json.dump(found, file)


asyncio.run(main())
serve.shutdown()
"""


@pytest.mark.timeout(600)  # Ray starts a dozen processes, of which two load a model
def test_two_replicas_answer_behind_one_address(tmp_path: Path) -> None:
    pytest.importorskip("ray.serve", reason="Ray Serve is not installed: pip install -e '.[ray,serve]'")
    pytest.importorskip(
        "fastapi", reason="the server's packages are not installed: pip install -e '.[serve]'"
    )
    model, out = tmp_path / "model", tmp_path / "out.json"
    save_checkpoint(small_model(), small_processor(), model, whole=True)
    paths = [tmp_path / "a.wav", tmp_path / "b.wav"]
    for i, path in enumerate(paths):
        sf.write(path, 0.3 * np.sin(np.arange(8000 * (i + 1)) / 10), 16_000)
    run_with_ray(
        tmp_path,
        SCRIPT,
        [str(model), [*map(str, paths)], str(out), str(DEPLOY)],
        CANVAS_ASR_API_KEY="other, open-sesame",
        # On a busy machine proxy and replicas would not start in time.
        RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S="300",
        RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S="300",
    )
    found = json.loads(out.read_text())
    assert found["replicas"] == {"RUNNING": 2}
    assert (found["health"], found["no_key"]) == (200, 401)
    expected = [one.text for one in canvas_asr.load(model, device="cpu").transcribe(paths)]
    assert found["texts"] == [[200, text] for text in expected for _ in range(3)]
    status, events = found["stream"]
    assert status == 200
    assert events.rstrip().endswith("data: [DONE]")
    assert "canvas_asr_" in found["metrics"]
    assert (found["live"][0], found["live"][-1]) == ("ready", "transcript.done")
