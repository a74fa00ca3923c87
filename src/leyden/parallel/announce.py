"""Messages from the first rank to the others through the store, for as long as it takes between two of them."""

import json
from datetime import timedelta
from typing import Any

from torch.distributed import DistStoreError, Store  # pyright: ignore[reportPrivateImportUsage] - not in __all__

_PATIENCE = timedelta(seconds=30)


class Announcer:
    """Values from the first rank to all others, in order.

    A collective would end a listener that hears nothing for as long as its timeout; here it waits for hours, as a
    server without requests does. Values are JSON: whoever reaches the store's port can write to it, and what is read
    from there runs nothing.

    Args:
        store: that all ranks have.
        world: how many ranks there are.
    """

    def __init__(self, store: Store, world: int) -> None:
        self._store, self._listeners, self._count = store, world - 1, 0

    def tell(self, value: Any) -> None:
        """Give every other rank ``value``, which JSON can tell, and wait for nobody; for the first rank alone."""
        self._store.set(f"announced/{self._count}", json.dumps(value))
        self._count += 1

    def hear(self) -> Any:
        """The next value; waits until there is one. The last rank that hears it clears it away."""
        key = f"announced/{self._count}"
        while not self._is_there(key):
            pass
        value = json.loads(self._store.get(key))
        if self._store.add(f"heard/{self._count}", 1) == self._listeners:
            for name in (key, f"heard/{self._count}"):
                self._store.delete_key(name)
        self._count += 1
        return value

    def _is_there(self, key: str) -> bool:
        """Wait a while for ``key``; whether it came. Only a store that still answers is waited for again."""
        try:
            self._store.wait([key], _PATIENCE)
        except DistStoreError as error:
            if "timeout" not in str(error).lower():
                raise
            return False
        return True
