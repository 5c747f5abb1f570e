"""The sharpness that an optimiser feels, and the largest step that it can take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from thalweg.curvature.eigenpairs import Eigenpairs, eigenpairs
from thalweg.curvature.operator import Hessian, LinearOperator
from thalweg.curvature.step_rule import Momentum, StepRule
from thalweg.estimate import Bound, BoundKind, Cost, Verdict
from thalweg.landscape.protocols import Landscape
from thalweg.landscape.seeding import Seed

__all__ = [
    "OptimiserSharpness",
    "Preconditioned",
    "judge",
    "largest_stable_step",
    "optimiser_sharpness",
    "sharpness_bound",
]

_METHOD = "largest eigenvalue of the preconditioned Hessian, Lanczos"


class Preconditioned(LinearOperator):
    r"""A symmetric operator of the spectrum that an optimiser sees.

    $$P^{-1/2} (H + W)\, P^{-1/2}, \qquad P \text{ diagonal and positive},$$

    which is similar to $P^{-1}(H + W)$ and so has its eigenvalues.

    Args:
        operator: $H$.
        diagonal: $P$, `(dim,)`; infinity marks a coordinate that does not move. None is the
            identity.
        decay: $W$: weight decay, one number or `(dim,)`.

    Raises:
        ValueError: If the diagonal has another shape, or an entry is not positive.

    Example:
        >>> from thalweg.curvature import MatrixOperator
        >>> H = MatrixOperator(torch.tensor([[2.0, 1.0], [1.0, 4.0]]))
        >>> Preconditioned(H, torch.tensor([1.0, 4.0])).to_dense()
        tensor([[2.0000, 0.5000],
                [0.5000, 1.0000]])
    """

    def __init__(
        self,
        operator: LinearOperator,
        diagonal: Float[Tensor, " dim"] | None,
        *,
        decay: Float[Tensor, " dim"] | float = 0.0,
    ) -> None:
        """Check the diagonal."""
        self.dim, self.dtype, self.device = operator.dim, operator.dtype, operator.device
        self.operator = operator
        for name, given in (("diagonal", diagonal), ("decay", decay)):
            if isinstance(given, Tensor) and tuple(given.shape) != (operator.dim,):
                raise ValueError(
                    f"the {name} has shape {tuple(given.shape)}, but the operator is "
                    f"{operator.dim} x {operator.dim}; pass shape ({operator.dim},)"
                )
        if diagonal is None:
            diagonal = torch.ones(operator.dim, device=operator.device)
        if not bool((diagonal > 0).all()):
            bad = int((~(diagonal > 0)).sum())
            raise ValueError(
                f"{bad} of {operator.dim} entries of the diagonal are not positive: no optimiser "
                "divides by those; add its eps"
            )
        self._scale = diagonal.double().rsqrt().to(operator.device, operator.dtype)
        self._decay = torch.as_tensor(decay, dtype=operator.dtype, device=operator.device)
        self.definite = operator.definite and bool((self._decay >= 0).all())

    @property
    def cost(self) -> Cost:
        """What the operator inside has taken."""
        return self.operator.cost

    def _product(self, vectors: Tensor) -> Tensor:
        inner = self._scale[:, None] * vectors
        decay = self._decay if self._decay.ndim == 0 else self._decay[:, None]
        return self._scale[:, None] * (self.operator.matmat(inner) + decay * inner)


def sharpness_bound(pairs: Eigenpairs) -> Bound:
    """Return what the first pair says of the largest eigenvalue.

    Its interval holds an eigenvalue, so the lower end is certified; that none is larger
    rests on the random starts, so the upper end is estimated (but for a complete basis).

    Args:
        pairs: The result of ``eigenpairs(operator, k, which="largest")``.

    Returns:
        The bracket of the largest eigenvalue.

    Raises:
        ValueError: If the pairs are of another end.
    """
    if pairs.which not in ("largest", "both"):
        raise ValueError(f"these are the {pairs.which} eigenpairs, not the largest")
    low, high = pairs.intervals[0].tolist()
    kind: BoundKind = "certified" if pairs.overlooked == 0 else "estimated"
    return Bound(low, high, "certified", kind, pairs.cost, pairs.method)


@dataclass(frozen=True, eq=False)
class OptimiserSharpness:
    r"""The sharpness as an optimiser sees it, against its threshold.

    Attributes:
        rule: The optimiser's step.
        sharpness: $\lambda_{\max}(P^{-1}(H + W))$.
        product: The same times the learning rate.
        threshold: The largest stable product.
        largest_step: The learning rate at which the step turns unstable.
        pairs: The eigenpair behind it, of $P^{-1/2}(H + W)P^{-1/2}$.
        cost: What it took.
        seed: The seed that reproduces it.
        method: How it was computed.
    """

    rule: StepRule
    sharpness: Bound
    product: Bound
    threshold: float
    largest_step: Bound
    pairs: Eigenpairs
    cost: Cost
    seed: int
    method: str = _METHOD

    @property
    def stable(self) -> Verdict:
        """Whether steps of this size are stable on the quadratic model here."""
        product = self.product
        settled = bool(self.pairs.converged.all()) and self.pairs.overlooked < 1
        shown = f"lr x sharpness = {product}, threshold {self.threshold:.6g}"
        if product.lower > self.threshold:
            return Verdict("no", shown, self, self.cost)
        if not settled:
            shown += "; that no eigenvalue is larger is not settled: raise max_products"
        elif product.upper < self.threshold:
            return Verdict("yes", shown, self, self.cost)
        return Verdict("unresolved", shown, self, self.cost)

    def __str__(self) -> str:
        """Return what the optimiser feels, and how far it may go."""
        words = {"yes": "stable", "no": "UNSTABLE", "unresolved": "at the edge"}
        return (
            f"{self.rule}\n"
            f"sharpness {self.sharpness}; times lr {self.product}, "
            f"{words[self.stable.answer]} (threshold {self.threshold:.6g})\n"
            f"largest stable lr {self.largest_step}; {self.cost}"
        )

    def __rich__(self) -> str:
        """Return the same, an unstable step in red."""
        text = str(self).replace("[", chr(92) + "[")
        return text.replace("UNSTABLE", "[red]UNSTABLE[/red]")

    def to_json(self) -> dict[str, Any]:
        """Return everything but the vectors."""
        return {
            "type": "optimiser sharpness",
            "optimiser": self.rule.name,
            "lr": self.rule.lr,
            "momentum": self.rule.momentum,
            "form": self.rule.form,
            "sharpness": self.sharpness.to_json(),
            "product": self.product.to_json(),
            "threshold": self.threshold,
            "largest_step": self.largest_step.to_json(),
            "converged": bool(self.pairs.converged.all()),
            "cost": self.cost.to_json(),
            "seed": self.seed,
            "method": self.method,
        }


def optimiser_sharpness(
    land: Landscape,
    theta: Float[Tensor, " dim"],
    optimizer: torch.optim.Optimizer | StepRule,
    *,
    model: nn.Module | None = None,
    tol: float = 1e-4,
    max_products: int | None = None,
    seed: Seed = None,
) -> OptimiserSharpness:
    r"""Return the sharpness that an optimiser feels, times its learning rate.

    On the quadratic model at $\theta$ a step with preconditioner $P$, weight decay $W$ and
    learning rate $\eta$ is stable exactly while $\eta\,\lambda_{\max}(P^{-1}(H + W))$ is below
    a threshold: 2 for gradient descent, $2 + 2\beta$ with a heavy ball, $(2+2\beta)/(1+2\beta)$
    with Nesterov's momentum, $(2 + 2\beta_1)/(1 - \beta_1)$ for Adam, whose $P$ is
    $(1 - \beta_1^t)\,(\sqrt{\hat v} + \epsilon)$. Adaptive methods hold $P$ fixed here; they
    move it while they train.

    Args:
        land: The landscape.
        theta: The point, `(dim,)`.
        optimizer: A torch optimiser (SGD, Adam, AdamW, RMSprop), only read; or a `StepRule`.
        model: The module whose parameters the optimiser holds; needed where it has several
            groups or holds only some of them.
        tol: The residual aimed at, as a fraction of the operator's norm.
        max_products: How many products may be spent.
        seed: An int, a generator, or None for fresh entropy; recorded in the result.

    Returns:
        The sharpness, its product with the learning rate, and the largest stable step.

    Raises:
        TypeError: If the optimiser is of a kind that is not known.
        ValueError: If it has no state yet, or cannot be matched with the coordinates.

    References:
        J. Cohen et al. (2021, 2022); see `StepRule`.

    Example:
        >>> from thalweg.landscape import FunctionLandscape
        >>> h = torch.tensor([1.0, 8.0], dtype=torch.float64)
        >>> bowl = FunctionLandscape(lambda x: (h * x**2).sum() / 2, dim=2)
        >>> felt = optimiser_sharpness(bowl, torch.ones(2, dtype=torch.float64), StepRule(lr=0.3))
        >>> felt.product.lower, felt.stable.answer, felt.largest_step.upper
        (2.4, 'no', 0.25)
    """
    rule = optimizer if isinstance(optimizer, StepRule) else StepRule.read(optimizer, land, model)
    if rule.pending:
        raise ValueError(
            f"this {rule.name} has taken no step yet, so it has no preconditioner; take a step "
            "first, or pass a StepRule with a diagonal"
        )
    with Hessian(land, theta) as hessian:
        operator = Preconditioned(hessian, rule.diagonal, decay=rule.decay)
        pairs = eigenpairs(operator, 1, tol=tol, max_products=max_products, seed=seed)
        cost = hessian.cost
    return judge(rule, pairs, cost)


def judge(rule: StepRule, pairs: Eigenpairs, cost: Cost) -> OptimiserSharpness:
    """Hold the largest eigenvalue against a rule's threshold."""
    sharpness = sharpness_bound(pairs)
    below, above = sharpness.lower_kind, sharpness.upper_kind
    low, high = rule.lr * sharpness.lower, rule.lr * sharpness.upper
    shortest, longest = rule.largest_step(sharpness.upper), rule.largest_step(sharpness.lower)
    return OptimiserSharpness(
        rule=rule,
        sharpness=sharpness,
        product=Bound(low, high, below, above, cost, _METHOD),
        threshold=rule.threshold,
        largest_step=Bound(shortest, longest, above, below, cost, _METHOD),
        pairs=pairs,
        cost=cost,
        seed=pairs.seed,
    )


