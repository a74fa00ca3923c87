"""``/health`` and ``/ready``: whether the engine lives, and whether it takes requests."""

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from leyden.serve.http.documentation import responses
from leyden.serve.http.service import Service


class Status(BaseModel):
    """All is well."""

    status: Literal["ok"] = "ok"


def status_routes(service: Service) -> APIRouter:
    """The routes; neither needs a key."""
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
