"""Sums of functions over a spectrum, where nothing but the sum is wanted."""

from __future__ import annotations

from thalweg.curvature.counts import Inertia
from thalweg.curvature.density import SpectralDensity, spectral_density
from thalweg.curvature.eigenpairs import Eigenpairs
from thalweg.curvature.operator import LinearOperator
from thalweg.estimate import Estimate
from thalweg.landscape.seeding import Seed

__all__ = ["effective_dimension", "frobenius_norm", "inertia", "log_determinant"]


def log_determinant(
    operator: LinearOperator,
    shift: float,
    *,
    part: str = "all",
    probes: int = 10,
    steps: int = 60,
    deflate: int | Eigenpairs = 10,
    level: float = 0.95,
    seed: Seed = None,
) -> Estimate:
    r"""Estimate $\log\det(A + s I)$ by stochastic Lanczos quadrature.

    Exact where `probes * steps` products would do for all of the matrix. For more than one
    shift, or other sums of the same spectrum, use the methods of `spectral_density`, which
    answer all from the same products.

    Args:
        operator: A symmetric operator.
        shift: $s$, above $-\lambda_{\min}$.
        part: ``"all"`` eigenvalues, or ``"positive"`` for $\log\det(A_+ + s I)$, which puts
            negative ones to zero.
        probes: How many random starts.
        steps: How many Lanczos steps; the smaller the shift, the more it takes.
        deflate: How many eigenpairs of largest magnitude to take out exactly.
        level: Nominal coverage of the interval.
        seed: An int, a generator, or None for fresh entropy; recorded in the result.

    Returns:
        The estimate; its `method` names what the quadrature adds to the interval.

    Raises:
        ValueError: If an eigenvalue certainly lies at or below $-s$ (with ``part="all"``),
            or an argument is out of range.

    References:
        S. Ubaru, J. Chen & Y. Saad (2017), SIAM J. Matrix Anal. Appl. 38.

    Example:
        >>> import torch
        >>> from thalweg.curvature import MatrixOperator
        >>> A = MatrixOperator(torch.diag(torch.tensor([1.0, 0.0]).double()))
        >>> round(log_determinant(A, shift=1.0).value, 6)
        0.693147
    """
    rho = _measure(operator, probes, steps, deflate, level, seed)
    return rho.log_determinant(shift, part=part)


def effective_dimension(
    operator: LinearOperator,
    alpha: float,
    *,
    probes: int = 10,
    steps: int = 60,
    deflate: int | Eigenpairs = 10,
    level: float = 0.95,
    seed: Seed = None,
) -> Estimate:
    r"""Estimate the effective dimension $\sum_{\lambda_i > 0} \lambda_i/(\lambda_i + \alpha)$.

    How many directions are stiffer than $\alpha$, softly counted (D. MacKay 1992). Negative
    eigenvalues count as zero.

    Args:
        operator: A symmetric operator.
        alpha: The scale, such as the precision of a prior over the size of the data.
        probes: How many random starts.
        steps: How many Lanczos steps.
        deflate: How many eigenpairs of largest magnitude to take out exactly.
        level: Nominal coverage of the interval.
        seed: An int, a generator, or None for fresh entropy; recorded in the result.

    Returns:
        The estimate.

    Raises:
        ValueError: If `alpha` is not positive, or another argument is out of range.

    Example:
        >>> import torch
        >>> from thalweg.curvature import MatrixOperator
        >>> A = MatrixOperator(torch.diag(torch.tensor([3.0, 1.0, -2.0]).double()))
        >>> effective_dimension(A, alpha=1.0).value
        1.25
    """
    return _measure(operator, probes, steps, deflate, level, seed).effective_dimension(alpha)


def frobenius_norm(
    operator: LinearOperator,
    *,
    probes: int = 32,
    deflate: int | Eigenpairs = 10,
    level: float = 0.95,
    seed: Seed = None,
) -> Estimate:
    r"""Estimate $\|A\|_F$ from $\|A u\|^2$ over random starts, outliers apart.

    $$\|A\|_F^2 = \sum_{i \le d} \lambda_i^2 + (D - d)\; \mathbb{E}\, \|A u\|^2$$

    with $u$ uniform on the unit sphere off the $d$ deflated eigenvectors.

    Args:
        operator: A symmetric operator.
        probes: How many random starts, two products each.
        deflate: How many eigenpairs of largest magnitude to take out exactly.
        level: Nominal coverage of the interval.
        seed: An int, a generator, or None for fresh entropy; recorded in the result.

    Returns:
        The estimate.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> import torch
        >>> from thalweg.curvature import MatrixOperator
        >>> frobenius_norm(MatrixOperator(torch.diag(torch.tensor([3.0, 4.0]).double()))).value
        5.0
    """
    return _measure(operator, probes, 2, deflate, level, seed).frobenius_norm()


def inertia(
    operator: LinearOperator,
    *,
    tau: float | None = None,
    probes: int = 10,
    steps: int = 60,
    deflate: int | Eigenpairs = 10,
    level: float = 0.95,
    seed: Seed = None,
) -> Inertia:
    r"""Count the eigenvalues below $-\tau$, within $\pm\tau$ and above $\tau$.

    Args:
        operator: A symmetric operator.
        tau: The tolerance, positive; by default a thousandth of the largest magnitude. With
            a bulk at zero, an index without one is ill-posed.
        probes: How many random starts.
        steps: How many Lanczos steps; more of them narrow the brackets.
        deflate: How many eigenpairs of largest magnitude to take out, counted exactly.
        level: Nominal coverage of each of the three intervals.
        seed: An int, a generator, or None for fresh entropy; recorded in the result.

    Returns:
        The three counts, with intervals and what is certain.

    Raises:
        ValueError: If `tau` is zero, negative or at the level of rounding, or another
            argument is out of range.

    Example:
        >>> import torch
        >>> from thalweg.curvature import MatrixOperator
        >>> A = MatrixOperator(torch.diag(torch.tensor([5.0, 1e-9, -1e-9, -1.0]).double()))
        >>> print(inertia(A))
        of 4 eigenvalues exactly 1 below -tau, exactly 2 within ±tau, exactly 1 above tau (95 %),
        tau = 0.005; certainly at least 1 negative and 1 positive
    """
    return _measure(operator, probes, steps, deflate, level, seed).count(tau)


def _measure(
    operator: LinearOperator,
    probes: int,
    steps: int,
    deflate: int | Eigenpairs,
    level: float,
    seed: Seed,
) -> SpectralDensity:
    return spectral_density(
        operator, probes=probes, steps=steps, deflate=deflate, points=2, level=level, seed=seed
    )
