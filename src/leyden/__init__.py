"""Leyden: long-context language models built on lightning attention, from raw documents to a server.

Names resolve lazily (PEP 562), so that ``leyden.ops`` runs on a machine with torch and triton alone.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leyden.checkpoint import load as load
    from leyden.checkpoint import save as save
    from leyden.model import Cache as Cache
    from leyden.model import HybridLM as HybridLM
    from leyden.model import ModelConfig as ModelConfig
    from leyden.serve import Engine as Engine
    from leyden.serve import Sampling as Sampling

__version__ = "0.1.0"

_HOMES = {
    "Cache": "leyden.model",
    "Engine": "leyden.serve",
    "HybridLM": "leyden.model",
    "ModelConfig": "leyden.model",
    "Sampling": "leyden.serve",
    "load": "leyden.checkpoint",
    "save": "leyden.checkpoint",
}
__all__ = ["Cache", "Engine", "HybridLM", "ModelConfig", "Sampling", "__version__", "load", "save"]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'leyden' has no attribute {name!r}; it has {', '.join(sorted(_HOMES))}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
