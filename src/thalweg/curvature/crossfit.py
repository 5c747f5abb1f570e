r"""Control variates from the products themselves: each half of the vectors corrects the other.

From half of the products $Y = A Z$ comes a low-rank guess $B = Y M Y^\top$ of the matrix, and
on the other half $z^\top B z - \operatorname{tr} B$, whose mean is known to be zero, is taken
off $z^\top A z$, with the coefficient that leaves the least variance; then the halves change
places. No product is spent on the guess, so a bad one costs nothing: a non-adaptive Hutch++
that cannot lose to Hutchinson.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.curvature.probes import double

__all__ = ["Guess", "correct", "cross_products", "guesses"]

_ROWS = 2**14
_PAYS = 0.5  # the share of the variance that must go for the correction to be used
HALVES = math.sqrt(2)  # two halves that err as one, the worst case, against independent ones


@dataclass(frozen=True, eq=False)
class Guess:
    r"""A low-rank guess $B = Y M Y^\top$, and the vectors it is to be used on.

    Attributes:
        core: $M$, zero outside the half that made the guess, `(m, m)`.
        users: The indices of the other half.
    """

    core: Float[Tensor, "m m"]
    users: Tensor

    def forms(self, local: Tensor, crossed: Tensor) -> Tensor:
        r"""Return $z_l^\top (B z)_l$ of every user, from $Y_l^\top Z_l$ and $Y^\top Z$."""
        return (local[:, self.users] * (self.core @ crossed[:, self.users])).sum(0)


def cross_products(vectors: Tensor, products: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return $Y^\top Z$ and $Y^\top Y$ as float64 on the CPU, `(m, m)` each."""
    m = vectors.shape[1]
    crossed, gram = torch.zeros(m, m).double(), torch.zeros(m, m).double()
    for first in range(0, len(vectors), _ROWS):
        z, y = double(vectors[first : first + _ROWS]), double(products[first : first + _ROWS])
        crossed += (y.T @ z).cpu()
        gram += (y.T @ y).cpu()
    return crossed, gram


def guesses(crossed: Tensor, gram: Tensor) -> tuple[Guess, Guess]:
    r"""Return the guess from either half.

    With $Q$ the leading left singular vectors of the half's products, a fifth as many as
    there are vectors in all, $M$ follows from the least-squares solution of
    $S (Q^\top Z) \approx Q^\top Y$, made symmetric (Tropp et al. 2017).

    Args:
        crossed: $Y^\top Z$ of all vectors, `(m, m)`.
        gram: $Y^\top Y$ of all vectors, `(m, m)`.
    """
    m = len(gram)
    first, second = torch.arange(m // 2), torch.arange(m // 2, m)
    return _guess(first, second, crossed, gram), _guess(second, first, crossed, gram)


def _guess(makers: Tensor, users: Tensor, crossed: Tensor, gram: Tensor) -> Guess:
    m = len(gram)
    core = torch.zeros(m, m).double()
    own = gram[makers][:, makers]
    squares, directions = torch.linalg.eigh(own)
    large = squares > 1e-12 * squares[-1]
    rank = min(max(1, m // 5), int(large.sum()))
    if rank:
        turn = directions[:, -rank:] / squares[-rank:].sqrt()  # Q = Y turn
        known = turn.T @ crossed[makers][:, makers]
        image = turn.T @ own
        solution = torch.linalg.lstsq(known.T, image.T, driver="gelsd").solution
        core[makers[:, None], makers] = turn @ ((solution + solution.T) / 2) @ turn.T
    return Guess(core, users)


def correct(samples: Tensor, controls: Tensor, *, always: bool = False) -> tuple[Tensor, bool]:
    """Take the controls off the samples where that at least halves their variance.

    Args:
        samples: Independent samples, `(m, *groups)`.
        controls: As many controls of mean zero, `(m, *groups)`.
        always: Correct them whether it pays or not.

    Returns:
        The corrected samples (or `samples` themselves), and whether they are corrected.
    """
    spread, reach = samples - samples.mean(0), controls - controls.mean(0)
    before, power = spread.square().sum(0), reach.square().sum(0)
    slope = torch.where(power > 0, (spread * reach).sum(0) / power, 0.0)
    after = (spread - slope * reach).square().sum(0)
    pays = always or bool(after.sum() < _PAYS * before.sum())
    return (samples - slope * controls, True) if pays else (samples, False)
