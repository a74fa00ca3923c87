# Its own package imports every model for a type checker, which takes pyright a third of a whole run.
from typing import Any

def __getattr__(name: str) -> Any: ...
