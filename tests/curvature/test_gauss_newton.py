"""Gauss-Newton matrices against dense algebra, closed forms and curvlinops; traces; refusals."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from jacobians import Dense, Tokens, here, random, relative
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from truth import untouched

from thalweg.curvature import GaussNewton, Hessian
from thalweg.estimate import Cost
from thalweg.landscape import FunctionLandscape, ModelLandscape
from thalweg.landscape.memory import Meter
from thalweg.zoo import cnn, mlp, tiny


@functools.cache
def zoo(name: str) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A tiny network, its data and its dense Gauss-Newton matrix."""
    model, inputs, targets = tiny(name)
    dense = Dense(model, inputs, lambda o: F.cross_entropy(o, targets))
    return model, inputs, targets, dense.gauss_newton()


ZOO = [
    "cnn",
    "lstm",
    *(pytest.param(n, marks=pytest.mark.slow) for n in ("mlp", "resnet", "transformer")),
]


@pytest.mark.parametrize("name", ZOO)
def test_every_network_of_the_zoo(name: str) -> None:
    model, inputs, targets, truth = zoo(name)
    land = ModelLandscape(model, F.cross_entropy, (inputs, targets), penalty=3.0, batch_size=13)
    vectors = random(land.dim, 3)
    with untouched(model, inputs), GaussNewton(land, land.vector(model)) as G:
        assert G.definite
        assert relative(G @ vectors, truth @ vectors) < 1e-11
        assert relative(G @ vectors[:, 0], truth @ vectors[:, 0]) < 1e-11
        trace = G.own_trace()
        assert trace is not None
        assert trace.value == pytest.approx(float(truth.trace()), rel=1e-11)
        assert float(truth.trace()) in trace
        assert trace.stderr == 0
        assert trace.cost.hvps == 0
        diagonal = G.own_diagonal()
        assert diagonal is not None
        assert relative(diagonal, truth.diagonal()) < 1e-11


@pytest.mark.parametrize("form", ["tensors", "list", "loader", "small memory", "float32"])
def test_ragged_batches_and_chunks(form: str) -> None:
    """32 + 1 examples, however they are held."""
    model, inputs, targets = mlp((4, 6, 3), seed=0).double(), random(33, 4), torch.arange(33) % 3
    truth = Dense(model, inputs, lambda o: F.cross_entropy(o, targets)).gauss_newton()
    options: dict[str, object] = {}
    data: object = (inputs, targets)
    if form == "list":
        data = [(inputs[:32], targets[:32]), (inputs[32:], targets[32:])]
    elif form == "loader":
        data = DataLoader(TensorDataset(inputs, targets), batch_size=32)
    elif form == "small memory":
        options["memory"] = "8 kB"
    elif form == "float32":
        model = model.float()
        data = (inputs.float(), targets)
    land = ModelLandscape(model, F.cross_entropy, data, **options)
    vectors = random(land.dim, 5).to(land.dtype)
    with GaussNewton(land, land.vector(model)) as G:
        bound = 1e-5 if form == "float32" else 1e-12
        for _ in range(2):
            assert relative(G @ vectors, truth @ vectors.double()) < bound
        batches = list(land.batches(G.theta))
        assert batches[0].keeps == (form != "small memory")
        assert form != "small memory" or len(batches) > 1, "the cap does not cut the data"


def test_cost_of_products() -> None:
    """A product counts once per vector, and a pass per sweep, however the graphs are held."""
    model, inputs, targets = mlp((4, 6, 3), seed=0).double(), random(33, 4), torch.arange(33) % 3
    for memory in ("2 GiB", "12 kB"):
        land = ModelLandscape(model, F.cross_entropy, (inputs, targets), memory=memory)
        G = GaussNewton(land, land.vector(model))
        assert G.cost == Cost()
        before = land.cost
        G @ random(land.dim, 4)
        G @ random(land.dim)
        assert (G.cost.hvps, G.cost.gradients) == (5, 0)
        assert G.cost.passes == pytest.approx(2)
        assert (land.cost - before).passes == pytest.approx(2)


