"""How strong a spike must be for local search to find it, measured from random starts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from thalweg.estimate import Estimate, success_rate
from thalweg.landscape.seeding import Seed, make_generator
from thalweg.theory.spin_glass.model import SphericalPSpin
from thalweg.theory.tensors.power import apply_tensor

__all__ = ["Recovery", "spike_recovery"]

Method = Literal["power", "gradient"]
_RESAMPLES = 1000


@dataclass(frozen=True)
class Recovery:
    r"""Which trials found the spike, by size and signal-to-noise ratio.

    Attributes:
        p: The order of the tensor.
        sizes: The dimensions, `(sizes,)`.
        snrs: The signal-to-noise ratios, rising, `(snrs,)`.
        found: Whether a trial's last overlap was above `threshold`, `(sizes, snrs, trials)`.
        threshold: Of the overlap.
        level: Nominal coverage of the intervals.
        method: What was iterated.
        seed: What drew everything.
    """

    p: int
    sizes: tuple[int, ...]
    snrs: Float[np.ndarray, " snrs"]
    found: Bool[np.ndarray, "sizes snrs trials"]
    threshold: float
    level: float
    method: str
    seed: int

    def rate(self, size: int, snr: int) -> Estimate:
        """Return the probability of success at the given positions, by Clopper and Pearson."""
        trials = self.found[size, snr]
        return success_rate(
            int(trials.sum()), len(trials), level=self.level, method=self.method, seed=self.seed
        )

    def transition(self, size: int) -> Estimate:
        """Return the ratio at which half of the trials succeed, at the size at this position.

        Linear in the logarithm of the ratio between those measured, the rates made to rise; the
        interval is a bootstrap over trials. NaN where no crossing was measured.
        """
        values = self._crossings(size)
        value = self._crossing(self.found[size].mean(1))
        return self._estimate(value, values, f"{self.method}, half of {self.found.shape[2]} trials")

    def exponent(self) -> Estimate:
        r"""Return $\alpha$ of $\lambda_{1/2} \propto n^\alpha$, by least squares on logarithms.

        The interval is a bootstrap over trials. Gradient methods are expected to need
        $\alpha = (p-2)/2$ as $n \to \infty$ in this normalisation (Ben Arous, Gheissari and
        Jagannath 2020).

        Raises:
            ValueError: If there are fewer than three sizes.
        """
        if len(self.sizes) < 3:
            raise ValueError(f"an exponent needs three sizes or more, got {len(self.sizes)}")
        x = np.log(self.sizes) - np.log(self.sizes).mean()
        at = np.log([self._crossing(rows.mean(1)) for rows in self.found])
        many = np.log([self._crossings(k) for k in range(len(self.sizes))])
        slopes = x @ many / (x @ x)
        return self._estimate(float(x @ at / (x @ x)), slopes, f"{self.method}, log-log slope")

    def _crossing(self, rates: Float[np.ndarray, " snrs"]) -> float:
        rising = np.maximum.accumulate(rates)
        above = int(np.argmax(rising >= 0.5))
        if rising[above] < 0.5 or above == 0:
            return math.nan
        share = (0.5 - rising[above - 1]) / (rising[above] - rising[above - 1])
        low, high = np.log(self.snrs[above - 1 : above + 1])
        return math.exp(low + share * (high - low))

    def _crossings(self, size: int) -> Float[np.ndarray, " resamples"]:
        rng = np.random.default_rng([self.seed, size])
        trials = self.found.shape[2]
        rows = rng.integers(trials, size=(_RESAMPLES, trials))
        return np.array([self._crossing(self.found[size][:, row].mean(1)) for row in rows])

    def _estimate(
        self, value: float, values: Float[np.ndarray, " resamples"], method: str
    ) -> Estimate:
        if math.isnan(value) or np.isnan(values).mean() > (1 - self.level) / 2:
            low, high, error = math.nan, math.nan, math.nan  # the grid does not hold the crossing
        else:
            tail = (1 - self.level) / 2
            low, high = np.nanquantile(values, [tail, 1 - tail]).tolist()
            error = float(np.nanstd(values, ddof=1))
        trials = self.found.shape[2]
        return Estimate(
            value, error, (low, high), trials, level=self.level, method=method, seed=self.seed
        )

    def __str__(self) -> str:
        """Return a table of rates, and the transitions."""
        head = " ".join(f"{snr:7.3g}" for snr in self.snrs)
        lines = [
            f"spiked tensor, p = {self.p}, {self.method}, {self.found.shape[2]} trials, success = "
            f"overlap above {self.threshold:g}",
            f"  {'snr':>6} {head}   half succeed at",
        ]
        for k, n in enumerate(self.sizes):
            rates = " ".join(f"{rate:7.2f}" for rate in self.found[k].mean(1))
            half = self.transition(k)
            where = "not on this grid: widen snrs" if math.isnan(half.interval[0]) else str(half)
            lines.append(f"  n={n:<4} {rates}   {where}")
        if len(self.sizes) > 2:
            lines.append(f"  exponent of n: {self.exponent()}, theory {(self.p - 2) / 2:g}")
        return "\n".join(lines)

    def __rich__(self) -> str:
        """Return the string form for a terminal."""
        return str(self).replace("[", r"\[")

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary of plain numbers."""
        return {
            "type": "recovery",
            "p": self.p,
            "sizes": list(self.sizes),
            "snrs": self.snrs.tolist(),
            "found": self.found.astype(int).tolist(),
            "threshold": self.threshold,
            "level": self.level,
            "method": self.method,
            "seed": self.seed,
        }


