"""Persistence barcodes of sublevel sets, and how far two of them are apart."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import gudhi
import numpy as np
from jaxtyping import Float
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from thalweg.topology.grid import Neighbours, check_grid
from thalweg.topology.merge_tree import MergeTree

__all__ = ["Barcode", "BarcodeBand", "barcode", "barcode_band", "bottleneck", "grid_barcode"]


@dataclass(frozen=True, eq=False)
class Barcode:
    """Births and deaths of the classes of one dimension, the most persistent first.

    Args:
        births: Where each class is born.
        deaths: Where it dies, infinity where it never does.
        dimension: 0 for components, 1 for loops, and so on.
    """

    births: Float[np.ndarray, " bars"]
    deaths: Float[np.ndarray, " bars"]
    dimension: int = 0

    @property
    def persistence(self) -> Float[np.ndarray, " bars"]:
        """Length of each bar."""
        lengths: np.ndarray = self.deaths - self.births
        return lengths

    def alive(self, level: float) -> int:
        """Return how many classes the sublevel set at `level` has."""
        return int(((self.births <= level) & (level < self.deaths)).sum())

    def __str__(self) -> str:
        """Return the bars, one a line."""
        count = len(self.births)
        head = f"{count} {'bar' if count == 1 else 'bars'} in dimension {self.dimension}"
        bars = zip(self.births, self.deaths, strict=True)
        return "\n".join([head, *(f"{birth:.8g} to {death:.8g}" for birth, death in bars)])

    def __rich__(self) -> str:
        """Return the string form for a terminal."""
        return str(self)

    def to_json(self) -> dict[str, Any]:
        """Return the bars; one that never dies has no death."""
        return {
            "type": "barcode",
            "dimension": self.dimension,
            "births": self.births.tolist(),
            "deaths": [death if math.isfinite(death) else None for death in self.deaths.tolist()],
        }


@dataclass(frozen=True, eq=False)
class BarcodeBand:
    """The barcodes of the lower and of the upper ends of all passes.

    With passes brackets, the number of components at any level lies between the two, and
    so does the k-th smallest death.

    Args:
        lower: The barcode if every pass stood at its lower end.
        upper: The barcode if every pass stood at its upper end.
    """

    lower: Barcode
    upper: Barcode

    @property
    def distance(self) -> float:
        """Bottleneck distance of the two ends."""
        return bottleneck(self.lower, self.upper)

    def components(self, level: float) -> tuple[int, int]:
        """Return the fewest and the most components that the sublevel set may have."""
        return self.lower.alive(level), self.upper.alive(level)

    def __str__(self) -> str:
        """Return both barcodes and their distance."""
        return (
            f"passes at their lower ends: {self.lower}\npasses at their upper ends: {self.upper}\n"
            f"bottleneck distance {self.distance:.6g}"
        )

    def __rich__(self) -> str:
        """Return the string form for a terminal."""
        return str(self)

    def to_json(self) -> dict[str, Any]:
        """Return both barcodes."""
        return {
            "type": "barcode_band",
            "lower": self.lower.to_json(),
            "upper": self.upper.to_json(),
        }


def barcode(tree: MergeTree, *, end: Literal["lower", "upper"] = "upper") -> Barcode:
    """Return the persistence of the components of the sublevel sets, by gudhi.

    The filtration has each minimum at its height and each pass at the end of its bracket.

    Args:
        tree: The minima and passes.
        end: Which end of the brackets to use.

    Returns:
        One bar for each minimum, bars of no length too.

    Raises:
        ValueError: If `end` is unknown.

    Source:
        Barannikov et al., arXiv:1912.00043; Edelsbrunner, Letscher & Zomorodian, Discrete
        Comput. Geom. 28, 511 (2002); the GUDHI simplex tree.

    Example:
        >>> from thalweg.topology.merge_tree import merge_tree
        >>> print(barcode(merge_tree({"a": 0.0, "b": 1.0}, [("a", "b", 3.0)])))
        2 bars in dimension 0
        0 to inf
        1 to 3
    """
    if end not in ("lower", "upper"):
        raise ValueError(f"end must be 'lower' or 'upper', not {end!r}")
    index = {leaf: i for i, leaf in enumerate(tree.leaves)}
    complex_ = gudhi.SimplexTree()
    for i, height in enumerate(tree.heights):
        complex_.insert([i], height)
    best: dict[tuple[int, int], float] = {}
    for edge in tree.edges:
        pair, height = (index[edge.a], index[edge.b]), getattr(edge.height, end)
        best[pair] = min(height, best.get(pair, math.inf))
    for pair, height in best.items():
        if height < math.inf:
            complex_.insert(list(pair), height)
    complex_.compute_persistence(min_persistence=-1.0, persistence_dim_max=True)
    return _sorted(complex_.persistence_intervals_in_dimension(0), 0)


def barcode_band(tree: MergeTree) -> BarcodeBand:
    """Return the barcodes of the lower and of the upper ends of all passes.

    Args:
        tree: The minima and passes. A pair without a pass counts as apart at every level, so
            for a statement about all paths take the tree of `certified_tree`.

    Example:
        >>> from thalweg.estimate import Bound
        >>> from thalweg.topology.merge_tree import merge_tree
        >>> height = Bound(2.0, 3.0, "certified", "estimated")
        >>> barcode_band(merge_tree({"a": 0.0, "b": 1.0}, [("a", "b", height)])).components(2.5)
        (1, 2)
    """
    return BarcodeBand(barcode(tree, end="lower"), barcode(tree))


def grid_barcode(
    values: Float[np.ndarray, "*shape"],
    *,
    neighbours: Neighbours = "faces",
    dimension: int = 0,
) -> Barcode:
    """Return the persistence of the sublevel sets of a grid of values, by gudhi.

    Args:
        values: The values, in any number of dimensions.
        neighbours: ``"faces"`` takes the values as vertices of a cubical complex, ``"all"``
            as its top cells, which touch at corners too.
        dimension: Of the classes: 0 for components, 1 for loops.

    Returns:
        The bars of positive length.

    Raises:
        ValueError: As `grid_merge_tree`.

    Source:
        Wagner, Chen & Vuçini (2012); the GUDHI cubical complex.

    Example:
        >>> print(grid_barcode(np.array([[0.0, 3.0, 1.0]])))
        2 bars in dimension 0
        0 to inf
        1 to 3
    """
    array = check_grid(values, neighbours)
    if dimension < 0:
        raise ValueError(f"dimension must not be negative, got {dimension}")
    key = "vertices" if neighbours == "faces" else "top_dimensional_cells"
    complex_ = gudhi.CubicalComplex(**{key: array})
    complex_.compute_persistence(min_persistence=0.0)
    return _sorted(complex_.persistence_intervals_in_dimension(dimension), dimension)


def bottleneck(one: Barcode, other: Barcode) -> float:
    r"""Return the bottleneck distance of two barcodes, exactly.

    $\min_\gamma \max_x \|x - \gamma(x)\|_\infty$ over matchings $\gamma$ of the bars, where
    a bar may stay alone at the price of half its length. The smallest threshold that
    admits a perfect matching is found by bisection over the finitely many prices.
    (GUDHI's own is not used: it is under the GPL.)

    Args:
        one: A barcode.
        other: Another of the same dimension.

    Returns:
        The distance; infinite if a different number of bars never dies. Memory grows with
        the square of the number of bars.

    Source:
        Cohen-Steiner, Edelsbrunner & Harer, Discrete Comput. Geom. 37, 103 (2007), which
        also proves it is at most the largest change of a height.

    Example:
        >>> a = Barcode(np.array([0.0, 1.0]), np.array([np.inf, 3.0]))
        >>> b = Barcode(np.array([0.0]), np.array([np.inf]))
        >>> bottleneck(a, b)
        1.0
    """
    forever = [np.sort(code.births[np.isinf(code.deaths)]) for code in (one, other)]
    if len(forever[0]) != len(forever[1]):
        return math.inf
    ends = float(np.max(np.abs(forever[0] - forever[1]), initial=0.0))
    first, second = (
        np.stack([code.births, code.deaths], axis=1)[np.isfinite(code.deaths)]
        for code in (one, other)
    )
    prices = _prices(first, second)
    steps = np.unique(np.append(prices[np.isfinite(prices)], 0.0))
    low, high = 0, len(steps) - 1
    while low < high:
        middle = (low + high) // 2
        match = maximum_bipartite_matching(csr_array(prices <= steps[middle]), perm_type="column")
        low, high = (low, middle) if (match >= 0).all() else (middle + 1, high)
    return max(ends, float(steps[low]))


def _prices(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the price of each match: bars with bars, and each with its place on the diagonal."""
    n, m = len(first), len(second)
    prices = np.full((n + m, n + m), math.inf)
    prices[:n, :m] = np.abs(first[:, None] - second[None]).max(axis=2, initial=0.0)
    np.fill_diagonal(prices[:n, m:], (first[:, 1] - first[:, 0]) / 2)
    np.fill_diagonal(prices[n:, :m], (second[:, 1] - second[:, 0]) / 2)
    prices[n:, m:] = 0.0
    return prices


def _sorted(bars: np.ndarray, dimension: int) -> Barcode:
    bars = np.asarray(bars, dtype=float).reshape(-1, 2)
    order = np.lexsort((bars[:, 0], bars[:, 0] - bars[:, 1]))
    return Barcode(bars[order, 0].copy(), bars[order, 1].copy(), dimension)
