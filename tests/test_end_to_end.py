"""The rooms together: from random starts to the merge tree of a surface that is known exactly."""

from __future__ import annotations

import itertools

import pytest
import torch

from thalweg import FunctionLandscape, Survey, SurveyConfig, connect, merge_tree, minimise
from thalweg.report import answers
from thalweg.zoo import Surface, muller_brown, six_hump_camelback


def found_minima(surface: Surface, starts: int) -> list[torch.Tensor]:
    """Descend from random starts and keep each minimum once."""
    generator = torch.Generator().manual_seed(11)
    kept: list[torch.Tensor] = []
    for _ in range(starts):
        theta = minimise(surface, surface.start(generator), tol=1e-9).theta
        with surface.at(theta) as point:
            hessian = point.hvp(torch.eye(surface.dim, dtype=theta.dtype))
        if float(torch.linalg.eigvalsh(hessian)[0]) > 0 and all(
            float((theta - other).norm()) > 1e-4 for other in kept
        ):
            kept.append(theta)
    return kept


def tree_of(surface: Surface, minima: list[torch.Tensor]) -> list[float]:
    """Return the heights of the merges, by paths between all pairs."""
    heights = {i: float(surface.loss(theta)) for i, theta in enumerate(minima)}
    edges = [
        (i, j, connect(surface, minima[i], minima[j], tolerance=1e-9, seed=0).maximum)
        for i, j in itertools.combinations(heights, 2)
    ]
    tree = merge_tree(heights, edges)
    assert len(tree.roots) == 1
    return [merge.height.upper for merge in tree.merges]


def exact_tree(surface: Surface) -> list[float]:
    """Return the merge heights from the saddles' known values and the minima they join."""
    names = {point: number for number, point in enumerate(surface.minima)}
    group = list(range(len(names)))
    heights = []
    for saddle in sorted(surface.saddles, key=lambda point: point.value):
        a, b = (
            next(n for p, n in names.items() if p == surface.critical_points[k])
            for k in saddle.joins
        )
        if group[a] != group[b]:
            heights.append(saddle.value)
            group = [group[a] if g == group[b] else g for g in group]
    return heights


@pytest.mark.parametrize(
    ("surface", "starts", "minima"),
    [(muller_brown(), 20, 3), (six_hump_camelback(), 60, 6)],
    ids=["Muller-Brown", "camelback"],
)
def test_the_tree_of_a_known_surface_is_exact(surface, starts, minima):
    found = found_minima(surface, starts)
    assert len(found) == minima
    exact = exact_tree(surface)
    assert len(exact) == minima - 1
    assert tree_of(surface, found) == pytest.approx(exact, rel=1e-6, abs=1e-6)


def test_a_wrong_saddle_would_be_seen():
    """The value -46.62 that a widely copied page gives for Muller-Brown is refused."""
    exact = exact_tree(muller_brown())
    assert exact == pytest.approx([-72.24894011, -40.66484351], abs=1e-6)
    assert exact != pytest.approx([-72.24894011, -46.62], rel=1e-6, abs=1e-6)


def test_a_survey_tells_a_minimum_from_a_saddle_and_shows_both(tmp_path):
    """Two wells and the saddle between them, in 40 dimensions of which 30 are flat."""
    stiff = torch.cat([torch.zeros(30), torch.linspace(1, 3, 9)]).double()

    def wells(x: torch.Tensor) -> torch.Tensor:
        return (x[0] ** 2 - 1) ** 2 + (stiff * x[1:] ** 2).sum() / 2

    land = FunctionLandscape(wells, dim=40)
    saddle = torch.zeros(40, dtype=torch.float64)
    well = saddle.clone()
    well[0] = 1
    with Survey.open(tmp_path / "s", land, SurveyConfig(path_gradients=200)) as survey:
        survey.add(well, name="well")
        survey.add(saddle, name="pass")
        assert survey.run(minima=0, progress=False).complete
        record = survey.record()
        page = survey.report(tmp_path / "s.html").read_text("utf-8")
    at_well, at_pass = (minimum.spectrum for minimum in record.minima)
    assert at_well.certified[0] == 0
    assert 0.0 in at_well.negative
    assert at_pass.certified[0] == 1
    assert 1.0 in at_pass.negative
    assert -4.0 in at_pass.lowest
    for spectrum in (at_well, at_pass):
        assert spectrum.zero.value == pytest.approx(30, abs=6)
    said = answers(record).index.replace("\N{NO-BREAK SPACE}", " ")
    assert "pass has 1 " in said
    assert "of negative curvature below −τ" in said
    assert "so it is a saddle as far as τ tells, not a minimum" in said
    assert "well is a minimum up to τ" in said or "well is undecided" in said
    assert "lie within τ of zero" in said
    assert 'data-figure="density"' in page