def largest_stable_step(
    land: Landscape,
    theta: Float[Tensor, " dim"],
    *,
    momentum: float = 0.0,
    nesterov: bool = False,
    optimizer: torch.optim.Optimizer | StepRule | None = None,
    model: nn.Module | None = None,
    tol: float = 1e-4,
    seed: Seed = None,
) -> Bound:
    r"""Return the learning rate at which descent turns unstable at $\theta$.

    $\eta^* = c / \lambda_{\max}$, with $c = 2$ for gradient descent, $2 + 2\beta$ with a heavy
    ball and $(2 + 2\beta)/(1 + 2\beta)$ with Nesterov's momentum; the bracket comes from the
    eigenvalue's. Infinite where no curvature is positive.

    Args:
        land: The landscape.
        theta: The point, `(dim,)`.
        momentum: $\beta$, for gradient descent.
        nesterov: Whether that momentum is Nesterov's.
        optimizer: A torch optimiser or a `StepRule` instead; its groups keep their ratios, and
            the answer is that of its fastest group.
        model: The module whose parameters the optimiser holds, where needed.
        tol: The residual aimed at, as a fraction of the operator's norm.
        seed: An int, a generator, or None for fresh entropy.

    Returns:
        The bracket. Below its lower end the step is stable (as far as no eigenvalue was
        missed), above its upper end it is certainly not.

    Raises:
        ValueError: If both an optimiser and a momentum are given.

    Example:
        >>> from thalweg.landscape import FunctionLandscape
        >>> h = torch.tensor([1.0, 8.0], dtype=torch.float64)
        >>> bowl = FunctionLandscape(lambda x: (h * x**2).sum() / 2, dim=2)
        >>> step = largest_stable_step(bowl, torch.ones(2, dtype=torch.float64), seed=0)
        >>> 0.25 in step, step.width < 1e-9
        (True, True)
    """
    if optimizer is not None and (momentum or nesterov):
        raise ValueError("give either optimizer= or momentum= and nesterov=, not both")
    if optimizer is None:
        form: Momentum = "nesterov" if nesterov else "heavy-ball"
        optimizer = StepRule(lr=0.0, momentum=momentum, form=form)
    return optimiser_sharpness(land, theta, optimizer, model=model, tol=tol, seed=seed).largest_step
