"""The second moment of single examples' gradients: the noise of stochastic gradient descent."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.curvature.arithmetic import exact_trace
from thalweg.curvature.gauss_newton import OutputOperator
from thalweg.curvature.output_space import Middle, RankOne
from thalweg.estimate import Estimate
from thalweg.landscape.protocols import FiniteSum
from thalweg.landscape.seeding import Seed

if TYPE_CHECKING:  # asking at run time whether something is a Batch would compute its outputs
    from thalweg.landscape.protocols import Batch

__all__ = ["GradientMoment"]


class GradientMoment(OutputOperator):
    r"""The second moment of the examples' gradients, or their covariance.

    $$C = \frac1W \sum_i w_i g_i g_i^\top \;\bigl( - \, g g^\top \text{ if centred} \bigr),
    \qquad g_i = \nabla \ell_i(\theta), \quad g = \frac1W \sum_i w_i g_i.$$

    Centred, it is the covariance of the gradient of one example drawn at random. The mean
    gradient of a minibatch of $B$ examples has covariance $C / B$ if they are drawn with
    replacement, and $\frac{C}{B} \frac{N - B}{N - 1}$ if without (for equal weights). The penalty
    is the same for every example; it is left out of $g_i$ and $g$.

    Args:
        land: A finite sum over examples, such as a `ModelLandscape`.
        theta: The point, `(dim,)`.
        centred: Whether to subtract the mean.

    Raises:
        TypeError: If the landscape is not a sum over examples with outputs.
        ValueError: If `theta` is wrong; at the first product, if the examples of a batch depend
            on each other (batch statistics).

    References:
        S. Mandt, M. Hoffman, D. Blei (2017), Stochastic gradient descent as approximate Bayesian
        inference.

    Example:
        >>> import torch
        >>> from thalweg.landscape import ModelLandscape
        >>> model = torch.nn.Linear(1, 1, bias=False).double()
        >>> data = torch.ones(2, 1).double(), torch.tensor([[1.0], [-1.0]]).double()
        >>> land = ModelLandscape(model, torch.nn.functional.mse_loss, data)
        >>> with GradientMoment(land, torch.zeros(1).double(), centred=True) as C:
        ...     C.to_dense()  # gradients -2 and 2
        tensor([[4.]], dtype=torch.float64)
    """

    def __init__(
        self, land: FiniteSum, theta: Float[Tensor, " dim"], *, centred: bool = False
    ) -> None:
        """Check the landscape and the point; nothing is computed yet."""
        super().__init__(land, theta)
        self.centred = centred
        self._mean: Tensor | None = None

    def _middle(self, batch: Batch) -> Middle:
        return RankOne(batch)

    @property
    def mean(self) -> Float[Tensor, " dim"]:
        """The mean gradient $g$, without the penalty; computed once."""
        self._check_open()
        if self._mean is None:
            before, mass = self.landscape.cost, 0.0
            total = torch.zeros_like(self.theta)
            for batch, _ in self._pairs(graphs=True):
                if batch.weight > 0:
                    total.add_(batch.vjp(batch.loss_gradient()), alpha=batch.weight)
                    mass += batch.weight
            self._mean = total.div_(mass)
            self._ledger.total += self.landscape.cost - before
        return self._mean

    def _product(self, vectors: Tensor) -> Tensor:
        products = super()._product(vectors)
        if self.centred:
            products = products - torch.outer(self.mean, self.mean @ vectors)
        return products

    @torch.inference_mode(False)
    def own_trace(self, *, level: float = 0.95, seed: Seed = None) -> Estimate | None:
        """Return the trace from the squared lengths of the examples' gradients, exactly."""
        before = self.cost
        raw = super().own_trace(level=level, seed=seed)
        if raw is None or not self.centred:
            return raw
        mean = float(self.mean.double().square().sum())
        spent = self.cost - before
        return exact_trace(self, raw.value - mean, raw.value + mean, spent, level, raw.seed or 0)

    @torch.inference_mode(False)
    def own_diagonal(self) -> Float[Tensor, " dim"] | None:
        """Return the diagonal from the squares of the examples' gradients."""
        raw = super().own_diagonal()
        if raw is None or not self.centred:
            return raw
        return raw - self.mean.square()
