r"""Eigenvalues of Gaussian orthogonal and Wishart matrices, drawn without the matrices.

A dense matrix of the Gaussian orthogonal ensemble has the same eigenvalues in law as a
tridiagonal one with independent entries (Dumitriu and Edelman 2002): $O(n)$ random numbers and
$O(n^2)$ time instead of $O(n^2)$ and $O(n^3)$. Dense draws are here to test that, and for whoever
needs eigenvectors.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float
from scipy.linalg import lapack

from thalweg.landscape.seeding import Seed, make_generator

__all__ = ["goe_eigenvalue", "goe_eigenvalues", "goe_matrices", "wishart_eigenvalues"]


def goe_eigenvalues(
    n: int, samples: int = 1, *, radius: float = 2.0, seed: Seed = None
) -> Float[np.ndarray, "samples n"]:
    r"""Draw all eigenvalues of matrices of the Gaussian orthogonal ensemble.

    The matrix is symmetric, with independent Gaussian entries of variance $R^2/4n$ off the
    diagonal and $R^2/2n$ on it, so that the eigenvalues fill the semicircle on $[-R, R]$ as
    $n \to \infty$. $R = 2$: variances $1/n$ and $2/n$. $R = \sqrt 2$: the convention of Auffinger,
    Ben Arous and Černý, density $\propto \prod |\lambda_i - \lambda_j| e^{-n \sum \lambda^2 / 2}$.

    Args:
        n: Order of the matrices.
        samples: How many independent matrices.
        radius: $R$, the edge of the semicircle.
        seed: What draws them; record your own integer to draw them again.

    Returns:
        Eigenvalues `(samples, n)`, ascending along a row.

    Raises:
        ValueError: If `n` or `samples` is below 1, or `radius` is not positive and finite.

    Source: Dumitriu and Edelman, Matrix models for beta ensembles, J. Math. Phys. 43 (2002),
    theorem 2.12 at $\beta = 1$.

    Example:
        >>> values = goe_eigenvalues(1000, seed=0)
        >>> values.shape, bool(abs(values.max() - 2) < 0.05)
        ((1, 1000), True)
    """
    diagonal, off = _goe_tridiagonal(n, samples, radius, seed)
    return _all_eigenvalues(diagonal, off)


def goe_eigenvalue(
    n: int, k: int, samples: int = 1, *, radius: float = 2.0, seed: Seed = None
) -> Float[np.ndarray, " samples"]:
    r"""Draw one eigenvalue of each matrix: the `k`-th smallest, counted from 0.

    By bisection on the tridiagonal matrix, $O(n)$ each: at $n = 1000$ some thirty times cheaper
    than all of them. The same seed gives the same matrices as `goe_eigenvalues`.

    Args:
        n: Order of the matrices.
        k: Which eigenvalue; 0 is the lowest, -1 the highest.
        samples: How many independent matrices.
        radius: The edge of the semicircle; see `goe_eigenvalues`.
        seed: What draws them.

    Returns:
        Eigenvalues `(samples,)`.

    Raises:
        ValueError: If `k` is not in `[-n, n)`, or as in `goe_eigenvalues`.

    Example:
        >>> lowest = goe_eigenvalue(50, 0, 3, seed=1)
        >>> bool(np.allclose(lowest, goe_eigenvalues(50, 3, seed=1)[:, 0]))
        True
    """
    diagonal, off = _goe_tridiagonal(n, samples, radius, seed)
    if not -n <= k < n:
        raise ValueError(f"a matrix of order {n} has eigenvalues 0 to {n - 1}, not {k}")
    if n == 1:
        return diagonal[:, 0]
    which = k % n + 1
    found = np.empty(samples)
    for row in range(samples):
        *_, w, _, _, info = lapack.dstebz(
            diagonal[row], off[row], 2, 0.0, 0.0, which, which, 0.0, b"E"
        )
        _check(info, "dstebz")
        found[row] = w[0]
    return found


def goe_matrices(
    n: int, samples: int = 1, *, radius: float = 2.0, seed: Seed = None
) -> Float[np.ndarray, "samples n n"]:
    r"""Draw dense matrices of the Gaussian orthogonal ensemble.

    Args:
        n: Order of the matrices.
        samples: How many; they take $8 n^2$ bytes each.
        radius: The edge of the semicircle; see `goe_eigenvalues` for the variances.
        seed: What draws them (not the same matrices as the tridiagonal draws).

    Returns:
        Symmetric matrices `(samples, n, n)`.

    Raises:
        ValueError: As `goe_eigenvalues`.

    Example:
        >>> A = goe_matrices(3, seed=0)[0]
        >>> bool((A == A.T).all())
        True
    """
    _validate(n, samples, radius)
    square = _rng(seed).standard_normal((samples, n, n))
    return (square + square.swapaxes(1, 2)) * (radius / math.sqrt(8 * n))


def wishart_eigenvalues(
    n: int, m: int, samples: int = 1, *, variance: float = 1.0, seed: Seed = None
) -> Float[np.ndarray, "samples n"]:
    r"""Draw all eigenvalues of $X X^\top / m$, for `n` by `m` matrices of independent Gaussians.

    As $n \to \infty$ at fixed $\phi = n/m$ they follow the Marchenko-Pastur law with edges
    $\sigma^2 (1 \pm \sqrt\phi)^2$; where $n > m$ exactly $n - m$ of them are zero.

    Args:
        n: Order of the matrices: rows of $X$, the features.
        m: Columns of $X$, the examples.
        samples: How many independent matrices.
        variance: $\sigma^2$, of an entry of $X$.
        seed: What draws them.

    Returns:
        Eigenvalues `(samples, n)`, ascending along a row, none negative.

    Raises:
        ValueError: If `n`, `m` or `samples` is below 1, or `variance` is not positive and finite.

    Source: Dumitriu and Edelman 2002, theorem 3.4 at $\beta = 1$ (bidiagonal factor).

    Example:
        >>> values = wishart_eigenvalues(500, 1000, seed=0)[0]
        >>> bool(abs(values.max() - (1 + 0.5**0.5) ** 2) < 0.1)
        True
    """
    _validate(n, samples, variance, "variance")
    if m < 1:
        raise ValueError(f"m must be at least 1, got {m}")
    small, large = min(n, m), max(n, m)
    rng = _rng(seed)
    main = np.sqrt(rng.chisquare(np.arange(large, large - small, -1), (samples, small)))
    sub = np.sqrt(rng.chisquare(np.arange(small - 1, 0, -1), (samples, small - 1)))
    diagonal = main**2
    diagonal[:, 1:] += sub**2
    values = _all_eigenvalues(diagonal, main[:, :-1] * sub)
    scaled = np.maximum(values, 0.0) * (variance / m)  # a Gram matrix: below 0 is rounding
    return np.concatenate([np.zeros((samples, n - small)), scaled], axis=1)


def _rng(seed: Seed) -> np.random.Generator:
    return np.random.default_rng(make_generator(seed)[1])


def _validate(n: int, samples: int, scale: float, name: str = "radius") -> None:
    if n < 1 or samples < 1:
        raise ValueError(f"n and samples must be at least 1, got n={n} and samples={samples}")
    if not (scale > 0 and math.isfinite(scale)):
        raise ValueError(f"{name} must be positive and finite, got {scale}")


def _goe_tridiagonal(
    n: int, samples: int, radius: float, seed: Seed
) -> tuple[Float[np.ndarray, "samples n"], Float[np.ndarray, "samples rest"]]:
    """Return diagonals and off-diagonals of the tridiagonal model."""
    _validate(n, samples, radius)
    rng = _rng(seed)
    scale = radius / math.sqrt(4 * n)
    diagonal = rng.standard_normal((samples, n)) * (math.sqrt(2) * scale)
    off = np.sqrt(rng.chisquare(np.arange(n - 1, 0, -1), (samples, n - 1))) * scale
    return diagonal, off


def _all_eigenvalues(
    diagonal: Float[np.ndarray, "samples n"], off: Float[np.ndarray, "samples rest"]
) -> Float[np.ndarray, "samples n"]:
    """Return the eigenvalues of tridiagonal matrices, ascending, in $O(n^2)$ each."""
    if diagonal.shape[1] == 1:
        return diagonal
    values = np.empty_like(diagonal)
    for row in range(len(diagonal)):
        values[row], info = lapack.dsterf(diagonal[row], off[row])
        _check(info, "dsterf")
    return values


def _check(info: int, routine: str) -> None:
    if info != 0:
        raise np.linalg.LinAlgError(f"LAPACK's {routine} did not converge (info={info})")
