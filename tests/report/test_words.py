"""What the report says about fabricated surveys."""

from __future__ import annotations

import math

from thalweg.estimate import Bound
from thalweg.report import answers
from thalweg.report.names import labels
from thalweg.report.words import passes


def pair(make, height, **rest):
    """Two minima at 0.1 with sampling error 0.01 and one path."""
    minima = [make.minimum("m0"), make.minimum("m1")]
    return make.survey(minima, [make.path("m0", "m1", height, **rest)])


def test_no_minimum(make):
    said = answers(make.survey())
    assert said.basins.startswith("No minimum has been found")
    assert said.passes == said.flattest == ""
    assert said.caveats == ()


def test_a_single_minimum(make):
    said = answers(make.survey([make.minimum()]))
    assert said.basins == (
        "One minimum has been found. Whether there are more basins takes at least two."
    )
    assert said.passes == ""
    assert "At the only minimum the trace of the Hessian is 50.0 ± 1.0 (95 %)" in said.flattest
    assert "its largest eigenvalue is between 9.9 and 10.1; there is none" in said.flattest


def test_one_basin_within_the_sampling_error(make):
    said = answers(pair(make, 0.105))
    assert said.basins.startswith("One basin, to within the sampling error: all 2 minima")
    assert "at most 0.005 above the higher end" in said.basins
    assert "(± 0.01, 95 %)" in said.basins
    assert "All of the 1 barrier is no larger than the sampling error" in said.passes


def test_one_basin_without_any_rise(make):
    said = answers(pair(make, 0.1))
    assert said.basins.startswith("One basin: all 2 minima are joined by paths along which")


def test_without_a_sampling_error_any_rise_parts(make):
    minima = [make.minimum("m0", noise=None), make.minimum("m1", noise=math.nan)]
    said = answers(make.survey(minima, [make.path("m0", "m1", 0.1001)]))
    assert said.basins.startswith("Several basins as far as the paths found can tell")
    assert "1 pass above the higher end" in said.basins
    assert "holds no sampling error" in said.passes


def test_several_basins_are_never_proved_by_a_path(make):
    minima = [make.minimum(f"m{k}") for k in range(3)]
    paths = [make.path("m0", "m1", 0.102), make.path("m1", "m2", 0.5, line=2.25)]
    record = make.survey(minima, paths)
    said = answers(record)
    assert said.basins == (
        "Several basins as far as the paths found can tell: 2 groups of minima (m0 with m1; m2) "
        "are parted by 1 pass above the sampling error of the loss. All 3 minima lie in one piece "
        "of the sublevel set at loss 0.5 and above. None of these passes is proved to be needed, "
        "so a lower path may exist."
    )
    assert "The 2 passes found stand at a loss of 0.102 to 0.5." in said.passes
    assert "between 0.498 (estimated) and 0.5 (estimated), which is between 0.398" in said.passes
    assert "1 of the 2 barriers is no larger than the sampling error" in said.passes
    assert "Straight lines between the same minima climb to 0.204 to 2.25." in said.passes
    assert [p.low for p in passes(record)] == [True, False]


def test_barriers_that_all_stand_above_the_sampling_error(make):
    """No double negative: 'None of the 2 barriers are no larger than' was said before."""
    minima = [make.minimum(f"m{k}") for k in range(3)]
    two = [make.path("m0", "m1", 0.5), make.path("m1", "m2", 0.5)]
    one, several = (answers(make.survey(minima[: len(p) + 1], p)) for p in (two[:1], two))
    assert "The 1 barrier is larger than the sampling error of the loss" in one.passes
    assert "All 2 barriers are larger than the sampling error of the loss" in several.passes


def test_several_basins_with_a_certificate(make):
    said = answers(pair(make, 0.5, lower=0.3))
    assert said.basins.startswith("Several basins: 2 groups of minima are parted by passes above")
    assert "certified lower bound" in said.basins
    weak = answers(pair(make, 0.5, lower=0.001))  # certified, but below the sampling error
    assert "None of these passes is proved" in weak.basins


def test_some_certified_passes(make):
    minima = [make.minimum(f"m{k}") for k in range(3)]
    paths = [make.path("m0", "m1", 0.4, lower=0.2), make.path("m1", "m2", 0.5)]
    assert "Only 1 of these 2 passes is proved" in answers(make.survey(minima, paths)).basins


def test_a_bracket_that_holds_the_sampling_error_is_unresolved(make):
    wide = pair(make, 0.5, bracket=Bound(0.1, 0.5, "estimated", "estimated"))
    assert "reaches down to the sampling error of the loss: unresolved." in answers(wide).basins


def test_minima_that_nothing_joins_are_undecided(make):
    minima = [make.minimum(f"m{k}") for k in range(3)]
    said = answers(make.survey(minima, [make.path("m0", "m1", 0.2)], failures=(make.failure(),)))
    assert said.basins.startswith("Undecided: the 3 minima fall into 2 groups (m0 with m1 and m2)")
    assert "no proof that they are apart" in said.basins
    assert said.caveats == ("1 job failed (path m0 m5); see Failures.",)
    alone = answers(make.survey(minima))
    assert "no path was computed between any two" in alone.basins
    assert alone.passes == "No pass is known: no path joins two of the minima."
    no_tree = answers(make.survey(minima, tree=None))
    assert no_tree.basins.startswith("Undecided: 3 minima were found, but no merge tree")


