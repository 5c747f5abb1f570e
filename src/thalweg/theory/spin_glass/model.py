r"""The spherical p-spin glass as a landscape."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.estimate import Cost
from thalweg.landscape.memory import parse_bytes
from thalweg.landscape.protocols import Ledger, Point, check_theta
from thalweg.landscape.seeding import Seed, make_generator
from thalweg.theory.spin_glass.contraction import (
    CACHE,
    SymmetricForm,
    bytes_of,
    check_symmetric,
    refusal,
)
from thalweg.theory.spin_glass.couplings import coupling_streams
from thalweg.theory.spin_glass.mixture import Mixture
from thalweg.theory.spin_glass.sphere import extended_hessian, tangent

__all__ = ["SphericalPSpin"]


class SpherePoint:
    """A spin glass at one point, its n x n Euclidean Hessian kept."""

    def __init__(self, glass: SphericalPSpin, theta: Tensor) -> None:
        self.theta = theta
        self._glass = glass
        sigma, self._radius = glass._to_sphere(theta)
        self._axis = sigma / math.sqrt(glass.n)
        value, slope, self._hessian = glass._whole(sigma[None])
        self.loss = value[0] / glass.n
        self._slope = slope[0] / math.sqrt(glass.n)  # of the function of the unit vector
        self._tangent = self._slope - (self._slope @ self._axis) * self._axis
        self.gradient = self._tangent / self._radius
        self._open = True
        glass._ledger.add(losses=1, gradients=1, passes=1)

    def close(self) -> None:
        """Free the Hessian."""
        self._open = False
        self._hessian = self.theta[:0]

    def hvp(self, vectors: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Return the Hessian times each row of `vectors`."""
        if not self._open:
            raise RuntimeError("this point is closed; take products inside `with land.at(theta)`")
        glass = self._glass
        vectors = check_theta(vectors, glass.n, glass.dtype, glass.device)
        rows = vectors.reshape(-1, glass.n)
        glass._ledger.add(hvps=len(rows), passes=1)
        radial = rows @ self._axis
        across = rows - radial[:, None] * self._axis
        out = extended_hessian(
            across @ self._hessian[0], across, radial, self._axis, self._slope, self._tangent
        )
        return (out / self._radius**2).reshape(vectors.shape)


