"""Every kind of landscape passes the conformance suite, and broken ones do not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from conformance import (
    CHECKS,
    Case,
    check_bits,
    check_cost,
    check_gradient,
    check_hvp,
    check_hvp_algebra,
    check_loss,
    check_nan_stays,
    check_nothing_is_touched,
    dense,
    name_of,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from truth import naive

from thalweg.landscape import FunctionLandscape, ModelLandscape
from thalweg.landscape.model import ModelLandscape as _Model
from thalweg.zoo import mlp, tiny
from thalweg.zoo.tiny import TINY_NAMES


def quadratic() -> Case:
    matrix = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrix = matrix @ matrix.T
    slope = torch.arange(6, dtype=torch.float64)

    def f(x: Tensor) -> Tensor:
        return 0.5 * x @ matrix @ x + slope @ x

    return function("quadratic", f, 6)


def function(name: str, f: Callable[[Tensor], Tensor], dim: int) -> Case:
    theta = torch.linspace(-0.7, 0.9, dim, dtype=torch.float64)
    return Case(name, FunctionLandscape(f, dim), f, theta)


def rosenbrock(x: Tensor) -> Tensor:
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def branching(x: Tensor) -> Tensor:
    """Cannot be vmapped: control flow on data."""
    return (x**4).sum() if x[0].item() < 0 else (x**2).sum() + x[0] ** 3


def partly_flat(x: Tensor) -> Tensor:
    """One coordinate is unused and another enters linearly."""
    return torch.sin(x[0]) + 3 * x[1] + 0 * x.sum()


def network(
    name: str,
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    *,
    sizes: tuple[int, ...] = (),
    data: Callable[[list[tuple[Tensor, Tensor]]], object] | None = None,
    **options: object,
) -> Case:
    """A classifier, its data cut into batches of `sizes`, and its truth."""
    pieces = (
        list(zip(inputs.split(list(sizes)), targets.split(list(sizes)), strict=True))
        if sizes
        else [(inputs, targets)]
    )
    given = data(pieces) if data else (inputs, targets) if not sizes else pieces
    penalty = options.get("penalty")
    truth_penalty = None
    if isinstance(penalty, float):

        def truth_penalty(x: Tensor) -> Tensor:
            return penalty / 2 * (x * x).sum()
    elif penalty is not None:
        truth_penalty = penalty
    for p in model.parameters():
        p.grad = torch.ones_like(p)  # a landscape must leave it alone
    land = ModelLandscape(model, F.cross_entropy, given, **options)
    truth = naive(model, F.cross_entropy, pieces, names=land.spec.names, penalty=truth_penalty)
    tolerance = 1e-9 if land.dtype == torch.float64 else 2e-5
    return Case(name, land, truth, land.vector(model), tolerance, (model, inputs, targets))


def small(
    dtype: torch.dtype = torch.float64, examples: int = 33
) -> tuple[nn.Module, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(examples, 4, generator=generator, dtype=torch.float64)
    targets = torch.randint(3, (examples,), generator=generator)
    return mlp((4, 5, 3), seed=1).to(dtype), inputs.to(dtype), targets


def zoo(name: str) -> Case:
    return network(name, *tiny(name, examples=10))


def loader(pieces: list[tuple[Tensor, Tensor]], **options: object) -> DataLoader:
    inputs, targets = (torch.cat(part) for part in zip(*pieces, strict=True))
    return DataLoader(TensorDataset(inputs, targets), batch_size=len(pieces[0][0]), **options)


def with_loader() -> Case:
    generator = torch.Generator().manual_seed(11)
    case = network(
        "loader", *small(), sizes=(8, 8, 8, 8, 1), data=lambda p: loader(p, generator=generator)
    )
    return replace(case, watched=(*case.watched, generator))


def dictionaries() -> Case:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = small()[0]

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            return {"logits": self.body(x), "count": labels}

    model, (_, inputs, targets) = Reads(), small()

    def loss(outputs: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(outputs["logits"], batch["labels"])

    pieces = [(inputs[:20], targets[:20]), (inputs[20:], targets[20:])]
    land = ModelLandscape(model, loss, [{"x": x, "labels": y} for x, y in pieces])
    truth = naive(
        model,
        F.cross_entropy,
        pieces,
        call=lambda run, x: run(x=x, labels=torch.zeros(len(x)))["logits"],
    )
    return Case("dictionaries", land, truth, land.vector(model), watched=(model, inputs, targets))


def tokens(memory: str = "2 GiB") -> Case:
    """A mean over tokens that are not padding; one batch is padding alone."""
    generator = torch.Generator().manual_seed(2)
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7)).double()
    nn.utils.vector_to_parameters(
        torch.randn(63, generator=generator, dtype=torch.float64), model.parameters()
    )
    inputs = torch.randint(7, (12, 5), generator=generator)
    targets = torch.randint(7, (12, 5), generator=generator)
    targets[torch.rand(12, 5, generator=generator) < 0.4] = -100
    targets[4:7] = -100

    def loss(outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        kept = (labels != -100).sum()
        return F.cross_entropy(outputs.flatten(0, 1), labels.flatten(), ignore_index=-100), kept

    sizes = [4, 3, 5]
    pieces = list(zip(inputs.split(sizes), targets.split(sizes), strict=True))
    land = ModelLandscape(model, loss, pieces, memory=memory)
    return Case("tokens", land, naive(model, loss, pieces), land.vector(model), watched=(model,))


def tied() -> Case:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(6, 3), nn.Linear(3, 6)
            self.unused = nn.Linear(2, 2)
            self.head.weight = self.embed.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(torch.tanh(self.embed(ids)))

    torch.manual_seed(0)
    model = Tied().double()
    ids = torch.arange(12) % 6
    return network("tied", model, ids, (ids * 5 + 1) % 6)


def encoder() -> Case:
    """torch's own encoder layer has a fast path that autograd does not see."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True)
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(12, 3)).double().eval()
    inputs = torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return network("encoder", model, inputs, torch.arange(6) % 3)


