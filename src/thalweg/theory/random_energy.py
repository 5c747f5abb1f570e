r"""The random energy model: $2^N$ independent levels, and how they freeze.

The energies are independent, $E \sim N(0, N/2)$. The limit $N \to \infty$ is known in closed
form (Derrida), the law of the minimum at every $N$ too, and the thermodynamics at finite $N$
are integrals of one variable: nothing has to be sampled, and sampling tests it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import integrate, special

from thalweg.estimate import Estimate
from thalweg.landscape.seeding import Seed, make_generator
from thalweg.theory.statistics import sample_mean

__all__ = [
    "CRITICAL_BETA",
    "GROUND_STATE",
    "RandomEnergyModel",
    "RandomEnergySample",
    "Thermodynamics",
    "thermodynamic_limit",
]

GROUND_STATE = -math.sqrt(math.log(2))
CRITICAL_BETA = 2 * math.sqrt(math.log(2))
LARGEST_SAMPLED = 20
LARGEST_EXACT = 400


@dataclass(frozen=True, slots=True)
class Thermodynamics:
    r"""What a temperature makes of the random energy model, per spin.

    Args:
        beta: The inverse temperature.
        free_energy: $-\langle \ln Z \rangle / (\beta N)$, quenched.
        annealed: $-\ln \langle Z \rangle / (\beta N)$, never above `free_energy`.
        energy: The mean energy.
        entropy: The mean entropy, in nats.
        participation: $Y_2 = \langle \sum_i w_i^2 \rangle$ of the Gibbs weights $w_i$.
        spins: The size $N$; None for the limit.

    Example:
        >>> print(thermodynamic_limit(3.330218))
        beta = 3.33022 (frozen, N = inf): free energy -0.832555, annealed -1.0407, energy -0.832555, entropy 0, participation 0.5
    """  # noqa: E501

    beta: float
    free_energy: float
    annealed: float
    energy: float
    entropy: float
    participation: float
    spins: int | None = None

    @property
    def frozen(self) -> bool:
        r"""Whether $\beta$ is above the critical $2\sqrt{\ln 2}$."""
        return self.beta > CRITICAL_BETA

    def __str__(self) -> str:
        """Return all of it in one line."""
        phase = "frozen" if self.frozen else "paramagnetic"
        size = "inf" if self.spins is None else str(self.spins)
        return (
            f"beta = {self.beta:.6g} ({phase}, N = {size}): free energy {self.free_energy:.6g}, "
            f"annealed {self.annealed:.6g}, energy {self.energy:.6g}, "
            f"entropy {self.entropy:.6g}, participation {self.participation:.6g}"
        )


def _check_beta(beta: float) -> None:
    if not (beta > 0 and math.isfinite(beta)):
        raise ValueError(f"beta must be positive and finite, got {beta!r}")


def thermodynamic_limit(beta: float) -> Thermodynamics:
    r"""Return the model at $N \to \infty$.

    With $\beta_c = 2\sqrt{\ln 2}$: below it $f = -\ln 2/\beta - \beta/4$, $e = -\beta/2$,
    $s = \ln 2 - \beta^2/4$, $Y_2 = 0$; above it $f = e = -\sqrt{\ln 2}$, $s = 0$ and
    $Y_2 = 1 - \beta_c/\beta$.

    Args:
        beta: The inverse temperature.

    Returns:
        The thermodynamics per spin.

    Raises:
        ValueError: If `beta` is not positive.

    Source:
        Derrida, Phys. Rev. B 24, 2613 (1981); Gross and Mezard, Nucl. Phys. B 240, 431 (1984).

    Example:
        >>> thermodynamic_limit(1.0).free_energy
        -0.943147
    """
    _check_beta(beta)
    annealed = -math.log(2) / beta - beta / 4
    if beta <= CRITICAL_BETA:
        return Thermodynamics(beta, annealed, annealed, -beta / 2, math.log(2) - beta**2 / 4, 0.0)
    frozen = 1 - CRITICAL_BETA / beta
    return Thermodynamics(beta, GROUND_STATE, annealed, GROUND_STATE, 0.0, frozen)


@dataclass(frozen=True)
class RandomEnergySample:
    """Thermodynamics measured over sampled disorder, beside what is exact.

    Args:
        exact: The exact values at this size.
        free_energy: Its measurement.
        energy: Its measurement.
        entropy: Its measurement.
        participation: Its measurement.
    """

    exact: Thermodynamics
    free_energy: Estimate
    energy: Estimate
    entropy: Estimate
    participation: Estimate

    def __str__(self) -> str:
        """Return a table of exact and measured values."""
        lines = [f"random energy model, N = {self.exact.spins}, beta = {self.exact.beta:.6g}"]
        for name in ("free_energy", "energy", "entropy", "participation"):
            exact, measured = getattr(self.exact, name), getattr(self, name)
            word = "inside" if exact in measured else "OUTSIDE"
            lines.append(
                f"  {name.replace('_', ' '):14}exact {exact:10.6f}, measured {measured}: {word}"
            )
        return "\n".join(lines)

    def __rich__(self) -> str:
        """Return the string form for a terminal."""
        return str(self)


class RandomEnergyModel:
    r"""The random energy model of $N$ spins.

    $$E_i \sim N(0, N/2) \text{ independent}, \quad i = 1 \dots 2^N, \qquad
    Z = \sum_i e^{-\beta E_i}$$

    Args:
        n: The number of spins $N$; up to thousands, since no level is drawn unless asked.

    Raises:
        ValueError: If `n` is not positive.

    Example:
        >>> model = RandomEnergyModel(20)
        >>> model.minimum_mean(), model.minimum_mean_asymptotic()
        (-0.7704, -0.7724)
    """

    def __init__(self, n: int) -> None:
        if n < 1:
            raise ValueError(f"a random energy model needs at least one spin, got {n}")
        self.n = n
        self._log_levels = n * math.log(2)
        self._scale = 1 / math.sqrt(2 * n)  # of an energy per spin

    def minimum_cdf(self, energy: float) -> float:
        r"""Return $P(\min_i E_i \le N e) = 1 - (1 - \Phi(e \sqrt{2N}))^{2^N}$.

        Args:
            energy: The energy per spin $e$.
        """
        upper = float(special.log_ndtr(-energy / self._scale))
        lower = float(special.log_ndtr(energy / self._scale))
        # 2^N log(1 - Phi), without overflow and without losing a tiny Phi
        log_hazard = self._log_levels + (lower if upper > -1e-15 else math.log(-upper))
        return -math.expm1(-math.exp(log_hazard)) if log_hazard < 700 else 1.0

    def minimum_quantile(self, probability: float) -> float:
        """Return the energy per spin below which the minimum lies with this probability.

        Raises:
            ValueError: If `probability` is not strictly between 0 and 1.
        """
        if not 0 < probability < 1:
            raise ValueError(f"probability must lie strictly between 0 and 1, got {probability!r}")
        return float(self._energy_at(np.array(-math.log1p(-probability))))

    def _energy_at(self, hazard: Float[np.ndarray, ...]) -> Float[np.ndarray, ...]:
        """Return the energy per spin where -2^N log(1 - Phi) equals `hazard`."""
        log_tail = np.log(hazard) - self._log_levels
        tail = np.exp(log_tail)  # -log(1 - Phi)
        small = tail < 1e-12
        below = np.log(-np.expm1(-np.where(small, 1.0, tail)))
        low = special.ndtri_exp(np.where(small, log_tail, below))
        high = -special.ndtri_exp(-np.maximum(tail, 0.5))
        return np.asarray(np.where(tail < 0.5, low, high) * self._scale, dtype=np.float64)

    def minimum_mean(self) -> float:
        """Return the exact mean of the minimum per spin, by quadrature over its quantiles."""
        return self._minimum_moment(1)

    def minimum_std(self) -> float:
        """Return the exact standard deviation of the minimum per spin."""
        return math.sqrt(self._minimum_moment(2, self.minimum_mean()))

    def _minimum_moment(self, order: int, centre: float = 0.0) -> float:
        # the hazard is a standard exponential; its logarithm x has density exp(x - e^x)
        def integrand(x: float) -> float:
            energy = float(self._energy_at(np.array(math.exp(x))))
            return (energy - centre) ** order * math.exp(x - math.exp(x))

        value, _ = integrate.quad(integrand, -45.0, 6.0, limit=400, epsabs=1e-13, epsrel=1e-12)
        return float(value)

    def minimum_mean_asymptotic(self) -> float:
        r"""Return the mean of the minimum per spin to order $1/N$.

        $$-\sqrt{\ln 2} + \frac{\ln(4\pi N \ln 2)}{4 N \sqrt{\ln 2}}
        - \frac{\gamma}{2 N \sqrt{\ln 2}}$$
        """
        root = math.sqrt(math.log(2))
        rise = math.log(4 * math.pi * self.n * math.log(2)) / (4 * self.n * root)
        return -root + rise - float(np.euler_gamma) / (2 * self.n * root)

    def lowest(
        self, count: int = 1, *, samples: int = 1, seed: Seed = None
    ) -> tuple[Float[np.ndarray, "samples count"], int]:
        r"""Draw the lowest levels exactly, without drawing the others.

        Order statistics by exponential spacings (Renyi): $-\log(1 - \Phi_{(k)}) =
        \sum_{j \le k} X_j / (2^N - j + 1)$ with standard exponentials $X_j$.

        Args:
            count: How many levels, at most $2^N$.
            samples: How many independent disorders.
            seed: What draws them.

        Returns:
            Energies per spin in rising order, `(samples, count)`, and the seed.

        Raises:
            ValueError: If `count` is not in 1 … $2^N$.
        """
        if count < 1 or math.log(count) > self._log_levels + 1e-12:
            raise ValueError(f"count must lie between 1 and 2^{self.n}, got {count}")
        _, number = make_generator(seed)
        spacings = np.random.default_rng(number).exponential(size=(samples, count))
        left = -np.expm1(np.log(np.maximum(np.arange(count), 1e-300)) - self._log_levels)
        return self._energy_at(np.cumsum(spacings / left, axis=1)), number

    def exact(self, beta: float) -> Thermodynamics:
        r"""Return the thermodynamics at this size, averaged over the disorder exactly.

        From $\ln Z = \int (e^{-e^x} - e^{-Z e^x}) dx$ and $1/Z^k \propto \int t^{k-1} e^{-tZ} dt$
        all averages factorise over the levels: with $w = e^{x - \beta E}$ and $g(x) = \langle
        e^{-w} \rangle$, $\langle \ln Z \rangle = \int (e^{-e^x} - g^{2^N}) dx$, $\langle \sum_i
        w_i^2 \rangle = 2^N \int \langle w^2 e^{-w} \rangle g^{2^N-1} dx$, and so on.

        Args:
            beta: The inverse temperature.

        Returns:
            The thermodynamics per spin, to about ten digits.

        Raises:
            ValueError: If `beta` is not positive, or $N$ is above 400, where the limit is as good.

        Source:
            Derrida, Phys. Rev. B 24, 2613 (1981) (the same trick).
        """
        _check_beta(beta)
        if self.n > LARGEST_EXACT:
            raise ValueError(
                f"N = {self.n} is above {LARGEST_EXACT}, where the quadrature underflows; "
                "use thermodynamic_limit(beta)"
            )
        start, end = self._bracket(beta, -42.0), self._bracket(beta, 4.0)
        points, step = np.linspace(start, end, math.ceil((end - start) / 0.1) + 1, retstep=True)
        hidden, weight, energy = np.array([self._averages(float(x), beta) for x in points]).T
        log_g = np.log1p(-hidden)
        survive = np.exp(-np.exp(self._log_levels + np.log(-log_g)))
        density = np.exp(self._log_levels - log_g) * survive * step
        log_z = -float(np.euler_gamma) - start - float((survive.sum() - 0.5) * step)
        mean = float(density @ energy) / (beta * self.n)
        free = -log_z / (beta * self.n)
        annealed = -math.log(2) / beta - beta / 4
        entropy = beta * (mean - free)
        return Thermodynamics(beta, free, annealed, mean, entropy, float(density @ weight), self.n)

    def _bracket(self, beta: float, target: float) -> float:
        r"""Return the $x$ at which $2^N (1 - g(x))$ is about $e^{target}$."""
        low, high = -self.n * (math.log(2) + beta + beta**2) - 100.0, 100.0 + self.n * beta
        for _ in range(60):
            middle = (low + high) / 2
            hazard = self._averages(middle, beta)[0]
            if hazard > 0 and self._log_levels + math.log(hazard) > target:
                high = middle
            else:
                low = middle
        return high

    def _averages(self, x: float, beta: float) -> tuple[float, float, float]:
        r"""Return the averages of $1 - e^{-w}$, $w^2 e^{-w}$ and $\beta E w e^{-w}$ at one $x$."""
        slope = beta * math.sqrt(self.n / 2)
        step = min(0.125, 0.25 / slope)
        z = np.arange(-38, 38 + step, step)
        gauss = np.exp(-(z**2) / 2) * step / math.sqrt(2 * math.pi)
        w = np.exp(np.clip(x - slope * z, -740.0, 7.0))
        gone = np.exp(-w)
        return (
            min(float(gauss @ -np.expm1(-w)), 1 - 1e-16),
            float(gauss @ (w**2 * gone)),
            float(gauss @ (slope * z * w * gone)),
        )

    def sample(
        self,
        betas: Sequence[float],
        *,
        disorders: int = 100,
        level: float = 0.95,
        seed: Seed = None,
    ) -> tuple[RandomEnergySample, ...]:
        """Draw all levels of some disorders and measure the thermodynamics.

        Args:
            betas: The inverse temperatures.
            disorders: How many independent draws of the $2^N$ levels.
            level: Nominal coverage of the intervals.
            seed: What draws them.

        Returns:
            One result per inverse temperature; they share the draws.

        Raises:
            ValueError: If $N > 20$ (use `exact`), or there are fewer than two disorders.

        Example:
            >>> (found,) = RandomEnergyModel(8).sample([3.0], disorders=200, seed=0)
            >>> found.exact.energy in found.energy
            True
        """
        if self.n > LARGEST_SAMPLED:
            raise ValueError(
                f"2^{self.n} levels are too many to draw (at most 2^{LARGEST_SAMPLED}); "
                "exact(beta) and lowest(count) need none of them"
            )
        if disorders < 2:
            raise ValueError(f"an error needs two disorders or more, got {disorders}")
        for beta in betas:
            _check_beta(beta)
        _, number = make_generator(seed)
        rng = np.random.default_rng(number)
        rows = np.empty((disorders, len(betas), 4))
        for row in rows:
            levels = rng.standard_normal(2**self.n) * math.sqrt(self.n / 2)
            for values, beta in zip(row, betas, strict=True):
                values[:] = self._measure(levels, beta)
        method = f"{disorders} disorders of 2^{self.n} levels"
        return tuple(
            RandomEnergySample(
                self.exact(beta),
                *(
                    sample_mean(rows[:, k, column], level=level, method=method, seed=number)
                    for column in range(4)
                ),
            )
            for k, beta in enumerate(betas)
        )

    def _measure(self, levels: Float[np.ndarray, " levels"], beta: float) -> list[float]:
        low = levels.min()
        weights = np.exp(-beta * (levels - low))
        total = weights.sum()
        weights /= total
        free = (low - math.log(total) / beta) / self.n
        energy = float(weights @ levels) / self.n
        return [free, energy, beta * (energy - free), float((weights**2).sum())]
