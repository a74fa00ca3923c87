"""``/v1/models``: the served model, by each of its names."""

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from leyden.serve.http.documentation import responses
from leyden.serve.http.service import Service


class ModelCard(BaseModel):
    """One name of the model; ``root`` and ``max_model_len`` are vLLM's fields.

    ``notice`` is Leyden's: what whoever chats with the model should know of it, where something is known.
    """

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["leyden"] = "leyden"
    root: str
    max_model_len: int
    notice: str | None


class ModelList(BaseModel):
    """All names."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


def model_routes(service: Service) -> APIRouter:
    """The routes."""
    router = APIRouter()
    model = service.model
    card = ModelCard(
        id=model.names[0],
        created=model.created,
        root=model.root,
        max_model_len=model.context_tokens,
        notice=model.notice,
    )
    cards = {name: card.model_copy(update={"id": name}) for name in model.names}

    @router.get("/v1/models", responses=responses(ModelList, errors=(401, 403)))
    async def models() -> ModelList:
        """The names that requests can ask for."""
        return ModelList(data=list(cards.values()))

    @router.get("/v1/models/{name:path}", responses=responses(ModelCard, errors=(401, 403, 404)))
    async def one_model(name: str) -> ModelCard:
        """The model by one of its names."""
        return cards[model.called(name)]

    return router
