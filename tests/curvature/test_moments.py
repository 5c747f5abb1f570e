"""The gradients' second moment against a loop over examples, and what it promises of SGD."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from jacobians import Dense, Tokens, here, random, relative
from torch import nn
from truth import untouched

from thalweg.curvature import GradientMoment
from thalweg.landscape import ModelLandscape
from thalweg.zoo import mlp, tiny

ZOO = [
    "cnn",
    *(pytest.param(n, marks=pytest.mark.slow) for n in ("mlp", "lstm", "resnet", "transformer")),
]


@pytest.mark.parametrize("name", ZOO)
def test_every_network_of_the_zoo(name: str) -> None:
    model, inputs, targets = tiny(name)
    land = ModelLandscape(model, F.cross_entropy, (inputs, targets), penalty=3.0, batch_size=13)
    plain = land.with_data((inputs, targets))
    theta, vectors = land.vector(model), random(land.dim, 2)
    own = Dense(model, inputs, lambda o: F.cross_entropy(o, targets)).own_gradients(
        lambda o: F.cross_entropy(o, targets, reduction="none")
    )
    truth = own.T @ own / len(own)
    mean = own.mean(0)
    torch.testing.assert_close(mean + 3 * theta, plain.gradient(theta), rtol=1e-9, atol=1e-11)
    for centred in (False, True):
        if centred:
            truth = truth - torch.outer(mean, mean)
        with untouched(model), GradientMoment(land, theta, centred=centred) as C:
            assert C.definite
            assert relative(C @ vectors, truth @ vectors) < 1e-10
            trace, diagonal = C.own_trace(), C.own_diagonal()
            assert trace is not None
            assert diagonal is not None
            assert float(truth.trace()) in trace
            assert trace.value == pytest.approx(float(truth.trace()), rel=1e-11)
            assert trace.cost.hvps == 0
            assert relative(diagonal, truth.diagonal()) < 1e-10
            torch.testing.assert_close(C.mean, mean, rtol=1e-9, atol=1e-12)


def test_weighted_sequences_in_chunks() -> None:
    tokens = Tokens()
    dense = Dense(tokens.model, tokens.inputs, tokens.mean)
    own, weights = dense.own_gradients(tokens.own), tokens.kept.sum(1).double()
    weights = weights / weights.sum()
    mean = weights @ own
    truth = own.T @ (weights[:, None] * own) - torch.outer(mean, mean)
    for options in ({}, {"memory": "15 kB"}):
        data = tokens.inputs, tokens.targets
        land = ModelLandscape(tokens.model, tokens.loss, data, **options)
        with GradientMoment(land, here(land), centred=True) as C:
            assert relative(C.to_dense(), truth) < 1e-11
            assert C.own_trace().value == pytest.approx(float(truth.trace()), rel=1e-11)


def test_float32() -> None:
    model, inputs, targets = mlp((4, 5, 3), seed=0), random(20, 4).float(), torch.arange(20) % 3
    land = ModelLandscape(model, F.cross_entropy, (inputs, targets))
    dense = Dense(model, inputs, lambda o: F.cross_entropy(o, targets))
    own = dense.own_gradients(lambda o: F.cross_entropy(o, targets, reduction="none"))
    with GradientMoment(land, land.vector(model)) as C:
        assert relative(C.to_dense(), own.T @ own / 20) < 1e-5
        assert float(own.square().sum() / 20) in C.own_trace()


def test_the_noise_of_minibatches() -> None:
    """Over all pairs of examples the covariance of the mean is C / 2 times (N - 2) / (N - 1)."""
    model, inputs, targets = mlp((3, 3, 2), seed=0).double(), random(6, 3), torch.arange(6) % 2
    land = ModelLandscape(model, F.cross_entropy, (inputs, targets))
    theta = land.vector(model)
    pairs = torch.combinations(torch.arange(6), 2)
    means = torch.stack([land.minibatch(pair).gradient(theta) for pair in pairs])
    centred = means - means.mean(0)
    with GradientMoment(land, theta, centred=True) as C:
        torch.testing.assert_close(centred.T @ centred / len(pairs), C.to_dense() / 2 * 4 / 5)


MODEL = mlp((4, 5, 3), seed=0).double()
LAND = ModelLandscape(MODEL, F.cross_entropy, (random(9, 4), torch.arange(9) % 3))


@settings(max_examples=10)
@given(st.integers(0, 2**31), st.floats(-3, 3), st.booleans())
def test_linear_symmetric_semidefinite(seed: int, factor: float, centred: bool) -> None:
    theta, x, y = random(3, LAND.dim, seed=seed)
    with GradientMoment(LAND, theta, centred=centred) as C:
        torch.testing.assert_close(C @ (x + factor * y), C @ x + factor * (C @ y))
        torch.testing.assert_close(x @ (C @ y), y @ (C @ x))
        assert float(x @ (C @ x)) >= -1e-12


def test_examples_that_depend_on_each_other() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).double()
    data = random(20, 4), torch.arange(20) % 3
    land = ModelLandscape(model, F.cross_entropy, data, batchnorm="batch")
    with pytest.raises(ValueError, match=r"depend on each other here .*use batchnorm='frozen'"):
        GradientMoment(land, here(land)) @ here(land)
    flat = ModelLandscape(
        nn.Sequential(nn.Linear(4, 3), nn.Flatten(0)).double(),
        lambda o, t: F.cross_entropy(o.reshape(-1, 3), t),
        data,
    )
    with pytest.raises(ValueError, match=r"have shapes \[\(60,\)\], which are not one row per ex"):
        GradientMoment(flat, here(flat)) @ here(flat)
