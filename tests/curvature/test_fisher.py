"""Fisher matrices: exact against dense algebra, sampled against their expectation, refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from jacobians import Dense, Tokens, here, random, relative
from torch import Tensor, nn
from truth import untouched

from thalweg.curvature import Fisher, GaussNewton, GradientMoment
from thalweg.landscape import ModelLandscape
from thalweg.zoo import mlp


def small(loss: Any = F.cross_entropy, **options: Any) -> tuple[ModelLandscape, Dense]:
    model, inputs, targets = mlp((4, 4, 3), seed=0).double(), random(13, 4), torch.arange(13) % 3
    land = ModelLandscape(model, loss, (inputs, targets), batch_size=12, penalty=2.0, **options)
    return land, Dense(model, inputs, lambda o: loss(o, targets))


def squares(o: Tensor, t: Tensor) -> Tensor:
    return F.mse_loss(o, F.one_hot(t, 3).to(o))


def binary(o: Tensor, t: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(o, F.one_hot(t, 3).to(o))


def smoothed(o: Tensor, t: Tensor) -> Tensor:
    return F.cross_entropy(o, t, label_smoothing=0.2)


@pytest.mark.parametrize(
    ("loss", "likelihood"),
    [
        (F.cross_entropy, "categorical"),
        (smoothed, "categorical"),
        (squares, "gaussian"),
        (binary, "bernoulli"),
    ],
)
def test_exact_is_gauss_newton(loss: Any, likelihood: Any) -> None:
    land, dense = small(loss)
    for given in (None, likelihood):
        with Fisher(land, here(land), likelihood=given) as fisher:
            assert fisher.definite
            assert relative(fisher.to_dense(), dense.gauss_newton()) < 1e-12
            assert fisher.likelihood == likelihood
            assert fisher.own_trace().value == pytest.approx(float(dense.gauss_newton().trace()))


def test_exact_is_the_expectation_over_targets() -> None:
    """Gradients of every class in turn, weighted by the model's own probabilities."""
    land, dense = small()
    p, jacobian = dense.outputs.softmax(1), dense.jacobian.reshape(13, 3, -1)
    total = torch.zeros(land.dim, land.dim, dtype=torch.float64)
    for c in range(3):
        slopes = torch.einsum("nc,ncd->nd", p - F.one_hot(torch.tensor(c), 3), jacobian)
        total += slopes.T @ (p[:, c, None] * slopes) / 13
    with Fisher(land, here(land)) as fisher:
        assert relative(fisher.to_dense(), total) < 1e-12


def test_empirical() -> None:
    land, dense = small()
    targets = torch.arange(13) % 3
    own = dense.own_gradients(lambda o: F.cross_entropy(o, targets, reduction="none"))
    truth = own.T @ own / 13
    with (
        Fisher(land, here(land), kind="empirical") as fisher,
        GradientMoment(land, here(land)) as moment,
    ):
        assert relative(fisher.to_dense(), truth) < 1e-12
        assert torch.equal(fisher.to_dense(), moment.to_dense())
        assert fisher.own_trace().value == pytest.approx(float(truth.trace()), rel=1e-12)
        assert relative(fisher.own_diagonal(), truth.diagonal()) < 1e-12


@pytest.mark.parametrize("loss", [F.cross_entropy, squares, binary])
def test_sampled_targets_are_drawn_once(loss: Any) -> None:
    """Deterministic, linear, the same for one seed however the data are held."""
    model, inputs, targets = mlp((4, 4, 3), seed=0).double(), random(13, 4), torch.arange(13) % 3
    land = ModelLandscape(model, loss, (inputs, targets), batch_size=12)
    with untouched(model), Fisher(land, here(land), kind="monte-carlo", seed=1) as fisher:
        dense = fisher.to_dense()
        assert torch.equal(fisher.to_dense(), dense)
        torch.testing.assert_close(dense, dense.T)
        assert float(torch.linalg.eigvalsh(dense)[0]) > -1e-12
        x, y = random(2, land.dim)
        torch.testing.assert_close(fisher @ (x - 2 * y), fisher @ x - 2 * (fisher @ y))
        trace = fisher.own_trace()
        assert trace is not None
        assert trace.value == pytest.approx(float(dense.trace()), rel=1e-11)
        assert fisher.seed == 1
    again = Fisher(land, here(land), kind="monte-carlo", seed=1)
    other = Fisher(land, here(land), kind="monte-carlo", seed=2)
    assert torch.equal(again.to_dense(), dense)
    assert relative(other.to_dense(), dense) > 1e-2
    assert Fisher(land, here(land), kind="monte-carlo").seed >= 0


