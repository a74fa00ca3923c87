"""``/health``, ``/ready`` and ``/metrics``: whether the engine lives, whether it takes requests, and what it does."""

from typing import Literal

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from pydantic import BaseModel

from leyden.serve.http.documentation import failures, responses
from leyden.serve.http.service import Service


class Status(BaseModel):
    """All is well."""

    status: Literal["ok"] = "ok"


def status_routes(service: Service) -> APIRouter:
    """The two routes that tell how the server is; they need no key."""
    router = APIRouter()

    @router.get("/health", responses=responses(Status, errors=(403, 503)))
    async def health() -> Status:
        """Whether the engine lives: 503 when it is dead, and the server must be started again."""
        service.require_alive()
        return Status()

    @router.get("/ready", responses=responses(Status, errors=(403, 503)))
    async def ready() -> Status:
        """Whether requests are taken: 503 before the start, and while the server shuts down, too."""
        service.require()
        return Status()

    return router


def metrics_routes(service: Service) -> APIRouter:
    """The route for Prometheus."""
    router = APIRouter()

    @router.get("/metrics", responses=failures((401, 403)), response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Queue, speed, latencies, cache and memory, in Prometheus' text format."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return router
