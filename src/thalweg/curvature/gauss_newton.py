"""The Gauss-Newton matrix, and what all matrices of its family share."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor
from torch.utils._pytree import tree_leaves

from thalweg.curvature.arithmetic import exact_trace
from thalweg.curvature.operator import PointOperator
from thalweg.curvature.output_space import Autograd, Middle, Zero, convex, recognise
from thalweg.estimate import Estimate
from thalweg.landscape.protocols import FiniteSum
from thalweg.landscape.seeding import Seed, make_generator

if TYPE_CHECKING:  # asking at run time whether something is a Batch would compute its outputs
    from thalweg.landscape.protocols import Batch

__all__ = ["GaussNewton", "OutputOperator"]

EXACT_COLUMNS = 32
"""How many columns of an example's factor are gone through one by one; above, random signs."""

_FORMS = 4096
_MOST_SIGNS = 96


class OutputOperator(PointOperator):
    r"""A matrix $\frac1W \sum_b W_b J_b^\top M_b J_b$ over the batches of a finite sum.

    A subclass says what $M_b$ is. The batches with their graphs are held between products
    where all fit the landscape's memory cap, else made again once per block of vectors.

    Args:
        land: A finite sum over examples, such as a `ModelLandscape`.
        theta: The point, `(dim,)`.

    Raises:
        TypeError: If the landscape is not a sum over examples with outputs, or `theta` is not a
            tensor of its dtype.
        ValueError: If `theta` has another shape or device, or is not finite.
    """

    definite = True

    def __init__(self, land: FiniteSum, theta: Float[Tensor, " dim"]) -> None:
        """Check the landscape and the point; nothing is computed yet."""
        if not isinstance(land, FiniteSum):
            raise TypeError(
                f"{type(self).__name__} needs a landscape that is a sum over examples with "
                f"outputs, such as ModelLandscape, not {type(land).__name__}; Hessian takes any"
            )
        super().__init__(land, theta)
        self.landscape: FiniteSum = land
        self._kept: list[tuple[Batch, Middle]] | None = None

    @abstractmethod
    def _middle(self, batch: Batch) -> Middle:
        """Return what stands between the Jacobians of this batch."""

    def close(self) -> None:
        """Free what the point kept; a later product is refused."""
        self._kept = None
        super().close()

    def _pairs(self, graphs: bool) -> Iterator[tuple[Batch, Middle]]:
        """Go through the batches with their maps, and keep them if there is room."""
        if self._kept is not None:
            yield from self._kept
            return
        kept, room = [], graphs
        for batch in self.landscape.batches(self.theta):
            if graphs:
                batch.linearise()
            pair = batch, (self._middle(batch) if batch.weight > 0 else Zero(batch))
            room = room and batch.keeps
            if room:
                kept.append(pair)
            del batch
            yield pair
            del pair  # else its graph would stand beside the next one's
        if room:
            self._kept = kept

    def _product(self, vectors: Tensor) -> Tensor:
        self._check_open()
        before, rows = self.landscape.cost, vectors.T
        total, mass = rows.new_zeros(rows.shape), 0.0
        for batch, middle in self._pairs(graphs=True):
            total.add_(batch.sandwich(rows, middle.apply), alpha=batch.weight)
            mass += batch.weight
            del batch, middle
        self._ledger.total += self.landscape.cost - before
        return total.div_(_positive(mass)).T

    @torch.inference_mode(False)
    def own_trace(self, *, level: float = 0.95, seed: Seed = None) -> Estimate | None:
        r"""Return the trace without a product, from vectors $J_i^\top u$ of single examples.

        $$\operatorname{tr} = \frac1W \sum_b W_b \sum_i \sum_c |J_i^\top s_{ic}|^2,
        \qquad M_b = S S^\top, \quad S = (s_{ic}),$$

        exactly where an example's factor has at most 32 columns. Else by random signs $z$ of
        every example's own, $\mathbb{E} |J_i^\top S_i z|^2$, at least two vectors each, with
        Student's interval for a sum over examples (Welch's degrees of freedom); the data are
        not seen as a sample.

        Args:
            level: Nominal coverage of the interval.
            seed: Draws the signs; recorded.

        Returns:
            The estimate, or None where the examples depend on each other or the factor is not
            known (a loss of many outputs that is no likelihood's).
        """
        self._check_open()
        self._kept = None  # their bytes are not in the plan of single examples' vectors
        generator, number = make_generator(seed)
        before, tally = self.landscape.cost, _Tally()
        samples = min(max(2, -(-_FORMS // self.landscape.examples)), _MOST_SIGNS)
        for batch, middle in self._pairs(graphs=False):
            if middle.columns is None:
                self._ledger.total += self.landscape.cost - before
                return None
            tally.add(batch, middle, samples, generator)
        spent = self.landscape.cost - before
        self._ledger.total += spent
        value = tally.value / _positive(tally.mass)
        if not tally.signs:
            return exact_trace(self, value, abs(value), spent, level, number)
        stderr = math.sqrt(tally.variance) / tally.mass
        freedom = tally.variance**2 / tally.fourth if tally.fourth else 1.0
        half = float(stats.t.ppf((1 + level) / 2, freedom)) * stderr
        half += 16 * torch.finfo(self.dtype).eps * abs(value)
        return Estimate(
            value=value,
            stderr=stderr,
            interval=(value - half, value + half),
            samples=samples,
            cost=spent,
            level=level,
            method="random signs in the outputs of single examples, without products",
            seed=number,
        )

    @torch.inference_mode(False)
    def own_diagonal(self) -> Float[Tensor, " dim"] | None:
        """Return the diagonal without a product where `own_trace` is exact, else None."""
        self._check_open()
        self._kept = None
        before, mass = self.landscape.cost, 0.0
        total = torch.zeros(self.dim, dtype=torch.float64, device=self.device)
        for batch, middle in self._pairs(graphs=False):
            known = middle.columns is not None and middle.columns <= EXACT_COLUMNS
            if known:
                for unit in _units(batch, middle):
                    for squares in map(_squares_down, _blocks(batch, middle, unit)):
                        total.add_(squares, alpha=batch.weight)
                mass += batch.weight
            else:
                break
        self._ledger.total += self.landscape.cost - before
        return (total / _positive(mass)).to(self.dtype) if known else None


class GaussNewton(OutputOperator):
    r"""The generalised Gauss-Newton matrix of a finite sum at one point.

    $$G = \frac1W \sum_i w_i J_i^\top \bigl(\nabla_f^2 \ell_i\bigr) J_i, \qquad
    J_i = \frac{\partial f_i}{\partial \theta},$$

    for any loss that is convex in the outputs: positive semidefinite, and equal to the Hessian
    where the outputs are linear in the parameters. The Hessian of cross-entropy and squared
    errors is recognised and used in closed form, that of any other loss comes by autograd. The
    landscape's penalty is left out; add ``.shifted(decay)`` for weight decay.

    Args:
        land: A finite sum over examples, such as a `ModelLandscape`.
        theta: The point, `(dim,)`.
        allow_indefinite: Take a loss that is not convex in the outputs: the matrix is then not
            known to be semidefinite.

    Raises:
        TypeError: If the landscape is not a sum over examples with outputs.
        ValueError: If `theta` is wrong; at the first product, if the loss is not convex in the
            outputs, or linear in them.

    References:
        N. Schraudolph (2002), Fast curvature matrix-vector products for second-order gradient
        descent; J. Martens (2020), New insights and perspectives on the natural gradient method.

    Example:
        >>> import torch
        >>> from thalweg.landscape import ModelLandscape
        >>> model = torch.nn.Linear(1, 1, bias=False).double()
        >>> x = torch.tensor([[1.0], [3.0]], dtype=torch.float64)
        >>> land = ModelLandscape(model, torch.nn.functional.mse_loss, (x, 2 * x))
        >>> with GaussNewton(land, land.vector(model)) as G:
        ...     G.to_dense()  # twice the mean of x^2
        tensor([[10.]], dtype=torch.float64)
        >>> print(G.cost)
        1 HVP, 1 pass
    """

    def __init__(
        self, land: FiniteSum, theta: Float[Tensor, " dim"], *, allow_indefinite: bool = False
    ) -> None:
        """Check the landscape and the point; nothing is computed yet."""
        super().__init__(land, theta)
        self.definite = not allow_indefinite
        self._checked = False

    def _middle(self, batch: Batch) -> Middle:
        found = recognise(batch)
        if found is not None:
            self._checked = True
            return found[1]
        if not self._checked:
            self._check_convex(batch)
            self._checked = True
        return Autograd(batch)

    def _check_convex(self, batch: Batch) -> None:
        worst, zero = convex(batch)
        if zero:
            raise ValueError(
                "the loss is linear in the network's outputs, so its Gauss-Newton matrix is zero; "
                "let the network return logits or predictions, not log-probabilities or the loss "
                "itself, and the loss do the rest"
            )
        if self.definite and not worst >= -1e3 * torch.finfo(self.dtype).eps:
            raise ValueError(
                f"the loss is not convex in the network's outputs (t.(M t) is {worst:.3g} of "
                "|t| |M t| for a random tangent t), so its Gauss-Newton matrix is not positive "
                "semidefinite; use Hessian, or pass allow_indefinite=True if you mean it"
            )


@dataclass
class _Tally:
    """A trace summed over batches, with the variance that random signs give it."""

    value: float = 0.0
    mass: float = 0.0
    variance: float = 0.0
    fourth: float = field(default=0.0, repr=False)
    signs: bool = False

    def add(self, batch: Batch, middle: Middle, samples: int, generator: torch.Generator) -> None:
        """Take in one batch."""
        self.mass += batch.weight
        if middle.columns is not None and middle.columns <= EXACT_COLUMNS:
            for unit in _units(batch, middle):
                self.value += batch.weight * math.fsum(_lengths(batch, middle, unit).tolist())
            return
        self.signs = True
        forms = torch.stack(
            [_lengths(batch, middle, _signs(batch, middle, generator)) for _ in range(samples)]
        )
        self.value += batch.weight * math.fsum(forms.mean(0).tolist())
        spread = batch.weight**2 * forms.var(0) / samples
        self.variance += float(spread.sum())
        self.fourth += float(spread.square().sum()) / (samples - 1)


def _units(batch: Batch, middle: Middle) -> Iterator[Tensor]:
    """Yield the unit vectors of every example's coefficients."""
    like, columns = _like(batch), middle.columns or 0
    for c in range(columns):
        unit = like.new_zeros(len(batch.indices), columns)
        unit[:, c] = 1
        yield unit


def _signs(batch: Batch, middle: Middle, generator: torch.Generator) -> Tensor:
    shape = len(batch.indices), middle.columns or 0
    return (2 * torch.randint(0, 2, shape, generator=generator) - 1).to(_like(batch))


def _lengths(batch: Batch, middle: Middle, coefficients: Tensor) -> Tensor:
    """Return every example's $|J_i^T S_i z_i|^2$ in float64."""
    return torch.cat(list(map(_squares_across, _blocks(batch, middle, coefficients))))


def _blocks(batch: Batch, middle: Middle, coefficients: Tensor) -> Iterator[Tensor]:
    return batch.per_example_vjp_blocks(middle.combine(coefficients))


def _squares_across(rows: Tensor) -> Tensor:
    """Return every row's squared length in float64, without a second copy of the rows."""
    lengths: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    return lengths.square()


def _squares_down(rows: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(rows, dim=0, dtype=torch.float64)
    return lengths.square()


def _like(batch: Batch) -> Tensor:
    tensor: Tensor = tree_leaves(batch.outputs)[0]
    return tensor


def _positive(mass: float) -> float:
    if not mass > 0:
        raise ValueError(f"the total weight of the data is {mass}, so there is no mean over it")
    return mass
