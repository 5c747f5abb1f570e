"""The critical points that a search found: how many, where, of which index, how often."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from rich.table import Table
from torch import Tensor

from thalweg.estimate import BoundKind, Cost, Estimate, good_turing

__all__ = ["CriticalPoints", "merge"]


@dataclass(frozen=True, eq=False)
class CriticalPoints:
    r"""Distinct critical points of a landscape on the sphere, by rising energy.

    Attributes:
        points: One row for each, on the sphere of radius $\sqrt n$, `(m, n)`.
        energies: Energies per spin, `(m,)`.
        indices: Numbers of negative eigenvalues, `(m,)`.
        resolved: Whether the index is certain, `(m,)`.
        values: Tangential eigenvalues of the Riemannian Hessian of H, `(m, n - 1)`; None if
            they were not kept.
        radii: The critical point lies within this of its row of `points`, `(m,)`.
        unique: No other one lies within this, `(m,)`.
        found: How many starts ended at it, `(m,)`.
        starts: How many starts there were.
        flat: How many ended where the gradient is flat but not zero.
        lost: How many ended at no proven critical point otherwise.
        certificate: ``"certified"``, or ``"estimated"`` where the proof rests on a measured
            Lipschitz constant.
        cost: What the search took.
        seed: The seed of the starts; of the first search, where several were joined.
        method: How the starts were drawn and followed.
        complete: Whether these are proven to be all there are (of the index or the energies
            picked since).
        proof: The proof of that in words, or what it lacks; empty if none was tried.
    """

    points: Float[Tensor, "m n"]
    energies: Float[Tensor, " m"]
    indices: Int[Tensor, " m"]
    resolved: Bool[Tensor, " m"]
    values: Float[Tensor, "m k"] | None
    radii: Float[Tensor, " m"]
    unique: Float[Tensor, " m"]
    found: Int[Tensor, " m"]
    starts: int
    flat: int
    lost: int
    certificate: BoundKind
    cost: Cost
    seed: int
    method: str
    complete: bool = False
    proof: str = ""

    def __len__(self) -> int:
        """Return how many distinct critical points there are."""
        return len(self.energies)

    @property
    def n(self) -> int:
        """The number of spins."""
        return self.points.shape[1]

    @property
    def singletons(self) -> int:
        """How many points a single start found."""
        return int((self.found == 1).sum())

    @property
    def counts(self) -> dict[int, int]:
        """How many distinct points of each index there are, the unresolved left out."""
        return dict(sorted(Counter(self.indices[self.resolved].tolist()).items()))

    @property
    def fractions(self) -> Float[Tensor, " m"]:
        """The share of negative eigenvalues at each point."""
        return self.indices.to(self.energies.dtype) / max(self.n - 1, 1)

    @property
    def euler(self) -> int:
        r"""$\sum_k (-1)^k$ over the points; over all there are, it is $1 + (-1)^{n-1}$."""
        return sum((-1) ** index * count for index, count in self.counts.items())

    @property
    def unseen(self) -> Estimate:
        r"""How likely one more start ends at a point not found yet: Good and Turing's $n_1/m$.

        Under the law of this search, of $m$ starts that ended at a critical point; see
        `thalweg.estimate.good_turing`. It is 0, exactly, where the points are `complete`.
        """
        if self.complete:
            known = f"complete: {self.proof}"
            return Estimate(0.0, 0.0, (0.0, 0.0), 0, self.cost, method=known, seed=self.seed)
        once, twice = (int((self.found == times).sum()) for times in (1, 2))
        estimate = good_turing(once, twice, int(self.found.sum()))
        return replace(estimate, cost=self.cost, seed=self.seed)

    def with_index(self, index: int) -> CriticalPoints:
        """Return the points of one certain index; the tallies of starts stay the search's."""
        return self._take((self.indices == index) & self.resolved)

    def between(self, low: float, high: float) -> CriticalPoints:
        """Return the points of energies from `low` to `high`."""
        return self._take((self.energies >= low) & (self.energies <= high))

    def _take(self, rows: Tensor) -> CriticalPoints:
        names = ("points", "energies", "indices", "resolved", "radii", "unique", "found")
        values = None if self.values is None else self.values[rows]
        return replace(self, values=values, **{name: getattr(self, name)[rows] for name in names})

    def join(self, other: CriticalPoints) -> CriticalPoints:
        """Return what two searches of one landscape found together, so that one can go on.

        Raises:
            ValueError: If the numbers of spins differ.
        """
        if self.n != other.n:
            raise ValueError(f"one search had {self.n} spins and the other {other.n}")
        return merge([self, other])

    def __str__(self) -> str:
        """Say what was found, what was not, and how complete it may be."""
        if len(self) == 0 and self.proof:
            return f"no critical point here; {self.proof} ({self.cost})"
        if len(self) == 0:
            return (
                f"no critical point from {self.starts} starts ({self.flat} gradient-flat, "
                f"{self.lost} lost; {self.cost}); raise starts= or max_steps="
            )
        spread = ", ".join(f"{count} of index {k}" for k, count in self.counts.items())
        if len(self.counts) > 6:
            low, high = min(self.counts), max(self.counts)
            spread = f"indices {low} to {high}"
        unresolved = len(self) - int(self.resolved.sum())
        text = f"{len(self)} distinct critical points ({self.certificate})"
        text += f" from {self.starts} starts: " if self.starts else ": "
        text += spread + (f", {unresolved} of unresolved index" if unresolved else "")
        text += f"; energies {float(self.energies[0]):.4f} to {float(self.energies[-1]):.4f}"
        if self.proof:
            text += "; all there are: " if self.complete else "; NOT PROVEN COMPLETE: "
            text += self.proof
        if not self.starts:
            return f"{text} ({self.cost})"
        unseen = replace(self.unseen, cost=Cost())
        text += f"; {self.singletons} found once, so a new start is new with probability {unseen}"
        failed = [f"{self.flat} gradient-flat"] if self.flat else []
        failed += [f"{self.lost} lost"] if self.lost else []
        return text + (f"; {', '.join(failed)}" if failed else "") + f" ({self.cost})"

    def __rich__(self) -> Table:
        """Return a table by index."""
        table = Table(
            "index", "points", "lowest", "highest", "starts", title="Critical points", min_width=40
        )
        for index, count in self.counts.items():
            some = self.with_index(index)
            low, high = (float(some.energies[i]) for i in (0, -1))
            hits = int(some.found.sum())
            table.add_row(str(index), str(count), f"{low:.4f}", f"{high:.4f}", str(hits))
        table.caption = str(self).replace("[", "\\[")
        return table

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the columns as arrays, for a file."""
        names = ("points", "energies", "indices", "resolved", "radii", "unique", "found", "values")
        columns = {name: getattr(self, name) for name in names}
        return {
            name: column.cpu().numpy() for name, column in columns.items() if column is not None
        }

    def to_json(self) -> dict[str, Any]:
        """Return everything but points and eigenvalues, which `arrays` returns."""
        return {
            "type": "critical_points",
            "n": self.n,
            "distinct": len(self),
            **{
                name: getattr(self, name).tolist()
                for name in ("energies", "indices", "resolved", "radii", "found")
            },
            **{
                name: getattr(self, name)
                for name in ("starts", "flat", "lost", "certificate", "seed", "method")
            },
            "complete": self.complete,
            "proof": self.proof,
            "singletons": self.singletons,
            "unseen": self.unseen.to_json(),
            "cost": self.cost.to_json(),
        }


def merge(parts: list[CriticalPoints]) -> CriticalPoints:
    """Return the distinct points of several lists, each with how often it was found.

    Two proven points are one where the one lies within the radius in which the other is
    the only critical point. Where a part is complete and nothing is new beside it, so is the
    whole.
    """
    first = parts[0]
    whole = max(parts, key=lambda part: (part.complete, len(part)))
    columns = {
        name: torch.cat([getattr(part, name) for part in parts])
        for name in ("points", "energies", "indices", "resolved", "radii", "unique", "found")
    }
    order = columns["energies"].argsort(stable=True)
    columns = {name: column[order] for name, column in columns.items()}
    kept: list[int] = []
    hits: list[int] = []
    for row, times in enumerate(columns["found"].tolist()):
        if kept:
            away = torch.linalg.vector_norm(columns["points"][kept] - columns["points"][row], dim=1)
            reach = columns["unique"][kept].clamp(max=0.1) - columns["radii"][row]
            same = (away <= reach).nonzero()[:, 0]
            if len(same):
                hits[int(same[0])] += times
                continue
        kept.append(row)
        hits.append(times)
    values = [part.values for part in parts if part.values is not None]
    spectra = torch.cat(values)[order][kept] if len(values) == len(parts) else None
    columns = {name: column[kept] for name, column in columns.items()}
    columns["found"] = torch.tensor(hits, dtype=torch.int64)
    cost = sum((part.cost for part in parts), Cost())
    weakest = [part.certificate for part in parts if part.certificate != "certified"]
    return CriticalPoints(
        values=spectra,
        starts=sum(part.starts for part in parts),
        flat=sum(part.flat for part in parts),
        lost=sum(part.lost for part in parts),
        certificate=weakest[0] if weakest else "certified",
        cost=cost,
        seed=first.seed,
        method=first.method,
        complete=whole.complete and len(kept) == len(whole),
        proof=whole.proof if len(kept) == len(whole) else "",
        **columns,
    )
