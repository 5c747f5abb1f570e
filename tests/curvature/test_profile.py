"""The profile of all measures, against dense algebra."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F

from thalweg import zoo
from thalweg.curvature import CurvatureProfile, curvature_profile
from thalweg.landscape import FunctionLandscape, ModelLandscape

SHIFT = 1e-2


@pytest.fixture(scope="module")
def network():
    """A trained-a-little network of 1,210 parameters in float64, and its dense Hessian."""
    model, x, y = zoo.tiny("mlp", examples=40)
    land = ModelLandscape(model, F.cross_entropy, (x, y), penalty=1e-3)
    theta = land.vector(model)
    for _ in range(60):
        theta = theta - 0.3 * land.gradient(theta)
    with land.at(theta) as point:
        hessian = point.hvp(torch.eye(land.dim, dtype=torch.float64))
    return land, theta, (hessian + hessian.T) / 2


@pytest.fixture(scope="module")
def profile(network) -> CurvatureProfile:
    land, theta, _ = network
    return curvature_profile(land, theta, seed=3, shift=SHIFT, probes=8, passes=50)


def test_every_number_agrees_with_the_dense_hessian(network, profile):
    values = torch.linalg.eigvalsh(network[2])
    assert torch.allclose(profile.eigenpairs.values, values.flip(0)[:10], rtol=1e-6)
    assert float(values[-1]) in profile.largest
    assert float(values[0]) in profile.lowest
    assert float(values.sum()) in profile.trace
    assert float(values.square().sum().sqrt()) in profile.frobenius_norm
    assert float((values.clamp_min(0) + SHIFT).log().sum()) in profile.log_determinant
    positive = values.clamp_min(0)
    assert float((positive / (positive + SHIFT)).sum()) in profile.effective_dimension
    tau = profile.inertia.tau
    assert float((values < -tau).sum()) in profile.inertia.negative
    assert float((values > tau).sum()) in profile.inertia.positive


def test_the_layers_agree_with_their_dense_blocks(network, profile):
    land, _, hessian = network
    assert [layer.name for layer in profile.layers] == list(land.spec.layers)
    for layer, where in zip(profile.layers, land.spec.layer_ids.unique(), strict=True):
        chosen = land.spec.layer_ids == where
        block = hessian[chosen][:, chosen]
        assert layer.size == len(block)
        assert float(block.trace()) in layer.trace
        assert float(torch.linalg.eigvalsh(block)[-1]) in layer.top


def test_it_takes_no_more_passes_than_it_may(network, profile):
    land, theta, _ = network
    assert profile.cost.passes <= 50
    before = land.cost
    short = curvature_profile(land, theta, seed=3, passes=20)
    assert (land.cost - before).passes <= 20
    assert short.cost == land.cost - before


def test_the_check_of_completeness_is_that_of_the_chains(profile):
    assert bool(profile.eigenpairs.converged.all())
    assert profile.eigenpairs.overlooked < 1e-4


def test_the_same_seed_gives_the_same_profile(network, profile):
    land, theta, _ = network
    again = curvature_profile(land, theta, seed=3, shift=SHIFT, probes=8, passes=50)
    assert again.to_json() == profile.to_json()


def test_gauss_newton_knows_its_trace_without_products(network):
    land, theta, _ = network
    found = curvature_profile(land, theta, kind="gauss-newton", seed=0, passes=50)
    assert found.trace.stderr == 0.0
    assert found.lowest.lower >= -1e-9
    assert found.inertia.negative.value == 0
    assert float(found.trace.value) > 0


def test_a_function_without_layers_has_none():
    bowl = FunctionLandscape(lambda x: (x**4).sum(), dim=3)
    found = curvature_profile(bowl, torch.ones(3, dtype=torch.float64), seed=0)
    assert found.layers == ()
    assert 36.0 in found.trace
    assert found.inertia.positive.value == 3
    with pytest.raises(TypeError, match=r"layers=\['a\*'\] names parameters, but Function"):
        curvature_profile(bowl, torch.ones(3, dtype=torch.float64), layers=["a*"])
    with pytest.raises(TypeError, match="kind='gauss-newton' needs a landscape with outputs"):
        curvature_profile(bowl, torch.ones(3, dtype=torch.float64), kind="gauss-newton")


def test_groups_may_be_chosen_by_pattern(network):
    land, theta, hessian = network
    (found,) = curvature_profile(land, theta, layers=["*bias"], seed=0, passes=40).layers
    chosen = land.spec.mask("*bias")
    assert found.name == "*bias"
    assert float(hessian[chosen][:, chosen].trace()) in found.trace


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "fisher"}, "kind must be one of 'hessian', 'gauss-newton', not 'fisher'"),
        ({"probes": 3}, "probes=3 is too few; take at least 4"),
        ({"passes": 19}, "passes=19 is too few; take at least 20"),
        ({"eigenvalues": 0}, "eigenvalues=0 is too few; take at least 1"),
        ({"tau": 0.0}, "tau=0.0: an index needs a positive tolerance"),
        ({"memory": "1 KiB"}, "memory=1024 cannot hold a search for 10 eigenvectors"),
    ],
)
def test_wrong_options_are_refused(network, options, words):
    land, theta, _ = network
    with pytest.raises(ValueError, match=words):
        curvature_profile(land, theta, seed=0, **options)


def test_layers_given_as_one_string_are_refused(network):
    land, theta, _ = network
    with pytest.raises(TypeError, match=r"layers takes a list of patterns; write \['a'\]"):
        curvature_profile(land, theta, layers="a")


def test_it_reads_as_a_page_and_as_json(profile):
    text = str(profile)
    for words in ("curvature (hessian) in", "sharpness", "log det (A+ + 0.01 I)", "layers, each"):
        assert words in text
    assert "at most 2048 MiB; seed 3" in text
    assert json.loads(json.dumps(profile.to_json()))["type"] == "curvature profile"
    assert profile.__rich__() == text.replace("[", "\\[")


def test_progress_is_told(network):
    land, theta, _ = network
    seen: list[tuple[float, str]] = []
    curvature_profile(land, theta, seed=0, passes=20, progress=lambda f, w: seen.append((f, w)))
    fractions = [fraction for fraction, _ in seen]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0.0, 1.0)
    assert {words for _, words in seen} >= {"largest eigenvalues", "trace", "density", "done"}


def bowl(values: torch.Tensor) -> FunctionLandscape:
    """A quadratic with these eigenvalues."""
    return FunctionLandscape(lambda x: (values * x**2).sum() / 2, dim=len(values))


def test_copies_that_a_narrow_block_cannot_see_are_not_vouched_for():
    """Four starts see four of eight copies; the spectrum is known exactly, and says so."""
    values = torch.cat([torch.full((8,), 10.0), torch.linspace(0, 5, 32)]).double()
    options = {"eigenvalues": 10, "probes": 4, "seed": 0}
    found = curvature_profile(bowl(values), torch.ones(40).double(), **options)
    assert found.eigenpairs.converged.all()
    assert float(found.eigenpairs.values[7]) < 9
    assert found.eigenpairs.overlooked == 1.0
    assert "that none of the largest eigenvalues is missing" in str(found)
    few = curvature_profile(bowl(values), torch.ones(40).double(), eigenvalues=3, probes=4, seed=0)
    assert few.eigenpairs.overlooked == 0.0
    assert "missing" not in str(few)


def test_a_loss_that_overflows_is_still_strict_json():
    land = FunctionLandscape(lambda x: x.square().sum() / 2, dim=3)
    found = curvature_profile(land, torch.full((3,), 1e200, dtype=torch.float64), seed=0)
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["loss"] == "inf"
