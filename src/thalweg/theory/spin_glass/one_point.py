r"""Where an eigenvalue of a Gaussian orthogonal matrix lies, and which one it is: exactly.

The density of eigenvalues at a point, and the probability that an eigenvalue there is the $k$-th,
for finite matrices, in log space. These two are all that the Kac-Rice formula needs.

Raw units: eigenvalues $x$ of weight $e^{-x^2/2}$ (entries of variance 1/2 off the diagonal), so
that the semicircle ends at $\sqrt{2n}$; $x = \sqrt n \lambda$ in the convention of Auffinger, Ben
Arous and Černý. $\phi_j$ are the orthonormal Hermite functions.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Complex, Float
from scipy.special import erfc, erfcx

__all__ = ["index_probabilities", "log_one_point"]

_LARGE = 1e100


def log_one_point(x: Float[np.ndarray, " m"], n: int) -> Float[np.ndarray, " m"]:
    r"""Return the log of the density of eigenvalues of a GOE matrix, which integrates to `n`.

    $R_1(x) = \sum_{j<n} \phi_j^2 + \sqrt{n/2}\, \phi_{n-1}(x) \tfrac12 \int \mathrm{sgn}(x-t)
    \phi_n(t)\, dt + [n \text{ odd}]\, \phi_{n-1}(x) / \int \phi_{n-1}$, by upward recurrences that
    are rescaled as they grow: no overflow, and relative accuracy far outside the semicircle too.

    Args:
        x: Points `(m,)` in raw units.
        n: Order of the matrix.

    Returns:
        $\log R_1(x)$, `(m,)`.

    Raises:
        ValueError: If `n` is below 1.

    Source: Mehta, Random Matrices, section 7.2.

    Example:
        >>> float(log_one_point(np.array([0.0]), 1)[0])  # one Gaussian of variance 1
        -0.9189385
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    x = np.abs(np.asarray(x, float))
    shift = -(x**2) / 2 - 0.25 * math.log(math.pi)  # the phi_j are e^shift times what is kept
    before, now = np.zeros_like(x), np.ones_like(x)
    squares = np.ones_like(x)
    tails = [math.sqrt(math.pi / 2) * erfcx(x / math.sqrt(2)), np.full_like(x, math.sqrt(2))]
    for j in range(1, n):
        before, now = now, math.sqrt(2 / j) * x * now - math.sqrt((j - 1) / j) * before
        squares += now**2
        tails = [
            tails[1],
            math.sqrt(j / (j + 1)) * tails[0] + math.sqrt(2 / (j + 1)) * now,
        ]
        if j % 16 == 0:
            scale = np.maximum(np.abs(now), np.abs(before))
            scale = np.where(scale > _LARGE, scale, 1.0)
            before, now, squares = before / scale, now / scale, squares / scale**2
            tails = [tail / scale for tail in tails]
            shift += np.log(scale)
    # tails[1] is the integral of phi_n from x on; that of phi_0 alone starts the recurrence
    bulk = squares - math.sqrt(n / 2) * now * tails[1]
    return np.asarray(shift + np.log(_far_factor(n) * now + np.exp(shift) * bulk))


def _far_factor(n: int) -> float:
    r"""Return $R_1 / \phi_{n-1}$ far outside the semicircle."""
    even = n if n % 2 == 0 else n - 1
    log_half = 0.25 * math.log(math.pi) - 0.5 * math.log(2)  # half the integral of phi_0
    log_half += 0.5 * sum(math.log((j - 1) / j) for j in range(2, even + 1, 2))
    return math.sqrt(n / 2) * math.exp(log_half) if n % 2 == 0 else 0.5 * math.exp(-log_half)