def test_weighted_tokens() -> None:
    """A mean over tokens that count; a sequence without any; batches of unequal weight."""
    tokens = Tokens()
    truth = Dense(tokens.model, tokens.inputs, tokens.mean).gauss_newton()
    for options in ({}, {"batch_size": 5}, {"memory": "15 kB"}):
        data = (tokens.inputs, tokens.targets)
        land = ModelLandscape(tokens.model, tokens.loss, data, **options)
        with GaussNewton(land, here(land)) as G:
            assert relative(G.to_dense(), truth) < 1e-12
            trace = G.own_trace()
            assert trace is not None
            assert trace.value == pytest.approx(float(truth.trace()), rel=1e-12)
    first = ModelLandscape(
        tokens.model,
        tokens.loss,
        [(tokens.inputs[3:4], tokens.targets[3:4]), (tokens.inputs, tokens.targets)],
    )
    with GaussNewton(first, here(first)) as G:  # the first batch has no weight at all
        assert relative(G.to_dense(), truth) < 1e-12
        assert G.cost.hvps == G.dim


LOSSES = {
    "mse": lambda o, t: F.mse_loss(o, F.one_hot(t, 3).to(o)),
    "huber": lambda o, t: F.huber_loss(o, F.one_hot(t, 3).to(o), delta=0.7),
    "poisson": lambda o, t: F.poisson_nll_loss(o, F.one_hot(t, 3).to(o)),
    "binary": lambda o, t: F.binary_cross_entropy_with_logits(o, F.one_hot(t, 3).to(o)),
    "smoothed": lambda o, t: F.cross_entropy(o, t, label_smoothing=0.1),
    "quartic": lambda o, t: ((o - F.one_hot(t, 3).to(o)).square().sum(1) ** 2).mean(),
}


@pytest.mark.parametrize("name", LOSSES)
def test_any_convex_loss(name: str) -> None:
    model, inputs, targets = mlp((4, 5, 3), seed=0).double(), random(20, 4), torch.arange(20) % 3
    loss = LOSSES[name]
    truth = Dense(model, inputs, lambda o: loss(o, targets)).gauss_newton()
    land = ModelLandscape(model, loss, (inputs, targets), batch_size=7)
    with GaussNewton(land, land.vector(model)) as G:
        assert relative(G.to_dense(), truth) < 1e-11
        trace, diagonal = G.own_trace(), G.own_diagonal()
        assert trace is not None
        assert diagonal is not None
        assert trace.value == pytest.approx(float(truth.trace()), rel=1e-11)
        assert relative(diagonal, truth.diagonal()) < 1e-11


def test_classes_in_axis_one() -> None:
    """torch's own convention for images: (examples, classes, places)."""
    torch.manual_seed(0)
    model = nn.Conv1d(2, 3, 2).double()
    inputs, targets = random(6, 2, 5), torch.arange(24).reshape(6, 4) % 3
    truth = Dense(model, inputs, lambda o: F.cross_entropy(o, targets)).gauss_newton()
    land = ModelLandscape(model, F.cross_entropy, (inputs, targets))
    with GaussNewton(land, land.vector(model)) as G:
        assert relative(G.to_dense(), truth) < 1e-12
        assert G.own_trace().value == pytest.approx(float(truth.trace()), rel=1e-12)


