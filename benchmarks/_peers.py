"""The peers' own classes on a benchmark's problem, with every product counted."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from nets import Problem
from torch import Tensor


class Tally:
    """How many products were taken, and in how many sweeps over the data."""

    def __init__(self) -> None:
        self.products = 0
        self.passes = 0.0

    def add(self, columns: int) -> None:
        """Count one sweep with so many vectors."""
        self.products += columns
        self.passes += 1


@contextmanager
def pyhessian(problem: Problem) -> Iterator[tuple[Any, Tally]]:
    """Open PyHessian's class on one batch, where it keeps the graph: its fastest way."""
    module = importlib.import_module("pyhessian.hessian")  # the class hides its module
    tally = Tally()
    product = module.hessian_vector_product

    def counted(*arguments: Any) -> Any:
        tally.add(1)
        return product(*arguments)

    data = (problem.inputs, problem.targets)
    for parameter in problem.parameters:
        parameter.grad = None
    with mock.patch.object(module, "hessian_vector_product", counted):
        try:
            tally.passes += 1  # the gradient's graph
            yield module.hessian(problem.model, problem.loss, data=data, cuda=False), tally
        finally:
            problem.model.zero_grad()  # breaks the cycle that its backward() makes


@contextmanager
def eig_as_it_was() -> Iterator[None]:
    """Lend torch the function `torch.eig` that PyHessian 0.1 calls and torch 2 removed."""

    def eig(matrix: Tensor, eigenvectors: bool = False) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(matrix)
        return torch.stack([values, torch.zeros_like(values)], dim=1), vectors

    with mock.patch.object(torch, "eig", eig, create=True):
        yield


def eigenthings(problem: Problem) -> tuple[Any, Tally]:
    """Return hessian-eigenthings' Hessian with its products counted."""
    from hessian_eigenthings.loss_fns.standard import supervised_loss
    from hessian_eigenthings.operators.hessian import HessianOperator

    loader = [(problem.inputs, problem.targets)]
    operator = HessianOperator(problem.model, loader, supervised_loss(problem.loss))
    return operator, _count(operator, "matvec", lambda *_: 1)


def curvlinops(problem: Problem) -> tuple[Any, Tally]:
    """Return curvlinops' Hessian with its products counted."""
    from curvlinops import HessianLinearOperator

    operator = HessianLinearOperator(
        problem.model,
        problem.loss,
        problem.parameters,
        [(problem.inputs, problem.targets)],
        check_deterministic=False,
        num_data=len(problem.targets),
    )
    return operator, _count(operator, "_matmat", _columns)


def _columns(blocks: list[Tensor]) -> int:
    """Return how many vectors travel: the last axis of every parameter's block."""
    return blocks[0].shape[-1]


def _count(operator: Any, name: str, columns: Callable[..., int]) -> Tally:
    tally, method = Tally(), getattr(operator, name)

    def counted(*arguments: Any) -> Any:
        tally.add(columns(*arguments))
        return method(*arguments)

    setattr(operator, name, counted)
    return tally


def pyhessian_rule(
    product: Callable[[Tensor], Tensor], dim: int, k: int, seed: int, *, most: int = 100
) -> tuple[list[float], int]:
    """Return what PyHessian's `eigenvalues(top_n=k)` finds, and how many products it takes.

    Power iteration from a normal vector, projected off what was found, until two successive
    Rayleigh quotients differ by less than 1e-3 of the first, or for `most` products.
    """
    generator = torch.Generator().manual_seed(seed)
    values: list[float] = []
    vectors: list[Tensor] = []
    products = 0
    while len(values) < k:
        vector = torch.randn(dim, generator=generator, dtype=torch.float64)
        vector = vector / (vector.norm() + 1e-6)
        value: float | None = None
        for _ in range(most):
            for other in vectors:
                vector = vector - (vector @ other) * other
            vector = vector / (vector.norm() + 1e-6)
            image = product(vector)
            products += 1
            found = float(image @ vector)
            vector = image / (image.norm() + 1e-6)
            if value is not None and abs(value - found) / (abs(value) + 1e-6) < 1e-3:
                break
            value = found
        assert value is not None
        values.append(value)
        vectors.append(vector)
    return values, products