def batch_statistics() -> Case:
    """BatchNorm on batches of 7, 7 and 6: the truth is the network in training mode."""
    model, inputs, targets = tiny("resnet", examples=20)
    case = network("batch statistics", model, inputs, targets, batchnorm="batch", batch_size=7)
    naked = tiny("resnet", examples=20)[0].train()
    for part in naked.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.track_running_stats, part.running_mean, part.running_var = False, None, None
    pieces = list(zip(inputs.split(7), targets.split(7), strict=True))
    return replace(case, truth=naive(naked, F.cross_entropy, pieces))


def minibatch() -> Case:
    model, inputs, targets = small()
    chosen = [30, 2, 7, 7, 32]
    case = network("minibatch", model, inputs[chosen], targets[chosen], penalty=0.3)
    whole = ModelLandscape(
        model,
        F.cross_entropy,
        [(inputs[:31], targets[:31]), (inputs[31:], targets[31:])],
        penalty=0.3,
    )
    return replace(case, land=whole.minibatch(chosen))


def subset() -> Case:
    model, inputs, targets = small()
    return network("subset", model, inputs, targets, parameters=["*.bias", "layers.3.*"])


def by_hand() -> Case:
    """A user's own forward function."""
    model, inputs, targets = small()
    case = network("forward", model, inputs, targets)
    land = ModelLandscape(
        model,
        lambda outputs, batch: F.cross_entropy(outputs, batch["labels"]),
        {"labels": targets, "pixels": inputs},
        forward=lambda module, batch: module(batch["pixels"]),
    )
    return replace(case, land=land)


CASES: dict[str, Callable[[], Case]] = {
    "quadratic": quadratic,
    "rosenbrock": lambda: function("rosenbrock", rosenbrock, 5),
    "branching": lambda: function("branching", branching, 3),
    "partly flat": lambda: function("partly flat", partly_flat, 3),
    "linear": lambda: function("linear", lambda x: 2 * x.sum(), 3),
    **{name: lambda name=name: zoo(name) for name in TINY_NAMES},
    "ragged list": lambda: network("ragged list", *small(), sizes=(32, 1)),
    "loader": with_loader,
    "dataset": lambda: network(
        "dataset",
        *small(),
        sizes=(10, 10, 10, 3),
        batch_size=10,
        data=lambda p: TensorDataset(*(torch.cat(part) for part in zip(*p, strict=True))),
    ),
    "float32": lambda: network("float32", *small(torch.float32)),
    "cast to float64": lambda: network(
        "cast", small(torch.float32)[0], *small()[1:], dtype=torch.float64
    ),
    "penalty": lambda: network("penalty", *small(), penalty=0.7),
    "penalty function": lambda: network(
        "penalty function", *small(), penalty=lambda x: (x**4).sum() + x[0] * x[1]
    ),
    "linear network": lambda: network(
        "linear network", nn.Sequential(nn.Linear(4, 3)).double(), *small()[1:]
    ),
    "chunked": lambda: network("chunked", *small(), memory=5000),
    "rebuilt": lambda: network("rebuilt", *small(examples=97), memory="16 KiB", sizes=(50, 47)),
    "dictionaries": dictionaries,
    "tokens": tokens,
    "tokens in chunks": lambda: tokens("9 KB"),
    "tied": tied,
    "encoder": encoder,
    "batch statistics": batch_statistics,
    "minibatch": minibatch,
    "subset": subset,
    "forward": by_hand,
}


