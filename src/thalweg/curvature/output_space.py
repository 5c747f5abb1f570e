r"""What stands between $J^\top$ and $J$: positive semidefinite maps of one batch's outputs.

Every matrix of the Gauss-Newton family is $J^\top M J$ with $J$ the derivative of the outputs
in the parameters; they differ in $M$, which is small, knows no parameters and splits into
blocks, one per example.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

if TYPE_CHECKING:  # asking at run time whether something is a Batch would compute its outputs
    from thalweg.landscape.protocols import Batch

__all__ = [
    "Autograd",
    "Diagonal",
    "Likelihood",
    "Middle",
    "RankOne",
    "Sampled",
    "Softmax",
    "Zero",
    "convex",
    "recognise",
    "sampled",
]

Likelihood = Literal["categorical", "bernoulli", "gaussian"]

_DENSE_OUTPUTS = 256
_DENSE_NUMBERS = 2**24


class Middle(ABC):
    r"""A map $M = S S^\top$ on one batch's outputs, with one block $S_i$ per example.

    Attributes:
        columns: How many columns the widest $S_i$ has; None where $S$ is not known, or the
            outputs are not one row per example.
    """

    def __init__(self, batch: Batch) -> None:
        flat, self._structure = tree_flatten(batch.outputs)
        self._outputs: list[Tensor] = flat
        self._examples = len(batch.indices)
        self.columns: int | None = None
        if batch.separable:
            self.columns = self._count()

    def _count(self) -> int | None:
        return sum(part.numel() for part in self._outputs) // self._examples

    def apply(self, tangent: Any) -> Any:
        """Return $M t$ for one tangent of the outputs' structure."""
        parts = self._apply(tree_flatten(tangent)[0])
        return tree_unflatten(parts, self._structure)

    def combine(self, coefficients: Float[Tensor, "examples columns"]) -> Any:
        r"""Return $S z$, a cotangent, for the coefficients $z_i$ of every example."""
        return tree_unflatten(self._combine(coefficients), self._structure)

    @abstractmethod
    def _apply(self, tangent: list[Tensor]) -> list[Tensor]:
        """Return the product with a flat tangent."""

    @abstractmethod
    def _combine(self, coefficients: Tensor) -> list[Tensor]:
        """Return the factor's product, flat."""


class Zero(Middle):
    """Nothing: the map of examples that have no weight."""

    def _count(self) -> int:
        return 0

    def _apply(self, tangent: list[Tensor]) -> list[Tensor]:
        return [torch.zeros_like(part) for part in tangent]

    def _combine(self, coefficients: Tensor) -> list[Tensor]:
        return [torch.zeros_like(part) for part in self._outputs]


class Softmax(Middle):
    r"""$a_s (\operatorname{diag} p_s - p_s p_s^\top)$ at every site $s$ (an example, a token).

    Its factor is $S_s = \sqrt{a_s} (\operatorname{diag} \sqrt{p_s} - p_s \sqrt{p_s}^\top)$.

    Args:
        batch: The batch, whose outputs are one tensor of logits.
        weights: The sites' weights $a_s$, with an axis of length one for the classes.
        axis: The axis of the classes.
    """

    def __init__(self, batch: Batch, weights: Tensor, axis: int) -> None:
        super().__init__(batch)
        self.weights, self.axis = weights, axis
        self.probabilities = self._outputs[0].softmax(axis)

    def _apply(self, tangent: list[Tensor]) -> list[Tensor]:
        p, (t,) = self.probabilities, tangent
        mean = (p * t).sum(self.axis, keepdim=True)
        return [self.weights * p * (t - mean)]

    def _combine(self, coefficients: Tensor) -> list[Tensor]:
        p, z = self.probabilities, coefficients.reshape(self.probabilities.shape)
        root = p.sqrt()
        mean = (root * z).sum(self.axis, keepdim=True)
        return [self.weights.sqrt() * (root * z - p * mean)]