def test_the_order_of_overlapping_merges(make):
    minima = [make.minimum(f"m{k}") for k in range(3)]
    paths = [make.path("m0", "m1", 0.5, width=0.1), make.path("m1", "m2", 0.55, width=0.1)]
    said = answers(make.survey(minima, paths))
    assert "The order of 2 merges in the tree is unresolved" in said.passes
    assert "unresolved" not in answers(pair(make, 0.5)).passes


def flattest(make, *measures, **rest):
    minima = [
        make.minimum(f"m{k}", trace=trace, top=top, **rest)
        for k, (trace, top) in enumerate(measures)
    ]
    return answers(make.survey(minima)).flattest


def test_flattest_both_measures_agree(make):
    said = flattest(make, ((50, 1), (10, 0.1)), ((40, 1), (8, 0.1)))
    assert "By the trace of the Hessian the flattest minimum is m1, 40.0 ± 1.0 (95 %)." in said
    assert "By its largest eigenvalue the flattest minimum is m1, between 7.9 and 8.1." in said
    assert "Both measures agree." in said
    assert "rescaling of the weights" in said


def test_flattest_the_measures_disagree(make):
    said = flattest(make, ((50, 1), (8, 0.1)), ((40, 1), (10, 0.1)))
    assert "The two measures disagree, so which is the flattest depends on the measure." in said


def test_flattest_undecided_where_intervals_overlap(make):
    said = flattest(make, ((50, 6), (8, 0.1)), ((40, 6), (10, 0.1)), ((90, 6), (9, 0.1)))
    assert "it is undecided: m1 has the smallest value, 40.0 ± 6.0 (95 %), but its" in said
    assert "interval overlaps that of m0." in said
    assert "Only one of the two decides, and the other does not speak against it." in said
    both = flattest(make, ((50, 6), (8, 2)), ((40, 6), (10, 2)))
    assert "So neither measure decides which is the flattest." in both
    against = flattest(make, ((50, 1), (8, 0.1)), ((10, 6), (10, 0.1)), ((11, 6), (11, 0.1)))
    assert "The two disagree: the trace of the Hessian rules out m0." in against


def test_flattest_says_what_is_missing(make):
    assert flattest(make, (None, None), (None, None)) == (
        "Which minimum is the flattest is not known: no curvature was measured."
    )
    one = flattest(make, ((50, 1), None), ((40, 1), None))
    assert "No other measure of flatness was taken." in one
    nan = flattest(make, ((math.nan, math.nan), (8, 0.1)), ((math.nan, math.nan), (9, 0.1)))
    assert "trace" not in nan.partition("Neither")[0]
    minima = [make.minimum("m0"), make.minimum("m1", trace=None)]
    assert (
        "No trace at m1, which the comparison leaves out." in answers(make.survey(minima)).caveats
    )


def test_caveats(make):
    minima = [make.minimum("m0", converged=False), make.minimum("m1")]
    broken = make.path("m0", "m1", 0.2, converged=False, losses=(0.1, math.nan, math.inf) * 7)
    said = answers(make.survey(minima, [broken], complete=False))
    assert said.caveats[0].startswith("The survey is unfinished")
    assert said.caveats[1].startswith("m0 is not converged")
    assert said.caveats[2].startswith("1 of 1 path did not converge")
    assert said.caveats[3] == "The loss is not finite at 14 points of the paths."


def test_a_minimum_without_a_finite_loss_is_left_out_and_named(make):
    lost = make.minimum("m2", math.nan, noise=None)
    one = answers(make.survey([make.minimum("m0"), lost]))
    assert one.basins == (
        "Undecided: 2 minima were found, but the merge tree holds only 1 of them."
    )
    assert one.caveats == ("The loss is not finite at m2.", "The merge tree leaves out m2.")
    minima = [make.minimum("m0"), make.minimum("m1"), lost]
    two = answers(make.survey(minima, [make.path("m0", "m1", 0.1)]))
    assert two.basins.startswith("One basin: all 2 minima are joined")
    assert "The merge tree leaves out m2." in two.caveats


def test_long_ids_are_shortened_only_while_unique(make):
    ids = ["minimum-5e9c0f0b61a2", "minimum-5e9d0f0b61a2"]
    record = make.survey([make.minimum(name) for name in ids])
    assert list(labels(record).values()) == ["minimum-5e9c…", "minimum-5e9d…"]
    short = make.survey([make.minimum("a"), make.minimum("b")])
    assert labels(short) == {"a": "a", "b": "b"}


def test_str_has_every_paragraph(make):
    record = make.realistic()
    text = str(answers(record))
    assert text.count("\n\n") == 3 + len(answers(record).caveats)