class SphericalPSpin:
    r"""A spherical spin glass, pure or mixed, as a landscape on all of $\mathbb{R}^n$.

    $$H(\sigma) = \sum_p a_p\, n^{-(p-1)/2} \sum_{i_1 \dots i_p = 1}^{n}
      J_{i_1 \dots i_p} \sigma_{i_1} \cdots \sigma_{i_p}, \qquad |\sigma|^2 = n,$$

    with independent standard normal couplings, so that
    $\operatorname{Cov}[H(\sigma), H(\tau)] = n\, \xi(\sigma \cdot \tau / n)$. The loss is the
    energy per spin of the point on the sphere in the direction of $\theta$,

    $$u(\theta) = \tfrac1n H(\sqrt n\, \theta / |\theta|),$$

    which is homogeneous of degree zero. At $\theta = 0$, where it has no limit, loss and
    gradient are NaN.

    Args:
        n: The number of spins.
        p: The degree, or amplitudes $a_p$ by degree, or a `Mixture`; degree 1 is a random field.
        seed: What draws the couplings; see `couplings` for the scheme.
        dtype: The dtype of all vectors and results; the couplings are rounded to it.
        device: Where they live.
        memory: The most that the couplings and the transients of a product may take; arguments
            and results not counted.

    Attributes:
        n: The number of spins; `dim` is the same.
        mixture: The covariance; None for tensors that were given.
        seed: The number that reproduces the couplings; None for tensors that were given.
        field: The random field $T_1$, `(n,)`, or None.

    Raises:
        ValueError: If `n` is not positive, or `p` or `dtype` is not one that there is.
        MemoryError: If the couplings do not fit `memory`; nothing was allocated then.

    References:
        Auffinger, Ben Arous and Cerny, Comm. Pure Appl. Math. 66 (2013).

    Example:
        >>> glass = SphericalPSpin(20, 3, seed=0)
        >>> theta = glass.start(torch.Generator().manual_seed(1))
        >>> torch.allclose(glass.loss(theta), glass.loss(2 * theta))
        True
        >>> bool(abs(glass.gradient(theta) @ theta) < 1e-12)
        True
    """

    mixture: Mixture | None
    seed: int | None
    field: Tensor | None

    def __init__(
        self,
        n: int,
        p: int | Mapping[int, float] | Mixture,
        seed: Seed = None,
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
        memory: int | str = "4 GiB",
    ) -> None:
        """Check that the couplings fit, and draw them."""
        mixture = Mixture.of(p)
        self._prepare(n, [degree for degree, _ in mixture.amplitudes], dtype, device, memory)
        _, recorded = make_generator(seed)
        self.mixture, self.seed = mixture, recorded
        for degree, amplitude in mixture.amplitudes:
            if degree == 1:
                drawn = np.concatenate(list(coupling_streams(n, 1, amplitude, recorded)))
                self.field = torch.from_numpy(drawn).to(dtype=dtype, device=self.device)
            else:
                self._forms[degree].draw(amplitude, recorded)

    def _prepare(
        self,
        n: int,
        degrees: Sequence[int],
        dtype: torch.dtype,
        device: torch.device | str,
        memory: int | str,
    ) -> None:
        """Check the sizes, and make room for the couplings."""
        if n < 1:
            raise ValueError(f"a spin glass needs at least one spin, got n = {n}")
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
        cap = parse_bytes(memory)
        needed, kept = bytes_of(n, degrees, dtype)
        if needed > cap:
            raise MemoryError(refusal(n, degrees, dtype, needed, cap))
        self.n = self.dim = n
        self.dtype = dtype
        self.device = torch.empty(0, device=device).device
        self.field = None
        self._ledger = Ledger()
        self._room = cap - kept
        self._forms = {
            degree: SymmetricForm(n, degree, dtype, self.device, self._room)
            for degree in degrees
            if degree > 1
        }

    @staticmethod
    def bytes_needed(
        n: int, p: int | Mapping[int, float] | Mixture, *, dtype: torch.dtype = torch.float64
    ) -> int:
        """Return how many bytes a spin glass takes: the least `memory` that it accepts.

        Counted are the couplings, the tables of their indices and the transients of drawing
        them, and those of one replica's products; with more memory, products take up to
        another 32 MiB to do many replicas at once.

        Example:
            >>> SphericalPSpin.bytes_needed(1000, 3, dtype=torch.float32) / 2**30
            2.1
        """
        return bytes_of(n, [degree for degree, _ in Mixture.of(p).amplitudes], dtype)[0]

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[int, Tensor], *, memory: int | str = "4 GiB"
    ) -> SphericalPSpin:
        r"""Return the landscape of given symmetric tensors.

        $$H(\sigma) = \sum_p \langle T_p, \sigma^{\otimes p} \rangle$$

        Args:
            tensors: By degree, symmetric tensors of shape `(n,) * degree`, whatever prefactor
                there is in them; one of a degree above 1 at least.
            memory: As for a drawn one; the given tensors are copied, and not counted.

        Returns:
            The landscape; its `mixture`, `p` and `seed` are None.

        Raises:
            ValueError: If a tensor has another shape, dtype or device, is not symmetric or not
                finite.

        Example:
            >>> glass = SphericalPSpin.from_tensors({2: torch.diag(torch.tensor([1.0, 3.0]))})
            >>> glass.energy(torch.tensor([0.0, 5.0]))
            tensor(3.)
        """
        if not tensors or max(tensors) < 2:
            raise ValueError(f"a spin glass needs a degree of at least 2, got {sorted(tensors)}")
        model = tensors[max(tensors)]
        n = len(model)
        for degree, tensor in tensors.items():
            check_symmetric(degree, tensor, model)
        glass = cls.__new__(cls)
        glass._prepare(n, sorted(tensors), model.dtype, model.device, memory)
        glass.mixture = glass.seed = None
        for degree, tensor in tensors.items():
            if degree == 1:
                glass.field = tensor.detach().clone()
            else:
                glass._forms[degree].fill(tensor.detach())
        return glass

    @property
    def p(self) -> int | None:
        """The degree of a pure spin glass; None for a mixture."""
        return None if self.mixture is None else self.mixture.degree

    @property
    def cost(self) -> Cost:
        """The running tally."""
        return self._ledger.total

    @property
    def degrees(self) -> tuple[int, ...]:
        """The degrees of the tensors that there are, rising; 1 is that of the field.

        Example:
            >>> SphericalPSpin(4, {3: 1.0, 1: 0.5}, seed=0).degrees
            (1, 3)
        """
        return (() if self.field is None else (1,)) + tuple(sorted(self._forms))

    def tensor(self, degree: int) -> Float[Tensor, "*indices"]:
        r"""Return the symmetric tensor $T_p$, `(n,) * degree`, with the prefactor in.

        $H(\sigma) = \sum_p \langle T_p, \sigma^p \rangle$. All $n^p$ entries are written out.

        Raises:
            ValueError: If there is no such degree.
        """
        self._check_degree(degree)
        return self._forms[degree].dense() if degree in self._forms else self._given_field()

    def tensor_norm(self, degree: int) -> float:
        r"""Return the Frobenius norm $|T_p|_F$ of the symmetric tensor, without writing it out.

        No value of $\langle T_p, x^{\otimes p} \rangle$ on the unit sphere exceeds it.

        Raises:
            ValueError: If there is no such degree.

        Example:
            >>> glass = SphericalPSpin(6, 3, seed=0)
            >>> abs(glass.tensor_norm(3) / float(glass.tensor(3).norm()) - 1) < 1e-12
            True
        """
        self._check_degree(degree)
        if degree in self._forms:
            return self._forms[degree].norm()
        return float(torch.linalg.vector_norm(self._given_field().double()))

    def _check_degree(self, degree: int) -> None:
        if degree not in self.degrees:
            raise ValueError(f"this spin glass has the degrees {list(self.degrees)}, not {degree}")

    def _given_field(self) -> Tensor:
        assert self.field is not None
        return self.field.clone()

    def start(self, generator: torch.Generator) -> Float[Tensor, " dim"]:
        r"""Draw a point uniformly from the sphere of radius $\sqrt n$."""
        drawn = torch.randn(self.n, generator=generator, dtype=self.dtype).to(self.device)
        return self.project(drawn)

    def project(self, theta: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        r"""Return the point of the sphere of radius $\sqrt n$ in the direction of `theta`."""
        return self._to_sphere(check_theta(theta, self.n, self.dtype, self.device))[0]

    def _to_sphere(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return the point on the sphere, and the radius of `theta`."""
        scale = theta.abs().amax(-1, keepdim=True)
        unit = theta / scale  # so that squares neither overflow nor vanish
        norm = torch.linalg.vector_norm(unit, dim=-1, keepdim=True)
        return unit * (math.sqrt(self.n) / norm), (scale * norm)[..., 0]

    def _parts(self, sigma: Tensor, vectors: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return H, its Euclidean gradient and Hessian products, `(r,) (r, n) (r, n)`."""
        asked = sigma[:, None] if vectors is None else torch.stack([sigma, vectors], 1)
        slope = torch.zeros_like(sigma)
        curved = torch.zeros_like(sigma)
        value = sigma.new_zeros(len(sigma))
        for degree, form in self._forms.items():
            found = form.products(sigma, asked)
            value += (found[:, 0] * sigma).sum(-1)
            slope += degree * found[:, 0]
            if vectors is not None:
                curved += degree * (degree - 1) * found[:, 1]
        if self.field is not None:
            value = value + sigma @ self.field
            slope = slope + self.field
        return value, slope, curved

    def _whole(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return H, its Euclidean gradient and Hessian, `(r,) (r, n) (r, n, n)`."""
        hessian = sigma.new_zeros(len(sigma), self.n, self.n)
        slope, value = torch.zeros_like(sigma), sigma.new_zeros(len(sigma))
        for degree, form in self._forms.items():
            matrices = form.matrices(sigma)
            along = (matrices @ sigma[..., None])[..., 0]
            value += (along * sigma).sum(-1)
            slope += degree * along
            hessian += degree * (degree - 1) * matrices
        if self.field is not None:
            value = value + sigma @ self.field
            slope = slope + self.field
        return value, slope, hessian

    def loss(self, theta: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch"]:
        """Return the energy per spin at every row of `theta`."""
        theta = check_theta(theta, self.n, self.dtype, self.device)
        rows = theta.reshape(-1, self.n)
        self._ledger.add(losses=len(rows), passes=1)
        value, _, _ = self._parts(self._to_sphere(rows)[0], None)
        return (value / self.n).reshape(theta.shape[:-1])

    def energy(self, theta: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch"]:
        """Return the energy per spin at every row of `theta`, which is the loss."""
        return self.loss(theta)

    def gradient(self, theta: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Return the gradient of the energy per spin at every row of `theta`."""
        return self.value_and_gradient(theta)[1]

    def value_and_gradient(
        self, theta: Float[Tensor, "*batch dim"]
    ) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch dim"]]:
        """Return the energy per spin and its gradient at every row of `theta`, in one pass."""
        theta = check_theta(theta, self.n, self.dtype, self.device)
        rows = theta.reshape(-1, self.n)
        self._ledger.add(losses=len(rows), gradients=len(rows), passes=1)
        sigma, radius = self._to_sphere(rows)
        value, slope, _ = self._parts(sigma, None)
        flat = tangent(sigma, slope) / (math.sqrt(self.n) * radius[:, None])
        return (value / self.n).reshape(theta.shape[:-1]), flat.reshape(theta.shape)

    def value_gradient_and_hvp(
        self, theta: Float[Tensor, "*batch dim"], vectors: Float[Tensor, "*batch dim"]
    ) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch dim"], Float[Tensor, "*batch dim"]]:
        r"""Return energy, gradient and Hessian product at every row, each with its own vector.

        One pass over the couplings, as matrix products of all replicas, serves all three: the
        products cost hardly more than the gradients alone. For many vectors at one point, `at`
        is cheaper.

        Args:
            theta: The replicas.
            vectors: One vector for each.

        Returns:
            The losses, the gradients, and $\nabla^2 u(\theta_r)\, v_r$ of every replica $r$.

        Example:
            >>> glass = SphericalPSpin(10, 3, seed=0)
            >>> theta = torch.eye(10, dtype=torch.float64)[:4]
            >>> _, slopes, products = glass.value_gradient_and_hvp(theta, theta)
            >>> torch.allclose(products, -slopes)  # what degree zero says of radial vectors
            True
        """
        theta = check_theta(theta, self.n, self.dtype, self.device)
        vectors = check_theta(vectors, self.n, self.dtype, self.device)
        rows, given = theta.reshape(-1, self.n), vectors.reshape(-1, self.n)
        self._ledger.add(losses=len(rows), gradients=len(rows), hvps=len(rows), passes=1)
        sigma, radius = self._to_sphere(rows)
        axis = sigma / math.sqrt(self.n)
        radial = (given * axis).sum(-1)
        across = given - radial[:, None] * axis
        value, slope, curved = self._parts(sigma, across)
        slope = slope / math.sqrt(self.n)
        flat = tangent(sigma, slope)
        products = (
            extended_hessian(curved, across, radial, axis, slope, flat) / radius[:, None] ** 2
        )
        return (
            (value / self.n).reshape(theta.shape[:-1]),
            (flat / radius[:, None]).reshape(theta.shape),
            products.reshape(theta.shape),
        )

    def hvps(
        self, theta: Float[Tensor, "*batch dim"], vectors: Float[Tensor, "*batch dim"]
    ) -> Float[Tensor, "*batch dim"]:
        """Return the Hessian product at every row of `theta`, each with its own vector.

        The third of `value_gradient_and_hvp`, and counted as that.
        """
        return self.value_gradient_and_hvp(theta, vectors)[2]

    @contextmanager
    def at(self, theta: Float[Tensor, " dim"]) -> Iterator[Point]:
        """Open the landscape at one point, keeping the n x n Hessian until closed."""
        theta = check_theta(theta, self.n, self.dtype, self.device, single=True)
        if not torch.isfinite(theta).all():
            raise ValueError("theta holds NaN or infinite values, so there is no curvature there")
        if not theta.any():
            raise ValueError("theta is zero, which has no direction: project a nonzero vector")
        point = SpherePoint(self, theta.clone())
        try:
            yield point
        finally:
            point.close()

    def hamiltonian(self, sigma: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch"]:
        r"""Return $H(\sigma)$, for `sigma` on the sphere of radius $\sqrt n$."""
        sigma = check_theta(sigma, self.n, self.dtype, self.device)
        rows = sigma.reshape(-1, self.n)
        self._ledger.add(losses=len(rows), passes=1)
        return self._parts(rows, None)[0].reshape(sigma.shape[:-1])

    def riemannian_gradient(
        self, sigma: Float[Tensor, "*batch dim"]
    ) -> Float[Tensor, "*batch dim"]:
        r"""Return the gradient of $H$ on the sphere at every row of `sigma`.

        $$P\, \partial H, \qquad P = I - \sigma \sigma^\top / |\sigma|^2$$

        At a random point every component in a tangent direction is $N(0, \xi'(1))$.

        Args:
            sigma: Points on the sphere of radius $\sqrt n$; see `project`.

        Returns:
            Tangent vectors, of the same shape.
        """
        sigma = check_theta(sigma, self.n, self.dtype, self.device)
        rows = sigma.reshape(-1, self.n)
        self._ledger.add(losses=len(rows), gradients=len(rows), passes=1)
        return tangent(rows, self._parts(rows, None)[1]).reshape(sigma.shape)

    def riemannian_hessian(
        self, sigma: Float[Tensor, "*batch dim"]
    ) -> Float[Tensor, "*batch dim dim"]:
        r"""Return the Hessian of $H$ on the sphere at every row of `sigma`.

        $$P\, \partial^2 H\, P - \frac{\sigma \cdot \partial H}{|\sigma|^2}\, P$$

        Given the energy $u$ per spin of a pure spin glass, its other $n - 1$ eigenvalues are
        those of $\sqrt{p (p-1)}\, G - p u I$ with a Gaussian orthogonal $G$ of off-diagonal
        variance $1/n$. Each matrix counts as $n$ Hessian products.

        Args:
            sigma: Points on the sphere of radius $\sqrt n$; see `project`.

        Returns:
            Dense matrices `(..., n, n)`, with `sigma` in the kernel.

        References:
            Auffinger, Ben Arous and Cerny (2013), Lemma 3.2.
        """
        sigma = check_theta(sigma, self.n, self.dtype, self.device)
        rows = sigma.reshape(-1, self.n)
        self._ledger.add(losses=len(rows), gradients=len(rows), hvps=rows.numel(), passes=1)
        out = rows.new_empty(len(rows), self.n, self.n)
        size = max(1, min(self._room, CACHE) // (4 * self.n**2 * rows.element_size()))
        for first in range(0, len(rows), size):
            some = slice(first, first + size)
            out[some] = self._hessian_on_sphere(rows[some])
        return out.reshape(*sigma.shape, self.n)

    def _hessian_on_sphere(self, rows: Tensor) -> Tensor:
        _, slope, hessian = self._whole(rows)
        length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
        axis = rows / length
        pull = (axis * slope).sum(-1) / length[:, 0]
        hessian.diagonal(dim1=1, dim2=2).sub_(pull[:, None])  # the axis' own part goes below
        hessian -= axis[:, :, None] * (axis[:, None] @ hessian)
        hessian -= (hessian @ axis[:, :, None]) * axis[:, None]
        return (hessian + hessian.mT) / 2

    def __str__(self) -> str:
        """Return what it is, and what it takes."""
        law = "given tensors" if self.mixture is None else f"xi(q) = {self.mixture}"
        origin = "" if self.seed is None else f", seed {self.seed}"
        kept = sum(SymmetricForm.entries(self.n, degree) for degree in self._forms)
        size = kept * self.dtype.itemsize / 2**20
        return f"spherical spin glass of {self.n} spins, {law}{origin}, {size:.3g} MiB of couplings"
