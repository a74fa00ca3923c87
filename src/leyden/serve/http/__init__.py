"""The engine over HTTP: OpenAI's API, vLLM's routes for the tokenizer, metrics, and a chat page."""

from leyden.serve.http.app import create_app
from leyden.serve.http.server import Server, listen, url
from leyden.serve.http.service import ServedModel, Service
from leyden.serve.http.settings import ServerSettings

__all__ = ["ServedModel", "Server", "ServerSettings", "Service", "create_app", "listen", "url"]
