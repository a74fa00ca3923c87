"""The HTTP application: routes, errors and keys put together."""

from importlib.metadata import version

from fastapi import FastAPI

from leyden.serve.http.completions import completion_routes
from leyden.serve.http.errors import add_error_handlers
from leyden.serve.http.keys import Keys
from leyden.serve.http.service import Service
from leyden.serve.http.status import status_routes

_DESCRIPTION = "OpenAI's API for a hybrid model, with vLLM's routes for its tokenizer."


def create_app(service: Service) -> FastAPI:
    """The application for one model; it has no pages of documentation, since those load code from elsewhere."""
    app = FastAPI(title="Leyden", version=version("leyden"), description=_DESCRIPTION, docs_url=None, redoc_url=None)
    app.state.max_body_bytes = service.settings.max_body_bytes
    app.include_router(status_routes(service))
    app.include_router(completion_routes(service))
    add_error_handlers(app)
    app.add_middleware(Keys, keys=service.settings.api_keys)
    return app
