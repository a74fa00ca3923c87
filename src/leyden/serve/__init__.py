"""Generation: an engine for many sequences at once, and conversations on top of it."""

from leyden.serve.chat import Chat
from leyden.serve.completion import Chunk, Completion
from leyden.serve.config import EngineConfig
from leyden.serve.engine import Engine
from leyden.serve.inserts import Insert
from leyden.serve.request import CacheUse, Delta, QueueFullError, Request, RequestUsage
from leyden.serve.sampling import Sampling
from leyden.serve.statistics import Statistics

__all__ = [
    "CacheUse",
    "Chat",
    "Chunk",
    "Completion",
    "Delta",
    "Engine",
    "EngineConfig",
    "Insert",
    "QueueFullError",
    "Request",
    "RequestUsage",
    "Sampling",
    "Statistics",
]
