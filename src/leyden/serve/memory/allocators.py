"""Block allocators with reference counts: slots with one holder each, pages with several."""


class Slots:
    """Numbers from 0 that one holder at a time has.

    Args:
        count: how many.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = list(range(count - 1, -1, -1))
        self._taken = bytearray(count)

    @property
    def free(self) -> int:
        """How many nobody has."""
        return len(self._free)

    def take(self) -> int:
        """One that was free (there must be one)."""
        slot = self._free.pop()
        self._taken[slot] = True
        return slot

    def give_back(self, slot: int) -> None:
        """The end of its holding.

        Raises:
            RuntimeError: nobody holds it; going on would give it to two.
        """
        if not self._taken[slot]:
            raise RuntimeError(f"slot {slot} was given back twice.")
        self._taken[slot] = False
        self._free.append(slot)


class Pages:
    """Pages of keys and values. Several sequences may use one, and the prefix cache may keep it besides.

    Args:
        count: how many.

    Attributes:
        idle: how many are kept by the cache alone.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.idle = 0
        self._free = list(range(count - 1, -1, -1))
        self._users = [0] * count
        self._kept = bytearray(count)

    @property
    def free(self) -> int:
        """How many nobody has."""
        return len(self._free)

    def users(self, page: int) -> int:
        """How many sequences use it."""
        return self._users[page]

    def take(self) -> int:
        """One that was free (there must be one), for one user."""
        page = self._free.pop()
        self._users[page] = 1
        return page

    def share(self, page: int) -> None:
        """One more user of a page that is used or kept."""
        self.idle -= self._users[page] == 0
        self._users[page] += 1

    def drop(self, page: int) -> None:
        """One user less.

        Raises:
            RuntimeError: it has none; going on would give it to two.
        """
        if not self._users[page]:
            raise RuntimeError(f"page {page} was given back more often than it was taken.")
        self._users[page] -= 1
        if not self._users[page]:
            if self._kept[page]:
                self.idle += 1
            else:
                self._free.append(page)

    def keep(self, page: int) -> None:
        """The cache keeps a page that is used."""
        self._kept[page] = True

    def let_go(self, page: int) -> None:
        """The cache keeps it no longer."""
        self._kept[page] = False
        if not self._users[page]:
            self.idle -= 1
            self._free.append(page)
