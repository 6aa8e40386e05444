"""Several copies of the server behind one address, by Ray Serve: every replica loads the model once.

    pip install 'canvas-asr[ray,serve]'
    serve run --app-dir deploy ray_serve:build model=tiny replicas=2 cpus=2

On GPUs ``gpus=1``; docs/deployment.md has more. ``CANVAS_ASR_API_KEY`` has to be set where Ray is started, on
every node: a key that this file passed on would be there to read in Ray's dashboard.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ray import serve

KEYS = "CANVAS_ASR_API_KEY"
DRAIN_S = 30.0


def build(arguments: Mapping[str, str]) -> serve.Application:
    """Give what ``serve run`` runs.

    Args:
        arguments: ``model``; ``replicas``; ``cpus`` and ``gpus`` of each replica; its ``max_batch`` and
            ``max_queue``.
    """
    model = arguments.get("model", "tiny")
    wants_keys = bool(os.environ.get(KEYS))
    max_batch, max_queue = int(arguments.get("max_batch", 8)), int(arguments.get("max_queue", 32))

    def make_app() -> Any:  # called in every replica
        import canvas_asr
        from canvas_asr.serving.app import create_app
        from canvas_asr.serving.settings import ServerSettings, split_keys

        keys = split_keys(os.environ.get(KEYS, ""))
        if wants_keys and not keys:
            raise canvas_asr.OptionError(f"{KEYS} is set where this was started, and not on this node.")
        settings = ServerSettings(
            model=model,
            host="0.0.0.0",  # Ray listens, at an address of its own
            api_keys=keys,
            max_batch=max_batch,
            max_queue=max_queue,
            drain_s=DRAIN_S,
        )
        return create_app(canvas_asr.load(model), settings)

    replica = serve.deployment(
        serve.ingress(make_app)(),
        name="canvas-asr",
        num_replicas=int(arguments.get("replicas", 2)),
        # The server refuses what its own queue does not hold: Ray has to let that many through, and more.
        # Its default, 5, would leave the batch half empty.
        max_ongoing_requests=2 * (max_batch + max_queue),
        graceful_shutdown_timeout_s=DRAIN_S + 15,
        ray_actor_options={
            "num_cpus": float(arguments.get("cpus", 1)),
            "num_gpus": float(arguments.get("gpus", 0)),
        },
    )
    return replica.bind()
