r"""The covariance of a spin glass: which degrees it mixes, and how strongly."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Mixture"]


@dataclass(frozen=True, slots=True)
class Mixture:
    r"""The covariance function $\xi(q) = \sum_p a_p^2 q^p$ of a spin glass.

    $\operatorname{Cov}[H(\sigma), H(\tau)] = N \xi(\sigma \cdot \tau / N)$ on the sphere of
    radius $\sqrt N$. Degree 1 is a random field of variance $a_1^2$ per spin.

    Args:
        amplitudes: Pairs of a degree and its $a_p$, by rising degree; see `of`.

    Example:
        >>> pure = Mixture.of(3)
        >>> pure.degree, pure.xi(0.5), pure.slope(1.0), pure.curvature(1.0)
        (3, 0.125, 3.0, 6.0)
        >>> print(Mixture.of({1: 2.0, 3: 1.0}))
        4 q + q^3
    """

    amplitudes: tuple[tuple[int, float], ...]

    @classmethod
    def of(cls, p: int | Mapping[int, float] | Mixture) -> Mixture:
        """Return the mixture that a degree, or amplitudes by degree, stand for.

        Raises:
            ValueError: If a degree is not a positive integer, an amplitude is not positive and
                finite, or no degree is above 1.
        """
        if isinstance(p, Mixture):
            return p
        given = {p: 1.0} if isinstance(p, int) else dict(p)
        for degree, amplitude in given.items():
            if isinstance(degree, bool) or not isinstance(degree, int) or degree < 1:
                raise ValueError(f"a degree of a spin glass is a positive integer, not {degree!r}")
            if not (amplitude > 0 and math.isfinite(amplitude)):
                raise ValueError(
                    f"the amplitude of degree {degree} must be positive and finite, not {amplitude}"
                )
        if not given or max(given) < 2:
            raise ValueError(f"a spin glass needs a degree of at least 2, got {sorted(given)}")
        return cls(tuple((degree, float(given[degree])) for degree in sorted(given)))

    @property
    def degree(self) -> int | None:
        """The degree of a pure spin glass of amplitude 1; None for a mixture."""
        if len(self.amplitudes) == 1 and self.amplitudes[0][1] == 1.0:
            return self.amplitudes[0][0]
        return None

    @property
    def field(self) -> float:
        """The standard deviation of the random field on one spin; 0 without one."""
        return dict(self.amplitudes).get(1, 0.0)

    def xi(self, q: float) -> float:
        r"""Return $\xi(q)$."""
        return sum(a * a * q**p for p, a in self.amplitudes)

    def slope(self, q: float) -> float:
        r"""Return $\xi'(q)$."""
        return sum(p * a * a * q ** (p - 1) for p, a in self.amplitudes)

    def curvature(self, q: float) -> float:
        r"""Return $\xi''(q)$."""
        return sum(p * (p - 1) * a * a * q ** (p - 2) for p, a in self.amplitudes if p > 1)

    def __str__(self) -> str:
        """Return the polynomial."""
        return " + ".join(
            f"{'' if a == 1 else f'{a * a:g} '}q{'' if p == 1 else f'^{p}'}"
            for p, a in self.amplitudes
        )