class Two(nn.Module):
    """A network with a nest of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp((4, 5, 3), seed=0).double()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        scores = self.body(x)
        return {"scores": scores, "sum": scores.sum(1)}


def test_structured_outputs() -> None:
    model, inputs, targets = Two(), random(6, 4), torch.arange(6) % 3

    def loss(o: dict[str, Tensor], t: Tensor) -> Tensor:
        return F.cross_entropy(o["scores"], t) + (o["sum"] ** 2).mean()

    dense = Dense(model.body, inputs, lambda o: loss({"scores": o, "sum": o.sum(1)}, targets))
    land = ModelLandscape(model, loss, (inputs, targets))
    with GaussNewton(land, land.vector(model)) as G:
        assert relative(G.to_dense(), dense.gauss_newton()) < 1e-12
        trace = G.own_trace()
        assert trace is not None
        assert trace.value == pytest.approx(float(dense.gauss_newton().trace()), rel=1e-12)


def test_jacobian_through_batch_statistics() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).double()
    inputs, targets = random(20, 4), torch.arange(20) % 3
    truth = Dense(model.train(), inputs, lambda o: F.cross_entropy(o, targets)).gauss_newton()
    frozen = Dense(model.eval(), inputs, lambda o: F.cross_entropy(o, targets)).gauss_newton()
    land = ModelLandscape(model, F.cross_entropy, (inputs, targets), batchnorm="batch")
    with GaussNewton(land, land.vector(model)) as G:
        assert relative(G.to_dense(), truth) < 1e-10
        assert relative(G.to_dense(), frozen) > 1e-2, "the statistics do not matter here"
        assert G.own_trace() is None
        assert G.own_diagonal() is None


def test_linear_regression() -> None:
    """2 X^T X / N, whatever the targets; and it is the Hessian."""
    model, inputs = nn.Linear(4, 1, bias=False).double(), random(30, 4)
    land = ModelLandscape(model, F.mse_loss, (inputs, random(30, 1, seed=1)))
    with GaussNewton(land, land.vector(model)) as G, Hessian(land, land.vector(model)) as H:
        torch.testing.assert_close(G.to_dense(), 2 * inputs.T @ inputs / 30)
        torch.testing.assert_close(G.to_dense(), H.to_dense())


def test_logistic_regression() -> None:
    """X^T diag(p (1 - p)) X / N."""
    model, inputs = nn.Linear(4, 1, bias=False).double(), random(30, 4)
    targets = (torch.arange(30)[:, None] % 2).double()
    land = ModelLandscape(model, F.binary_cross_entropy_with_logits, (inputs, targets))
    p = (inputs @ land.vector(model)).sigmoid()
    with GaussNewton(land, land.vector(model)) as G:
        expected = inputs.T @ ((p * (1 - p))[:, None] * inputs) / 30
        torch.testing.assert_close(G.to_dense(), expected)


def test_softmax_regression() -> None:
    """The mean of (diag p - p p^T) kron x x^T."""
    model, inputs = nn.Linear(3, 4, bias=False).double(), random(30, 3)
    land = ModelLandscape(model, F.cross_entropy, (inputs, torch.arange(30) % 4))
    p = (inputs @ land.vector(model).reshape(4, 3).T).softmax(1)
    expected = sum(
        torch.kron(q.diag() - torch.outer(q, q), torch.outer(x, x))
        for q, x in zip(p, inputs, strict=True)
    )
    with GaussNewton(land, land.vector(model)) as G:
        torch.testing.assert_close(G.to_dense(), expected / 30)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # their forward mode
def test_curvlinops_agrees() -> None:
    curvlinops = pytest.importorskip("curvlinops")
    model, inputs, targets = mlp((4, 5, 3), seed=0).double(), random(33, 4), torch.arange(33) % 3
    data = [(inputs[:20], targets[:20]), (inputs[20:], targets[20:])]
    theirs = curvlinops.GGNLinearOperator(
        model, nn.CrossEntropyLoss(), list(model.parameters()), data
    )
    land = ModelLandscape(model, F.cross_entropy, data)
    vectors = random(land.dim, 3)
    with GaussNewton(land, land.vector(model)) as G:
        torch.testing.assert_close(G @ vectors, theirs @ vectors)


MODEL = mlp((4, 5, 3), seed=0).double()
LAND = ModelLandscape(MODEL, F.cross_entropy, (random(9, 4), torch.arange(9) % 3))


@settings(max_examples=15)
@given(st.integers(0, 2**31), st.floats(-3, 3))
def test_linear_symmetric_semidefinite(seed: int, factor: float) -> None:
    theta, x, y = random(3, LAND.dim, seed=seed)
    with GaussNewton(LAND, theta) as G:
        torch.testing.assert_close(G @ (x + factor * y), G @ x + factor * (G @ y))
        torch.testing.assert_close(x @ (G @ y), y @ (G @ x))
        assert float(x @ (G @ x)) >= 0


def test_losses_that_are_not_convex() -> None:
    model, inputs, targets = mlp((4, 5, 3), seed=0).double(), random(20, 4), torch.arange(20) % 3

    def hit(o: Tensor, t: Tensor) -> Tensor:
        return 1 - o.softmax(1).gather(1, t[:, None]).mean()

    land = ModelLandscape(model, hit, (inputs, targets))
    theta = land.vector(model)
    with pytest.raises(ValueError, match=r"not convex in the network's outputs .*use Hessian"):
        GaussNewton(land, theta) @ theta
    truth = Dense(model, inputs, lambda o: hit(o, targets)).gauss_newton()
    with GaussNewton(land, theta, allow_indefinite=True) as G:
        assert not G.definite
        assert relative(G.to_dense(), truth) < 1e-12
        assert G.own_trace() is None
    named = nn.Sequential(model, nn.LogSoftmax(1))
    land = ModelLandscape(named, F.nll_loss, (inputs, targets))
    with pytest.raises(ValueError, match="linear in the network's outputs, so its Gauss-Newton"):
        GaussNewton(land, theta) @ theta


def test_landscapes_without_outputs(unchecked: None) -> None:
    land = FunctionLandscape(lambda x: (x**2).sum(), dim=3)
    with pytest.raises(TypeError, match=r"sum over examples with outputs, such as ModelLandscape"):
        GaussNewton(land, torch.ones(3, dtype=torch.float64))


def test_closing() -> None:
    G = GaussNewton(LAND, here(LAND))
    G @ here(LAND)
    G.close()
    assert G.closed
    for what in (lambda: G @ here(LAND), G.own_trace, G.own_diagonal):
        with pytest.raises(RuntimeError, match=r"this GaussNewton is closed .*GaussNewton\(land"):
            what()


def wide(examples: int = 50) -> ModelLandscape:
    """More outputs than are gone through one by one."""
    model = mlp((6, 8, 40), seed=0).double()
    data = random(examples, 6), torch.arange(examples) % 40
    return ModelLandscape(model, F.cross_entropy, data)


@pytest.mark.slow
def test_a_trace_by_signs_says_so() -> None:
    land = wide()
    with GaussNewton(land, here(land)) as G:
        first, again = G.own_trace(seed=3), G.own_trace(seed=3)
        assert first is not None
        assert again is not None
        assert first.value == again.value
        assert (first.seed, first.samples) == (3, 82)
        assert first.cost.hvps == 0
        assert first.cost.passes == pytest.approx(83)
        assert "random signs" in first.method
        assert first.stderr > 0
        assert G.own_diagonal() is None


@pytest.mark.slow
def test_other_losses_of_many_outputs() -> None:
    """Above 32 outputs by eigenvectors of small blocks; above 256 no factor is known."""
    for width, known in ((40, True), (300, False)):
        model = nn.Linear(3, width).double()
        land = ModelLandscape(
            model, lambda o, t: ((o - t) ** 4).mean(), (random(8, 3), random(8, width, seed=1))
        )
        with GaussNewton(land, land.vector(model)) as G:
            found = G.own_trace(seed=0)
            assert (found is not None) == known
            if found is not None:
                assert found.value == pytest.approx(float(G.to_dense().trace()), rel=0.1)


@pytest.mark.parametrize(
    ("name", "cap"),
    [
        ("cnn", 500_000),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [("cnn", 4_000_000), ("mlp", 500_000), ("mlp", 4_000_000)]
        ),
    ],
)
def test_the_memory_cap(name: str, cap: int) -> None:
    """Products, trace, diagonal and kept batches; planning included, results aside.

    What a loss's own Hessian takes is not in the plan of the graphs: a fifth of a tight cap.
    """
    model, inputs = mlp((20, 40, 40, 10), seed=0).double(), random(240, 20)
    if name == "cnn":
        model, inputs = cnn((4, 8), seed=0).double(), random(40, 1, 12, 12)
    targets = torch.arange(len(inputs)) % 10
    for batch_size in (None, 13):
        data = inputs, targets
        land = ModelLandscape(model, F.cross_entropy, data, memory=cap, batch_size=batch_size)
        theta = here(land)
        vectors = random(land.dim, 6)
        with GaussNewton(land, theta) as G:
            for what, results in (
                (lambda v=vectors, G=G: G @ v, 12),  # of the last batch, and their sum
                (lambda v=vectors, G=G: G @ v[:, 0], 2),  # with the batches kept by the first
                (G.own_trace, 0),
                (G.own_diagonal, 2),
            ):
                with Meter() as meter:
                    what()
                assert meter.peak - results * theta.nbytes <= 1.2 * cap, (what, land.plan)
        with Meter() as meter:
            batches = list(land.batches(theta)) if next(land.batches(theta)).keeps else []
            for batch in batches:
                batch.linearise()
                batch.sandwich(theta, lambda tangent: tangent)
        assert meter.peak - 2 * theta.nbytes <= 1.2 * cap, ("kept", land.plan)
        assert batches or cap < 4_000_000, "the batches are not kept"


@pytest.mark.parametrize("name", ["mlp", "cnn", "lstm"])
def test_vectors_travel_together(name: str) -> None:
    """By a rule that is recorded, and to the numbers of one vector after the other."""
    model, inputs, targets, truth = zoo(name)
    land = ModelLandscape(model, F.cross_entropy, (inputs, targets))
    vectors = random(land.dim, 5)
    with GaussNewton(land, here(land)) as G:
        alone = torch.stack([G @ vector for vector in vectors.T], 1)
        assert "vectors of Jacobian products" not in land.plan["examples at once"]
        assert relative(G @ vectors, alone) < 1e-12
        assert relative(alone, truth @ vectors) < 1e-11
    assert land.plan["examples at once"]["vectors of Jacobian products"] == 5
    assert land._sweep.vmaps["forward products"] == (name == "cnn")


def test_networks_that_vmap_refuses() -> None:
    """They take one vector after the other, to the same numbers."""

    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return Stubborn.apply(self.layer(x))

    model, inputs, targets = Branch().double(), random(9, 4), torch.arange(9) % 3
    land = ModelLandscape(model, F.cross_entropy, (inputs, targets))
    vectors = random(land.dim, 3)
    truth = Dense(model, inputs, lambda o: F.cross_entropy(o, targets)).gauss_newton()
    with GaussNewton(land, here(land)) as G:
        assert relative(G @ vectors, truth @ vectors) < 1e-11
    assert not land._sweep.vmaps["stacked products"]


class Stubborn(torch.autograd.Function):
    """A sine whose backward pass asks for a number, which vmap cannot give."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return slope * x.cos() if float(slope.detach().abs().max()) >= 0 else slope


