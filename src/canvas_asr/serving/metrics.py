"""What the server tells of itself: ``/health``, and ``/metrics`` for Prometheus."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from http import HTTPStatus

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector
from starlette.datastructures import MutableHeaders, State
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .auth import DOCUMENTED_KEY
from .errors import unexpected

CLIENT_GONE = 499  # nginx's number for it
# Seconds: a 5 s clip on a GPU at one end, an hour on a CPU at the other.
BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
# Routes that middleware may refuse before they are found.
_REFUSABLE = ("/v1/audio/transcriptions", "/v1/models", "/metrics")

router = APIRouter(tags=["server"])


@router.head("/health", include_in_schema=False)
@router.get("/health", summary="Whether requests are taken")
async def health(request: Request) -> JSONResponse:
    """Say ``ok``, or 503 once the server is being stopped. It waits for nothing, least of all the model."""
    if request.app.state.is_draining:
        return JSONResponse({"status": "stopping"}, HTTPStatus.SERVICE_UNAVAILABLE)
    return JSONResponse({"status": "ok"})


@router.get(
    "/metrics",
    summary="Figures for Prometheus",
    response_class=Response,
    dependencies=[DOCUMENTED_KEY],
)
async def metrics(request: Request) -> Response:
    """Give counts of requests, passes and audio, and how full the queue is."""
    return Response(
        generate_latest(request.app.state.metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
    )


class RequestMetrics:
    """What is counted of requests."""

    def __init__(self) -> None:
        """Start at nothing."""
        self.registry = CollectorRegistry()
        labels = ("route", "status")
        self.requests = Counter(
            "canvas_asr_requests", "Requests that were answered.", labels, registry=self.registry
        )
        self.seconds = Histogram(
            "canvas_asr_request_seconds",
            "Seconds from a request to the end of its reply.",
            ("route",),
            registry=self.registry,
            buckets=BUCKETS,
        )


class SchedulerCollector(Collector):
    """Reads the figures of the scheduler and the decoders when they are asked for."""

    def __init__(self, state: State) -> None:
        """Take where they are."""
        self._state = state

    def collect(self) -> Iterator[Metric]:
        """Give the figures."""
        stats, decoders = self._state.scheduler.stats, self._state.decoders.stats
        for name, text, value in (
            ("queued_jobs", "Jobs that wait for their turn.", stats.queued),
            ("working_jobs", "Jobs that the model has begun with.", stats.working),
            ("batch_rows", "Clips and chunks in the batch.", stats.rows),
        ):
            yield GaugeMetricFamily(f"canvas_asr_{name}", text, value)
        for name, text, value in (
            ("passes", "Passes that were run.", stats.passes),
            ("full_passes", "Passes with as many rows as the batch may hold.", stats.full_passes),
            ("row_passes", "Rows, summed over the passes.", stats.row_passes),
            ("audio_seconds", "Seconds of audio that are done.", stats.audio_s),
            ("uploads", "Files that were given to a decoder.", decoders.n_files),
            ("decoders_died", "Decoders that crashed on a file.", decoders.n_died),
            ("decoders_stalled", "Decoders that were ended as they got no further.", decoders.n_stalled),
        ):
            yield CounterMetricFamily(f"canvas_asr_{name}", text, value)


class Observer:
    """The outermost middleware: numbers requests, counts them, and answers for what nobody caught."""

    def __init__(self, app: ASGIApp, counts: RequestMetrics) -> None:
        """Wrap an application.

        Args:
            app: What is wrapped.
            counts: Of its requests.
        """
        self._app = app
        self._counts = counts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        status = CLIENT_GONE
        is_answered = False

        async def send_numbered(message: Message) -> None:
            nonlocal status, is_answered
            if message["type"] == "http.response.start":
                status, is_answered = message["status"], True
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        started = time.perf_counter()
        try:
            await self._app(scope, receive, send_numbered)
        except ClientDisconnect:
            status = CLIENT_GONE
        except Exception as error:
            if is_answered and isinstance(error, OSError):  # what some servers raise where a client has left
                status = CLIENT_GONE
                return
            refusal = unexpected(error, request_id)
            if is_answered:  # too late for more than an end
                raise
            await refusal.response()(scope, receive, send_numbered)
        finally:
            self._count(scope, status, time.perf_counter() - started)

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        path = getattr(scope.get("route"), "path", scope["path"])
        if "route" not in scope and path not in _REFUSABLE:
            path = "other"  # what a client made up is no label
        self._counts.requests.labels(path, str(status)).inc()
        self._counts.seconds.labels(path).observe(seconds)
