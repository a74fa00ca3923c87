"""The HTTP application: routes, errors and keys put together."""

from importlib.metadata import version

from fastapi import FastAPI, Security
from fastapi.middleware.cors import CORSMiddleware
from fastapi.security import HTTPBearer

from leyden.serve.http.chat import chat_routes
from leyden.serve.http.completions import completion_routes
from leyden.serve.http.errors import Answered, add_error_handlers
from leyden.serve.http.keys import Keys
from leyden.serve.http.metrics import CountResponses
from leyden.serve.http.page import page_routes
from leyden.serve.http.request_log import RequestLog
from leyden.serve.http.rewriting import Heads, UnderPath
from leyden.serve.http.service import Service
from leyden.serve.http.status import metrics_routes, model_routes, status_routes
from leyden.serve.http.tokenizer_routes import tokenizer_routes

_KEY = HTTPBearer(auto_error=False, description="One of the server's API keys.")
"""For the document alone; :class:`Keys` looks at keys before anything else is done."""
_DESCRIPTION = "OpenAI's API for a hybrid model, with vLLM's routes for its tokenizer."


def create_app(service: Service) -> FastAPI:
    """The application for one model; it has no pages of documentation, since those load code from elsewhere."""
    settings = service.settings
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
        app.include_router(routes(service), dependencies=[Security(_KEY)] if settings.api_keys else [])
    app.include_router(page_routes())
    add_error_handlers(app)
    app.add_middleware(Keys, settings=settings)
    app.add_middleware(Answered)
    if settings.allow_origins:  # a browser asks whether it may before it sends a key
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.allow_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["X-Request-Id", "Retry-After"],
        )
    app.add_middleware(Heads)
    app.add_middleware(CountResponses, metrics=service.metrics)
    app.add_middleware(RequestLog, logs=settings.request_log)
    if settings.root_path:
        app.add_middleware(UnderPath, root_path=settings.root_path)
    return app
