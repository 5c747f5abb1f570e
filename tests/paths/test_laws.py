"""Laws of curviness: planted ones are found, noise is told from them, errors are named."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from thalweg.paths.laws import FAMILIES, LawChoice, curviness_law

# Freeman and Bruna, ICLR 2017, figure 1b: beads of the quadratic regression.
LEVELS = [0.001, 0.0025, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.075, 0.1, 0.125]
BEADS = [62.4, 38.3, 23.5, 18.8, 13.8, 8.17, 6.81, 5.40, 5.04, 3.98]
Array = NDArray[np.float64]


def law(family: str, level: Array) -> Array:
    if family == "power":
        return 0.05 * level**-0.55
    if family == "exponential":
        return 2.5 * np.exp(-30 * level)
    return 0.5 * np.log(1 + 0.05 / level)


def draw(family: str, errors: str, seed: int, *, noise: float = 0.05, seeds: int = 6) -> Any:
    """Lengths 1 + g, or counts 10 g, with an offset for every seed and noise for every value."""
    level, rng = np.array(LEVELS), np.random.default_rng(seed)
    shared, own = rng.normal(size=(seeds, 1)), rng.normal(size=(seeds, len(level)))
    jitter = 2 * noise * shared + noise * own
    g = law(family, level)
    values = 1 + g + jitter if errors == "gaussian" else 10 * g * np.exp(jitter)
    group = np.repeat(np.arange(seeds), len(level))
    return np.tile(level, seeds), values.ravel(), group


@pytest.mark.parametrize("family", FAMILIES)
def test_a_planted_law_of_counts_is_found(family: str) -> None:
    choice = curviness_law(*draw(family, "lognormal", 0), errors="lognormal")
    assert choice.answer == family
    assert choice.groups == 6
    planted = {"power": 0.55, "exponential": 30, "logarithmic": 0.05}[family]
    assert choice[family].rate.value == pytest.approx(planted, rel=0.1)
    assert planted in choice[family].rate
    assert choice.fits[1].lead > 2 * choice.fits[1].lead_stderr


@pytest.mark.parametrize("family", ["power", "exponential"])
def test_a_planted_law_of_lengths_is_found(family: str) -> None:
    choice = curviness_law(*draw(family, "gaussian", 1))
    assert choice.answer == family
    assert choice[family].parameters["c"] == pytest.approx(1.0, abs=0.15)


@pytest.mark.calibration
def test_a_planted_law_is_hardly_ever_taken_for_another(calibration: Any) -> None:
    """Counts too noisy to be told apart for sure, and lengths, of all three laws by turns."""
    wrong, named = [], 0
    for seed in calibration.seeds:
        family, counts = FAMILIES[seed % 3], seed // 3 % 2
        errors, noise = ("lognormal", 0.25) if counts else ("gaussian", 0.05)
        answer = curviness_law(*draw(family, errors, seed, noise=noise), errors=errors).answer  # type: ignore[arg-type] # one of two
        named += answer == family
        if answer not in (family, "unresolved"):
            wrong.append((seed, family, errors, answer))
    assert len(wrong) <= 0.05 * len(calibration.seeds), wrong
    assert named >= 0.4 * len(calibration.seeds)


def test_noise_is_no_law() -> None:
    level, values, group = draw("power", "gaussian", 0)
    noise = np.random.default_rng(3).normal(size=len(values))
    for errors, of in (("gaussian", noise), ("lognormal", np.exp(noise))):
        choice = curviness_law(level, of, group, errors=errors)  # type: ignore[arg-type] # one of two
        assert choice.unresolved
        assert "better than a constant" in choice.reason


def test_large_noise_leaves_it_open() -> None:
    choice = curviness_law(*draw("logarithmic", "lognormal", 2, noise=0.8), errors="lognormal")
    assert choice.unresolved
    assert "more seeds or lower levels" in choice.reason


def test_published_beads_follow_a_power() -> None:
    choice = curviness_law(LEVELS, BEADS, errors="lognormal")
    assert choice.answer == "power"
    slope = stats.linregress(np.log(LEVELS), np.log(BEADS)).slope  # least squares is the fit
    assert -choice["power"].parameters["b"] == pytest.approx(slope, rel=1e-4)
    assert slope == pytest.approx(-0.5585, abs=1e-3)
    assert 0.56 in choice["power"].rate


def test_the_score_is_the_left_out_seeds_density() -> None:
    level, values, group = draw("power", "gaussian", 4, seeds=3)
    choice = curviness_law(level, values, group, candidates=["power"])
    fit, total = choice["power"], 0.0
    for seed in range(3):
        away = group == seed
        kept = curviness_of(level[~away], values[~away], group[~away])
        mean = kept["c"] + kept["a"] * level[away] ** -kept["b"]
        count, rest = away.sum(), values[away] - mean
        turn = stats.ortho_group.rvs(count, random_state=0)  # any frame that begins with the mean
        frame = np.linalg.qr(np.column_stack([np.ones(count), turn[:, 1:]]))[0].T @ rest
        wide = math.sqrt(kept["within"] * (1 + count * kept["ratio"]))
        total += stats.t(1, scale=wide).logpdf(frame[0])
        total += stats.norm(scale=math.sqrt(kept["within"])).logpdf(frame[1:]).sum()
    assert fit.score == pytest.approx(total, rel=1e-3)


def curviness_of(level: Array, values: Array, group: Array) -> dict[str, float]:
    """The power law by brute force: dense covariance, Nelder-Mead on the likelihood."""
    from scipy.optimize import minimize

    same = group[:, None] == group[None, :]

    def parts(x: Array) -> tuple[Array, float, float]:
        design = np.stack([np.ones_like(level), level ** -math.exp(x[0])], 1)
        cover = np.eye(len(level)) + math.exp(x[1]) * same
        inverse = np.linalg.inv(cover)
        solved = np.linalg.solve(design.T @ inverse @ design, design.T @ inverse @ values)
        rest = values - design @ solved
        return solved, float(rest @ inverse @ rest), float(np.linalg.slogdet(cover)[1])

    def loss(x: Array) -> float:
        _, squares, logdet = parts(x)
        return len(level) * math.log(squares) + logdet

    found = minimize(loss, [math.log(0.5), 1.0], method="Nelder-Mead", tol=1e-10)
    (c, a), squares, _ = parts(found.x)
    b, ratio = np.exp(found.x)
    return {"c": c, "a": a, "b": b, "ratio": ratio, "within": squares / (len(level) - 3)}


@pytest.mark.parametrize(
    ("straight", "limits"),
    [
        (lambda level: 5 - 20 * level, {"exponential": "a straight line in L"}),
        (
            lambda level: 2 - 0.2 * np.log(level),
            {"power": "a straight line in log L", "logarithmic": "a straight line in log L"},
        ),
    ],
    ids=["line", "line in log"],
)
def test_a_family_at_the_end_of_its_rates_is_no_law(straight: Any, limits: dict[str, str]) -> None:
    level, rng = np.array(LEVELS), np.random.default_rng(0)
    values = np.stack([straight(level) + 0.01 * rng.normal(size=len(level)) for _ in range(6)])
    group = np.repeat(np.arange(6), len(level))
    choice = curviness_law(np.tile(level, 6), values.ravel(), group)
    assert choice.fits[0].family in limits
    assert choice.answer == "unresolved"
    for family, limit in limits.items():
        fit = choice[family]
        assert fit.limit == limit
        assert limit in str(fit)
        assert fit.to_json()["limit"] == limit
        assert fit.rate.interval == (0, math.inf)
    assert all(fit.rate.interval[0] >= 0 for fit in choice.fits)


def test_an_only_candidate_at_its_end_says_what_it_is() -> None:
    level, rng = np.array(LEVELS), np.random.default_rng(1)
    bent = 5 - 20 * level - 60 * level**2  # the other way than an exponential
    values = np.concatenate([bent + 0.01 * rng.normal(size=len(level)) for _ in "abcd"])
    group = np.repeat(np.arange(4), len(level))
    choice = curviness_law(np.tile(level, 4), values, group, candidates=["exponential"])
    assert choice.answer == "unresolved"
    assert "but at an end of the rates sought, where it is a straight line in L" in choice.reason
    curved = curviness_law(*draw("exponential", "gaussian", 1), candidates=["exponential"])
    assert curved.answer == "exponential"
    assert curved["exponential"].limit == ""


def test_a_logarithm_that_wants_a_large_rate_is_not_taken_for_a_power() -> None:
    """Counts of a log(1 + b/L), b far above the levels: a straight line in log L."""
    level, rng = np.array([0.05, 0.1, 0.2, 0.4, 0.8, 1.6]), np.random.default_rng(0)
    group = np.repeat(np.arange(6), len(level))
    for _ in range(5):
        noise = np.exp(0.002 * rng.normal(size=(6, len(level))))
        counts = (0.5 * np.log1p(20_000 / level) * noise).ravel()
        choice = curviness_law(np.tile(level, 6), counts, group, errors="lognormal")
        assert choice.answer == "logarithmic"
        assert 20_000 in choice["logarithmic"].rate


def test_limits_of_counts_have_no_constant_to_lean_on() -> None:
    level, rng = np.array(LEVELS), np.random.default_rng(0)
    group = np.repeat(np.arange(6), len(level))
    rising = np.tile(level, 6) ** 0.3 * np.exp(0.02 * rng.normal(size=6 * len(level)))
    choice = curviness_law(np.tile(level, 6), rising, group, errors="lognormal")
    assert choice.answer == "unresolved"
    for family, limit in (("power", "a constant"), ("exponential", "a constant")):
        assert choice[family].limit == limit
        assert choice[family].rate.interval == (0, math.inf)


def test_a_rival_that_wants_to_be_steeper_leaves_it_open() -> None:
    """exp(-30 L) over levels so close together that rates up to 11 are sought."""
    level, rng = np.linspace(0.9, 1.1, 6), np.random.default_rng(0)
    group = np.repeat(np.arange(6), 6)
    curve = 1 + np.exp(-30 * (level - 0.9))
    values = np.tile(curve, 6) + 0.01 * rng.normal(size=36)
    choice = curviness_law(np.tile(level, 6), values, group)
    assert choice.answer == "unresolved"
    assert "steeper than the steepest rate sought" in choice["exponential"].limit
    one = curviness_law(np.tile(level, 6), values, group, candidates=["logarithmic", "exponential"])
    assert one.answer == "unresolved"


def test_folds_leave_out_several_seeds() -> None:
    data = draw("exponential", "lognormal", 5)
    whole = curviness_law(*data, errors="lognormal")
    halves = curviness_law(*data, errors="lognormal", folds=2)
    assert halves.answer == whole.answer == "exponential"
    assert halves["power"].score != whole["power"].score
    assert halves["power"].rate.samples == 2


def test_relabelled_seeds_and_shuffled_points_change_nothing() -> None:
    level, values, group = draw("power", "lognormal", 6)
    one = curviness_law(level, values, group, errors="lognormal")
    order = np.random.default_rng(0).permutation(len(level))
    names = [f"seed {7 - group[i]}" for i in order]
    other = curviness_law(level[order], values[order], names, errors="lognormal")
    assert other["power"].score == pytest.approx(one["power"].score, rel=1e-6)


def test_results_can_be_read_and_stored() -> None:
    choice = curviness_law(LEVELS, BEADS, errors="lognormal")
    assert isinstance(choice, LawChoice)
    text = str(choice)
    assert text.startswith("power: leads logarithmic by")
    assert "1.234 L^-0.5585" in text
    assert text in choice.__rich__().replace("[green]", "").replace("[/green]", "").replace(
        "\\[", "["
    )
    stored = choice.to_json()
    assert stored["answer"] == "power"
    assert [fit["family"] for fit in stored["fits"]] == [fit.family for fit in choice.fits]
    with pytest.raises(KeyError, match="'cubic' was no candidate"):
        choice["cubic"]


def test_errors_name_what_is_wrong(unchecked: None) -> None:
    with pytest.raises(ValueError, match="of one length, not 10, 9 and 9"):
        curviness_law(LEVELS, BEADS[:-1])
    with pytest.raises(ValueError, match="1 levels or values are not finite"):
        curviness_law(LEVELS, [*BEADS[:-1], math.nan])
    with pytest.raises(ValueError, match="levels must be positive, the lowest is -1"):
        curviness_law([-1.0, *LEVELS[1:]], BEADS)
    with pytest.raises(ValueError, match="log-normal errors need positive values"):
        curviness_law(LEVELS, [0.0, *BEADS[1:]], errors="lognormal")
    with pytest.raises(ValueError, match=r"unknown candidates \['cubic'\]; use some of power"):
        curviness_law(LEVELS, BEADS, candidates=["cubic"])
    with pytest.raises(ValueError, match="3 levels and 3 seeds tell no law"):
        curviness_law(LEVELS[:3], BEADS[:3])
    with pytest.raises(ValueError, match="folds must lie between 2 and the 10 seeds, not 1"):
        curviness_law(LEVELS, BEADS, folds=1)
    with pytest.raises(ValueError, match="errors must be 'gaussian' or 'lognormal', not 'poisson'"):
        curviness_law(LEVELS, BEADS, errors="poisson")  # type: ignore[arg-type] # the point