def check_expectation(land: ModelLandscape, truth: Tensor, samples: int = 400) -> None:
    """The mean over many draws meets the exact matrix within its own standard error."""
    with Fisher(land, here(land), kind="monte-carlo", samples=samples, seed=5) as many:
        found = many.to_dense()
    draws = []
    for seed in range(40):
        with Fisher(land, here(land), kind="monte-carlo", seed=seed) as one:
            draws.append(one @ torch.eye(land.dim, dtype=torch.float64)[:, :1])
    spread = torch.stack([(d[:, 0] - truth[:, 0]).square().sum() for d in draws]).mean().sqrt()
    gap = (found[:, 0] - truth[:, 0]).norm()
    assert float(gap) < 4 * float(spread) / math.sqrt(samples)
    assert float(found.trace()) == pytest.approx(float(truth.trace()), rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("loss", [F.cross_entropy, squares, binary])
def test_sampled_targets_have_the_right_mean(loss: Any) -> None:
    land, dense = small(loss)
    check_expectation(land, dense.gauss_newton())


def test_sequences_and_ignored_tokens() -> None:
    """A target drawn per sequence, or divided by its length once more, is off by a factor."""
    tokens = Tokens(examples=8, classes=4)
    land = ModelLandscape(tokens.model, tokens.loss, (tokens.inputs, tokens.targets), batch_size=7)
    truth = Dense(tokens.model, tokens.inputs, tokens.mean).gauss_newton()
    with Fisher(land, here(land)) as fisher:
        assert relative(fisher.to_dense(), truth) < 1e-12
    check_expectation(land, truth)
    with Fisher(land, here(land), kind="monte-carlo", samples=3, seed=0) as fisher:
        trace, exact = fisher.own_trace(seed=0), float(fisher.to_dense().trace())
        assert trace is not None
        assert trace.value == pytest.approx(exact, rel=1e-11)


def test_empirical_over_weighted_sequences() -> None:
    tokens = Tokens()
    land = ModelLandscape(tokens.model, tokens.loss, (tokens.inputs, tokens.targets), batch_size=5)
    dense = Dense(tokens.model, tokens.inputs, tokens.mean)
    own, weights = dense.own_gradients(tokens.own), tokens.kept.sum(1).double()
    truth = own.T @ (weights[:, None] * own) / weights.sum()
    with Fisher(land, here(land), kind="empirical") as fisher:
        assert relative(fisher.to_dense(), truth) < 1e-11


def test_class_weights_are_weights_of_sites() -> None:
    weight = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)

    def loss(o: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return F.cross_entropy(o, t, weight=weight.to(o)), weight[t].sum()

    model, inputs, targets = mlp((4, 4, 3), seed=0).double(), random(13, 4), torch.arange(13) % 3
    land = ModelLandscape(model, loss, (inputs, targets), batch_size=4)
    truth = Dense(model, inputs, lambda o: loss(o, targets)[0]).gauss_newton()
    with Fisher(land, here(land)) as fisher, GaussNewton(land, here(land)) as G:
        assert relative(fisher.to_dense(), truth) < 1e-12
        assert relative(G.to_dense(), truth) < 1e-12


def focal(o: Tensor, t: Tensor) -> Tensor:
    own = F.cross_entropy(o, t, reduction="none")
    return ((1 - (-own).exp()) ** 2 * own).mean()


def huber(o: Tensor, t: Tensor) -> Tensor:
    return F.huber_loss(o, F.one_hot(t, 3).to(o), delta=0.1)


def correlated(o: Tensor, t: Tensor) -> Tensor:
    return (o - F.one_hot(t, 3)).sum(1).square().mean()


def probable(o: Tensor, t: Tensor) -> Tensor:
    return F.nll_loss(o.softmax(1).log(), t) + (o**4).mean()


@pytest.mark.parametrize("loss", [focal, huber, correlated, probable])
@pytest.mark.parametrize("kind", ["exact", "monte-carlo"])
def test_losses_that_are_no_likelihood(loss: Any, kind: Any) -> None:
    land, _ = small(loss)
    with pytest.raises(ValueError, match=r"not the negative logarithm of a known likelihood"):
        Fisher(land, here(land), kind=kind) @ here(land)


def test_the_wrong_likelihood() -> None:
    for loss, wrong in (
        (F.cross_entropy, "gaussian"),
        (squares, "categorical"),
        (binary, "gaussian"),
        (F.cross_entropy, "bernoulli"),
    ):
        land, _ = small(loss)
        with pytest.raises(ValueError, match=rf"none of this form \({wrong}: .*use GaussNewton"):
            Fisher(land, here(land), likelihood=wrong) @ here(land)  # type: ignore[arg-type]  # a str


def test_one_output_is_told_apart() -> None:
    """The Hessian of one binary output is a number per example, as a Gaussian's would be."""
    model = nn.Linear(4, 1).double()
    targets = (torch.arange(13)[:, None] % 2).double()
    data = random(13, 4), targets
    for loss, likelihood in (
        (F.binary_cross_entropy_with_logits, "bernoulli"),
        (F.mse_loss, "gaussian"),
    ):
        land = ModelLandscape(model, loss, data)
        fisher = Fisher(land, here(land))
        fisher @ here(land)
        assert fisher.likelihood == likelihood


def test_arguments_that_are_none(unchecked: None) -> None:
    land, _ = small()
    with pytest.raises(ValueError, match="unknown kind 'true'; use one of exact, monte-carlo, emp"):
        Fisher(land, here(land), kind="true")  # type: ignore[arg-type]  # refused
    with pytest.raises(ValueError, match="unknown likelihood 'poisson'; use one of categorical"):
        Fisher(land, here(land), likelihood="poisson")  # type: ignore[arg-type]  # refused
    with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
        Fisher(land, here(land), samples=0)


def test_batch_statistics() -> None:
    """Exact and sampled go through them; an example has no gradient of its own."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).double()
    data = random(20, 4), torch.arange(20) % 3
    land = ModelLandscape(model, F.cross_entropy, data, batchnorm="batch")
    with Fisher(land, here(land)) as fisher, GaussNewton(land, here(land)) as G:
        assert torch.equal(fisher @ here(land), G @ here(land))
    with pytest.raises(ValueError, match="the examples of a batch depend on each other"):
        Fisher(land, here(land), kind="empirical") @ here(land)