def _climb(
    noise: Tensor, spike: Tensor, snrs: Tensor, start: Tensor, steps: int, shift: Tensor
) -> Tensor:
    r"""Iterate from one start at every ratio together, and return the overlaps."""
    p, x = noise.ndim, start.expand(len(snrs), -1)
    for _ in range(steps):
        overlap = x @ spike
        image = apply_tensor(noise, x) + (snrs * overlap ** (p - 1))[:, None] * spike
        x = image + shift[:, None] * x
        x = x / torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x @ spike


def spike_recovery(
    p: int,
    sizes: Sequence[int],
    snrs: Sequence[float],
    *,
    trials: int = 50,
    method: Method = "power",
    steps: int = 200,
    threshold: float = 0.5,
    level: float = 0.95,
    seed: Seed = None,
    progress: Callable[[float, str], None] | None = None,
) -> Recovery:
    r"""Look for a spike from random starts, at several sizes and signal-to-noise ratios.

    Power iteration $x \to Y(I, x, \dots, x)$, or gradient ascent, which is the same with a shift
    $\alpha x$, $\alpha = 2 (p-1)(2 + \lambda)$: steps of $1/\alpha$ along the gradient. Each trial
    draws noise, spike and start, and takes all ratios with them.
    That takes 2 `trials` `steps` `len(snrs)` $n^p$ floating-point operations for each size.

    For p odd a flow that starts at a negative overlap stays in the noise at any ratio, so gradient
    ascent starts on the spike's side, as in the theory.

    Args:
        p: The order, at least 2.
        sizes: The dimensions.
        snrs: The ratios $\lambda$ of `SpikedTensor`, rising and positive.
        trials: How many for each size.
        method: ``"power"`` or ``"gradient"``.
        steps: How many steps are taken; a flow to a fixed time of order `steps`.
        threshold: The overlap ($|m|$ for p even) that counts as success.
        level: Nominal coverage.
        seed: What draws everything.
        progress: Called with a fraction in [0, 1] and a message.

    Returns:
        The outcome of every trial.

    Raises:
        ValueError: If the ratios do not rise, or a number is too small.

    Source:
        Richard and Montanari, NeurIPS 2014; Ben Arous, Gheissari and Jagannath, Ann. Probab. 48
        (2020).

    Example:
        >>> found = spike_recovery(3, [10], [0.5, 50.0], trials=10, seed=0)
        >>> found.rate(0, 1).value
        1.0
    """
    ratios = np.asarray(snrs, dtype=np.float64)
    if not len(ratios) or not (ratios > 0).all() or not (np.diff(ratios) > 0).all():
        raise ValueError(f"snrs must be positive and rise, got {list(snrs)}")
    if p < 2 or trials < 1 or steps < 1 or not len(sizes) or min(sizes) < 2:
        raise ValueError(
            f"p and sizes must be at least 2, trials and steps positive; got p = {p}, "
            f"sizes = {list(sizes)}, trials = {trials}, steps = {steps}"
        )
    generator, number = make_generator(seed)
    lifted = torch.from_numpy(ratios)
    shift = torch.zeros_like(lifted) if method == "power" else 2 * (p - 1) * (2 + lifted)
    found = np.zeros((len(sizes), len(ratios), trials), dtype=bool)
    for k, n in enumerate(sizes):
        for trial in range(trials):
            glass = SphericalPSpin(n, p, seed=generator)
            noise = glass.tensor(p) * n ** (p / 2 - 1)
            spike, start = torch.randn(2, n, generator=generator, dtype=torch.float64)
            spike = spike / torch.linalg.vector_norm(spike)
            start = start / torch.linalg.vector_norm(start)
            if method == "gradient" and p % 2:
                start = start * torch.sign(start @ spike)
            overlaps = _climb(noise, spike, lifted, start, steps, shift).numpy()
            found[k, :, trial] = (np.abs(overlaps) if p % 2 == 0 else overlaps) > threshold
            if progress is not None:
                done = (k + (trial + 1) / trials) / len(sizes)
                progress(done, f"n = {n}: {trial + 1} of {trials} trials")
    words = {"power": "power iteration", "gradient": "gradient ascent"}[method]
    return Recovery(p, tuple(sizes), ratios, found, threshold, level, words, number)
