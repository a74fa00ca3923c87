"""The HTTP application: routes, errors and keys put together."""

from importlib.metadata import version

from fastapi import FastAPI, Security
from fastapi.security import HTTPBearer

from leyden.serve.http.chat import chat_routes
from leyden.serve.http.completions import completion_routes
from leyden.serve.http.error_handlers import Answered, add_error_handlers
from leyden.serve.http.keys import Keys
from leyden.serve.http.metrics import CountResponses
from leyden.serve.http.models import model_routes
from leyden.serve.http.page import page_routes
from leyden.serve.http.request_log import RequestLog
from leyden.serve.http.service import Service
from leyden.serve.http.status import metrics_routes, status_routes
from leyden.serve.http.tokenizer_routes import tokenizer_routes

_KEY = HTTPBearer(auto_error=False, description="One of the server's API keys.")
"""For the document alone; :class:`Keys` looks at keys before anything else is done."""
_DESCRIPTION = "OpenAI's API for a hybrid model, with vLLM's routes for its tokenizer."


def create_app(service: Service) -> FastAPI:
    """The application for one model; it has no pages of documentation, since those load code from elsewhere."""
    app = FastAPI(
        title="Leyden",
        version=version("leyden"),
        description=_DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    app.include_router(status_routes(service))
    for routes in (model_routes, completion_routes, chat_routes, tokenizer_routes, metrics_routes):
        app.include_router(routes(service), dependencies=[Security(_KEY)] if service.settings.api_keys else [])
    app.include_router(page_routes())
    add_error_handlers(app)
    app.add_middleware(Keys, keys=service.settings.api_keys)
    app.add_middleware(Answered)
    app.add_middleware(CountResponses, metrics=service.metrics)
    if service.settings.request_log:
        app.add_middleware(RequestLog)
    return app