@pytest.mark.calibration
def test_coverage_of_signs(calibration: Any) -> None:
    """The data are fixed; what is random are the signs: 4 or 8 vectors of them."""
    tokens = Tokens(examples=512, classes=9)
    cases = {
        "wide": wide(1024),
        "tokens": ModelLandscape(tokens.model, tokens.loss, (tokens.inputs, tokens.targets)),
    }
    for name, land in cases.items():
        with GaussNewton(land, here(land)) as G:
            truth = float(G.to_dense().trace())
            found = [G.own_trace(seed=seed) for seed in calibration.seeds]
            values = torch.tensor([one.value for one in found], dtype=torch.float64)
            oracle = 1.96 * float((values - truth).square().mean().sqrt())
            widths = torch.tensor([one.half_width for one in found])
            calibration.check(
                f"Gauss-Newton trace by signs, {name}",
                sum(truth in one for one in found),
                width_ratio=float(widths.median()) / oracle,
            )


def test_inference_mode_changes_nothing():
    model, x, y = tiny("mlp")
    land = ModelLandscape(model, F.cross_entropy, (x, y))
    vector = torch.ones(land.dim, dtype=torch.float64)
    outside = GaussNewton(land, land.initial) @ vector
    with torch.inference_mode():
        assert torch.equal(GaussNewton(land, land.initial) @ vector, outside)