def index_probabilities(x: Float[np.ndarray, " m"], n: int) -> Float[np.ndarray, "m n"]:
    r"""Return the probability that an eigenvalue at `x` is the `k`-th smallest, for each `k`.

    Given an eigenvalue at $x$, the other $n - 1$ have the weight $|t - x| e^{-t^2/2}$. De
    Bruijn's formula makes $E \prod_i h(t_i)$ a Pfaffian; with $h(t) = |t - x|$ times $z$ where
    $t < x$ it is a polynomial in $z$ whose coefficients are sought: its values on the unit circle
    are transformed. Half-line integrals of products of Hermite functions are by recurrence. The
    error is near $10^{-14}$ absolute, so a probability below that is not known.

    Args:
        x: Points `(m,)` in raw units.
        n: Order of the matrix. Takes $O(m n^4)$ time: for `n` up to some tens.

    Returns:
        Probabilities `(m, n)`; each row sums to 1.

    Raises:
        ValueError: If `n` is below 1.

    Source: de Bruijn, On some multiple integrals involving determinants, J. Indian Math. Soc. 19
    (1955); Auffinger, Ben Arous, Černý 2013, section 3, for the reduction.

    Example:
        >>> index_probabilities(np.array([0.0]), 2)[0]
        array([0.5, 0.5])
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    x = np.asarray(x, float)
    if n == 1:
        return np.ones((len(x), 1))
    below, within = _half_line(x, n)
    mirror = (-1.0) ** np.arange(n)
    above, beyond = _half_line(-x, n)
    above, beyond = above * mirror, -beyond * np.multiply.outer(mirror, mirror)
    across = below[:, :, None] * above[:, None, :]
    across = across - across.swapaxes(1, 2)
    lift = _shifted_position(x, n)
    parts = [lift @ part @ lift.swapaxes(1, 2) for part in (beyond, across, within)]
    edges = [np.einsum("mij,mj->mi", lift, part) for part in (above, below)]
    values = np.empty((len(x), n), complex)
    for row in range(n // 2 + 1):  # the other half are complex conjugates
        z = np.exp(2j * math.pi * row / n)
        matrix = parts[0] - z * parts[1] + z * z * parts[2]
        if n % 2 == 0:
            matrix = _bordered(matrix, edges[0] - z * edges[1])
        values[:, row] = _pfaffian(matrix)
        values[:, -row % n] = values[:, row].conj()
    coefficients = np.fft.fft(values, axis=1).real / n
    return np.asarray(coefficients / coefficients.sum(axis=1, keepdims=True))


def _half_line(
    x: Float[np.ndarray, " m"], n: int
) -> tuple[Float[np.ndarray, "m n"], Float[np.ndarray, "m n n"]]:
    r"""Integrate Hermite functions up to `x`.

    Returns:
        $F_i = \int_{-\infty}^x \phi_i$, `(m, n)`, and $\iint_{s<t<x} [\phi_i(s) \phi_j(t) -
        \phi_j(s) \phi_i(t)]$, `(m, n, n)`.
    """
    m = len(x)
    phi = np.zeros((n + 1, m))
    phi[0] = math.pi**-0.25 * np.exp(-(x**2) / 2)
    for j in range(n):
        phi[j + 1] = math.sqrt(2 / (j + 1)) * x * phi[j]
        if j:
            phi[j + 1] -= math.sqrt(j / (j + 1)) * phi[j - 1]
    F = np.zeros((n, m))
    F[0] = math.pi**0.25 / math.sqrt(2) * erfc(-x / math.sqrt(2))
    K = np.zeros((n, n, m))  # the integral of phi_i phi_j up to x
    K[0, 0] = 0.5 * erfc(-x)
    slope = np.array([x * phi[j] - math.sqrt(2 * (j + 1)) * phi[j + 1] for j in range(n)])
    for j in range(1, n):
        before = math.sqrt((j - 1) / 2) * F[j - 2] if j > 1 else 0.0
        F[j] = (before - phi[j - 1]) / math.sqrt(j / 2)
        K[j, j] = K[j - 1, j - 1] - phi[j - 1] * phi[j] / math.sqrt(2 * j)
        for i in range(j):
            K[i, j] = K[j, i] = (phi[i] * slope[j] - phi[j] * slope[i]) / (2 * (i - j))
    Q = np.zeros((n, n, m))  # the integral of F_i phi_j up to x
    for i in range(n):
        Q[i, 0] = 0.5 * F[0] ** 2 if i == 0 else F[i] * F[0] - Q[0, i]
        for j in range(1, n):
            before = math.sqrt((j - 1) / 2) * Q[i, j - 2] if j > 1 else 0.0
            Q[i, j] = (before - F[i] * phi[j - 1] + K[i, j - 1]) / math.sqrt(j / 2)
    Q = np.moveaxis(Q, -1, 0)
    return F.T, Q - Q.swapaxes(1, 2)


def _shifted_position(x: Float[np.ndarray, " m"], n: int) -> Float[np.ndarray, "m less n"]:
    r"""Return the matrices that write $(t - x) \phi_i(t)$, $i < n - 1$, in the $\phi_j(t)$."""
    rows = np.arange(n - 1)
    lift = np.zeros((len(x), n - 1, n))
    lift[:, rows, rows] = -x[:, None]
    lift[:, rows, rows + 1] = np.sqrt((rows + 1) / 2)
    lift[:, rows[1:], rows[1:] - 1] = np.sqrt(rows[1:] / 2)
    return lift


def _bordered(
    matrix: Complex[np.ndarray, "m n n"], edge: Complex[np.ndarray, "m n"]
) -> Complex[np.ndarray, "m more more"]:
    """Give skew matrices of odd order the last row and column of de Bruijn's formula."""
    m, order = edge.shape
    out = np.zeros((m, order + 1, order + 1), complex)
    out[:, :order, :order] = matrix
    out[:, :order, order], out[:, order, :order] = edge, -edge
    return out


def _pfaffian(matrices: Complex[np.ndarray, "m n n"]) -> Complex[np.ndarray, " m"]:
    """Return the Pfaffians of skew matrices of even order, by pivoted elimination."""
    A = np.array(matrices)
    m, order = A.shape[:2]
    result = np.ones(m, complex)
    batch = np.arange(m)
    for step in range(0, order, 2):
        pivot = step + 1 + np.argmax(np.abs(A[:, step, step + 1 :]), axis=1)
        result *= np.where(pivot == step + 1, 1.0, -1.0)
        for view in (A, A.swapaxes(1, 2)):
            kept = view[batch, pivot].copy()
            view[batch, pivot] = view[:, step + 1]
            view[:, step + 1] = kept
        head = A[:, step, step + 1].copy()
        result *= head
        rest = slice(step + 2, order)
        ratio = A[:, step, rest] / np.where(head == 0, 1.0, head)[:, None]
        cross = ratio[:, :, None] * A[:, step + 1, None, rest]
        A[:, rest, rest] -= cross - cross.swapaxes(1, 2)
    return result
