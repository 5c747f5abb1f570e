r"""Two-layer networks in the mean-field scaling, and their limit of infinite width.

$$f(x) = \frac1m \sum_{i=1}^m a_i\, s(w_i \cdot x)$$

With a step of $m$ times the learning rate the units move as particles in a field that they make
together; as $m$ grows the loss curve tends to that of a deterministic flow of their distribution,
and the fluctuations of the outputs about it have variance of order $1/m$. For linear units the
moments close, and the limit is exact at every step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.estimate import Cost, Estimate
from thalweg.landscape.function import FunctionLandscape
from thalweg.landscape.seeding import Seed, make_generator

__all__ = ["LinearMoments", "MeanFieldStudy", "mean_field", "two_layer"]

Activation = Literal["linear", "tanh", "relu", "square"]
Progress = Callable[[float, str], None]
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda z: z,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "square": torch.square,
}
_RESAMPLES = 1000


def _outputs(theta: Tensor, inputs: Tensor, activation: Activation) -> Tensor:
    """Return the outputs of networks, `(..., examples)`."""
    units = theta.reshape(*theta.shape[:-1], -1, inputs.shape[1] + 1)
    hidden = _ACTIVATIONS[activation](units[..., 1:] @ inputs.T)
    outputs: Tensor = (units[..., :1] * hidden).mean(-2)
    return outputs


def two_layer(
    width: int,
    inputs: Float[Tensor, "examples dim"],
    targets: Float[Tensor, " examples"],
    *,
    activation: Activation = "tanh",
) -> FunctionLandscape:
    r"""Return the landscape of a two-layer network in the mean-field scaling.

    $$L(\theta) = \frac{1}{2N} \sum_k (f(x_k) - y_k)^2$$

    Coordinates are $(a_1, w_1, a_2, w_2, \dots)$; starts are standard normal.

    Args:
        width: The number of units, $m$.
        inputs: $x_k$.
        targets: $y_k$.
        activation: $s$.

    Raises:
        ValueError: If `width` is not positive or the activation is unknown.

    Example:
        >>> land = two_layer(3, torch.eye(2).double(), torch.ones(2).double())
        >>> land.dim, float(land.loss(torch.zeros(9).double()))
        (9, 0.5)
    """
    if width < 1:
        raise ValueError(f"a network needs at least one unit, got width = {width}")
    if activation not in _ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(_ACTIVATIONS)}, not {activation!r}")

    def loss(theta: Tensor) -> Tensor:
        return ((_outputs(theta, inputs, activation) - targets) ** 2).mean() / 2

    return FunctionLandscape(loss, width * (inputs.shape[1] + 1), dtype=inputs.dtype)


@dataclass(frozen=True)
class LinearMoments:
    r"""The second moments of linear units, which gradient descent maps among themselves.

    On $L = \tfrac12 |b - \beta|^2$, the population loss for white inputs and the teacher $\beta
    \cdot x$, with $b = \langle a w \rangle$, $A = \langle a^2 \rangle$, $C = \langle w w^\top
    \rangle$ and $e = b - \beta$, a step $\eta$ of all units gives

    $$b' = b - \eta (A I + C) e + \eta^2 (e \cdot b) e, \quad A' = A - 2 \eta\, e \cdot b + \eta^2
      e^\top C e, \quad C' = C - \eta (b e^\top + e b^\top) + \eta^2 A e e^\top.$$

    At width $m$ the brackets are the average over units, and in the limit over their law; in both
    cases the map is the same and exact.

    Attributes:
        b: $\langle a w \rangle$, `(dim,)`: the network's linear map.
        a2: $\langle a^2 \rangle$.
        c: $\langle w w^\top \rangle$, `(dim, dim)`.

    Example:
        >>> moments = LinearMoments.initial(2)
        >>> for _ in range(2000):
        ...     moments = moments.step(torch.tensor([1.0, 0.0]).double(), lr=0.01)
        >>> moments.b
        tensor([1.0000, 0.0000], dtype=torch.float64)
    """

    b: Float[Tensor, " dim"]
    a2: float
    c: Float[Tensor, "dim dim"]

    @classmethod
    def initial(cls, dim: int, *, a2: float = 1.0, w2: float = 1.0) -> LinearMoments:
        """Return the moments of independent centred weights of these variances."""
        return cls(
            torch.zeros(dim, dtype=torch.float64), a2, w2 * torch.eye(dim, dtype=torch.float64)
        )

    @classmethod
    def of(cls, theta: Float[Tensor, " coordinates"], dim: int) -> LinearMoments:
        """Return the moments of the units of one network of `two_layer`."""
        units = theta.reshape(-1, dim + 1)
        a, w = units[:, 0], units[:, 1:]
        return cls((a[:, None] * w).mean(0), float((a * a).mean()), w.T @ w / len(a))

    def step(self, target: Float[Tensor, " dim"], *, lr: float) -> LinearMoments:
        """Return the moments after one step of gradient descent towards the teacher `target`."""
        e = self.b - target
        along = float(e @ self.b)
        b = self.b - lr * (self.a2 * e + self.c @ e) + lr**2 * along * e
        a2 = self.a2 - 2 * lr * along + lr**2 * float(e @ self.c @ e)
        outer = torch.outer(self.b, e)
        c = self.c - lr * (outer + outer.T) + lr**2 * self.a2 * torch.outer(e, e)
        return LinearMoments(b, a2, c)

    def loss(self, target: Float[Tensor, " dim"]) -> float:
        r"""Return $\tfrac12 |b - \beta|^2$."""
        return float(((self.b - target) ** 2).sum()) / 2


@dataclass(frozen=True)
class MeanFieldStudy:
    r"""Networks of several widths trained on one teacher from many initialisations.

    Attributes:
        widths: The widths $m$, rising.
        times: Mean-field times, steps times the rate, `(times,)`.
        losses: Loss curves, `(widths, replicas, times)`.
        outputs: The outputs on probes at `probe_time`, `(widths, replicas, probes)`.
        probe_time: When; while networks still learn, for at the end all may fit the teacher.
        limit: The exact loss curve at infinite width, `(times,)`; None unless units are linear.
        activation: $s$.
        lr: The rate, per unit of mean-field time.
        cost: What training took.
        level: Nominal coverage of the intervals.
        seed: What drew everything.
    """

    widths: tuple[int, ...]
    times: Float[np.ndarray, " times"]
    losses: Float[np.ndarray, "widths replicas times"]
    outputs: Float[np.ndarray, "widths replicas probes"]
    probe_time: float
    limit: Float[np.ndarray, " times"] | None
    activation: str
    lr: float
    cost: Cost
    level: float
    seed: int

    @property
    def fluctuations(self) -> Float[np.ndarray, " widths"]:
        """The variance of the outputs over initialisations, averaged over the probes."""
        with np.errstate(invalid="ignore"):
            return np.asarray(self.outputs.var(axis=1, ddof=1).mean(-1))

    @property
    def gaps(self) -> Float[np.ndarray, " widths"]:
        """How far one network's loss curve is from the limit: largest over time, mean over runs.

        Without an exact limit the mean curve of the widest networks stands for it.
        """
        reference = self.losses[-1].mean(0) if self.limit is None else self.limit
        with np.errstate(invalid="ignore"):  # a curve that is not finite has no distance
            return np.asarray(np.abs(self.losses - reference).max(-1).mean(-1))

    @property
    def exponent(self) -> Estimate:
        r"""The slope of the logarithm of `fluctuations` in that of the width; theory says -1.

        Least squares; the interval is a bootstrap over initialisations.
        """
        x = np.log(self.widths) - np.log(self.widths).mean()
        weights = x / (x @ x)
        rng = np.random.default_rng([self.seed, 1])
        count = self.outputs.shape[1]
        slopes = np.full(_RESAMPLES, math.nan)
        for k in range(_RESAMPLES if np.isfinite(self.outputs).all() else 0):
            drawn = [row[rng.integers(count, size=count)] for row in self.outputs]
            slopes[k] = weights @ np.log([row.var(axis=0, ddof=1).mean() for row in drawn])
        tail = (1 - self.level) / 2
        low, high = np.quantile(slopes, [tail, 1 - tail]).tolist()
        return Estimate(
            float(weights @ np.log(self.fluctuations)),
            float(slopes.std(ddof=1)),
            (low, high),
            count,
            self.cost,
            level=self.level,
            method="log-log slope of the outputs' variance, bootstrap over initialisations",
            seed=self.seed,
        )

    def __str__(self) -> str:
        """Return a table over the widths."""
        reference = "the exact limit" if self.limit is not None else f"width {self.widths[-1]}"
        lines = [
            f"two-layer {self.activation} networks, {self.losses.shape[1]} initialisations, time "
            f"{self.times[-1]:g} at rate {self.lr:g}, outputs compared at time {self.probe_time:g}",
            f"  {'width':>7} {'last loss':>11} {'output variance':>16}   "
            f"loss curve's distance from {reference}",
        ]
        for k, width in enumerate(self.widths):
            lines.append(
                f"  {width:7d} {self.losses[k, :, -1].mean():11.5g} {self.fluctuations[k]:16.5g}   "
                f"{self.gaps[k]:.3g}"
            )
        exponent = str(self.exponent).partition(",")[0]
        lines.append(f"  the variance goes as width to the power {exponent}; theory -1")
        if not np.isfinite(self.losses).all():
            lines.append("  a loss is not finite: lower lr")
        return "\n".join(lines)

    def __rich__(self) -> str:
        """Return the string form for a terminal."""
        return str(self).replace("[", r"\[")

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary of plain numbers; the arrays stay behind."""
        return {
            "type": "mean field",
            "widths": list(self.widths),
            "fluctuations": self.fluctuations.tolist(),
            "gaps": self.gaps.tolist(),
            "exponent": self.exponent.to_json(),
            "activation": self.activation,
            "lr": self.lr,
            "cost": self.cost.to_json(),
            "seed": self.seed,
        }


