r"""Landscapes of products, whose barriers are known in closed form, with their proofs.

Each factory returns a `Factored` surface: it knows the barrier between the ends that it
draws, and the sets that separate them (`Separator`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.landscape import Seed, make_generator
from thalweg.landscape.separators import Separator
from thalweg.zoo.surfaces import CriticalPoint, Surface

__all__ = [
    "Factored",
    "deep_linear",
    "matrix_factor",
    "scalar_linear_net",
    "sphere_form",
    "venturi_valley",
]

Draw = Callable[[torch.Generator, bool], tuple[Tensor, Tensor]]


class Factored(Surface):
    """A surface that knows how high a path between its ends must climb.

    Args:
        f: The loss of one `(dim,)` tensor.
        dim: The number of coordinates.
        name: What it is called.
        barrier: The smallest height, above the higher end, of all paths between two ends on
            different sides; 0 where all ends are joined, None where it is not known.
        reason: Why, in a sentence.
        ends: Draws two ends; ``ends(generator, apart)``.
        separators: The sets that separate ends on different sides.
        critical_points: Those that are known; the pass between the ends if it is a point.

    Example:
        >>> net = scalar_linear_net(0.5)
        >>> a, b = net.ends()
        >>> net.barrier, net.separators(a, b)[0].floor
        (0.125, 0.5)
    """

    def __init__(
        self,
        f: Callable[[Tensor], Tensor],
        dim: int,
        *,
        name: str,
        barrier: float | None,
        reason: str,
        ends: Draw,
        separators: Sequence[Separator] = (),
        critical_points: Sequence[CriticalPoint] = (),
    ) -> None:
        """Build the landscape and keep its facts."""
        super().__init__(f, dim, name=name, critical_points=critical_points)
        self.barrier, self.reason = barrier, reason
        self._ends, self._separators = ends, tuple(separators)

    def ends(
        self, seed: Seed = 0, *, apart: bool = True
    ) -> tuple[Float[Tensor, " dim"], Float[Tensor, " dim"]]:
        """Draw two points to connect.

        Args:
            seed: What draws them.
            apart: Whether they lie on different sides, so that `barrier` is between them;
                else the barrier is 0.

        Returns:
            Both, `(dim,)` each.
        """
        generator, _ = make_generator(seed)
        return self._ends(generator, apart)

    def separators(
        self, a: Float[Tensor, " dim"], b: Float[Tensor, " dim"]
    ) -> tuple[Separator, ...]:
        """Return the sets that separate ends on different sides, the same for all pairs."""
        return self._separators

    def __str__(self) -> str:
        """Return the facts, and one line per critical point."""
        high = "not known" if self.barrier is None else f"{self.barrier:.8g}"
        return f"{super().__str__()}\n  barrier {high}: {self.reason}"


def _positive(name: str, values: Sequence[float]) -> Tensor:
    spectrum = torch.as_tensor(values, dtype=torch.float64)
    if spectrum.ndim != 1 or not len(spectrum) or not bool((spectrum > 0).all()):
        raise ValueError(f"{name} must be a vector of positive numbers, got {values!r}")
    return spectrum.sort(descending=True).values


def _orthogonal(size: int, generator: torch.Generator) -> Tensor:
    """Draw a rotation or reflection, uniformly (Mezzadri 2007)."""
    gaussian = torch.randn(size, size, generator=generator, dtype=torch.float64)
    q, r = torch.linalg.qr(gaussian)
    drawn: Tensor = q * r.diagonal().sign()
    return drawn


def _gauge(size: int, generator: torch.Generator, sign: float | None = None) -> Tensor:
    """Draw a mild invertible matrix, its determinant of the sign given."""
    matrix = _orthogonal(size, generator)
    matrix = matrix * torch.exp(0.2 * torch.randn(size, generator=generator, dtype=torch.float64))
    if sign is not None and float(torch.linalg.det(matrix)) * sign < 0:
        matrix[:, 0] *= -1
    return matrix


def deep_linear(
    singular_values: Sequence[float], *, depth: int = 2, width: int | None = None, seed: Seed = 0
) -> Factored:
    r"""Return a deep linear network that fits an invertible matrix.

    $$L = \tfrac12 \lVert W_K \cdots W_1 - M \rVert_F^2$$

    With all hidden layers as wide as $M$ (side $n$), the sign of each $\det W_k$ divides the
    global minima, and the barrier between two parts is exactly $\tfrac12 \sigma_n^2$: where
    $\det W_k = 0$ the product has rank below $n$ (Eckart and Young), and scaling the weakest
    channel through 0 attains it. Wider hidden layers join everything: the barrier is 0.

    Args:
        singular_values: Those of $M$, positive.
        depth: The number $K \ge 2$ of matrices.
        width: Of every hidden layer; as wide as $M$ by default.
        seed: What draws the singular vectors.

    Returns:
        The landscape; its critical point, for depth 2 at the least width, is the pass.

    Raises:
        ValueError: If a singular value is not positive, `depth` < 2 or `width` is too small.

    References:
        Freeman and Bruna, ICLR 2017, Proposition 2.2; Kawaguchi, NeurIPS 2016.

    Example:
        >>> print(deep_linear([2.0, 1.0]).separators(*deep_linear([2.0, 1.0]).ends())[0])
        det W_1 = 0: the loss is at least 0.5 there (exact), because the product has rank below 2
    """
    sigma = _positive("singular_values", singular_values)
    n = len(sigma)
    width = n if width is None else width
    if depth < 2 or width < n:
        raise ValueError(f"depth must be at least 2 and width at least {n}, got {depth}, {width}")
    generator, _ = make_generator(seed)
    left, right = _orthogonal(n, generator), _orthogonal(n, generator)
    matrix = left * sigma @ right.T
    shapes = [(width, n), *[(width, width)] * (depth - 2), (n, width)]
    sizes = [rows * columns for rows, columns in shapes]

    def layers(theta: Tensor) -> list[Tensor]:
        return [w.view(shape) for w, shape in zip(torch.split(theta, sizes), shapes, strict=True)]

    def loss(theta: Tensor) -> Tensor:
        product, *rest = layers(theta)
        for w in rest:
            product = w @ product
        return ((product - matrix) ** 2).sum() / 2

    root = torch.diag(sigma ** (1 / depth))

    def member(generator: torch.Generator, signs: Sequence[float | None]) -> Tensor:
        spare = width - n
        core = torch.zeros(width, width, dtype=root.dtype)
        core[:n, :n], core[n:, n:] = root, torch.randn(spare, spare, generator=generator)
        cores = [core] * (depth - 2)
        first = torch.cat([root @ right.T, torch.randn(spare, n, generator=generator).to(root)])
        last = torch.cat([left @ root, torch.zeros(n, spare, dtype=root.dtype)], 1)
        gauges = [_gauge(width, generator, sign) for sign in signs]
        chain = [first, *cores, last]
        for k, gauge in enumerate(gauges):
            chain[k] = gauge @ chain[k]
            chain[k + 1] = torch.linalg.solve(gauge, chain[k + 1], left=False)
        return torch.cat([w.reshape(-1) for w in chain])

    def ends(generator: torch.Generator, apart: bool) -> tuple[Tensor, Tensor]:
        draws = torch.randint(0, 2, (depth - 1,), generator=generator)
        signs = [2.0 * int(x) - 1 for x in draws]
        other = [-signs[0] if apart else signs[0], *signs[1:]]
        return member(generator, signs), member(generator, other)

    floor = float(sigma[-1]) ** 2 / 2
    tight = width == n
    walls = [_det_wall(f"W_{k + 1}", k, layers, floor, n) for k in range(depth)] if tight else []
    passes = []
    if tight and depth == 2:
        weak = torch.diag(torch.cat([sigma[:-1] ** 0.5, sigma.new_zeros(1)]))
        theta = torch.cat([(weak @ right.T).reshape(-1), (left @ weak).reshape(-1)])
        passes = [CriticalPoint(tuple(theta.tolist()), floor, 1)]
    return Factored(
        loss,
        sum(sizes),
        name=f"deep linear net, {depth} layers of width {width} for rank {n}",
        barrier=floor if tight else 0.0,
        reason="half the least squared singular value" if tight else "a spare unit joins all",
        ends=ends,
        separators=walls,
        critical_points=passes,
    )


def _det_wall(
    name: str, k: int, layers: Callable[[Tensor], list[Tensor]], floor: float, n: int
) -> Separator:
    return Separator(
        f"det {name} = 0",
        lambda theta: torch.linalg.det(layers(theta)[k]),
        floor,
        "exact",
        f"the product has rank below {n}",
    )


def matrix_factor(
    eigenvalues: Sequence[float],
    *,
    width: int | None = None,
    size: int | None = None,
    seed: Seed = 0,
) -> Factored:
    r"""Return the symmetric factorisation of a positive semidefinite matrix of rank $r$.

    $$L = \tfrac14 \lVert U U^\top - M \rVert_F^2, \qquad U \in \mathbb{R}^{n \times w}$$

    With $w = r$ the sign of $\det(V_r^\top U)$ divides the global minima and the barrier
    between the parts is exactly $\tfrac14 \lambda_r^2$; with $w > r$ it is 0.

    Args:
        eigenvalues: The positive eigenvalues of $M$; their number is $r$.
        width: Columns $w$ of $U$; $r$ by default.
        size: Rows $n$; $r$ by default.
        seed: What draws the eigenvectors.

    Returns:
        The landscape; its critical point, for width $r$, is the pass.

    Raises:
        ValueError: If an eigenvalue is not positive, or a size is below $r$.

    Example:
        >>> matrix_factor([3.0, 2.0]).barrier, matrix_factor([3.0, 2.0], width=3).barrier
        (1.0, 0.0)
    """
    spectrum = _positive("eigenvalues", eigenvalues)
    r = len(spectrum)
    width, n = r if width is None else width, r if size is None else size
    if width < r or n < r:
        raise ValueError(f"width and size must be at least {r}, got {width} and {n}")
    generator, _ = make_generator(seed)
    frame = _orthogonal(n, generator)[:, :r]
    matrix = frame * spectrum @ frame.T
    root = frame * spectrum.sqrt()

    def loss(theta: Tensor) -> Tensor:
        u = theta.view(n, width)
        return ((u @ u.T - matrix) ** 2).sum() / 4

    def member(generator: torch.Generator, sign: float) -> Tensor:
        turn = _orthogonal(width, generator)
        if float(torch.linalg.det(turn)) * sign < 0:
            turn[0] *= -1
        return (root @ turn[:r]).reshape(-1)

    def ends(generator: torch.Generator, apart: bool) -> tuple[Tensor, Tensor]:
        sign = 2.0 * int(torch.randint(0, 2, (), generator=generator)) - 1
        return member(generator, sign), member(generator, -sign if apart else sign)

    floor = float(spectrum[-1]) ** 2 / 4
    tight = width == r
    wall = Separator(
        "det VᵀU = 0",
        lambda theta: torch.linalg.det(frame.T @ theta.view(n, width)),
        floor,
        "exact",
        f"UUᵀ has rank below {r} on the range of M",
    )
    weak = root * torch.cat([spectrum.new_ones(r - 1), spectrum.new_zeros(1)])
    point = CriticalPoint(tuple(weak.reshape(-1).tolist()), floor, 1)
    return Factored(
        loss,
        n * width,
        name=f"factorisation of rank {r} with {width} columns",
        barrier=floor if tight else 0.0,
        reason="a quarter of the least squared eigenvalue" if tight else "a spare column joins all",
        ends=ends,
        separators=[wall] if tight else [],
        critical_points=[point] if tight else [],
    )


def scalar_linear_net(decay: float) -> Factored:
    r"""Return the product of two weights, with weight decay: all of it in closed form.

    $$L = \tfrac12 (x_1 x_0 - 1)^2 + \tfrac{\lambda}{2} (x_0^2 + x_1^2), \qquad 0 < \lambda < 1$$

    The minima $\pm\sqrt{1-\lambda}\,(1, 1)$ lie at $\lambda - \lambda^2/2$, the pass at the
    origin at $\tfrac12$: the barrier is $(1-\lambda)^2/2$.

    Args:
        decay: The weight decay $\lambda$.

    Returns:
        The landscape with its three critical points.

    Raises:
        ValueError: If `decay` is not between 0 and 1.

    Example:
        >>> print(scalar_linear_net(0.2).saddles[0])
        saddle of index 1 at (0, 0), value 0.5, joins minima 0 and 1
    """
    if not 0 < decay < 1:
        raise ValueError(f"decay must lie strictly between 0 and 1, got {decay!r}")
    root, bottom = (1 - decay) ** 0.5, decay - decay**2 / 2

    def ends(generator: torch.Generator, apart: bool) -> tuple[Tensor, Tensor]:
        a = torch.full((2,), root, dtype=torch.float64)
        return (a, -a) if apart else (a, 1.1 * a)

    return Factored(
        lambda x: 0.5 * (x[0] * x[1] - 1) ** 2 + decay / 2 * (x**2).sum(),
        2,
        name="scalar linear net",
        barrier=(1 - decay) ** 2 / 2,
        reason="from the minima to the origin",
        ends=ends,
        separators=[
            Separator(
                "x0 + x1 = 0", lambda x: x[0] + x[1], 0.5, "exact", "the product is not positive"
            )
        ],
        critical_points=[
            CriticalPoint((root, root), bottom, 0),
            CriticalPoint((-root, -root), bottom, 0),
            CriticalPoint((0.0, 0.0), 0.5, 1, joins=(0, 1)),
        ],
    )


def sphere_form(eigenvalues: Sequence[float]) -> Factored:
    r"""Return a quadratic form on the sphere, extended to all space.

    $$L = \frac{x^\top A x}{\lvert x \rvert^2} + (\lambda_n - \lambda_1)(\lvert x \rvert^2 - 1)^2$$

    The second term holds the sphere, so that the critical points are the $2n$ eigenvectors
    $\pm v_i$, of index $i - 1$. The barrier between $\pm v_1$ is $\lambda_2 - \lambda_1$:
    every path crosses $x^\top v_1 = 0$. At the origin, where the form has no limit, the value
    is the largest of the limits, $2\lambda_n - \lambda_1$.

    Args:
        eigenvalues: Those of $A$, distinct, at least two; $A$ is diagonal.

    Returns:
        The landscape with its critical points.

    Raises:
        ValueError: If there are fewer than two eigenvalues, or two coincide.

    Example:
        >>> form = sphere_form([1.0, 3.0, 4.0])
        >>> form.barrier, [point.index for point in form.critical_points]
        (2.0, [0, 0, 1, 1, 2, 2])
    """
    spectrum = torch.as_tensor(sorted(eigenvalues), dtype=torch.float64)
    n = len(spectrum)
    if n < 2 or not bool((spectrum[1:] > spectrum[:-1]).all()):
        raise ValueError(f"eigenvalues must be two or more distinct numbers, got {eigenvalues!r}")
    top, span = float(spectrum[-1]), float(spectrum[-1] - spectrum[0])

    def loss(x: Tensor) -> Tensor:
        norm = (x**2).sum()
        return (
            ((spectrum - top) * x**2).sum() / norm.clamp_min(1e-300) + top + span * (norm - 1) ** 2
        )

    def ends(generator: torch.Generator, apart: bool) -> tuple[Tensor, Tensor]:
        a = torch.zeros(n, dtype=torch.float64)
        a[0] = 1.0
        return (a, -a) if apart else (a, 1.1 * a)

    frame = torch.eye(n, dtype=torch.float64)
    points = [
        CriticalPoint(tuple((sign * frame[i]).tolist()), float(spectrum[i]), i)
        for i in range(n)
        for sign in (1.0, -1.0)
    ]
    wall = Separator("x0 = 0", lambda x: x[0], float(spectrum[1]), "exact", "no part lies along v1")
    return Factored(
        loss,
        n,
        name=f"quadratic form on the sphere in {n} dimensions",
        barrier=float(spectrum[1] - spectrum[0]),
        reason="the gap between the two lowest eigenvalues",
        ends=ends,
        separators=[wall],
        critical_points=points,
    )


def venturi_valley(a: float = 1.0, b: float = 2.0, *, units: int = 1) -> Factored:
    r"""Return a network of quadratic units whose spurious valley is known in closed form.

    $$L = \tfrac12\Bigl[\bigl(\textstyle\sum_j u_j w_{j1}^2 - a\bigr)^2
    + \bigl(\textstyle\sum_j u_j w_{j2}^2 + b\bigr)^2\Bigr], \qquad 0 < a < b$$

    With one unit the valley $u > 0$ lies at $b^2/2$, the global minimum, $u < 0$, at $a^2/2$,
    and every path between them passes $u = 0$ at $(a^2+b^2)/2$ or above. With two units the
    valley is gone: a path falls from it to 0. Coordinates: $w$ row by row, then $u$.

    Args:
        a: The first target.
        b: The second, above `a`.
        units: 1 or 2.

    Returns:
        The landscape. Ends that are not apart lie in the same valley.

    Raises:
        ValueError: If `a` and `b` are not in order, or `units` is another number.

    References:
        Venturi, Bandeira and Bruna, JMLR 20 (2019), Theorem 13.

    Example:
        >>> valley = venturi_valley()
        >>> a, b = valley.ends()
        >>> float(valley.loss(a)), float(valley.loss(b)), valley.separators(a, b)[0].floor
        (2.0, 0.5, 2.5)
    """
    if not 0 < a < b or units not in (1, 2):
        raise ValueError(f"needs 0 < a < b and 1 or 2 units, got {a!r}, {b!r} and {units!r}")

    def loss(theta: Tensor) -> Tensor:
        squares, u = theta[: 2 * units].view(units, 2) ** 2, theta[2 * units :]
        first, second = (u[:, None] * squares).sum(0)
        value: Tensor = ((first - a) ** 2 + (second + b) ** 2) / 2
        return value

    def ends(generator: torch.Generator, apart: bool) -> tuple[Tensor, Tensor]:
        plus = [a**0.5, 0.0], 1.0
        minus = [0.0, b**0.5], -1.0
        if units == 1:
            one, two = plus, minus if apart else ([(a / 2) ** 0.5, 0.0], 2.0)
            return _vector(*one), _vector(*two)
        spare = torch.randn(2, generator=generator).tolist()
        return (
            torch.tensor([*plus[0], *spare, plus[1], 0.0], dtype=torch.float64),
            torch.tensor([*plus[0], *minus[0], plus[1], minus[1]], dtype=torch.float64),
        )

    high = (a**2 + b**2) / 2
    wall = Separator("u = 0", lambda theta: theta[2], high, "exact", "the network is 0")
    return Factored(
        loss,
        3 * units,
        name=f"valley of {units} quadratic unit{'s' if units > 1 else ''}",
        barrier=high - b**2 / 2 if units == 1 else 0.0,
        reason="the network that is 0" if units == 1 else "the second unit fits the rest",
        ends=ends,
        separators=[wall] if units == 1 else [],
    )


def _vector(weights: Sequence[float], factor: float) -> Tensor:
    return torch.tensor([*weights, factor], dtype=torch.float64)
