"""The memory of an engine: block allocators, the prefix cache, and swapping to the host."""

from leyden.serve.memory.audit import audit
from leyden.serve.memory.holding import Holding, Swapped
from leyden.serve.memory.memory import EngineMemory, MemoryUsage
from leyden.serve.memory.plan import MemoryPlan, check_free, divide_memory, plan_memory

__all__ = [
    "EngineMemory",
    "Holding",
    "MemoryPlan",
    "MemoryUsage",
    "Swapped",
    "audit",
    "check_free",
    "divide_memory",
    "plan_memory",
]