@cache
def case_of(name: str) -> Case:
    return CASES[name]()


ALWAYS = {"loss", "gradient", "hvp", "nothing_is_touched"}
OFTEN = {"branching", "linear", "mlp", "lstm", "tokens", "rebuilt", "loader", "penalty function"}


def pairs() -> list[object]:
    """Every case with every check; those that seldom find anything new are slow."""
    return [
        pytest.param(
            name,
            check,
            id=f"{name}-{name_of(check)}",
            marks=[] if name in OFTEN or name_of(check) in ALWAYS else [pytest.mark.slow],
        )
        for name in CASES
        for check in CHECKS
    ]


@pytest.mark.parametrize(("name", "check"), pairs())
def test_conformance(name: str, check: Callable[[Case], None]) -> None:
    check(case_of(name))


def test_the_cases_use_every_kernel() -> None:
    """Otherwise the suite would compare one kernel with itself."""
    assert case_of("rosenbrock").land.kernel == "vmap"
    assert case_of("branching").land.kernel == "loop"
    kernels, many = set(), set()
    for name in ("mlp", "rebuilt", "tokens in chunks", "lstm"):
        land = case_of(name).land
        land.loss(case_of(name).near(2))
        with land.at(case_of(name).theta) as point:
            kernels.add(point.kernel)
        many.add(land.plan["many vectors"])
    assert kernels == {"retained", "rebuilt"}
    assert many == {"vmap", "loop"}
    assert case_of("rebuilt").land.plan["examples at once"]["product"] < 47


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY_NAMES)
def test_dense_hessian_of_the_zoo(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every entry of the Hessian, for every network of 2,000 parameters or fewer."""
    monkeypatch.setattr("conformance.DENSE", 2000)
    case = case_of(name)
    rows, hessian = dense(case, case.theta)
    assert len(rows) == case.land.dim <= 2000
    with case.land.at(case.theta) as point:
        found = point.hvp(torch.eye(case.land.dim, dtype=torch.float64))
    case.assert_close(found, hessian, "Hessian")


# Negative controls: each broken landscape fails the check that it breaks.


def broken(change: Callable[[_Model], object]) -> Case:
    case = network("broken", *small(), sizes=(32, 1))
    change(case.land)
    return case


def _unweighted(land: _Model) -> None:
    """hessian-eigenthings: batches averaged without their sizes."""
    sweep, score = land._sweep, land._sweep.score
    sweep.score = lambda *args: (score(*args)[0], 1.0)


def _asymmetric(land: _Model) -> None:
    """A Hessian with one entry too many."""
    at = land.at

    class Point:
        def __init__(self, point: object) -> None:
            self.point, self.theta = point, point.theta
            self.loss, self.gradient = point.loss, point.gradient

        def hvp(self, vectors: Tensor) -> Tensor:
            product = self.point.hvp(vectors).clone()
            product[..., 0] += 1e-6 * vectors[..., 1]
            return product

    class At:
        def __init__(self, theta: Tensor) -> None:
            self.context = at(theta)

        def __enter__(self) -> Point:
            return Point(self.context.__enter__())

        def __exit__(self, *error: object) -> None:
            self.context.__exit__(*error)

    land.at = At


def _doubled(land: _Model) -> None:
    """PyHessian: a second object on one model doubles what accumulates in .grad."""
    gradients = land._sweep.gradients
    land._sweep.gradients = lambda rows: (gradients(rows)[0], 2 * gradients(rows)[1])


def _repaired(land: _Model) -> None:
    """landscaper: NaN becomes a number."""
    losses = land._sweep.losses
    land._sweep.losses = lambda rows: losses(rows).nan_to_num()


def _noisy(land: _Model) -> None:
    losses = land._sweep.losses
    land._sweep.losses = lambda rows: losses(rows) * (1 + 1e-9 * torch.rand((), dtype=rows.dtype))


def _free(land: _Model) -> None:
    class Deaf:
        total = land.cost

        def add(self, **_: object) -> None:
            pass

    land._sweep.ledger = Deaf()


@pytest.mark.parametrize(
    ("change", "check"),
    [
        (_unweighted, check_loss),
        (_unweighted, check_gradient),
        (_unweighted, check_hvp),
        (_asymmetric, check_hvp_algebra),
        (_asymmetric, check_hvp),
        (_doubled, check_gradient),
        (_repaired, check_nan_stays),
        (_noisy, check_bits),
        (_noisy, check_nothing_is_touched),
        (_free, check_cost),
    ],
)
def test_a_broken_landscape_fails(
    change: Callable[[_Model], object], check: Callable[[Case], None]
) -> None:
    check(broken(lambda land: None))
    with pytest.raises(AssertionError):
        check(broken(change))
