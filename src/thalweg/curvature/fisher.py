"""The Fisher information of a network's outputs: exact, sampled or empirical."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.curvature.gauss_newton import OutputOperator
from thalweg.curvature.output_space import Likelihood, Middle, RankOne, recognise, sampled
from thalweg.landscape.protocols import FiniteSum
from thalweg.landscape.seeding import Seed, make_generator

if TYPE_CHECKING:  # asking at run time whether something is a Batch would compute its outputs
    from thalweg.landscape.protocols import Batch

__all__ = ["Fisher"]

Kind = Literal["exact", "monte-carlo", "empirical"]

_FORMS = {
    "categorical": "a_s (diag p - p p^T) with p the softmax of the outputs",
    "bernoulli": "a_s p (1 - p) with p the sigmoid of each output",
    "gaussian": "a constant a_s for each output",
}


class Fisher(OutputOperator):
    r"""The Fisher information matrix of a finite sum at one point.

    With $p(y \mid f)$ the likelihood whose negative logarithm the loss is,

    $$F = \frac1W \sum_i w_i \, \mathbb{E}_{y \sim p(\cdot \mid f_i)}
    \bigl[\nabla_\theta \log p(y \mid f_i) \, \nabla_\theta \log p(y \mid f_i)^\top\bigr].$$

    - ``exact``: the expectation itself, which equals the Gauss-Newton matrix.
    - ``monte-carlo``: targets drawn once, at every site (an example, a token) independently
      and never multiplied with those of another site, so that the expectation over the draws
      is the exact matrix, for sequences and ignored tokens too.
    - ``empirical``: the true targets in place of the expectation,
      $\frac1W \sum_i w_i g_i g_i^\top$ with $g_i$ the gradient of example $i$'s own loss. It is
      another matrix: at a perfect fit it vanishes, and the Fisher need not.

    That the loss is the named likelihood's is checked on its Hessian in the outputs, batch by
    batch, up to a weight $a_s \ge 0$ of every site: zero for an ignored token, the class
    weight of a weighted cross-entropy, $2 / C$ for a mean of squares over $C$ outputs (a
    Gaussian of variance $C / 2$). Label smoothing changes nothing. The penalty is left out.

    Args:
        land: A finite sum over examples, such as a `ModelLandscape`.
        theta: The point, `(dim,)`.
        kind: Which of the three.
        likelihood: ``"categorical"`` (classes in the last axis of the outputs or in axis 1),
            ``"bernoulli"`` or ``"gaussian"`` (independent outputs); None finds out.
        samples: Targets drawn per site, for ``monte-carlo``.
        seed: Draws them; an int, a generator, or None for fresh entropy.

    Attributes:
        kind: Which of the three it is.
        seed: The integer that reproduces the draws.
        likelihood: The likelihood asked for, or found by the first product.

    Raises:
        TypeError: If the landscape is not a sum over examples with outputs.
        ValueError: If an argument is unknown; at the first product, if the loss is not a
            likelihood's, or an empirical Fisher's examples depend on each other.

    References:
        F. Kunstner, L. Balles, P. Hennig (2019), Limitations of the empirical Fisher
        approximation for natural gradient descent; J. Martens (2020), New insights and
        perspectives on the natural gradient method.

    Example:
        >>> import torch
        >>> from thalweg.landscape import ModelLandscape
        >>> model = torch.nn.Linear(1, 2, bias=False).double()
        >>> data = torch.ones(4, 1, dtype=torch.float64), torch.tensor([0, 1, 0, 1])
        >>> land = ModelLandscape(model, torch.nn.functional.cross_entropy, data)
        >>> with Fisher(land, torch.zeros(2, dtype=torch.float64)) as F:
        ...     F.to_dense()
        tensor([[ 0.2500, -0.2500],
                [-0.2500,  0.2500]], dtype=torch.float64)
        >>> F.likelihood
        'categorical'
    """

    def __init__(
        self,
        land: FiniteSum,
        theta: Float[Tensor, " dim"],
        *,
        kind: Kind = "exact",
        likelihood: Likelihood | None = None,
        samples: int = 1,
        seed: Seed = None,
    ) -> None:
        """Check the arguments and draw the seed; nothing is computed yet."""
        super().__init__(land, theta)
        if kind not in get_args(Kind):
            raise ValueError(f"unknown kind {kind!r}; use one of {', '.join(get_args(Kind))}")
        if likelihood is not None and likelihood not in get_args(Likelihood):
            known = ", ".join(get_args(Likelihood))
            raise ValueError(f"unknown likelihood {likelihood!r}; use one of {known}, or None")
        if samples < 1:
            raise ValueError(f"samples must be at least 1, got {samples}")
        self.kind, self.likelihood, self.samples = kind, likelihood, samples
        self.seed = make_generator(seed)[1]

    def _middle(self, batch: Batch) -> Middle:
        if self.kind == "empirical":
            return RankOne(batch)
        found = recognise(batch, self.likelihood)
        if found is None:
            raise ValueError(self._refusal())
        self.likelihood = found[0]
        if self.kind == "exact":
            return found[1]
        number = (self.seed + 0x9E3779B97F4A7C15 * (batch.indices[0] + 1)) % 2**63
        return sampled(batch, found, self.samples, torch.Generator().manual_seed(number))

    def _refusal(self) -> str:
        names = list(_FORMS) if self.likelihood is None else [self.likelihood]
        wanted = "; ".join(f"{name}: {_FORMS[name]}" for name in names)
        return (
            "the loss is not the negative logarithm of a known likelihood: its Hessian in the "
            f"network's outputs is none of this form ({wanted}), with weights a_s >= 0 that do not "
            "depend on the outputs. Outputs that are already probabilities, margins, or a focal or "
            "robust loss do this; let the network return one tensor of logits or predictions, or "
            "use GaussNewton, which takes any convex loss, or kind='empirical'"
        )
