r"""Follow the eigenvectors of a symmetric tensor along a homotopy, many paths at once.

The eigenvectors of a tensor $T$ of order $p$ are the classes of complex $x \neq 0$, up to scale,
with $T x^{p-1} = \lambda x$. `track` follows them from a diagonal tensor, where they are known,
to $T$; `TensorBatch` does the contractions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Complex, Float, Int, Num

__all__ = ["DiagonalHomotopy", "Ends", "TensorBatch", "track"]

SMALLEST_STEP = 1e-10
MOST_STEPS = 2000


class TensorBatch:
    r"""Symmetric real tensors of one shape, ready to be contracted with many vectors.

    Args:
        tensors: `(S, n, ..., n)` with `p` axes of length n; symmetric, which is not checked here.

    Example:
        >>> batch = TensorBatch(np.eye(2)[None])
        >>> batch.contract(np.array([[3.0, 4.0]]), np.array([0]))
        array([[[1., 0.],
                [0., 1.]]])
    """

    def __init__(self, tensors: Float[np.ndarray, " samples *axes"]) -> None:
        self.samples, self.n, self.p = len(tensors), tensors.shape[1], tensors.ndim - 1
        self.full = tensors
        self._flat = np.ascontiguousarray(tensors.reshape(self.samples, -1, self.n**2))
        self.norms: Float[np.ndarray, " samples"] = np.linalg.norm(
            tensors.reshape(self.samples, -1), axis=1
        )

    def contract(
        self, x: Num[np.ndarray, "paths n"], sample: Int[np.ndarray, " paths"]
    ) -> Num[np.ndarray, "paths n n"]:
        r"""Return the matrices $T x^{p-2}$.

        Args:
            x: One vector per path, real or complex.
            sample: The tensor of each path, in rising order.
        """
        power = np.ones((len(x), 1), dtype=x.dtype)
        for k in range(1, self.p - 1):
            power = (power[:, :, None] * x[:, None, :]).reshape(len(x), self.n**k)
        out = np.empty((len(x), self.n**2), dtype=x.dtype)
        ends = np.searchsorted(sample, np.arange(self.samples + 1))
        parts = ("real", "imag") if np.iscomplexobj(x) else ("real",)
        for k in np.flatnonzero(np.diff(ends)).tolist():
            rows = slice(ends[k], ends[k + 1])
            for part in parts:
                getattr(out, part)[rows] = getattr(power, part)[rows] @ self._flat[k]
        return out.reshape(len(x), self.n, self.n)

    def rotated(self, rotations: Float[np.ndarray, "samples n n"]) -> TensorBatch:
        """Return the tensors in the coordinates ``y = rotation @ x``."""
        turned = self.full
        for _ in range(self.p):  # each pass turns the first axis and puts it last
            turned = np.moveaxis(turned, 1, -1) @ rotations.transpose(0, 2, 1).reshape(
                self.samples, *(1,) * (self.p - 2), self.n, self.n
            )
        return TensorBatch(turned)


@dataclass(frozen=True)
class DiagonalHomotopy:
    r"""The tensors $T_t = (1 - t) \sum_i c_i e_i^{\otimes p} + t T$, with complex phases $c$.

    For almost every $c$ no two eigenvectors of $T_t$ meet at $t < 1$ (the gamma trick: Sommese and
    Wampler 2005, section 7.1).

    Args:
        target: The tensors at the end.
        phases: The numbers $c$, `(S, n)`.
    """

    target: TensorBatch
    phases: Complex[np.ndarray, "samples n"]

    def linearise(
        self,
        x: Complex[np.ndarray, "paths n"],
        value: Complex[np.ndarray, " paths"],
        time: Float[np.ndarray, " paths"],
        sample: Int[np.ndarray, " paths"],
        chart: Complex[np.ndarray, "paths n"],
    ) -> tuple[Any, Any, Any]:
        r"""Return Jacobian, residual and time derivative of $T_t x^{p-1} - \lambda x$.

        The unknowns are $(x, \lambda)$, and the last row of the Jacobian keeps $x$ in the
        affine chart ``chart @ x = constant``.

        Returns:
            `(paths, n + 1, n + 1)`, `(paths, n + 1)` and `(paths, n + 1)`.
        """
        paths, n = x.shape
        order = self.target.p - 1
        matrix = self.target.contract(x, sample)
        end = (matrix @ x[:, :, None])[:, :, 0]
        diagonal = self.phases[sample] * x ** (order - 1)
        start = diagonal * x
        jacobian = np.zeros((paths, n + 1, n + 1), dtype=complex)
        jacobian[:, :n, :n] = (order * time)[:, None, None] * matrix
        on = np.arange(n)
        jacobian[:, on, on] += (order * (1 - time))[:, None] * diagonal - value[:, None]
        jacobian[:, :n, n] = -x
        jacobian[:, n, :n] = chart
        residual, speed = np.zeros((2, paths, n + 1), dtype=complex)
        residual[:, :n] = time[:, None] * end + (1 - time)[:, None] * start - value[:, None] * x
        speed[:, :n] = end - start
        return jacobian, residual, speed


@dataclass(frozen=True)
class Ends:
    """Where paths arrived.

    Args:
        x: Unit vectors, `(paths, n)`.
        value: Their eigenvalues, `(paths,)`.
        arrived: Whether each path reached the end.
        steps: How many steps each path tried, `(paths,)`.
    """

    x: Complex[np.ndarray, "paths n"]
    value: Complex[np.ndarray, " paths"]
    arrived: Bool[np.ndarray, " paths"]
    steps: Int[np.ndarray, " paths"]


def _solve(matrix: Any, right: Any) -> Any:
    """Solve many linear systems; NaN where a matrix is singular."""
    try:
        return np.linalg.solve(matrix, right[:, :, None])[:, :, 0]
    except np.linalg.LinAlgError:
        out = np.full(right.shape, np.nan + 0j)
        for k, (one, b) in enumerate(zip(matrix, right, strict=True)):
            if np.isfinite(one).all() and np.linalg.matrix_rank(one) == len(b):
                out[k] = np.linalg.solve(one, b)
        return out


def _step(
    homotopy: DiagonalHomotopy, x: Any, value: Any, time: Any, step: Any, sample: Any
) -> tuple[Any, Any, Any, Any]:
    """Predict by Runge-Kutta of order 4, correct by Newton twice; return both corrections."""
    n, chart = x.shape[1], x.conj()
    here = np.concatenate([x, value[:, None]], axis=1)

    def slope(state: Any, when: Any) -> Any:
        jacobian, _, speed = homotopy.linearise(state[:, :n], state[:, n], when, sample, chart)
        return _solve(jacobian, -speed)

    h = step[:, None]
    k1 = slope(here, time)
    k2 = slope(here + h / 2 * k1, time + step / 2)
    k3 = slope(here + h / 2 * k2, time + step / 2)
    k4 = slope(here + h * k3, time + step)
    there = here + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    sizes = []
    for _ in range(2):
        jacobian, residual, _ = homotopy.linearise(
            there[:, :n], there[:, n], time + step, sample, chart
        )
        correction = _solve(jacobian, -residual)
        there = there + correction
        sizes.append(np.linalg.norm(correction, axis=1))
    length = np.linalg.norm(there[:, :n], axis=1)
    # T (x / |x|)^(p-1) = (value / |x|^(p-2)) x / |x|
    moved = there[:, :n] / length[:, None], there[:, n] / length ** (homotopy.target.p - 2)
    return *moved, sizes[0], sizes[1]


def track(
    homotopy: DiagonalHomotopy,
    x: Complex[np.ndarray, "paths n"],
    value: Complex[np.ndarray, " paths"],
    sample: Int[np.ndarray, " paths"],
    *,
    tolerance: float = 1e-4,
) -> Ends:
    r"""Follow eigenvectors from $t = 0$ to $t = 1$, each with its own step.

    A step is taken if Newton's method corrects the prediction by less than `tolerance` and its
    second correction is below a hundredth of the first.

    Args:
        homotopy: From the diagonal tensors to the targets.
        x: Unit eigenvectors at $t = 0$.
        value: Their eigenvalues.
        sample: The tensor of each path, in rising order.
        tolerance: The largest first correction, for unit vectors.

    Returns:
        The ends; a path whose step falls below 1e-10 has not arrived.
    """
    x, value = x.copy(), value.copy()
    time, step = np.zeros(len(x)), np.full(len(x), 0.05)
    lost = np.zeros(len(x), dtype=bool)
    tried = np.zeros(len(x), dtype=int)
    for _ in range(MOST_STEPS):
        active = np.flatnonzero((time < 1) & ~lost)
        if not len(active):
            break
        tried[active] += 1
        now = np.minimum(step[active], 1 - time[active])
        with np.errstate(all="ignore"):  # what overflows is not accepted
            new, new_value, first, second = _step(
                homotopy, x[active], value[active], time[active], now, sample[active]
            )
            good = (first <= tolerance) & ((second <= 0.01 * first) | (second <= 1e-11))
            ratio = 0.8 * (0.3 * tolerance / np.maximum(first, 1e-16)) ** 0.2
            factor = np.where(np.isfinite(ratio), np.clip(ratio, 0.2, 3.0), 0.2)
        went = active[good]
        x[went], value[went] = new[good], new_value[good]
        time[went] = np.where(now[good] >= 1 - time[went], 1.0, time[went] + now[good])
        step[active] = now * np.where(good, factor, np.minimum(factor, 0.5))
        lost[active] = step[active] < SMALLEST_STEP
    return Ends(x, value, time >= 1, tried)
