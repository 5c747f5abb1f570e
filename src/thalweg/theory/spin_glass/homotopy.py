r"""All complex eigenvectors of symmetric tensors, with a proof that none is missing.

A tensor of order $p$ in $n$ dimensions with finitely many eigenvectors has
$((p-1)^n - 1)/(p-2)$ of them up to scale, counted with multiplicity ($n$ at $p = 2$): Cartwright
and Sturmfels 2013, theorem 1.2. As many simple ones with $\lambda \neq 0$, proven and proven to
differ, are therefore all: with 0 they reach Bézout's number of $T x^{p-1} = x$.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from thalweg.theory.spin_glass.certify import (
    Certificates,
    certify,
    distance_to_reals,
    distinct,
)
from thalweg.theory.spin_glass.model import SphericalPSpin
from thalweg.theory.spin_glass.tracking import DiagonalHomotopy, TensorBatch, track

__all__ = ["Classes", "Glass", "class_count", "eigenvector_classes", "energy_form"]

Glass = SphericalPSpin | Tensor | Mapping[int, Tensor]

TOLERANCES = (3e-3, 3e-4, 3e-5, 3e-6)  # of the attempts, one after another
NEARLY_REAL = 1e-5
ROUNDING = 1e-12


def _symmetrised(tensor: Any, degree: int) -> Any:
    """Average over all orders of the axes, to exactly equal entries."""
    orders = list(itertools.permutations(range(degree)))
    mean = np.mean([np.transpose(tensor, order) for order in orders], axis=0)
    key = np.sort(np.indices(mean.shape).reshape(degree, -1), axis=0)
    return mean[tuple(key)].reshape(mean.shape)


def _lifted(tensor: Any, degree: int) -> Any:
    r"""Multiply a form by powers of $|\sigma|^2/n$, which is 1, up to the degree."""
    order, n = tensor.ndim, tensor.shape[0]
    if (degree - order) % 2:
        raise ValueError(
            f"degrees {order} and {degree} do not mix here: only degrees of one parity make one "
            "homogeneous form on the sphere, such as 1 and 3 or 2 and 4; use find_critical_points"
        )
    for _ in range((degree - order) // 2):
        tensor = np.multiply.outer(tensor, np.eye(n)) / n
    return tensor


def energy_form(glass: Glass) -> Any:
    r"""Return the symmetric tensor $T$ with $H = \langle T, \sigma^p \rangle$ on the sphere.

    Args:
        glass: A spin glass, a symmetric tensor, or such tensors by degree.

    Raises:
        ValueError: If a tensor is not symmetric or finite, shapes differ, or degrees of both
            parities are mixed.
    """
    if isinstance(glass, SphericalPSpin):
        if glass.mixture is None:
            raise ValueError(
                "this spin glass was made from tensors; pass them as {degree: tensor} instead"
            )
        glass = {degree: glass.tensor(degree) for degree, _ in glass.mixture.amplitudes}
    if isinstance(glass, Tensor):
        glass = {glass.ndim: glass}
    forms = {d: t.detach().to("cpu", torch.float64).numpy() for d, t in glass.items()}
    degree = max(forms, default=0)
    if degree < 2:
        raise ValueError(f"a spin glass needs a tensor of degree at least 2, got {sorted(forms)}")
    n = len(forms[degree])
    total = np.zeros((n,) * degree)
    for order, tensor in forms.items():
        if tensor.shape != (n,) * order or n < 2:
            raise ValueError(
                f"a tensor of degree {order} has shape (n,) * {order} with n of at least 2, the "
                f"same for all degrees, not {tensor.shape}"
            )
        if not np.isfinite(tensor).all():
            raise ValueError(f"the tensor of degree {order} is not finite")
        symmetric = _symmetrised(tensor, order)
        if np.abs(symmetric - tensor).max() > ROUNDING * np.abs(tensor).max():
            raise ValueError(
                f"the tensor of degree {order} is not symmetric: it differs from its mean over all "
                f"orders of its axes by {np.abs(symmetric - tensor).max():.3g}; pass that mean"
            )
        total += _symmetrised(_lifted(symmetric, degree), degree)
    return total


def class_count(n: int, p: int) -> int:
    """Return the number of complex eigenvectors of a generic symmetric tensor, up to scale.

    Args:
        n: The dimension.
        p: The order.

    Example:
        >>> class_count(8, 3), class_count(8, 4), class_count(8, 2)
        (255, 3280, 8)
    """
    return sum((p - 1) ** k for k in range(n))


def start_classes(n: int, p: int) -> Complex[np.ndarray, "classes n"]:
    r"""Return one solution of $x_i^{p-1} = x_i$ per class up to scale, without 0.

    Each coordinate is 0 or a root of unity of order $p - 2$; the first that is not 0 is 1.
    """
    roots = np.exp(2j * np.pi * np.arange(p - 2) / (p - 2))
    rows = []
    for first in range(n):
        for tail in itertools.product(range(p - 1), repeat=n - first - 1):
            rest = [0 if k == 0 else roots[k - 1] for k in tail]
            rows.append([0] * first + [1] + rest)
    return np.array(rows, dtype=complex)


@dataclass(frozen=True)
class Classes:
    """The eigenvectors of one tensor that were found, each proven and all proven to differ.

    Args:
        real: Those proven to be real.
        complex: Those proven not to be.
        undecided: How many are neither.
        vanishing: How many have an eigenvalue that may be 0.
        expected: How many a generic tensor has.
        attempts: How many times the homotopy was followed, each with fresh phases.
        paths: How many paths were followed, and how many of them did not arrive.
        steps: How many steps were tried.
    """

    real: Certificates
    complex: Certificates
    undecided: int
    vanishing: int
    expected: int
    attempts: int
    paths: int
    lost: int
    steps: int

    @property
    def found(self) -> int:
        """How many classes are proven, real or not."""
        return len(self.real.value) + len(self.complex.value) + self.undecided


def _ends(
    tensors: TensorBatch, rngs: list[np.random.Generator], tolerance: float
) -> tuple[Any, Any, Any, Any, Any]:
    """Follow all paths to the tensors once, from fresh diagonal tensors in rotated axes."""
    n, p, count = tensors.n, tensors.p, tensors.samples
    phases = np.exp(2j * np.pi * np.array([rng.random(n) for rng in rngs]))
    turns = np.array([np.linalg.qr(rng.standard_normal((n, n)))[0] for rng in rngs])
    homotopy = DiagonalHomotopy(tensors.rotated(turns), phases)
    unit = start_classes(n, p)
    sample = np.repeat(np.arange(count), len(unit))
    # phase x^(p-1) = x where x = phase^(-1/(p-2)) times a solution of x^(p-1) = x
    x = (unit[None] * (phases ** (-1 / (p - 2)))[:, None, :]).reshape(-1, n)
    length = np.linalg.norm(x, axis=1)
    ends = track(
        homotopy,
        x / length[:, None],
        (length ** -(p - 2)).astype(complex),
        sample,
        tolerance=tolerance,
    )
    back = np.einsum("kj,kji->ki", ends.x, turns[sample])  # x = rotation^T y
    return back, ends.value, sample, ends.arrived, ends.steps


def _certified(tensors: TensorBatch, x: Any, value: Any, sample: Any) -> Certificates:
    """Prove eigenvectors; those that seem real are proven in real arithmetic where possible."""
    out = certify(tensors, x, value, sample)
    away, turned = distance_to_reals(out.x)
    near = np.flatnonzero(out.proven & (away < NEARLY_REAL))
    turned = turned[near]
    turn = np.sum(turned.conj() * out.x[near], axis=1)  # x = turn * turned, so that
    rotated = out.value[near] / turn ** (tensors.p - 2)  # turned has this eigenvalue
    real = certify(tensors, turned.real, rotated.real, sample[near])
    good = real.proven
    x, value = out.x.copy(), out.value.copy()
    radius, unique = out.radius.copy(), out.unique.copy()
    rows = near[good]
    x[rows], value[rows] = real.x[good], real.value[good]
    radius[rows], unique[rows] = real.radius[good], real.unique[good]
    return Certificates(x, value, radius, unique)


def _join(first: Certificates | None, second: Certificates) -> Certificates:
    """Put two sets of one tensor together, and leave out what may be there twice."""
    if first is not None:
        both = [(getattr(first, f), getattr(second, f)) for f in ("x", "value", "radius", "unique")]
        second = Certificates(*(np.concatenate(pair) for pair in both))
    return second.take(distinct(second))


def _with_conjugates(found: Certificates) -> Certificates:
    """Add the conjugates: of a real tensor they are eigenvectors too, with the same proof."""
    conjugate = Certificates(found.x.conj(), found.value.conj(), found.radius, found.unique)
    return _join(found, conjugate)


def _sort(found: Certificates, p: int, **counts: int) -> Classes:
    """Divide the eigenvectors by whether they are real."""
    away, _ = distance_to_reals(found.x)
    # a ball with a real centre holds the conjugate of its only zero too, which is thus real
    real = np.all(found.x.imag == 0, axis=1) & (found.value.imag == 0)
    apart = ~real & (away > 2 * found.radius + 1e-13)
    vanishing = int(np.sum(np.abs(found.value) <= 2 * found.radius)) if p > 2 else 0
    one = found.take(real)
    return Classes(
        Certificates(one.x.real, one.value.real, one.radius, one.unique),
        found.take(apart),
        int(np.sum(~real & ~apart)),
        vanishing,
        **counts,
    )


def eigenvector_classes(
    tensors: Float[np.ndarray, " samples *axes"],
    rngs: list[np.random.Generator],
    *,
    attempts: int = len(TOLERANCES),
) -> list[Classes]:
    """Find all eigenvectors of symmetric tensors up to scale.

    Paths that arrive together, or not at all, leave classes missing. A tensor with missing
    classes is followed again with fresh phases, fresh axes and a tenth of the tolerance, and
    everything that was proven is put together.

    Args:
        tensors: `(S, n, ..., n)` with `p` axes of length n, symmetric.
        rngs: What draws the phases and axes of each tensor.
        attempts: How many times at most, 4 by default.

    Returns:
        What was found for each tensor; check `found` against `expected`.
    """
    n, p, count = tensors.shape[1], tensors.ndim - 1, len(tensors)
    expected = class_count(n, p)
    kept: dict[int, Certificates] = {}
    tally = {name: np.zeros(count, dtype=int) for name in ("attempts", "paths", "lost", "steps")}
    left = np.arange(count)
    for attempt in range(attempts):
        batch = TensorBatch(tensors[left])
        tolerance = TOLERANCES[min(attempt, len(TOLERANCES) - 1)]
        if p == 2:
            x, value, sample, arrived, steps = _spectral(tensors[left])
        else:
            x, value, sample, arrived, steps = _ends(batch, [rngs[k] for k in left], tolerance)
        certificates = _certified(batch, x[arrived], value[arrived], sample[arrived])
        missing = []
        for local, k in enumerate(left.tolist()):
            mine = _join(kept.get(k), certificates.take(sample[arrived] == local))
            mine = mine if len(mine.value) >= expected else _with_conjugates(mine)
            kept[k] = mine
            tally["attempts"][k] += 1
            tally["paths"][k] += int(np.sum(sample == local))
            tally["lost"][k] += int(np.sum(~arrived[sample == local]))
            tally["steps"][k] += int(np.sum(steps[sample == local]))
            if len(mine.value) < expected:
                missing.append(k)
        left = np.array(missing, dtype=int)
        if not len(left) or p == 2:
            break
    return [
        _sort(kept[k], p, expected=expected, **{name: int(t[k]) for name, t in tally.items()})
        for k in range(count)
    ]


def _spectral(matrices: Any) -> tuple[Any, Any, Any, Any, Any]:
    """Return the eigenvectors of matrices, in the form of the ends of paths."""
    count, n, _ = matrices.shape
    value, vectors = np.linalg.eigh(matrices)
    sample: Int[np.ndarray, " paths"] = np.repeat(np.arange(count), n)
    x = vectors.transpose(0, 2, 1).reshape(-1, n).astype(complex)
    arrived, steps = np.ones(len(x), dtype=bool), np.zeros(len(x), dtype=int)
    return x, value.reshape(-1).astype(complex), sample, arrived, steps
