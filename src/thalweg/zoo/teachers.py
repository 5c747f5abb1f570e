r"""Small networks that know their teacher: swaps of hidden units, with and without a spare."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.landscape import Seed, make_generator
from thalweg.landscape.separators import Separator
from thalweg.zoo.factored import Factored

__all__ = ["swap_path", "tanh_swap", "three_cycle", "two_relu_swap"]


def _student(theta: Tensor, units: int, outputs: int) -> tuple[Tensor, Tensor]:
    """Split a vector into incoming weights `(units, 2)` and outgoing `(outputs, units)`."""
    return theta[: 2 * units].view(units, 2), theta[2 * units :].view(outputs, units)


def _pack(incoming: Tensor, outgoing: Tensor) -> Tensor:
    return torch.cat([incoming.reshape(-1), outgoing.reshape(-1)])


def two_relu_swap(
    scales: Sequence[float] = (1.0, 1.0), *, units: int = 2, seed: Seed = None
) -> Factored:
    r"""Return two ReLU units on a mixture of two Gaussians, and the swap of the two.

    An input lies on one of two orthogonal axes $q_1, q_2$, each with probability ½, at a
    distance of $\mathcal{N}(0, 2)$; the teacher returns $s_i\,\mathrm{relu}(q_i^\top x)\,e_i$.
    Networks without biases are linear on each half axis, so that the risk is the finite sum

    $$L = \tfrac12 \sum_{x \in \{\pm q_1, \pm q_2\}} \Bigl\lVert V\,\mathrm{relu}(W x) -
    \textstyle\sum_i s_i\,\mathrm{relu}(q_i^\top x)\,e_i \Bigr\rVert^2 .$$

    Two units in the order of the teacher and the same two swapped have $\det W$ of opposite
    signs. Where $\det W = 0$ the network sees one direction only, $Wx = c\,(w^\top x)$, and
    the risk is at least $\tfrac12 \min_i s_i^2$: if both axes meet $w$ with the same sign,
    the outputs on $+q_1, +q_2$ are collinear, a matrix of rank 1 against
    $\mathrm{diag}(s_1, s_2)$; if with opposite signs, fitting $+q_1$ raises $-q_2$ and the
    best is $\tfrac12 (s_1^2 \beta^2 + s_2^2 \alpha^2)/(\alpha^2 + \beta^2)$. Letting one unit
    die attains it. A third unit joins the two: the barrier is 0.

    Args:
        scales: The teacher's outputs $s_1, s_2 > 0$.
        units: 2 or 3 hidden units.
        seed: What draws the axes; the coordinate axes if None.

    Returns:
        The landscape; ends that are not apart differ by a rescaling of the units.

    Raises:
        ValueError: If a scale is not positive or `units` is another number.

    References:
        Freeman and Bruna, ICLR 2017, section 2.3.1 (with $s_i = 1$: risk at least ½).

    Example:
        >>> swap = two_relu_swap()
        >>> swap.barrier, [float(swap.loss(end)) < 1e-30 for end in swap.ends()]
        (0.5, [True, True])
    """
    if len(scales) != 2 or not all(s > 0 for s in scales) or units not in (2, 3):
        raise ValueError(f"needs two positive scales and 2 or 3 units, got {scales!r}, {units!r}")
    axes = torch.eye(2, dtype=torch.float64)
    if seed is not None:
        gaussian = torch.randn(2, 2, generator=make_generator(seed)[0], dtype=torch.float64)
        axes = torch.linalg.qr(gaussian).Q
    inputs = torch.cat([axes, -axes])
    size = torch.tensor(list(scales), dtype=torch.float64)
    targets = torch.cat([torch.diag(size), torch.zeros(2, 2, dtype=torch.float64)])

    def loss(theta: Tensor) -> Tensor:
        w, v = _student(theta, units, 2)
        return ((torch.relu(inputs @ w.T) @ v.T - targets) ** 2).sum() / 2

    def member(generator: torch.Generator, order: list[int]) -> Tensor:
        factors = torch.exp(0.3 * torch.randn(2, generator=generator, dtype=torch.float64))
        w = (axes * factors[:, None])[order]
        v = torch.diag(size / factors)[:, order]
        spare = torch.randn(units - 2, 2, generator=generator, dtype=torch.float64)
        dead = torch.zeros(2, units - 2, dtype=torch.float64)
        return _pack(torch.cat([w, spare]), torch.cat([v, dead], 1))

    def ends(generator: torch.Generator, apart: bool) -> tuple[Tensor, Tensor]:
        return member(generator, [0, 1]), member(generator, [1, 0] if apart else [0, 1])

    floor = float(size.min()) ** 2 / 2
    wall = Separator(
        "det W = 0",
        lambda theta: torch.linalg.det(_student(theta, units, 2)[0]),
        floor,
        "exact",
        "the network sees one direction only",
    )
    tight = units == 2
    return Factored(
        loss,
        4 * units,
        name=f"swap of two ReLU units among {units}",
        barrier=floor if tight else 0.0,
        reason="one unit has to die" if tight else "the spare unit takes over",
        ends=ends,
        separators=[wall] if tight else [],
    )


def tanh_swap(*, units: int = 2, examples: int = 24, seed: Seed = 0) -> Factored:
    r"""Return a teacher of two tanh units, and the swap of the two in a student.

    $$L = \frac{1}{2N} \sum_i \Bigl(\textstyle\sum_j v_j \tanh(w_j^\top x_i) - y_i\Bigr)^2$$

    With two units the minima are isolated, up to the sign of each unit; their barrier is
    positive and has no closed form. With three units it is 0 (`swap_path`).

    Args:
        units: 2 or 3 hidden units.
        examples: The number $N$ of Gaussian inputs in two dimensions.
        seed: What draws the inputs.

    Returns:
        The landscape; ends that are not apart are the same units, one with both signs turned.

    Raises:
        ValueError: If `units` is another number.

    References:
        Şimşek et al., ICML 2021 (arXiv 2105.12221).

    Example:
        >>> tanh_swap().barrier is None, tanh_swap(units=3).barrier
        (True, 0.0)
    """
    if units not in (2, 3):
        raise ValueError(f"needs 2 or 3 units, got {units!r}")
    generator, _ = make_generator(seed)
    inputs = torch.randn(examples, 2, generator=generator, dtype=torch.float64)
    teacher = torch.tensor([[1.5, 0.0], [0.0, 1.5]], dtype=torch.float64)
    out = torch.tensor([[1.0, 0.7]], dtype=torch.float64)
    targets = torch.tanh(inputs @ teacher.T) @ out.T

    def loss(theta: Tensor) -> Tensor:
        w, v = _student(theta, units, 1)
        return ((torch.tanh(inputs @ w.T) @ v.T - targets) ** 2).mean() / 2

    def ends(generator: torch.Generator, apart: bool) -> tuple[Tensor, Tensor]:
        spare = torch.randn(units - 2, 2, generator=generator, dtype=torch.float64)
        dead = torch.zeros(1, units - 2, dtype=torch.float64)
        order = [1, 0] if apart else [0, 1]
        flip = torch.tensor([1.0, 1.0 if apart else -1.0], dtype=torch.float64)
        return (
            _pack(torch.cat([teacher, spare]), torch.cat([out, dead], 1)),
            _pack(
                torch.cat([(teacher * flip[:, None])[order], spare]),
                torch.cat([(out * flip)[:, order], dead], 1),
            ),
        )

    return Factored(
        loss,
        3 * units,
        name=f"swap of two tanh units among {units}",
        barrier=None if units == 2 else 0.0,
        reason="the minima are isolated" if units == 2 else "the spare unit takes over",
        ends=ends,
    )


def swap_path(
    a: Float[Tensor, " dim"], b: Float[Tensor, " dim"], *, outputs: int
) -> Float[Tensor, "corners dim"]:
    r"""Return a path along which a network never changes, from two units to the two swapped.

    The student has three units on two inputs; the third is silent (its outgoing weights are
    0) at both ends. By turns a silent unit moves its incoming weights, which changes nothing,
    or two units with equal incoming weights share their outgoing ones in another way.

    Args:
        a: One end, `(dim,)`: incoming weights `(3, 2)` row by row, then outgoing `(outputs, 3)`.
        b: The other: units 1 and 2 of `a` in the other order, up to rescaling of ReLU units.
        outputs: The number of outputs.

    Returns:
        The corners, `(8, dim)`.

    Example:
        >>> net = tanh_swap(units=3)
        >>> a, b = net.ends()
        >>> bool((net.loss(swap_path(a, b, outputs=1)) < 1e-28).all())
        True
    """
    (w, v), (x, y) = _student(a, 3, outputs), _student(b, 3, outputs)
    zero = torch.zeros_like(v[:, 0])
    steps = [
        ([w[0], w[1], w[2]], [v[:, 0], v[:, 1], zero]),
        ([w[0], w[1], x[1]], [v[:, 0], v[:, 1], zero]),  # unit 3 takes the place of unit 1
        ([w[0], w[1], x[1]], [zero, v[:, 1], y[:, 1]]),
        ([x[0], w[1], x[1]], [zero, v[:, 1], y[:, 1]]),  # unit 1 takes the place of unit 2
        ([x[0], w[1], x[1]], [y[:, 0], zero, y[:, 1]]),
        ([x[0], x[1], x[1]], [y[:, 0], zero, y[:, 1]]),  # unit 2 takes the place of unit 3
        ([x[0], x[1], x[1]], [y[:, 0], y[:, 1], zero]),
        ([x[0], x[1], x[2]], [y[:, 0], y[:, 1], zero]),
    ]
    return torch.stack([_pack(torch.stack(p), torch.stack(q, 1)) for p, q in steps])


def three_cycle() -> Factored:
    r"""Return Freeman and Bruna's disconnected example: a 2-3-2 ReLU network on three points.

    Three points at equal angles on the unit circle, each to be sent to the next, without
    biases:

    $$L = \tfrac12 \sum_{i=1}^3 \lVert V\,\mathrm{relu}(W x_i) - x_{i+1} \rVert^2 .$$

    The ends are a network of zero loss and the same with two hidden units swapped. The
    hidden activations $H$ (units by points) have determinants of opposite signs there, and
    where $\det H = 0$, $L \ge \tfrac14$: the targets' rows span $1^\perp$, with
    $Y^\top Y = \tfrac32 (I - 11^\top/3)$, so that an output in a plane $n^\perp$ of rows
    leaves $\tfrac34 (1 - (1^\top n)^2 / 3\lvert n\rvert^2)$, more if the rows span less. Each
    row of $H$ is non-negative and has a zero, because $\sum_i x_i = 0$; hence $n$, which is
    orthogonal to two such rows, has a zero or two signs, and
    $(1^\top n)^2 \le 2 \lvert n \rvert^2$. It is the infimum there, approached but not attained:
    rows $(\epsilon, 1, 0)$ and $(0, 1, \epsilon)$ leave $\tfrac14 + O(\epsilon)$, with outgoing
    weights of size $1/\epsilon$. The barrier itself is not known.

    Returns:
        The landscape. Ends that are not apart differ by a rescaling of the units.

    References:
        Freeman and Bruna, ICLR 2017, appendix E.1, which finds it disconnected by search.

    Example:
        >>> net = three_cycle()
        >>> net.separators(*net.ends())[0].floor
        0.25
    """
    angles = torch.arange(3, dtype=torch.float64) * (2 * math.pi / 3)
    points = torch.stack([angles.cos(), angles.sin()], 1)
    targets = points.roll(-1, 0)

    def hidden(theta: Tensor) -> Tensor:
        return torch.relu(_student(theta, 3, 2)[0] @ points.T)

    def loss(theta: Tensor) -> Tensor:
        _, v = _student(theta, 3, 2)
        return ((v @ hidden(theta) - targets.T) ** 2).sum() / 2

    def ends(generator: torch.Generator, apart: bool) -> tuple[Tensor, Tensor]:
        while True:
            w = torch.randn(3, 2, generator=generator, dtype=torch.float64)
            active = torch.relu(w @ points.T)
            if float(torch.linalg.svdvals(active)[-1]) > 0.2:
                break
        v = torch.linalg.solve(active, targets.T, left=False)
        order = [1, 0, 2]
        if apart:
            return _pack(w, v), _pack(w[order], v[:, order])
        return _pack(w, v), _pack(1.5 * w, v / 1.5)

    wall = Separator(
        "det H = 0",
        lambda theta: torch.linalg.det(hidden(theta)),
        0.25,
        "certified",
        "the rows of H span too little",
    )
    return Factored(
        loss,
        12,
        name="cycle of three points in a 2-3-2 ReLU net",
        barrier=None,
        reason="at least 1/4",
        ends=ends,
        separators=[wall],
    )