@dataclass(frozen=True)
class _Task:
    """The teacher's data, and the probes."""

    inputs: Tensor
    targets: Tensor
    probes: Tensor
    teacher: Tensor


def _task(dim: int, examples: int, activation: Activation, generator: torch.Generator) -> _Task:
    """Draw Gaussian inputs and a teacher; for linear units, inputs that are exactly white."""
    inputs = torch.randn(examples, dim, generator=generator, dtype=torch.float64)
    probes = torch.randn(32, dim, generator=generator, dtype=torch.float64)
    if activation == "linear":
        inputs = torch.linalg.qr(inputs)[0] * math.sqrt(examples)
        teacher = torch.randn(dim, generator=generator, dtype=torch.float64)
        teacher = teacher / torch.linalg.vector_norm(teacher)
        return _Task(inputs, inputs @ teacher, probes, teacher)
    teacher = torch.randn(3 * (dim + 1), generator=generator, dtype=torch.float64)
    return _Task(inputs, _outputs(teacher, inputs, activation), probes, teacher)


def _train(
    land: FunctionLandscape,
    theta: Tensor,
    rate: float,
    *,
    steps: int,
    every: int,
    probe: int,
) -> tuple[Tensor, Tensor]:
    """Descend from all rows of `theta`; return them at step `probe`, and the loss curves."""
    curves, probed = [land.loss(theta)], theta
    for step in range(1, steps + 1):
        theta = theta - rate * land.gradient(theta)
        probed = theta if step == probe else probed
        if step % every == 0:
            curves.append(land.loss(theta))
    return probed, torch.stack(curves, -1)


