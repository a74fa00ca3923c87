"""Generation: an engine for single sequences, and conversations that keep their state."""

from leyden.serve.chat import Chat
from leyden.serve.context import Context
from leyden.serve.engine import Chunk, Completion, Engine
from leyden.serve.sampling import Sampling

__all__ = ["Chat", "Chunk", "Completion", "Context", "Engine", "Sampling"]
