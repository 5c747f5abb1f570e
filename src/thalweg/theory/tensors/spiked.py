r"""The spiked tensor: a planted direction in a spherical p-spin glass, and when it can be found.

$$u(\sigma) = \tfrac1n H(\sigma) - \lambda\, (v \cdot \sigma / \sqrt n)^p, \qquad |\sigma|^2 = n$$

with $|v| = 1$ and $\operatorname{Cov}[H(\sigma), H(\tau)] = n (\sigma \cdot \tau / n)^p$: on unit
vectors the noise has variance $1/n$. Where the literature writes $Y = \beta v^{\otimes p} + W$ with
$W$ symmetric of off-diagonal variance $1/n$, $\beta = \sqrt{p!}\, \lambda$; Ben Arous et al. 2019
have the variance $1/(2n)$ and $\sqrt2$ times smaller thresholds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from scipy import optimize
from torch import Tensor

from thalweg.estimate import Cost
from thalweg.landscape.protocols import Point
from thalweg.landscape.seeding import Seed, make_generator
from thalweg.theory.spin_glass.complexity import ground_state_energy
from thalweg.theory.spin_glass.model import SphericalPSpin

__all__ = [
    "MaximumLikelihood",
    "SpikedTensor",
    "maximum_likelihood",
    "maximum_likelihood_threshold",
    "metastable_threshold",
    "second_moment_threshold",
]


class SpikedTensor:
    r"""A spiked tensor as a landscape on all of $\mathbb{R}^n$, of degree zero.

    $$u(\theta) = \tfrac1n H(\sqrt n\, \theta/|\theta|) - \lambda (v \cdot \theta/|\theta|)^p$$

    Its minimiser is the maximum-likelihood estimate of $v$ from the tensor.

    Args:
        n: The dimension.
        p: The order, at least 2.
        snr: The signal-to-noise ratio $\lambda$, at least 0.
        seed: What draws the noise and the spike.
        memory: The most that the dense tensor may take; see `SphericalPSpin`.

    Attributes:
        spike: The unit vector $v$, `(n,)`.
        glass: The landscape itself as a spin glass of the tensor, noise and spike.
        seed: The number that reproduces both.

    Raises:
        ValueError: If `snr` is negative or `p` is below 2.
        MemoryError: If the tensor does not fit.

    Example:
        >>> land = SpikedTensor(30, 3, snr=5.0, seed=0)
        >>> theta = land.spike + 0.01 * land.start(torch.Generator().manual_seed(0))
        >>> bool(land.loss(land.spike) < land.loss(theta))
        True
    """

    def __init__(
        self, n: int, p: int, snr: float, seed: Seed = None, *, memory: int | str = "4 GiB"
    ) -> None:
        if p < 2:
            raise ValueError(f"p must be at least 2, got {p}")
        if not (snr >= 0 and math.isfinite(snr)):
            raise ValueError(f"snr must be a finite number, not negative, got {snr}")
        generator, self.seed = make_generator(seed)
        noise = SphericalPSpin(n, p, seed=generator, memory=memory)
        spike = torch.randn(n, generator=generator, dtype=torch.float64)
        self.spike: Tensor = spike / torch.linalg.vector_norm(spike)
        self.p, self.snr = p, float(snr)
        power = self.spike
        for _ in range(p - 1):
            power = power[..., None] * self.spike
        tensor = noise.tensor(p) - snr * n ** (1 - p / 2) * power
        self.glass = SphericalPSpin.from_tensors({p: tensor}, memory=memory)
        self.dim = self.n = n
        self.dtype, self.device = self.glass.dtype, self.glass.device

    @property
    def cost(self) -> Cost:
        """The running tally."""
        return self.glass.cost

    def overlap(self, theta: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
        r"""Return $m = v \cdot \theta / |\theta|$."""
        overlap: Tensor = (theta @ self.spike) / torch.linalg.vector_norm(theta, dim=-1)
        return overlap

    def loss(self, theta: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
        """Return the energy per spin, spike included."""
        return self.glass.loss(theta)

    def gradient(self, theta: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
        """Return the gradient of `loss`."""
        return self.glass.gradient(theta)

    def value_and_gradient(
        self, theta: Float[Tensor, "*batch n"]
    ) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch n"]]:
        """Return both."""
        return self.glass.value_and_gradient(theta)

    @contextmanager
    def at(self, theta: Float[Tensor, " n"]) -> Iterator[Point]:
        """Open the landscape at one point."""
        with self.glass.at(theta) as point:
            yield point

    def start(self, generator: torch.Generator) -> Float[Tensor, " n"]:
        r"""Draw a point uniformly from the sphere of radius $\sqrt n$."""
        return self.glass.start(generator)

    def tensor(self) -> Float[Tensor, ...]:
        r"""Return $Y$ of unit vectors, $u = -\langle Y, x^{\otimes p} \rangle$, `(n,) * p`."""
        scale = float(self.n) ** (self.p / 2 - 1)
        tensor: Tensor = -scale * self.glass.tensor(self.p)
        return tensor

    def project(self, theta: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
        r"""Return the point of the sphere of radius $\sqrt n$ in the direction of `theta`."""
        return self.glass.project(theta)

    def riemannian_gradient(self, sigma: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
        """Return the tangent gradient of $n u$ at points of the sphere."""
        return self.glass.riemannian_gradient(sigma)

    def riemannian_hessian(self, sigma: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n n"]:
        """Return the Hessian of $n u$ on the sphere, zero along `sigma`."""
        return self.glass.riemannian_hessian(sigma)


@dataclass(frozen=True, slots=True)
class MaximumLikelihood:
    r"""What the best estimate of a spike reaches as $n \to \infty$.

    Attributes:
        p: The order of the tensor.
        snr: The signal-to-noise ratio $\lambda$.
        energy: The minimum of the landscape, per spin.
        overlap: $|m|$ of the minimiser with the spike.

    Example:
        >>> print(maximum_likelihood(2, 1.0))
        p = 2, snr = 1: minimum -1.5, overlap 0.707107
    """

    p: int
    snr: float
    energy: float
    overlap: float

    def __str__(self) -> str:
        """Return energy and overlap."""
        found = f"overlap {self.overlap:.6g}" if self.overlap else "no overlap with the spike"
        return f"p = {self.p}, snr = {self.snr:g}: minimum {self.energy:.6g}, {found}"


def _check_order(p: int) -> None:
    if p < 2:
        raise ValueError(f"p must be at least 2, got {p}")


def maximum_likelihood_threshold(p: int) -> MaximumLikelihood:
    r"""Return the signal-to-noise ratio from which the global minimum knows the spike.

    At overlap $m$ with the spike the noise is a mixed spin glass in a field, which for $m^2 \ge
    (p-2)/(p-1)$ is replica symmetric with ground state $-\sqrt{p (1 - m^2)}$, so

    $$-\min u = \max\{E_0(p),\ \max_m \lambda m^p + \sqrt{p (1 - m^2)}\}.$$

    The two are equal at $\lambda_c$. For $p = 2$ this is the BBP transition, $\lambda_c =
    1/\sqrt2$ with no jump; for $p \ge 3$ the overlap jumps from 0. The threshold is that of the
    Bayes-optimal estimate too, where $\lambda^2 q^p + \ln(1-q) + q = 0$ at $q = m^2$.

    Args:
        p: The order, at least 2.

    Returns:
        The threshold, with energy and overlap just above it.

    Raises:
        ValueError: If `p` is below 2.

    Source:
        Jagannath, Lopatto and Miolane, Ann. Appl. Probab. 30 (2020); Lesieur, Miolane, Lelarge,
        Krzakala and Zdeborova, ISIT 2017 (p = 3: $\sqrt{3!}\, \lambda_c = 2.955$).

    Example:
        >>> print(maximum_likelihood_threshold(3))
        p = 3, snr = 1.20656: minimum -1.657, overlap 0.803124
    """
    _check_order(p)
    if p == 2:
        return MaximumLikelihood(2, math.sqrt(0.5), -math.sqrt(2), 0.0)
    energy = ground_state_energy(p)
    # (p - 1) w^2 - sqrt(p) E_0 w + 1 = 0 with w = sqrt(1 - m^2), from both stationarity and value
    root = math.sqrt(p) * energy
    w = (root - math.sqrt(root**2 - 4 * (p - 1))) / (2 * (p - 1))
    overlap = math.sqrt(1 - w * w)
    return MaximumLikelihood(p, 1 / (math.sqrt(p) * overlap ** (p - 2) * w), -energy, overlap)


def metastable_threshold(p: int) -> MaximumLikelihood:
    r"""Return the ratio from which there is a local minimum near the spike that is not noise.

    There the branch of `maximum_likelihood` begins: $m^2 = (p-2)/(p-1)$. Below
    `maximum_likelihood_threshold` noise has deeper minima.

    Args:
        p: The order, at least 3.

    Returns:
        The ratio, with energy and overlap of that minimum.

    Raises:
        ValueError: If `p` is below 3.

    Example:
        >>> print(metastable_threshold(3))
        p = 3, snr = 1.1547: minimum -1.63299, overlap 0.707107
    """
    if p < 3:
        raise ValueError(f"p must be at least 3, got {p}; at 2 there is one transition")
    overlap = math.sqrt((p - 2) / (p - 1))
    w = math.sqrt(1 / (p - 1))
    snr = 1 / (math.sqrt(p) * overlap ** (p - 2) * w)
    return MaximumLikelihood(p, snr, -(snr * overlap**p + math.sqrt(p) * w), overlap)


def maximum_likelihood(p: int, snr: float) -> MaximumLikelihood:
    r"""Return energy and overlap of the global minimum as $n \to \infty$.

    Above the threshold $m$ is the larger root of $\lambda \sqrt p\, m^{p-2} \sqrt{1-m^2} = 1$;
    for $p = 2$, $m^2 = 1 - 1/(2\lambda^2)$ and $-\min u = \lambda + 1/(2\lambda)$.

    Args:
        p: The order, at least 2.
        snr: The signal-to-noise ratio.

    Returns:
        The estimate's limit.

    Raises:
        ValueError: If `p` is below 2 or `snr` is negative.

    Source:
        Jagannath, Lopatto and Miolane, Ann. Appl. Probab. 30 (2020); p = 2: Baik, Ben Arous and
        Peche, Ann. Probab. 33 (2005).

    Example:
        >>> maximum_likelihood(3, 2.0).overlap
        0.9530
    """
    _check_order(p)
    if not snr >= 0:
        raise ValueError(f"snr must not be negative, got {snr}")
    if snr <= maximum_likelihood_threshold(p).snr:
        return MaximumLikelihood(p, snr, -(ground_state_energy(p) if p > 2 else math.sqrt(2)), 0.0)
    if p == 2:
        return MaximumLikelihood(2, snr, -(snr + 1 / (2 * snr)), math.sqrt(1 - 0.5 / snr**2))
    least = (p - 2) / (p - 1)  # of m^2; beyond it the left side falls
    q = optimize.brentq(
        lambda q: 0.5 * math.log(p * (1 - q)) + (p / 2 - 1) * math.log(q) + math.log(snr),
        least,
        1 - 1e-16,
        xtol=1e-15,
    )
    return MaximumLikelihood(p, snr, -(snr * q ** (p / 2) + math.sqrt(p * (1 - q))), math.sqrt(q))


def second_moment_threshold(p: int) -> float:
    r"""Return a ratio below which no test detects the spike, by the second moment.

    $$\lambda^2 < \min_q \frac{-\ln(1 - q^2)}{2 q^p}$$

    A lower bound on every threshold; for $p = 2$ it is $1/\sqrt2$, the BBP transition itself.

    Args:
        p: The order, at least 2.

    Raises:
        ValueError: If `p` is below 2.

    Source:
        Montanari, Reichman and Zeitouni, NeurIPS 2015; Perry, Wein and Bandeira, Ann. Inst.
        Henri Poincare 56 (2020).

    Example:
        >>> second_moment_threshold(2), second_moment_threshold(3)
        (0.7071, 0.9...)
    """
    _check_order(p)
    if p == 2:
        return math.sqrt(0.5)
    found = optimize.minimize_scalar(
        lambda q: -math.log1p(-(q * q)) / (2 * q**p), bounds=(1e-3, 1 - 1e-12), method="bounded"
    )
    return math.sqrt(float(found.fun))
