"""Analytic surfaces: landscapes whose critical points are known exactly.

Each factory returns a `Surface`, a `FunctionLandscape` that carries its critical points.
They are the first tier of truth in the tests: a path, a spectrum or a merge tree found
on one of them can be compared with the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from thalweg.landscape import FunctionLandscape, Seed, make_generator

__all__ = [
    "MULLER_BROWN_CRITICAL_POINTS",
    "SIX_HUMP_CAMELBACK_CRITICAL_POINTS",
    "CriticalPoint",
    "Quadratic",
    "Surface",
    "double_well",
    "eggcarton",
    "muller_brown",
    "quadratic",
    "six_hump_camelback",
]


@dataclass(frozen=True, slots=True)
class CriticalPoint:
    """A point where the gradient is zero, with its exact value and index.

    Args:
        theta: Its coordinates.
        value: The surface's value there.
        index: How many eigenvalues of the Hessian are negative: 0 at a minimum.
        joins: For a saddle of index 1, the two minima to which steepest descent leads
            from it, as positions in `Surface.minima`; they may be the same.

    Example:
        >>> print(CriticalPoint((0.0, 0.0), 1.0, 1, joins=(0, 1)))
        saddle of index 1 at (0, 0), value 1, joins minima 0 and 1
    """

    theta: tuple[float, ...]
    value: float
    index: int
    joins: tuple[int, int] | None = None

    @property
    def kind(self) -> str:
        """What it is called: minimum, saddle or maximum."""
        if self.index == 0:
            return "minimum"
        return "maximum" if self.index == len(self.theta) else f"saddle of index {self.index}"

    def __str__(self) -> str:
        """Return kind, place and value, rounded to eight digits."""
        place = ", ".join(f"{x:.8g}" for x in self.theta)
        tail = "" if self.joins is None else ", joins minima {} and {}".format(*self.joins)
        return f"{self.kind} at ({place}), value {self.value:.8g}{tail}"

    def __rich__(self) -> str:
        """Return the string form for a terminal."""
        return str(self)


class Surface(FunctionLandscape):
    """A function landscape whose critical points are known.

    Args:
        f: A function of one `(dim,)` tensor that returns a scalar tensor.
        dim: The number of coordinates.
        name: What the surface is called.
        critical_points: All of them, minima first, each group in order of value.
        dtype: The dtype of the vectors.
        start: Draws a starting point.

    Example:
        >>> surface = muller_brown()
        >>> print(surface.minima[0])
        minimum at (-0.55822363, 1.4417258), value -146.69952
        >>> [saddle.joins for saddle in surface.saddles]
        [(1, 2), (0, 2)]
    """

    def __init__(
        self,
        f: Callable[[Tensor], Tensor],
        dim: int,
        *,
        name: str,
        critical_points: Sequence[CriticalPoint],
        dtype: torch.dtype = torch.float64,
        start: Callable[[torch.Generator], Tensor] | None = None,
    ) -> None:
        """Build the landscape and keep its facts."""
        super().__init__(f, dim, dtype=dtype, start=start)
        self.name = name
        self.critical_points = tuple(critical_points)

    @property
    def minima(self) -> tuple[CriticalPoint, ...]:
        """The critical points of index 0, lowest first."""
        return tuple(point for point in self.critical_points if point.index == 0)

    @property
    def saddles(self) -> tuple[CriticalPoint, ...]:
        """The critical points of index 1, lowest first: the passes between minima."""
        return tuple(point for point in self.critical_points if point.index == 1)

    def vector(self, point: CriticalPoint) -> Tensor:
        """Return a critical point as a `(dim,)` vector of this landscape."""
        return torch.tensor(point.theta, dtype=self.dtype, device=self.device)

    def __str__(self) -> str:
        """Return the name, and one line per critical point."""
        head = f"{self.name}, {self.dim} coordinates"
        return "\n  ".join([head, *map(str, self.critical_points)])


class Quadratic(Surface):
    r"""A quadratic form with a known spectrum, as `quadratic` makes it.

    Attributes:
        eigenvalues: The spectrum of the Hessian, `(dim,)`, in the order given.
        eigenvectors: The Hessian's eigenvectors as columns, `(dim, dim)`.
        centre: The critical point, `(dim,)`.
        seed: The seed of the rotation, or None where there is none.
    """

    eigenvalues: Tensor
    eigenvectors: Tensor
    centre: Tensor
    seed: int | None

    @property
    def hessian(self) -> Tensor:
        """The exact Hessian, `(dim, dim)`, the same everywhere."""
        return self.eigenvectors * self.eigenvalues @ self.eigenvectors.T


def _in_box(low: Sequence[float], high: Sequence[float]) -> Callable[[torch.Generator], Tensor]:
    """Return a start that draws uniformly from the box between two corners."""
    corner = torch.tensor(low, dtype=torch.float64)
    size = torch.tensor(high, dtype=torch.float64) - corner

    def start(generator: torch.Generator) -> Tensor:
        return corner + size * torch.rand(len(size), generator=generator, dtype=torch.float64)

    return start


def quadratic(
    eigenvalues: Sequence[float] | Tensor,
    *,
    centre: Sequence[float] | Tensor | None = None,
    offset: float = 0.0,
    rotated: bool = False,
    seed: Seed = None,
    dtype: torch.dtype = torch.float64,
) -> Quadratic:
    r"""Return a quadratic form with the spectrum that you choose.

    $$f(x) = c + \tfrac12 \sum_i \lambda_i \left(q_i^\top (x - x_0)\right)^2$$

    Args:
        eigenvalues: The spectrum $\lambda$, `(dim,)`; signs and zeros as you like.
        centre: The critical point $x_0$, `(dim,)`; the origin by default.
        offset: The value $c$ there.
        rotated: Whether the eigenvectors $q_i$ are a random rotation, uniform over the
            orthogonal group, rather than the axes.
        seed: What draws the rotation; the integer is recorded in `Quadratic.seed`.
        dtype: The dtype of the vectors.

    Returns:
        The landscape. A direction of eigenvalue zero is flat: the critical point that is
        listed is then one of many.

    Raises:
        ValueError: If `eigenvalues` is not a vector of finite numbers, or `centre` has
            another length.

    Example:
        >>> saddle = quadratic([3.0, 1.0, -2.0], rotated=True, seed=0)
        >>> print(saddle.critical_points[0])
        saddle of index 1 at (0, 0, 0), value 0
        >>> torch.linalg.eigvalsh(saddle.hessian).round(decimals=6)
        tensor([-2.,  1.,  3.], dtype=torch.float64)
    """
    spectrum = torch.as_tensor(eigenvalues, dtype=torch.float64)
    if spectrum.ndim != 1 or not len(spectrum) or not torch.isfinite(spectrum).all():
        raise ValueError(
            f"eigenvalues must be a vector of at least one finite number, got shape "
            f"{tuple(spectrum.shape)}: {eigenvalues!r}"
        )
    dim = len(spectrum)
    middle = torch.as_tensor([0.0] * dim if centre is None else centre, dtype=torch.float64)
    if middle.shape != (dim,):
        raise ValueError(f"centre has shape {tuple(middle.shape)}, but there are {dim} eigenvalues")
    basis, number = torch.eye(dim, dtype=torch.float64), None
    if rotated:
        generator, number = make_generator(seed)
        basis = _rotation(dim, generator)
    point = CriticalPoint(tuple(middle.tolist()), offset, int((spectrum < 0).sum()))
    spectrum, middle, basis = (x.to(dtype) for x in (spectrum, middle, basis))

    def form(x: Tensor) -> Tensor:
        return offset + (spectrum * (basis.T @ (x - middle)) ** 2).sum() / 2

    surface = Quadratic(form, dim, name="quadratic", critical_points=[point], dtype=dtype)
    surface.eigenvalues, surface.eigenvectors = spectrum, basis
    surface.centre, surface.seed = middle, number
    return surface


def _rotation(dim: int, generator: torch.Generator) -> Tensor:
    """Draw from the Haar measure: QR of a Gaussian matrix, signs fixed (Mezzadri 2007)."""
    gaussian = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    q, r = torch.linalg.qr(gaussian)
    rotation: Tensor = q * r.diagonal().sign()
    return rotation


def double_well(
    dim: int = 2,
    *,
    left: float = 1.0,
    right: float = 1.0,
    height: float = 1.0,
    stiffness: float = 1.0,
    dtype: torch.dtype = torch.float64,
) -> Surface:
    r"""Return two wells with a pass between them, all of it in closed form.

    The first coordinate is a quartic with $f'(x) = c\,(x + l)\,x\,(x - r)$, the others
    are a bowl $\tfrac{k}{2} x_i^2$. The farther well is the deeper one; its bottom lies
    at 0 and the saddle, at the origin, at `height`. With $m = \max(l, r)$ and
    $n = \min(l, r)$, $c = 12\,h / (m^3 (m + 2n))$ and the shallower bottom lies at
    $h - c\,n^3 (n + 2m) / 12$.

    Args:
        dim: The number of coordinates.
        left: How far left of the saddle the one minimum lies, $l > 0$.
        right: How far right of it the other lies, $r > 0$.
        height: The barrier from the deeper minimum, $h > 0$.
        stiffness: The curvature $k > 0$ of the other coordinates.
        dtype: The dtype of the vectors.

    Returns:
        The landscape, with its two minima and its saddle.

    Raises:
        ValueError: If a number that must be positive is not.

    Example:
        >>> for point in double_well(height=2.0).critical_points:
        ...     print(point)
        minimum at (-1, 0), value 0
        minimum at (1, 0), value 0
        saddle of index 1 at (0, 0), value 2, joins minima 0 and 1
    """
    for label, number in (
        ("dim", dim),
        ("left", left),
        ("right", right),
        ("height", height),
        ("stiffness", stiffness),
    ):
        if not 0 < number < float("inf"):
            raise ValueError(f"{label} must be positive and finite, got {number!r}")
    far, near = max(left, right), min(left, right)
    scale = 12 * height / (far**3 * (far + 2 * near))

    def wells(x: Tensor) -> Tensor:
        first = x[0]
        quartic = first**4 / 4 + (left - right) * first**3 / 3 - left * right * first**2 / 2
        return height + scale * quartic + stiffness * (x[1:] ** 2).sum() / 2

    rest = (0.0,) * (dim - 1)
    shallow = height - scale * near**3 * (near + 2 * far) / 12 if near < far else 0.0
    bottoms = [
        CriticalPoint((-left, *rest), 0.0 if left == far else shallow, 0),
        CriticalPoint((right, *rest), 0.0 if right == far else shallow, 0),
    ]
    bottoms.sort(key=lambda point: point.value)
    saddle = CriticalPoint((0.0, *rest), height, 1, joins=(0, 1))
    width = 2 / stiffness**0.5
    return Surface(
        wells,
        dim,
        name="double well",
        critical_points=[*bottoms, saddle],
        dtype=dtype,
        start=_in_box([-1.5 * left] + [-width] * (dim - 1), [1.5 * right] + [width] * (dim - 1)),
    )


MULLER_BROWN_CRITICAL_POINTS = (
    CriticalPoint((-0.5582236346330243, 1.4417258418046686), -146.69951720995402, 0),
    CriticalPoint((0.6234994049308765, 0.028037758528685664), -108.16672411685235, 0),
    CriticalPoint((-0.050010822998206056, 0.4666941048719721), -80.76781812965903, 0),
    CriticalPoint((0.212486582000662, 0.2929883251073678), -72.24894011232522, 1, joins=(1, 2)),
    CriticalPoint((-0.8220015587327321, 0.6243128028148713), -40.664843508657405, 1, joins=(0, 2)),
)
"""All five: three minima and the two saddles that join them in a row, in double precision."""


def muller_brown(*, dtype: torch.dtype = torch.float64) -> Surface:
    r"""Return the Müller-Brown surface, the classic test of saddle and path searches.

    $$f(x, y) = \sum_{i=1}^4 A_i \exp\left(a_i (x-x_i)^2 + b_i (x-x_i)(y-y_i)
    + c_i (y-y_i)^2\right)$$

    Starts are uniform over $[-1.5, 1.2] \times [-0.2, 2]$.

    Args:
        dtype: The dtype of the vectors.

    Returns:
        The landscape with `MULLER_BROWN_CRITICAL_POINTS`.

    References:
        K. Müller and L. D. Brown, Theor. Chim. Acta 53, 75 (1979), table 1. A value of
        -46.62 for the upper saddle, found on the web, is wrong: it is -40.664844.

    Example:
        >>> surface = muller_brown()
        >>> surface.loss(torch.tensor([0.0, 0.0], dtype=torch.float64))
        tensor(-48.4013, dtype=torch.float64)
    """
    height = torch.tensor([-200.0, -100.0, -170.0, 15.0], dtype=dtype)
    a = torch.tensor([-1.0, -1.0, -6.5, 0.7], dtype=dtype)
    b = torch.tensor([0.0, 0.0, 11.0, 0.6], dtype=dtype)
    c = torch.tensor([-10.0, -10.0, -6.5, 0.7], dtype=dtype)
    x0 = torch.tensor([1.0, 0.0, -0.5, -1.0], dtype=dtype)
    y0 = torch.tensor([0.0, 0.5, 1.5, 1.0], dtype=dtype)

    def energy(x: Tensor) -> Tensor:
        u, v = x[0] - x0, x[1] - y0
        return (height * torch.exp(a * u**2 + b * u * v + c * v**2)).sum()

    return Surface(
        energy,
        2,
        name="Müller-Brown",
        critical_points=MULLER_BROWN_CRITICAL_POINTS,
        dtype=dtype,
        start=_in_box([-1.5, -0.2], [1.2, 2.0]),
    )


SIX_HUMP_CAMELBACK_CRITICAL_POINTS = (
    CriticalPoint((-0.08984201310031806, 0.7126564030207396), -1.0316284534898774, 0),
    CriticalPoint((0.08984201310031806, -0.7126564030207396), -1.0316284534898774, 0),
    CriticalPoint((-1.703606714969981, 0.7960835686726251), -0.21546382438371764, 0),
    CriticalPoint((1.703606714969981, -0.7960835686726251), -0.21546382438371764, 0),
    CriticalPoint((-1.6071047529201972, -0.5686514548841314), 2.1042503103112584, 0),
    CriticalPoint((1.6071047529201972, 0.5686514548841314), 2.1042503103112584, 0),
    CriticalPoint((0.0, 0.0), 0.0, 1, joins=(0, 1)),
    CriticalPoint((-1.1092053368047865, 0.7682680925095399), 0.5437186009781851, 1, joins=(0, 2)),
    CriticalPoint((1.1092053368047865, -0.7682680925095399), 0.5437186009781851, 1, joins=(1, 3)),
    CriticalPoint((-1.6380679841897785, -0.22867406904439408), 2.2293571975307147, 1, joins=(2, 4)),
    CriticalPoint((1.6380679841897785, 0.22867406904439408), 2.2293571975307147, 1, joins=(3, 5)),
    CriticalPoint((-1.2960702671671092, -0.6050843880386585), 2.22947081802986, 1, joins=(1, 4)),
    CriticalPoint((1.2960702671671092, 0.6050843880386585), 2.22947081802986, 1, joins=(0, 5)),
    CriticalPoint((-1.2302298765166526, -0.16233458445899496), 2.496295351023577, 2),
    CriticalPoint((1.2302298765166526, 0.16233458445899496), 2.496295351023577, 2),
)
"""All fifteen: 6 minima, 7 saddles, 2 maxima; 6 - 7 + 2 = 1, the Euler characteristic."""


def six_hump_camelback(*, dtype: torch.dtype = torch.float64) -> Surface:
    r"""Return the six-hump camelback function, symmetric under $x \to -x$.

    $$f(x, y) = \left(4 - 2.1 x^2 + \tfrac{x^4}{3}\right) x^2 + x y + (4 y^2 - 4)\, y^2$$

    Starts are uniform over $[-2, 2] \times [-1.2, 1.2]$.

    Args:
        dtype: The dtype of the vectors.

    Returns:
        The landscape with `SIX_HUMP_CAMELBACK_CRITICAL_POINTS`.

    References:
        L. C. W. Dixon and G. P. Szegő, "Towards Global Optimisation 2" (1978).

    Example:
        >>> surface = six_hump_camelback()
        >>> len(surface.minima), len(surface.saddles)
        (6, 7)
    """

    def humps(x: Tensor) -> Tensor:
        u, v = x[0] ** 2, x[1] ** 2
        return (4 - 2.1 * u + u**2 / 3) * u + x[0] * x[1] + (4 * v - 4) * v

    return Surface(
        humps,
        2,
        name="six-hump camelback",
        critical_points=SIX_HUMP_CAMELBACK_CRITICAL_POINTS,
        dtype=dtype,
        start=_in_box([-2.0, -1.2], [2.0, 1.2]),
    )


def eggcarton(dim: int = 2, *, dtype: torch.dtype = torch.float64) -> Surface:
    r"""Return an egg carton: equal minima on a grid, each joined to its neighbours.

    $$f(x) = \sum_{i=1}^d \cos 2\pi x_i$$

    All points with coordinates in $\tfrac12 \mathbb Z$ are critical: with $k$ whole
    coordinates the value is $2k - d$ and the index is $k$. So the minima lie at $-d$, and
    any two of them are joined at $2 - d$. Starts are uniform over $[-1, 1]^d$.

    Args:
        dim: The number of coordinates $d$.
        dtype: The dtype of the vectors.

    Returns:
        The landscape with the $3^d$ critical points of $[-\tfrac12, \tfrac12]^d$; the
        others are these, moved by whole numbers.

    Raises:
        ValueError: If `dim` is no whole number from 1 to 6, for which there are up to 729
            points to list.

    References:
        Draxler et al., "Essentially no barriers in neural network energy landscape" (2018),
        whose code tries its band on it.

    Example:
        >>> carton = eggcarton()
        >>> print(carton.saddles[0])
        saddle of index 1 at (-0.5, 0), value 0, joins minima 0 and 1
    """
    if isinstance(dim, bool) or not isinstance(dim, int) or not 1 <= dim <= 6:
        raise ValueError(f"dim must be a whole number from 1 to 6, got {dim!r}")
    places = sorted(product((-0.5, 0.0, 0.5), repeat=dim), key=lambda p: p.count(0.0))
    minima = {place: i for i, place in enumerate(p for p in places if p.count(0.0) == 0)}

    def joins(place: tuple[float, ...]) -> tuple[int, int] | None:
        if place.count(0.0) != 1:
            return None
        low, high = (minima[tuple(x or side for x in place)] for side in (-0.5, 0.5))
        return low, high

    return Surface(
        lambda x: torch.cos(2 * torch.pi * x).sum(),
        dim,
        name="egg carton",
        critical_points=[
            CriticalPoint(place, 2.0 * k - dim, k, joins=joins(place))
            for place in places
            for k in [place.count(0.0)]
        ],
        dtype=dtype,
        start=_in_box([-1.0] * dim, [1.0] * dim),
    )
