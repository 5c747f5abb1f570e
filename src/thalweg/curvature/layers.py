"""Curvature layer by layer, from products that serve all layers at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from scipy.special import gammaincc
from torch import Tensor

from thalweg.curvature.blocks import block_traces, coordinates
from thalweg.curvature.lanczos import Tridiagonal
from thalweg.curvature.measure import Companions, chains_beside
from thalweg.curvature.operator import LinearOperator
from thalweg.estimate import Bound, Cost, Estimate
from thalweg.landscape.seeding import Seed, make_generator
from thalweg.landscape.spec import ParameterSpec

__all__ = [
    "Groups",
    "LayerCurvature",
    "costless",
    "extreme",
    "group_starts",
    "layer_curvature",
    "make_groups",
    "measured_groups",
    "missed",
]

Groups = Mapping[str, Int[Tensor, " _"]]
"""Names of parts of the flat vector, to the coordinates that belong to them."""

_MISSED = 1e-4


@dataclass(frozen=True)
class LayerCurvature:
    r"""The curvature of one layer's own parameters, the others held fixed.

    Attributes:
        name: The layer, or the pattern of names.
        size: How many parameters it has.
        trace: The trace of its diagonal block of the matrix.
        top: A bracket on the block's largest eigenvalue. The lower end is attained by a
            direction within the layer; above the upper end there is none but with a
            probability of 1e-4 over the random start.
    """

    name: str
    size: int
    trace: Estimate
    top: Bound

    def __str__(self) -> str:
        """Return one line."""
        return (
            f"{self.name}: {self.size} parameters, trace {costless(self.trace)}, "
            f"largest eigenvalue in [{self.top.lower:.6g}, {self.top.upper:.6g}]"
        )

    def __rich__(self) -> str:
        """Return the same for a terminal."""
        return str(self).replace("[", "\\[")

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary."""
        return {
            "type": "layer curvature",
            "name": self.name,
            "size": self.size,
            "trace": self.trace.to_json(),
            "top": self.top.to_json(),
        }


def costless(estimate: Estimate) -> str:
    """Return an estimate as text that leaves the cost to the table it is part of."""
    return str(replace(estimate, cost=Cost()))


def layer_curvature(
    operator: LinearOperator,
    groups: ParameterSpec | Groups,
    *,
    samples: int = 32,
    steps: int = 30,
    level: float = 0.95,
    memory: int | str = "2 GiB",
    seed: Seed = None,
) -> tuple[LayerCurvature, ...]:
    r"""Measure the trace and the largest eigenvalue of every layer's diagonal block.

    All layers share each sweep over the data: the traces come from the same random signs,
    $\operatorname{tr} A_{ll} = \mathbb{E}\, z_l^\top (A z)_l$, and the eigenvalues from one
    Lanczos chain per layer, $P_l A P_l$, whose vectors travel together.

    Args:
        operator: The Hessian, or any symmetric operator.
        groups: The spec of the landscape (one group per layer), or names to coordinates,
            such as ``make_groups(land.spec, ["blocks.0.*", "head.*"])``.
        samples: Random sign vectors for the traces; at least 32.
        steps: Lanczos steps per layer, one sweep over the data each.
        level: Nominal coverage of the traces' intervals.
        memory: The cap on what the chains keep.
        seed: An int, a generator, or None for fresh entropy; recorded in the results.

    Returns:
        One result per layer, in the order of `groups`.

    Raises:
        ValueError: If a group is empty or its coordinates are out of range.
        FloatingPointError: If a product is not finite.

    Example:
        >>> import torch
        >>> from thalweg.curvature import MatrixOperator
        >>> A = MatrixOperator(torch.diag(torch.arange(1.0, 9.0, dtype=torch.float64)))
        >>> spec = ParameterSpec({"one.weight": (3,), "two.weight": (5,)})
        >>> for layer in layer_curvature(A, spec, seed=0):
        ...     print(layer.name, round(layer.trace.value, 9), round(layer.top.lower, 9))
        one 6.0 3.0
        two 30.0 8.0
    """
    chosen = make_groups(groups) if isinstance(groups, ParameterSpec) else dict(groups)
    generator, number = make_generator(seed)
    before = operator.cost
    found = block_traces(
        operator, chosen, samples=samples, overlapping=True, level=level, seed=generator
    )
    traces = {name: replace(one, seed=number) for name, one in found.items()}
    chains = chains_beside(operator, group_starts(operator, chosen, generator), steps, memory)
    return measured_groups(chosen, traces, chains, operator.cost - before)