def _linear_limit(teacher: Tensor, steps: int, lr: float, every: int) -> list[float]:
    """Return the loss curve of the moments at infinite width."""
    moments = LinearMoments.initial(len(teacher))
    curve = [moments.loss(teacher)]
    for step in range(1, steps + 1):
        moments = moments.step(teacher, lr=lr)
        if step % every == 0:
            curve.append(moments.loss(teacher))
    return curve


def mean_field(
    widths: Sequence[int] = (16, 64, 256, 1024),
    *,
    dim: int = 5,
    examples: int = 100,
    activation: Activation = "tanh",
    replicas: int = 20,
    time: float = 10.0,
    lr: float = 0.1,
    probe_time: float | None = None,
    level: float = 0.95,
    seed: Seed = None,
    progress: Progress | None = None,
) -> MeanFieldStudy:
    r"""Train two-layer networks of rising width and compare them with their common limit.

    Full-batch gradient descent with step `lr` times $m$, so that one step is `lr` of mean-field
    time at every width, from standard normal weights, on one fixed teacher: three units of the
    same activation, or for ``"linear"`` a vector with exactly white inputs, where the limit is
    known (`LinearMoments`).

    Each width takes some 6 `replicas` `time / lr` $m$ `examples` `dim` floating-point operations,
    so that the largest width takes most of the time.

    Args:
        widths: The widths $m$, rising, at least two.
        dim: Inputs of the network.
        examples: Training examples, at least `dim`.
        activation: ``"tanh"``, ``"relu"``, ``"square"`` or ``"linear"``.
        replicas: Initialisations for each width.
        time: Mean-field time to train for.
        lr: The step in that time.
        probe_time: When outputs are compared; a tenth of `time` by default.
        level: Nominal coverage of the intervals.
        seed: What draws data, teacher and weights.
        progress: Called with a fraction in [0, 1] and a message.

    Returns:
        Loss curves, outputs, their fluctuations and the exponent in the width.

    Raises:
        ValueError: If the widths do not rise, or a number is too small.

    Source:
        Mei, Montanari and Nguyen, PNAS 115 (2018); Chizat and Bach, NeurIPS 2018; Rotskoff and
        Vanden-Eijnden, Comm. Pure Appl. Math. 75 (2022).

    Example:
        >>> study = mean_field((8, 64), replicas=10, time=2.0, activation="linear", seed=0)
        >>> bool(study.gaps[1] < study.gaps[0])
        True
    """
    if len(widths) < 2 or min(widths) < 1 or list(widths) != sorted(set(widths)):
        raise ValueError(f"widths must be two or more positive numbers that rise, got {widths}")
    if replicas < 3 or dim < 1 or examples < dim:
        raise ValueError(
            f"replicas must be at least 3 and examples at least dim, got replicas = {replicas}, "
            f"dim = {dim}, examples = {examples}"
        )
    if not 0 < lr <= time:
        raise ValueError(f"lr must be positive and at most time = {time}, got {lr}")
    probe = time / 10 if probe_time is None else probe_time
    if not lr / 2 < probe <= time:
        raise ValueError(f"probe_time must lie between lr = {lr} and time = {time}, got {probe}")
    generator, number = make_generator(seed)
    task = _task(dim, examples, activation, generator)
    steps = round(time / lr)
    every = max(1, steps // 100)
    losses, outputs, cost = [], [], Cost()
    for k, width in enumerate(widths):
        land = two_layer(width, task.inputs, task.targets, activation=activation)
        theta = torch.stack([land.start(generator) for _ in range(replicas)])
        before = land.cost
        theta, curves = _train(
            land, theta, lr * width, steps=steps, every=every, probe=round(probe / lr)
        )
        cost = cost + (land.cost - before)
        losses.append(curves.numpy())
        outputs.append(_outputs(theta, task.probes, activation).numpy())
        if progress is not None:
            progress((k + 1) / len(widths), f"width {width}")
    exact = _linear_limit(task.teacher, steps, lr, every) if activation == "linear" else None
    return MeanFieldStudy(
        tuple(widths),
        lr * every * np.arange(losses[0].shape[-1]),
        np.stack(losses),
        np.stack(outputs),
        lr * round(probe / lr),
        None if exact is None else np.array(exact),
        activation,
        lr,
        cost,
        level,
        number,
    )
