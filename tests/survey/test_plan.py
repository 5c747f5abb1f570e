"""The plan: names, seeds and rounds depend on results alone."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from thalweg.survey import SurveyConfig
from thalweg.survey.plan import Job, Node, job_seed, pair_count, pairs, pending

NODES = [Node(f"m{i:02d}", 0.1 * ((7 * i) % 12)) for i in range(12)]


def height(a: str, b: str) -> float:
    """A made-up pass, always above its ends."""
    return 2.0 + random.Random(f"{a}{b}").random()


def walk(config: SurveyConfig, nodes: list[Node]) -> list[list[tuple[str, str]]]:
    """Go through all rounds, each pair found as it is planned."""
    heights: dict[tuple[str, str], float] = {}
    rounds = []
    for chosen in pairs(config, nodes, heights):
        rounds.append(list(chosen))
        heights |= {pair: height(*pair) for pair in chosen}
    return rounds


def test_keys_name_the_work() -> None:
    assert Job("minimum", ("m03",), 3).key == "minimum/seed=3"
    assert Job("characterise", ("m03",)).key == "characterise/m03"
    assert Job("connect", ("m00", "m03")).key == "connect/m00-m03"


def test_seeds_differ_between_jobs_and_surveys_and_fit_a_double() -> None:
    seeds = {job_seed(s, f"minimum/seed={i}") for s in range(50) for i in range(50)}
    assert len(seeds) == 2500
    assert max(seeds) < 2**53


def test_a_seed_is_what_it_always_was() -> None:
    assert job_seed(0, "minimum/seed=3") == 239409327340038


def test_few_minima_are_all_paired_in_one_round() -> None:
    rounds = walk(SurveyConfig(), NODES[:5])
    assert rounds == [list(itertools.combinations([n.id for n in NODES[:5]], 2))]


def test_many_minima_span_a_tree_first_and_then_improve_in_rounds() -> None:
    config = SurveyConfig(round_size=4, extra_pairs=10)
    first, *later = walk(config, NODES)
    lowest = min(NODES, key=lambda n: n.loss).id
    assert len(first) == 11
    assert all(lowest in pair for pair in first)
    assert [len(r) for r in later] == [4, 4, 2]
    flat = [pair for r in [first, *later] for pair in r]
    assert len(set(flat)) == len(flat) == pair_count(config, 12) == 21


def test_further_pairs_are_those_whose_known_pass_is_highest() -> None:
    config = SurveyConfig(all_pairs=2, round_size=1, extra_pairs=1)
    nodes = [Node("m00", 0.0), Node("m01", 1.0), Node("m02", 1.0), Node("m03", 1.0)]
    heights = {("m00", "m01"): 1.1, ("m00", "m02"): 5.0, ("m00", "m03"): 9.0}
    assert list(pairs(config, nodes, heights))[1] == [("m01", "m03")]


def test_a_path_that_failed_counts_as_infinitely_high() -> None:
    config = SurveyConfig(all_pairs=2, round_size=2, extra_pairs=2)
    nodes = [Node("m00", 0.0), Node("m01", 1.0), Node("m02", 1.0)]
    heights = {("m00", "m01"): 1.1}
    assert list(pairs(config, nodes, heights))[1] == [("m01", "m02")]


def test_pairs_with_nothing_to_gain_are_left_out() -> None:
    config = SurveyConfig(all_pairs=2, round_size=2, extra_pairs=2)
    nodes = [Node("m00", 0.0), Node("m01", 1.0), Node("m02", 1.0)]
    flat = {("m00", "m01"): 1.0, ("m00", "m02"): 1.0}
    assert len(list(pairs(config, nodes, flat))) == 1


@pytest.mark.parametrize("seed", range(20))
def test_the_plan_is_the_same_however_often_it_is_interrupted(seed: int) -> None:
    """Asking again after every single path gives the pairs of the unbroken walk."""
    config = SurveyConfig(round_size=3, extra_pairs=9)
    whole = {pair for r in walk(config, NODES) for pair in r}
    shuffle = random.Random(seed)
    heights: dict[tuple[str, str], float] = {}
    over = {f"minimum/seed={i}" for i in range(12)} | {f"characterise/{n.id}" for n in NODES}
    while jobs := pending(config, 12, NODES, heights, over):
        job = shuffle.choice(jobs)
        a, b = job.minima
        heights[a, b] = height(a, b)
        over.add(job.key)
    assert set(heights) == whole


def test_minima_come_first_then_measures_then_paths() -> None:
    config, over = SurveyConfig(), set()
    nodes = [Node("m00", 0.0), Node("m01", 0.0)]
    assert [j.kind for j in pending(config, 2, [], {}, over)] == ["minimum"] * 2
    over |= {"minimum/seed=0", "minimum/seed=1"}
    assert [j.kind for j in pending(config, 2, nodes, {}, over)] == ["characterise"] * 2
    over |= {"characterise/m00", "characterise/m01"}
    assert [j.key for j in pending(config, 2, nodes, {}, over)] == ["connect/m00-m01"]
    over.add("connect/m00-m01")
    assert pending(config, 2, nodes, {("m00", "m01"): math.inf}, over) == []
