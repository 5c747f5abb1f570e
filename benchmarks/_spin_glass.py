"""The ways to energies, gradients and Hessian products of a 3-spin glass that are compared."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from thalweg.theory.spin_glass.model import SphericalPSpin

Triple = tuple[Tensor, Tensor, Tensor]
BLOCK = 32 * 2**20


def columns_of(rows: int, dtype: torch.dtype) -> int:
    """Return how many columns of a product fit what ours may hold."""
    return max(1, BLOCK // (rows * dtype.itemsize))


def bare(sigma: Tensor, matrix: Tensor) -> Callable[[], None]:
    """Return the matrix product sigma @ matrix, in blocks that are dropped at once."""
    width = columns_of(len(sigma), sigma.dtype)
    pieces = matrix.split(width, 1)
    out = sigma.new_empty(len(sigma), width)

    def product() -> None:
        for piece in pieces:
            torch.mm(sigma, piece, out=out[:, : piece.shape[1]])

    return product


def extended(sigma: Tensor, vectors: Tensor, along: Tensor, bent: Tensor) -> Triple:
    """Return the degree-zero extension's triple at radius sqrt(n), from T(s, s, .), T(s, v, .)."""
    n = sigma.shape[1]
    value = (along * sigma).sum(1) / n
    slope = 3 * along / n
    flat = slope - (slope * sigma).sum(1, keepdim=True) * sigma / n
    radial = (vectors * sigma).sum(1, keepdim=True) / n
    curved = 6 * (bent - radial * along) / n
    curved = curved - (curved * sigma).sum(1, keepdim=True) * sigma / n
    tangent = vectors - radial * sigma
    across = (flat * tangent).sum(1, keepdim=True) * sigma / n
    pull = (slope * sigma).sum(1, keepdim=True) / n
    return value, flat, curved - pull * tangent - radial * flat - across


def einsum(tensor: Tensor, sigma: Tensor, vectors: Tensor) -> Triple:
    """Contract the dense tensor as one would write it, as many replicas at once as fit."""
    n = sigma.shape[1]
    size = max(1, BLOCK // (n * n * sigma.dtype.itemsize))
    along, bent = torch.empty_like(sigma), torch.empty_like(sigma)
    for first in range(0, len(sigma), size):
        some = slice(first, first + size)
        matrices = torch.einsum("ijk,ri->rjk", tensor, sigma[some])
        along[some] = torch.einsum("rjk,rk->rj", matrices, sigma[some])
        bent[some] = torch.einsum("rjk,rk->rj", matrices, vectors[some])
    return extended(sigma, vectors, along, bent)


def published(tensor: Tensor, sigma: Tensor, vectors: Tensor) -> Triple:
    """Follow leventsagun/3-spin-glass-landscape: outer products times couplings, backpropagated.

    That code has no Hessian products; here they are a second backward pass through its graph.
    """
    n, found = sigma.shape[1], []
    for row, vector in zip(sigma, vectors, strict=True):
        theta = row.clone().requires_grad_()
        unit = theta / theta.norm() * math.sqrt(n)
        pairs = (unit[:, None] * unit).reshape(-1, 1)
        value = ((pairs * unit).reshape(-1) * tensor.reshape(-1)).sum() / n
        (slope,) = torch.autograd.grad(value, theta, create_graph=True)
        (product,) = torch.autograd.grad(slope, theta, vector)
        found.append((value.detach(), slope.detach(), product))
    values, slopes, products = zip(*found, strict=True)
    return torch.stack(values), torch.stack(slopes), torch.stack(products)


def draw(glass: SphericalPSpin, replicas: int) -> tuple[Tensor, Tensor]:
    """Return replicas on the sphere, and a direction for each."""
    generator = torch.Generator().manual_seed(0)
    shape = (2, replicas, glass.n)
    sigma, vectors = torch.randn(*shape, generator=generator, dtype=torch.float64).to(glass.dtype)
    return glass.project(sigma), vectors


def errors(n: int, dtype: torch.dtype) -> dict[str, float]:
    """Return how far every way is from plain autograd in float64, relative to the largest entry.

    Raises:
        AssertionError: If a way is wrong.
    """
    glass = SphericalPSpin(n, 3, 1, dtype=dtype)
    sigma, vectors = draw(glass, 4)
    tensor = glass.tensor(3)
    truth = published(tensor.double(), sigma.double(), vectors.double())
    ways = {
        "ours": glass.value_gradient_and_hvp(sigma, vectors),
        "einsum": einsum(tensor, sigma, vectors),
        "published": published(tensor, sigma, vectors),
    }
    found = {name: worst(way, truth) for name, way in ways.items()}
    allowed = 1e-4 if dtype == torch.float32 else 1e-10
    for name, error in found.items():
        if not error <= allowed:  # so that NaN is refused too
            raise AssertionError(f"{name} is off by {error:.2g}, above {allowed:g}")
    return found


def worst(way: Triple, truth: Triple) -> float:
    """Return the largest error of energy, gradient and product, relative to each's scale."""
    return max(
        float((a.double() - b).abs().max() / b.abs().max()) for a, b in zip(way, truth, strict=True)
    )


SCRIPT = """
import json, pathlib, sys, time, torch
from thalweg.theory.spin_glass.model import SphericalPSpin
n, replicas, kind, told = int(sys.argv[1]), int(sys.argv[2]), getattr(torch, sys.argv[3]), {}
torch.set_num_threads(1)
status = pathlib.Path('/proc/self/status')
peak = lambda: int(status.read_text().partition('VmHWM:')[2].split()[0]) * 1024
def use(n):
    clock = time.process_time()
    glass = SphericalPSpin(n, 3, 0, dtype=kind, memory="16 GiB")
    told["seconds to draw"] = time.process_time() - clock
    theta = torch.randn(replicas, n, dtype=kind)
    clock = time.process_time()
    glass.value_gradient_and_hvp(theta, theta.flip(0))
    told["seconds of a pass"] = time.process_time() - clock
use(70)
before = peak()
use(n)
told["peak"] = peak() - before
told["told"] = SphericalPSpin.bytes_needed(n, 3, dtype=kind)
print(json.dumps(told))
"""


def memory(n: int, replicas: int, dtype: torch.dtype) -> dict[str, float]:
    """Return what a fresh process takes to draw a glass and to run one pass, and what was told."""
    kind = str(dtype).removeprefix("torch.")
    run = [sys.executable, "-c", SCRIPT, str(n), str(replicas), kind]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    return {"n": n, "replicas": replicas, "dtype": kind, "dense": n**3 * dtype.itemsize, **found}
