"""Memory of an engine: who holds which slots and pages, the prefix cache, swapping."""

from leyden.serve.memory.audit import audit
from leyden.serve.memory.memory import Holding, Memory, MemoryUsage, Swapped

__all__ = ["Holding", "Memory", "MemoryUsage", "Swapped", "audit"]
