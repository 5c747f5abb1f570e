"""What happened at a loss spike: instability, a crossing, an uphill step, or something else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from thalweg.curvature.advice import OptimiserSharpness, Preconditioned, judge
from thalweg.curvature.eigenpairs import eigenpairs
from thalweg.curvature.operator import Hessian, finite_matmat
from thalweg.curvature.step_rule import StepRule
from thalweg.estimate import Cost
from thalweg.landscape.protocols import FiniteSum, Landscape, check_theta
from thalweg.landscape.seeding import Seed

__all__ = ["Spike", "SpikeKind", "explain_spike"]

SpikeKind = Literal[
    "no rise",
    "unstable step",
    "overshoot",
    "beyond the quadratic model",
    "not explained by curvature",
    "not finite",
]
_HALF = 0.5
_NUMBERS = (
    "before",
    "after",
    "linear",
    "quadratic",
    "remainder",
    "rounding",
    "curvature",
    "length",
    "top_share",
)
_METHOD = "linear and quadratic models at the point before; Lanczos"


@dataclass(frozen=True, eq=False)
class Spike:
    r"""A step that raised the loss, taken apart.

    With $d$ the step, $g$ and $H$ gradient and Hessian *before* it:

    Attributes:
        kind: What happened, in two words; `verdict` says it in a sentence.
        before: $L(\theta)$.
        after: $L(\theta + d)$.
        linear: $g \cdot d$, what the slope alone predicted.
        quadratic: $g \cdot d + \tfrac12 d^\top H d$.
        remainder: The rise that the quadratic model did not predict.
        rounding: What the loss's own rounding may account for.
        curvature: $d^\top H d / |d|^2$, the curvature along the step.
        length: $|d|$.
        top_share: How much of the step, squared, lay in the `k` sharpest directions that the
            optimiser feels, $|V^\top P^{1/2} d|^2 / |P^{1/2} d|^2$.
        k: How many directions those are.
        sharpness: The sharpness before the step, as the optimiser felt it, its product with
            the learning rate and the threshold.
        noise_share: $|g_B - g|^2 / |g_B|^2$ for the minibatch $B$ that the step was taken on;
            None if it was not given.
        cost: What it took.
        seed: The seed that reproduces it.
        method: How it was computed.
    """

    kind: SpikeKind
    before: float
    after: float
    linear: float
    quadratic: float
    remainder: float
    rounding: float
    curvature: float
    length: float
    top_share: float
    k: int
    sharpness: OptimiserSharpness
    noise_share: float | None
    cost: Cost
    seed: int
    method: str = _METHOD

    @property
    def rise(self) -> float:
        """The change of the loss."""
        return self.after - self.before

    @property
    def verdict(self) -> str:
        """What happened, in a sentence that says what to do."""
        felt = f"lr x sharpness = {self.sharpness.product}"
        limit = f"the threshold {self.sharpness.threshold:.4g}"
        best = f"{self.sharpness.largest_step.lower:.4g}"
        if self.kind == "no rise":
            return "no rise: the loss did not go up beyond its rounding"
        if self.kind == "not finite":
            return (
                "not finite: the loss after the step is NaN or infinite, which no local model "
                f"explains; before it {felt} against {limit}"
            )
        if self.kind == "unstable step":
            return (
                f"unstable step: {felt} is above {limit}, and the quadratic model predicted a "
                f"rise ({self.quadratic:+.4g}; it was {self.rise:+.4g}), with "
                f"{self.top_share:.0%} of the step in the top {self.k} direction(s); a learning "
                f"rate below {best} is stable there"
            )
        if self.kind == "overshoot":
            return (
                f"overshoot: the quadratic model predicted a rise ({self.quadratic:+.4g}; it was "
                f"{self.rise:+.4g}), but {felt} is not certainly above {limit}: the step was "
                f"longer than this rule takes from this gradient (momentum, {self._noise}, or "
                "another learning rate)"
            )
        if self.kind == "beyond the quadratic model":
            return (
                f"crossing beyond the quadratic model: it predicted {self.quadratic:+.4g} where "
                f"the loss changed by {self.rise:+.4g}; the step left the region where the "
                f"curvature before it is that of the landscape ({felt}, {limit})"
            )
        return (
            f"not explained by curvature: the slope alone predicted {self.linear:+.4g} of "
            f"{self.rise:+.4g}: the step went uphill on this loss ({self._noise}, momentum, or "
            "other data)"
        )

    @property
    def _noise(self) -> str:
        if self.noise_share is None:
            return "minibatch noise, not measured"
        return f"minibatch noise, {self.noise_share:.0%} of that gradient"

    def __str__(self) -> str:
        """Return the verdict and the numbers behind it."""
        lines = [
            self.verdict,
            f"  loss {self.before:.6g} -> {self.after:.6g} ({self.rise:+.4g}, rounding "
            f"{self.rounding:.1g})",
            f"  predicted: slope {self.linear:+.4g}, with curvature {self.quadratic:+.4g}, "
            f"unexplained {self.remainder:+.4g}",
            f"  step of length {self.length:.4g}, curvature along it {self.curvature:.4g}, "
            f"{self.top_share:.1%} in the top {self.k} of what the optimiser feels",
            f"  sharpness {self.sharpness.sharpness}, times lr {self.sharpness.product}, "
            f"threshold {self.sharpness.threshold:.4g}",
        ]
        if self.noise_share is not None:
            lines.append(f"  {self.noise_share:.1%} of the minibatch gradient was noise")
        return "\n".join([*lines, f"  {self.cost}"])

    def __rich__(self) -> str:
        """Return the same, the verdict in bold."""
        head, _, tail = str(self).replace("[", chr(92) + "[").partition("\n")
        return f"[bold]{head}[/bold]\n{tail}"

    def to_json(self) -> dict[str, Any]:
        """Return everything but the vectors."""
        values = {name: getattr(self, name) for name in _NUMBERS}
        return {
            "type": "spike",
            "kind": self.kind,
            "verdict": self.verdict,
            **{name: x if math.isfinite(x) else repr(x) for name, x in values.items()},
            "k": self.k,
            "sharpness": self.sharpness.to_json(),
            "noise_share": self.noise_share,
            "cost": self.cost.to_json(),
            "seed": self.seed,
            "method": self.method,
        }


def explain_spike(
    land: Landscape,
    before: Float[Tensor, " dim"],
    after: Float[Tensor, " dim"],
    optimizer: torch.optim.Optimizer | StepRule,
    *,
    model: nn.Module | None = None,
    minibatch: Sequence[int] | Tensor | None = None,
    k: int = 1,
    tol: float = 1e-4,
    seed: Seed = None,
) -> Spike:
    r"""Say why the loss went up in one step.

    The change is compared with the linear and the quadratic model at the point before:

    - **unstable step**: the quadratic model explains most of the rise, through its curvature,
      and the learning rate times the sharpness is certainly above the optimiser's threshold;
    - **overshoot**: the same, but the rule is not certainly unstable there;
    - **beyond the quadratic model**: at least half of the rise is in the remainder;
    - **not explained by curvature**: at least half of it is in the slope: the step went uphill;
    - **not finite**, **no rise**.

    Args:
        land: The landscape, over all the data (or over the minibatch whose loss it was).
        before: The vector before the step, `(dim,)`.
        after: The vector after it.
        optimizer: The torch optimiser as it was at the step, only read; or a `StepRule`.
        model: The module whose parameters the optimiser holds, where needed.
        minibatch: Positions of the examples that the step was taken on, to measure how much of
            its gradient was noise.
        k: How many top directions the step is projected on.
        tol: The residual aimed at, as a fraction of the operator's norm.
        seed: An int, a generator, or None for fresh entropy; recorded in the result.

    Returns:
        The numbers, and a verdict.

    Raises:
        ValueError: If both vectors are equal, or one before is not finite, or `minibatch` is
            given for a landscape without examples.

    References:
        J. Cohen et al. (2021), §2: on a quadratic the iterates grow along the top
        eigenvectors alone; A. Lewkowycz et al. (2020), The large learning rate phase, for
        crossings that end in a flatter place.

    Example:
        >>> from thalweg.landscape import FunctionLandscape
        >>> h = torch.tensor([1.0, 8.0], dtype=torch.float64)
        >>> bowl = FunctionLandscape(lambda x: (h * x**2).sum() / 2, dim=2)
        >>> x = torch.tensor([1.0, 0.02], dtype=torch.float64)
        >>> far = x - 0.6 * bowl.gradient(x)
        >>> explain_spike(bowl, x, far, StepRule(lr=0.6), seed=0).kind
        'no rise'
        >>> further = far - 0.6 * bowl.gradient(far)
        >>> explain_spike(bowl, far, further, StepRule(lr=0.6), seed=0).kind
        'unstable step'
    """
    before = check_theta(before, land.dim, land.dtype, land.device, single=True)
    after = check_theta(after, land.dim, land.dtype, land.device, single=True)
    step = after.double() - before.double()
    if not bool(step.any()):
        raise ValueError("the vectors before and after are equal, so there was no step")
    rule = optimizer if isinstance(optimizer, StepRule) else StepRule.read(optimizer, land, model)
    if rule.pending:
        raise ValueError(f"this {rule.name} has taken no step yet; pass it as it was at the spike")
    start = land.cost
    finite = bool(torch.isfinite(step).all())
    first, slope = land.value_and_gradient(before)
    last = float(land.loss(after)) if finite else math.nan
    along = (step if finite else torch.zeros_like(step)).to(land.dtype)
    with Hessian(land, before) as hessian:
        product = finite_matmat(hessian, along[:, None])[:, 0].double()
        operator = Preconditioned(hessian, rule.diagonal, decay=rule.decay)
        pairs = eigenpairs(operator, min(k, land.dim), tol=tol, seed=seed)
    noise = None if minibatch is None else _noise_share(land, before, slope, minibatch)
    linear, bend = float(slope.double() @ step), float(step @ product)
    scaled = rule.scaled(step)
    parts = pairs.vectors.double().T @ scaled
    rise, quadratic = last - float(first), linear + bend / 2
    rounding = 16 * torch.finfo(land.dtype).eps * max(abs(last), abs(float(first)))
    cost = land.cost - start
    felt = judge(rule, pairs, cost)
    return Spike(
        kind=_kind(rise, linear, bend / 2, rounding, felt),
        before=float(first),
        after=last,
        linear=linear,
        quadratic=quadratic,
        remainder=rise - quadratic,
        rounding=rounding,
        curvature=bend / float(step @ step),
        length=float(torch.linalg.vector_norm(step)),
        top_share=float(parts @ parts) / float(scaled @ scaled),
        k=len(pairs.values),
        sharpness=felt,
        noise_share=noise,
        cost=cost,
        seed=pairs.seed,
    )


def _kind(
    rise: float, linear: float, bend: float, rounding: float, felt: OptimiserSharpness
) -> SpikeKind:
    """Name what accounts for at least half of the rise."""
    if not math.isfinite(rise):
        return "not finite"
    if rise <= rounding:
        return "no rise"
    if rise - linear - bend >= _HALF * rise:
        return "beyond the quadratic model"
    if linear >= _HALF * rise:
        return "not explained by curvature"
    return "unstable step" if felt.product.lower > felt.threshold else "overshoot"


def _noise_share(
    land: Landscape, theta: Tensor, full: Tensor, indices: Sequence[int] | Tensor
) -> float:
    if not isinstance(land, FiniteSum):
        raise ValueError("this landscape is no mean over examples, so it has no minibatches")
    own = land.minibatch(indices).gradient(theta).double()
    power = float(own @ own)
    return float(((own - full.double()) ** 2).sum()) / power if power else math.nan