def make_groups(spec: ParameterSpec, patterns: Sequence[str] | None = None) -> Groups:
    """Return the coordinates of every layer, or of every name pattern.

    Args:
        spec: The landscape's spec.
        patterns: Shell-style patterns of tensor names, one group each; by default one
            group per layer (the module that owns the tensors).

    Returns:
        Name to coordinates. A lone parameter of the root module is the group ``"(root)"``.

    Raises:
        ValueError: If a pattern matches nothing.

    Example:
        >>> spec = ParameterSpec({"a.weight": (2,), "a.bias": (1,), "b.bias": (1,)})
        >>> {name: where.tolist() for name, where in make_groups(spec).items()}
        {'a': [0, 1, 2], 'b': [3]}
        >>> {name: where.tolist() for name, where in make_groups(spec, ["*.bias"]).items()}
        {'*.bias': [2, 3]}
    """
    if patterns is not None:
        return {pattern: spec.mask(pattern).nonzero()[:, 0] for pattern in patterns}
    ids = spec.layer_ids
    found = {name or "(root)": (ids == i).nonzero()[:, 0] for i, name in enumerate(spec.layers)}
    return {name: where for name, where in found.items() if len(where)}


def group_starts(
    operator: LinearOperator, groups: Groups, generator: torch.Generator
) -> Companions:
    """Draw one random start within each group.

    Args:
        operator: The operator whose blocks are wanted.
        groups: Names to coordinates.
        generator: What draws the starts.

    Returns:
        The starts, for chains that stay within their groups.

    Raises:
        ValueError: If a group is empty or its coordinates are out of range.
    """
    parts = coordinates(groups, operator.dim, operator.device, overlapping=True)
    values = tuple(
        torch.randn(len(where), generator=generator, dtype=torch.float64)
        for where in parts.values()
    )
    return Companions(tuple(parts.values()), values)


def measured_groups(
    groups: Groups,
    traces: Mapping[str, Estimate],
    chains: Sequence[Tridiagonal],
    cost: Cost,
) -> tuple[LayerCurvature, ...]:
    """Put the traces and the chains of some groups together."""
    return tuple(
        LayerCurvature(name, len(where), traces[name], extreme([chain], len(where), cost=cost))
        for (name, where), chain in zip(groups.items(), chains, strict=True)
    )


def extreme(
    chains: Sequence[Tridiagonal],
    dim: int,
    *,
    largest: bool = True,
    cost: Cost | None = None,
) -> Bound:
    r"""Bracket the largest (or smallest) eigenvalue from chains with random starts.

    The extreme Ritz value is attained by a vector, so the eigenvalue lies at or beyond it.
    Beyond $x$ an eigenvalue could only hide where every start $q$ is all but orthogonal to
    its eigenvector: its weight is at most the Christoffel number $\mu(x)$ of the chain, and
    a random direction in $n$ dimensions has so small a weight with a probability of at
    most $p = \sqrt{2 n \mu(x) / \pi}$. The product of these over $m$ chains is no
    probability itself, for it is small whenever $m$ is large; that it is as small as it is
    has the probability $\Gamma(m, -\sum \log p) / \Gamma(m)$ (Fisher's combination). The far
    end of the bracket is where that is 1e-4.

    Args:
        chains: Chains whose starts are uniformly random directions in the same space.
        dim: The dimension of that space.
        largest: Which end.
        cost: What to record as the price.

    Returns:
        The bracket: its near end ``certified``, its far end ``estimated``.

    References:
        R. Fisher (1925), Statistical methods for research workers, §21.1.
    """
    sign = 1.0 if largest else -1.0
    nodes = torch.cat([sign * chain.nodes for chain in chains])
    near, size = float(nodes.max()), float(nodes.abs().max())
    rounding = max(chain.rounding for chain in chains)

    def hidden(x: float) -> float:
        return _log_missed(chains, dim, sign * x)

    far = _first(hidden, near, max(size, 1e-300))
    low, high = near - rounding, far + rounding
    cost = cost or Cost()
    method = f"Lanczos, {len(chains)} random starts, far end missed with probability {_MISSED:g}"
    if largest:
        return Bound(low, high, "certified", "estimated", cost, method)
    return Bound(-high, -low, "estimated", "certified", cost, method)


def missed(chains: Sequence[Tridiagonal], dim: int, bound: float) -> float:
    """Bound the probability that an eigenvalue above all nodes and `bound` was missed.

    Args:
        chains: Chains whose starts are uniformly random directions in the same space.
        dim: The dimension of that space.
        bound: Where such an eigenvalue would lie at the least.

    Returns:
        The bound of `extreme`; 1 where it says nothing, such as where a node lies above.
    """
    if any(float(chain.nodes.max()) >= bound for chain in chains):
        return 1.0
    return math.exp(_log_missed(chains, dim, bound))


def _log_missed(chains: Sequence[Tridiagonal], dim: int, x: float) -> float:
    total = 0.0
    for chain in chains:
        weight = chain.largest_atom(x)
        if weight <= 0.0:
            return -math.inf
        total += min(0.0, 0.5 * math.log(2 * dim * weight / math.pi))
    chance = float(gammaincc(len(chains), -total))
    return math.log(chance) if chance else -math.inf


def _first(hidden: Callable[[float], float], near: float, size: float) -> float:
    """Return the first point beyond `near` where the probability is small enough."""
    goal, step = math.log(_MISSED), 1e-12 * size
    while hidden(near + step) > goal:
        step *= 2
        if step > 1e6 * size:
            return math.inf
    low, high = near + step / 2 if step > 1e-12 * size else near, near + step
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if hidden(middle) > goal else (low, middle)
    return high