class Diagonal(Middle):
    """A diagonal map: independent outputs.

    Args:
        batch: The batch, whose outputs are one tensor.
        entries: The diagonal, in the shape of the outputs.
    """

    def __init__(self, batch: Batch, entries: Tensor) -> None:
        super().__init__(batch)
        self.entries = entries

    def _apply(self, tangent: list[Tensor]) -> list[Tensor]:
        return [self.entries * tangent[0]]

    def _combine(self, coefficients: Tensor) -> list[Tensor]:
        return [self.entries.sqrt() * coefficients.reshape(self.entries.shape)]


class Sampled(Middle):
    r"""$\frac{a_s}{K} \sum_k (p_s - e_{y_{sk}})(p_s - e_{y_{sk}})^\top$ for sampled classes.

    Args:
        exact: The map whose classes are sampled.
        batch: The batch.
        samples: How many classes $K$ are drawn at every site.
        generator: What draws them.
    """

    def __init__(
        self, exact: Softmax, batch: Batch, samples: int, generator: torch.Generator
    ) -> None:
        self._samples = samples
        self._p = exact.probabilities.movedim(exact.axis, -1)
        self._a = exact.weights.movedim(exact.axis, -1)
        self._axis = exact.axis
        super().__init__(batch)
        classes = self._p.shape[-1]
        table = self._p.reshape(-1, classes).to("cpu", torch.float64)
        drawn = torch.multinomial(table, samples, replacement=True, generator=generator)
        self._drawn = drawn.reshape(*self._p.shape[:-1], samples).to(self._p.device)

    def _count(self) -> int:
        return self._samples * self._p[..., 0].numel() // self._examples

    def _spread(self, z: Tensor) -> Tensor:
        r"""Return $\sum_k z_k (p - e_{y_k})$ at every site."""
        return (self._p * z.sum(-1, keepdim=True)).scatter_add(-1, self._drawn, -z)

    def _apply(self, tangent: list[Tensor]) -> list[Tensor]:
        t = tangent[0].movedim(self._axis, -1)
        forms = (self._p * t).sum(-1, keepdim=True) - t.gather(-1, self._drawn)
        return [(self._a / self._samples * self._spread(forms)).movedim(-1, self._axis)]

    def _combine(self, coefficients: Tensor) -> list[Tensor]:
        z = coefficients.reshape(self._drawn.shape)
        return [((self._a / self._samples).sqrt() * self._spread(z)).movedim(-1, self._axis)]


class RankOne(Middle):
    r"""$\frac{w_i}{W} s_i s_i^\top$ with $s_i$ the gradient of example $i$'s loss in its outputs.

    Args:
        batch: The batch.

    Raises:
        ValueError: If the examples of the batch are not independent.
    """

    def __init__(self, batch: Batch) -> None:
        own = batch.weights
        super().__init__(batch)
        if self.columns is None:
            shapes = [tuple(part.shape) for part in self._outputs]
            raise ValueError(
                f"the outputs of {self._examples} examples have shapes {shapes}, which are not one "
                "row per example, so an example has no gradient of its own; let the network keep "
                "the first axis for the examples"
            )
        slopes = tree_flatten(batch.loss_gradient())[0]
        share = torch.where(own > 0, own / batch.weight, 1.0)
        root = torch.where(own > 0, share.rsqrt(), 0.0)  # slopes carry a factor of the share
        self._rows = [root.to(s).reshape(-1, *[1] * (s.ndim - 1)) * s for s in slopes]

    def _count(self) -> int:
        return 1

    def _apply(self, tangent: list[Tensor]) -> list[Tensor]:
        forms = torch.stack(
            [
                (row * part).reshape(self._examples, -1).sum(1)
                for row, part in zip(self._rows, tangent, strict=True)
            ]
        ).sum(0)
        return self._combine(forms[:, None])

    def _combine(self, coefficients: Tensor) -> list[Tensor]:
        return [coefficients.reshape(-1, *[1] * (r.ndim - 1)) * r for r in self._rows]


