"""Every way to a Hessian-vector product that the benchmark compares, each as its package has it.

A kernel is opened on a problem and some vectors, outside the timing; what comes back is a
call without arguments, timed, and a function that flattens its result, not timed.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import torch
from nets import Problem, WayRound
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import thalweg
from thalweg.landscape import ModelLandscape
from thalweg.landscape.memory import Meter

BLOCK = 16


@dataclass(frozen=True)
class Ready:
    """A product that is ready to be timed."""

    call: Callable[[], Any]
    flat: Callable[[Any], Tensor]


@dataclass(frozen=True)
class Kernel:
    """One way to the product.

    Args:
        name: What the tables call it.
        package: The distribution that it comes from.
        columns: Vectors per call; times are divided by it.
        open: Prepares the product of some vectors `(columns, dim)` on a problem.
    """

    name: str
    package: str
    columns: int
    open: Callable[[Problem, Tensor, ExitStack], Ready]

    @property
    def ours(self) -> bool:
        """Whether it is Thalweg's."""
        return self.package == "thalweg"

    def version(self) -> str | None:
        """Return the version installed, or None."""
        if self.ours:
            return thalweg.__version__
        try:
            return metadata.version(self.package)
        except metadata.PackageNotFoundError:
            return None

    def ready(self, problem: Problem, stack: ExitStack, way_round: WayRound | None = None) -> Ready:
        """Open the kernel on its own copy of the network, inside a way round if there is one."""
        context: Callable[[], AbstractContextManager[Any]]
        context = way_round.context if way_round else nullcontext
        own = Problem(copy.deepcopy(problem.model), problem.inputs, problem.targets)
        with context(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyHessian's backward(create_graph=True) warns
            made = self.open(own, problem.vectors(self.columns), stack)
        if way_round is None:
            return made

        def call() -> Any:
            with context():
                return made.call()

        return Ready(call, made.flat)


def reference(problem: Problem, rows: Tensor) -> Tensor:
    """Return the products by the plainest code there is: two calls of autograd."""
    params = problem.parameters
    with sdpa_kernel(SDPBackend.MATH):
        parts = torch.autograd.grad(problem.mean_loss(), params, create_graph=True)
    slope = torch.cat([part.reshape(-1) for part in parts])
    products = []
    for row in rows:
        hvp = torch.autograd.grad(slope @ row, params, retain_graph=True, materialize_grads=True)
        products.append(torch.cat([part.reshape(-1) for part in hvp]))
    return torch.stack(products)


def landscape(problem: Problem, **options: Any) -> tuple[ModelLandscape, Tensor]:
    """Return Thalweg's landscape of a problem, and the network's vector."""
    data = (problem.inputs, problem.targets)
    land = ModelLandscape(problem.model, options.pop("loss", problem.loss), data, **options)
    return land, land.vector(problem.model)


def small_cap(problem: Problem) -> int:
    """Return a memory cap under which the data takes about eight rebuilds, by a fixed rule."""
    part = max(len(problem.targets) // 8, 2)
    small = Problem(problem.model, problem.inputs[:part], problem.targets[:part])
    land, theta = landscape(small)
    rows = problem.vectors(1)
    return int(1.05 * peak_bytes(land, theta, rows, problem))


def peak_bytes(land: ModelLandscape, theta: Tensor, rows: Tensor, problem: Problem) -> int:
    """Return the peak of the bytes held by one block of products beside arguments and result."""
    meter = Meter()
    meter.exclude([theta, rows, problem.inputs, problem.targets])
    with meter, land.at(theta) as point:
        result = point.hvp(rows)
    return meter.peak - result.nbytes


def _ours(memory: Callable[[Problem], Any], kernel: str) -> Callable[..., Ready]:
    def open_(problem: Problem, rows: Tensor, stack: ExitStack) -> Ready:
        land, theta = landscape(problem, memory=memory(problem))
        point = stack.enter_context(land.at(theta))
        if point.kernel != kernel:
            raise RuntimeError(f"the landscape chose the {point.kernel} kernel, not {kernel}")
        return Ready(lambda: point.hvp(rows), lambda out: out)

    return open_


def _split(problem: Problem, row: Tensor) -> list[Tensor]:
    sizes = [p.numel() for p in problem.parameters]
    shapes = [p.shape for p in problem.parameters]
    return [
        part.reshape(shape) for part, shape in zip(torch.split(row, sizes), shapes, strict=True)
    ]


def _flat(parts: Any) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts])[None]


def _pyhessian_batch(problem: Problem, rows: Tensor, stack: ExitStack) -> Ready:
    from pyhessian import hessian
    from pyhessian.utils import hessian_vector_product

    held = hessian(problem.model, problem.loss, data=(problem.inputs, problem.targets), cuda=False)
    stack.callback(problem.model.zero_grad)  # breaks the cycle that its backward() makes
    parts = _split(problem, rows[0])
    return Ready(lambda: hessian_vector_product(held.gradsH, held.params, parts), _flat)


def _pyhessian_loader(problem: Problem, rows: Tensor, stack: ExitStack) -> Ready:
    from pyhessian import hessian

    loader = [(problem.inputs, problem.targets)]
    held = hessian(problem.model, problem.loss, dataloader=loader, cuda=False)
    held.params = problem.parameters
    parts = _split(problem, rows[0])
    return Ready(lambda: held.dataloader_hv_product(parts)[1], _flat)


def _curvlinops(problem: Problem, rows: Tensor, stack: ExitStack) -> Ready:
    from curvlinops import HessianLinearOperator

    operator = HessianLinearOperator(
        problem.model,
        problem.loss,
        problem.parameters,
        [(problem.inputs, problem.targets)],
        check_deterministic=False,
        num_data=len(problem.targets),
    )
    if len(rows) == 1:
        row = rows[0]
        return Ready(lambda: operator @ row, lambda out: out[None])
    columns = rows.T.contiguous()
    return Ready(lambda: operator @ columns, lambda out: out.T)


def _eigenthings(problem: Problem, rows: Tensor, stack: ExitStack) -> Ready:
    from hessian_eigenthings.loss_fns.standard import supervised_loss
    from hessian_eigenthings.operators.hessian import HessianOperator

    loader = [(problem.inputs, problem.targets)]
    operator = HessianOperator(problem.model, loader, supervised_loss(problem.loss))
    row = rows[0]
    return Ready(lambda: operator.matvec(row), lambda out: out[None])


RETAINED = Kernel("Thalweg retained, 1 vector", "thalweg", 1, _ours(lambda _: "8 GiB", "retained"))
RETAINED_BLOCK = Kernel(
    f"Thalweg retained, {BLOCK} vectors", "thalweg", BLOCK, _ours(lambda _: "8 GiB", "retained")
)
REBUILT_BLOCK = Kernel(
    f"Thalweg rebuilt under a cap, {BLOCK} vectors", "thalweg", BLOCK, _ours(small_cap, "rebuilt")
)
KERNELS = (
    RETAINED,
    RETAINED_BLOCK,
    REBUILT_BLOCK,
    Kernel("PyHessian, one batch retained", "PyHessian", 1, _pyhessian_batch),
    Kernel("PyHessian, loader", "PyHessian", 1, _pyhessian_loader),
    Kernel("curvlinops, 1 vector", "curvlinops-for-pytorch", 1, _curvlinops),
    Kernel(f"curvlinops, {BLOCK} vectors", "curvlinops-for-pytorch", BLOCK, _curvlinops),
    Kernel("hessian-eigenthings", "hessian-eigenthings", 1, _eigenthings),
)
