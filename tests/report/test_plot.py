"""Single results as figures: what is drawn is what was measured."""

from __future__ import annotations

import math

import plotly.graph_objects as go
import pytest
import torch

from thalweg.curvature import MatrixOperator, eigenpairs, spectral_density
from thalweg.curvature.minibatch import minibatch_sharpness
from thalweg.curvature.profile import curvature_profile
from thalweg.curvature.track import track
from thalweg.landscape import FunctionLandscape, ModelLandscape
from thalweg.report import plot


@pytest.fixture(scope="module")
def operator():
    """A bulk between -0.1 and 1, and three outliers."""
    values = torch.cat([torch.linspace(-0.1, 1, 597), torch.tensor([5.0, 7.0, 9.0])]).double()
    return MatrixOperator(torch.diag(values))


@pytest.fixture(scope="module")
def land():
    """A small network on made-up data."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(24, 3, generator=generator, dtype=torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)
        ).double()
    target = (x[:, 0] > 0).long()
    return ModelLandscape(model, torch.nn.functional.cross_entropy, (x, target), penalty=1e-2)


def test_eigenpairs_are_drawn_with_their_intervals(operator):
    pairs = eigenpairs(operator, k=4, seed=0)
    figure = plot(pairs)
    assert isinstance(figure, go.Figure)
    (marks,) = figure.data
    assert list(marks.y) == pairs.values.tolist()
    above = (pairs.intervals[:, 1] - pairs.values).tolist()
    assert list(marks.error_y.array) == pytest.approx(above)


def test_a_density_is_drawn_with_its_band_and_outliers(operator):
    rho = spectral_density(operator, probes=4, steps=20, deflate=3, seed=0)
    figure = plot(rho)
    band, line, atoms = figure.data
    assert list(atoms.x) == pytest.approx([9.0, 7.0, 5.0])
    drawn = {x: y for x, y in zip(line.x, line.y, strict=True) if y is not None}
    for x, y in zip(rho.grid.tolist(), rho.density.tolist(), strict=True):
        if float(f"{x:.6g}") in drawn:
            assert drawn[float(f"{x:.6g}")] == pytest.approx(y, rel=1e-5)
    assert len(band.x) > 100
    assert figure.layout.yaxis.type == "log"


def test_a_spectrum_that_is_known_exactly_has_its_lone_eigenvalues_marked():
    values = torch.cat([torch.linspace(0, 1, 40), torch.tensor([9.0, -4.0])]).double()
    rho = spectral_density(MatrixOperator(torch.diag(values)), seed=0)
    assert rho.chains == ()
    assert list(plot(rho).data[2].x) == pytest.approx([9.0, -4.0])


def test_a_profile_is_its_density_above_its_layers(land):
    theta = land.start(torch.Generator().manual_seed(0))
    profile = curvature_profile(land, theta, eigenvalues=3, probes=4, passes=30, seed=0)
    figure = plot(profile)
    assert [trace.yaxis for trace in figure.data[-2:]] == ["y2", "y3"]
    assert list(figure.layout.xaxis2.ticktext) == [layer.name for layer in profile.layers]
    assert list(figure.data[-1].y) == [layer.top.lower for layer in profile.layers]
    tops = [axis.domain for axis in (figure.layout.yaxis, figure.layout.yaxis2)]
    assert tops[0][0] > tops[1][1] > figure.layout.yaxis3.domain[1]
    bare = curvature_profile(land, theta, eigenvalues=3, probes=4, passes=30, layers=False, seed=0)
    assert len(plot(bare).data) == 3


def test_a_track_has_the_edge_of_stability(land):
    run = track(
        land, land.start(torch.Generator().manual_seed(0)), lr=0.5, steps=20, every=5, seed=0
    )
    loss, sharpness, limit = plot(run).data
    assert list(loss.x) == run.steps.tolist() == [0, 5, 10, 15, 20]
    assert list(loss.y) == run.losses.tolist()
    assert list(sharpness.y) == pytest.approx(run.sharpness.tolist(), rel=1e-4)
    width = run.sharpness_intervals[:, 1] - run.sharpness_intervals[:, 0]
    assert list(sharpness.error_y.array) == pytest.approx((width / 2).tolist())
    assert limit.name == "2/η"
    assert list(limit.y) == [4.0] * 5
    adam = track(
        land,
        land.start(torch.Generator().manual_seed(0)),
        optimizer=lambda p: torch.optim.Adam(p, lr=0.01),
        steps=4,
        every=2,
        seed=0,
    )
    names = [trace.name for trace in plot(adam).data]
    assert names == ["loss", "sharpness", "as the optimiser feels it", "largest stable"]


def test_a_track_that_ran_away_has_gaps():
    land = FunctionLandscape(lambda x: (x**4).sum(), dim=2)
    run = track(land, torch.ones(2).double(), lr=100.0, steps=30, every=1, seed=0)
    losses = plot(run).data[0].y
    assert all(y is None or math.isfinite(y) for y in losses)


@pytest.mark.slow
def test_minibatches_are_drawn_in_rising_order(land):
    found = minibatch_sharpness(
        land, land.start(torch.Generator().manual_seed(0)), batch_size=6, batches=40, seed=0
    )
    marks, mean, full = plot(found).data
    assert list(marks.x) == sorted(found.values.tolist())
    assert marks.y[-1] == 1
    assert mean.x[0] == found.mean.value
    assert full.x[0] == found.full.upper


def test_colours_are_those_of_the_style_sheet(operator):
    pairs = eigenpairs(operator, k=2, seed=0)
    light, dark = plot(pairs), plot(pairs, dark=True)
    assert "@" not in light.to_json()
    assert light.layout.paper_bgcolor == "#ffffff"
    assert dark.layout.paper_bgcolor != light.layout.paper_bgcolor
    assert dark.layout.font.color != light.layout.font.color


@pytest.mark.parametrize("other", [1.0, None, torch.zeros(3), "density"])
def test_other_things_have_no_drawing(unchecked, other):
    with pytest.raises(TypeError, match=f"no drawing of a {type(other).__name__}; plot draws a Sp"):
        plot(other)
