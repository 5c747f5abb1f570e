"""Words on the index: certain, estimated, undecided, and always with its tau."""

from __future__ import annotations

import math

import pytest

from thalweg.estimate import Bound
from thalweg.report import answers
from thalweg.report.index import how_many, index, signs


def said(make, *spectra, converged=True):
    text = index([(f"m{k}", s, converged) for k, s in enumerate(spectra)], 2410)
    return text.replace("\N{NO-BREAK SPACE}", " ")


def test_no_spectrum_no_words(make):
    assert said(make) == ""
    assert answers(make.survey([make.minimum()])).index == ""


def test_a_minimum_is_one_up_to_tau_and_as_an_estimate(make):
    text = said(make, make.spectrum((0, 0)))
    assert text.startswith("m0 is a minimum up to τ: no eigenvalue below −τ was found, and the ")
    assert "leave room for none. That is an estimate, not a proof." in text
    assert "Here τ = 0.005. Of the 2,410 eigenvalues between 900 and 1400 lie within τ" in text
    assert text.endswith("with so many there is no index without a τ.")
    both = said(make, make.spectrum((0, 0)), make.spectrum((0, 0), tau=0.02))
    assert both.startswith("All 2 are minima up to τ")
    assert "τ = 0.005 to 0.02" in both


@pytest.mark.parametrize(
    ("count", "certain", "words"),
    [
        ((2, 7), 0, "2 to 7 directions of negative curvature below −τ (an estimate, not a proof)"),
        ((2, 7), 3, "3 to 7 directions of negative curvature below −τ (3 for certain), so it is"),
        ((0, 7), 1, "1 to 7 directions of negative curvature below −τ (1 for certain), so it is"),
        ((1, 1), 1, "1 direction of negative curvature below −τ, so it is a saddle as far as τ"),
        ((2, math.inf), 2, "2 or more directions of negative curvature below −τ (2 for certain)"),
        ((1.4, 3.6), 0, "2 to 3 directions"),
    ],
)
def test_a_saddle_says_how_sure_it_is(make, count, certain, words):
    text = said(make, make.spectrum(count, certified=(certain, 5)))
    assert text.startswith(f"m0 has {words}")
    assert "so it is a saddle as far as τ tells, not a minimum." in text


def test_where_the_search_had_not_ended_it_is_no_saddle_either(make):
    text = said(make, make.spectrum((2, 7)), converged=False)
    assert "but the gradient there is not yet zero, so it is no saddle either." in text
    assert "a saddle as far" not in text


def test_what_the_bracket_leaves_open_is_undecided(make):
    text = said(make, make.spectrum((0, 12)), make.spectrum((0, 3), tau=0.001))
    assert text.startswith(
        "m0 and m1 are undecided: no eigenvalue below −τ was found (the smallest seen is "
        "-0.0041), but the brackets on their number leave room for up to 12."
    )
    assert "room for any number" in said(make, make.spectrum((0, math.inf)))
    nowhere = Bound(-math.inf, math.inf, "estimated", "estimated")
    assert "was found, but" in said(make, make.spectrum((0, 2), lowest=nowhere))


def test_without_eigenvalues_near_zero_the_index_does_not_depend_on_tau(make):
    text = said(make, make.spectrum((1, 1), (0, 0), certified=(1, 2409)))
    assert "No eigenvalue lies within τ of zero, so the index does not depend on τ." in text


def test_many_saddles_are_named_and_the_rest_counted(make):
    text = said(make, *[make.spectrum((1, 2))] * 9)
    assert text.count("directions of negative curvature") == 6
    assert "So have m6, m7 and m8." in text


def test_nan_is_not_a_number(make):
    broken = make.spectrum(negative=(math.nan, math.nan))
    assert signs(broken) is None
    assert said(make, broken) == ""
    assert how_many(broken.negative) == "not a number"
    assert how_many(make.counted(0, math.inf)) == "inf (0 or more)"


def test_the_report_groups_its_minima(make):
    text = answers(make.realistic()).index
    assert text.startswith("m0, m1, m3 and m5 are minima up to τ")
    assert "m2 has 2 to 7 directions" in text
    assert "m4 is undecided" in text
    assert text in str(answers(make.realistic()))


def test_a_minimum_without_a_spectrum_is_a_caveat(make):
    record = make.survey([make.minimum("m0", spectrum=make.spectrum()), make.minimum("m1")])
    assert any(
        note.startswith("No spectral density at m1, which") for note in answers(record).caveats
    )
