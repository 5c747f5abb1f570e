"""Union-find, the one structure that every merge tree stands on."""

from __future__ import annotations

__all__ = ["DisjointSets"]


class DisjointSets:
    """Disjoint sets of 0 .. n-1 with their sizes (union by size, path halving).

    Args:
        count: The number n.

    Example:
        >>> sets = DisjointSets(3)
        >>> sets.join(0, 2), sets.join(2, 0), sets.size(0)
        (True, False, 2)
    """

    def __init__(self, count: int) -> None:
        """Make every number a set of its own."""
        self._parent = list(range(count))
        self._size = [1] * count

    def find(self, i: int) -> int:
        """Return the number that stands for the set that holds `i`."""
        parent = self._parent
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    def size(self, i: int) -> int:
        """Return how many members the set that holds `i` has."""
        return self._size[self.find(i)]

    def join(self, i: int, j: int) -> bool:
        """Join two sets, and say whether they were two."""
        i, j = self.find(i), self.find(j)
        if i == j:
            return False
        if self._size[i] < self._size[j]:
            i, j = j, i
        self._parent[j] = i
        self._size[i] += self._size[j]
        return True