class Autograd(Middle):
    """The Hessian of any loss in the outputs; its factor by eigenvectors where blocks are small.

    Args:
        batch: The batch.
    """

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self._factor: list[Tensor] = []
        super().__init__(batch)

    def apply(self, tangent: Any) -> Any:
        """Return $M t$ for one tangent of the outputs' structure."""
        return self._batch.loss_hvp(tangent)

    def _apply(self, tangent: list[Tensor]) -> list[Tensor]:
        return tree_flatten(self.apply(tree_unflatten(tangent, self._structure)))[0]

    def _count(self) -> int | None:
        width = super()._count()
        small = width is not None and width <= _DENSE_OUTPUTS
        if not small or width is None or width**2 * self._examples > _DENSE_NUMBERS:
            return None
        values, vectors = torch.linalg.eigh(self._blocks(width))
        noise = 100 * width * torch.finfo(values.dtype).eps * float(values.abs().max())
        if float(values.min()) < -noise:
            return None
        used = (values > noise).any(0)
        roots = vectors[:, :, used] * values[:, used].clamp_min(0).sqrt()[:, None, :]
        sizes = [part.numel() // self._examples for part in self._outputs]
        self._factor = list(torch.split_with_sizes(roots, sizes, dim=1))
        return int(used.sum())

    def _blocks(self, width: int) -> Tensor:
        """Return every example's Hessian, `(examples, width, width)`."""
        columns = []
        for c in range(width):
            unit = self._outputs[0].new_zeros(self._examples, width)
            unit[:, c] = 1
            sizes = [part.numel() // self._examples for part in self._outputs]
            pieces = torch.split_with_sizes(unit, sizes, dim=1)
            tangent = [
                piece.reshape(part.shape) for piece, part in zip(pieces, self._outputs, strict=True)
            ]
            found = self._apply(tangent)
            columns.append(torch.cat([f.reshape(self._examples, -1) for f in found], dim=1))
        blocks = torch.stack(columns, dim=2)
        return (blocks + blocks.mT) / 2

    def _combine(self, coefficients: Tensor) -> list[Tensor]:
        return [
            (factor @ coefficients[:, :, None]).reshape(part.shape)
            for factor, part in zip(self._factor, self._outputs, strict=True)
        ]


def recognise(
    batch: Batch, likelihood: Likelihood | None = None
) -> tuple[Likelihood, Middle] | None:
    r"""Recognise a loss's Hessian in the outputs as that of a likelihood, by numbers.

    The Hessian is compared with $a_s B(f)$, where $B$ is that of the likelihood and $a_s$ any
    weights of the sites that do not depend on the outputs: read off at outputs of zero,
    checked at random outputs and at the network's own.

    Args:
        batch: Examples with outputs and a loss.
        likelihood: The only one to try; None tries all.

    Returns:
        Its name and the map, or None if no likelihood (or not this one) agrees.
    """
    flat, structure = tree_flatten(batch.outputs)
    if len(flat) != 1 or not isinstance(flat[0], Tensor) or not flat[0].is_floating_point():
        return None
    f = flat[0]
    tries: list[tuple[Likelihood, int]] = [
        ("categorical", axis) for axis in (-1, 1)[: f.ndim - 1] if f.shape[axis] > 1
    ]
    tries += [("bernoulli", 0), ("gaussian", 0)]
    for name, axis in tries:
        if likelihood in (None, name):
            weights = _site_weights(batch, f, structure, name, axis)
            if weights is None:
                continue
            if name == "categorical":
                return name, Softmax(batch, weights, axis)
            entries = _curvature(name, f, torch.ones_like(f), axis)
            return name, Diagonal(batch, weights * entries)
    return None


def sampled(
    batch: Batch, found: tuple[Likelihood, Middle], samples: int, generator: torch.Generator
) -> Middle:
    """Return the map with targets drawn from the likelihood, whose expectation is the exact one.

    Every site draws for itself and no product mixes two sites.
    """
    name, exact = found
    if isinstance(exact, Softmax):
        return Sampled(exact, batch, samples, generator)
    assert isinstance(exact, Diagonal)
    f = tree_flatten(batch.outputs)[0][0]
    squares = torch.zeros(f.shape, dtype=torch.float64)
    if name == "gaussian":
        for _ in range(samples):
            squares += torch.randn(f.shape, generator=generator, dtype=torch.float64).square()
        return Diagonal(batch, exact.entries * (squares / samples).to(f))
    p = f.sigmoid().to("cpu", torch.float64)
    for _ in range(samples):
        ones = torch.rand(f.shape, generator=generator, dtype=torch.float64) < p
        squares += (p - ones.double()).square()
    variance = p * (1 - p)
    ratio = torch.where(variance > 0, squares / samples / variance, 1.0)
    return Diagonal(batch, exact.entries * ratio.to(f))


def _curvature(name: Likelihood, f: Tensor, t: Tensor, axis: int) -> Tensor:
    """Return the Hessian of one site's negative log-likelihood times a tangent."""
    if name == "gaussian":
        return t
    if name == "bernoulli":
        return f.sigmoid() * (-f).sigmoid() * t
    p = f.softmax(axis)
    return p * (t - (p * t).sum(axis, keepdim=True))


def _site_weights(
    batch: Batch, f: Tensor, structure: Any, name: Likelihood, axis: int
) -> Tensor | None:
    """Return the weights of the sites, or None if the loss is not of this form."""
    generator = torch.Generator().manual_seed(0)
    tolerance = min(10 * math.sqrt(torch.finfo(f.dtype).eps), 0.1)

    def hessian(at: Tensor, t: Tensor) -> Tensor:
        given = (tree_unflatten([part], structure) for part in (t, at))
        product: Tensor = tree_flatten(batch.loss_hvp(next(given), outputs=next(given)))[0][0]
        return product

    def random() -> Tensor:
        return torch.randn(f.shape, generator=generator).to(f)

    start = torch.zeros_like(f)
    probe = torch.ones_like(f)
    if name == "categorical":
        probe = probe.movedim(axis, -1).contiguous()
        probe[..., 1::2] = -1
        probe = probe.movedim(-1, axis)
    try:
        measured = probe * hessian(start, probe)
        expected = probe * _curvature(name, start, probe, axis)
        if name == "categorical":
            measured, expected = (x.sum(axis, keepdim=True) for x in (measured, expected))
        weights = measured / expected
        for at in (random(), f):
            t = random()
            gap = hessian(at, t) - weights * _curvature(name, at, t, axis)
            scale = float((weights.abs() * t.abs()).max())
            if not float(gap.abs().max()) <= tolerance * scale:
                return None
    except (RuntimeError, ValueError, AssertionError):  # the loss may refuse such outputs
        return None
    if (
        not bool((weights >= -tolerance * weights.abs().max()).all())
        or not float(weights.max()) > 0
    ):
        return None
    return weights.clamp_min(0)


def convex(batch: Batch) -> tuple[float, bool]:
    """Return the worst sign of the loss's Hessian on random tangents, and whether it vanishes.

    Returns:
        The least $t^T M t / (|t| |M t|)$ over tangents of all examples and of single ones, and
        whether every $M t$ was zero.
    """
    outputs = batch.outputs
    generator = torch.Generator().manual_seed(0)
    flat = tree_flatten(outputs)[0]
    count = 32 if sum(part.numel() for part in flat) < 10**6 else 8
    worst, zero = math.inf, True
    for number in range(count):

        def draw(part: Tensor, only: int = number) -> Tensor:
            t = torch.randn(part.shape, generator=generator).to(part)
            if only >= 4 and part.ndim:
                kept = torch.zeros_like(t)
                kept[only % len(t)] = t[only % len(t)]
                return kept
            return t

        tangent = tree_map(draw, outputs)
        product = batch.loss_hvp(tangent)
        pairs = list(zip(tree_flatten(tangent)[0], tree_flatten(product)[0], strict=True))
        form = sum(float((t.double() * m.double()).sum()) for t, m in pairs)
        length, moved = (
            math.sqrt(sum(float(pair[side].double().square().sum()) for pair in pairs))
            for side in (0, 1)
        )
        if moved != 0:  # NaN too
            zero = False
            worst = min(worst, form / (length * moved))
    return worst, zero
