"""The plan: names, seeds and rounds depend on results alone."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable

import pytest

from thalweg.estimate import Bound
from thalweg.survey import SurveyConfig
from thalweg.survey.plan import Job, Node, job_seed, pending, search_count
from thalweg.topology import Search, Searched, best_known_tree

NODES = [Node(f"m{i:02d}", 0.1 * ((5 * i) % 7)) for i in range(7)]


def height(search: Search) -> Bound:
    """A made-up pass, always above its ends."""
    return Bound.exactly(2.0 + random.Random(str(search)).random())


def finished(config: SurveyConfig, choose: Callable[[list[Job]], Job]) -> dict[Search, Bound]:
    """Ask again after every single job, done in the order that `choose` likes."""
    results: dict[Search, Bound] = {}
    over = {f"minimum/seed={i}" for i in range(7)} | {f"characterise/{n.id}" for n in NODES}
    while jobs := pending(config, 7, NODES, results, over):
        job = choose(jobs)
        if job.kind == "connect":
            search = Search(*job.minima, job.repeat)
            results[search] = height(search)
        over.add(job.key)
    return results


def test_keys_name_the_work() -> None:
    assert Job("minimum", ("m03",), 3).key == "minimum/seed=3"
    assert Job("characterise", ("m03",)).key == "characterise/m03"
    assert Job("connect", ("m00", "m03")).key == "connect/m00-m03"
    assert Job("connect", ("m00", "m03"), repeat=2).key == "connect/m00-m03/2"


def test_seeds_differ_between_jobs_and_surveys_and_fit_a_double() -> None:
    seeds = {job_seed(s, f"minimum/seed={i}") for s in range(50) for i in range(50)}
    assert len(seeds) == 2500
    assert max(seeds) < 2**53


def test_a_seed_is_what_it_always_was() -> None:
    assert job_seed(0, "minimum/seed=3") == 239409327340038


def test_searches_span_a_tree_first_and_stay_within_three_for_each_minimum() -> None:
    config = SurveyConfig(round_size=4)
    made = list(finished(config, lambda jobs: jobs[0]))
    lowest = min(NODES, key=lambda n: n.loss).id
    assert all(lowest in (s.a, s.b) and s.repeat == 0 for s in made[:6])
    assert len(made) == len(set(made)) <= search_count(config, 7) == 21
    assert any(s.repeat for s in made)
    assert search_count(config, 1) == 0


def test_the_passes_of_the_tree_are_searched_for_again() -> None:
    config = SurveyConfig(searches_per_minimum=4)
    results = finished(config, lambda jobs: jobs[0])
    heights = {node.id: node.loss for node in NODES}
    found = [Searched(s.a, s.b, h, s.repeat) for s, h in results.items()]
    best = best_known_tree(heights, found, seed=0)
    assert all(support.confirmed for support in best.merges)
    alone = finished(dataclasses.replace(config, repeats=1), lambda jobs: jobs[0])
    assert all(s.repeat == 0 for s in alone)


@pytest.mark.parametrize("seed", range(3))
def test_the_plan_is_the_same_however_often_it_is_interrupted(seed: int) -> None:
    """Asking again after every single path gives the searches of the unbroken walk."""
    config = SurveyConfig(round_size=3)
    whole = finished(config, lambda jobs: jobs[0])
    assert finished(config, random.Random(seed).choice) == whole


def test_a_path_that_failed_is_not_asked_for_again_but_replaced() -> None:
    config = SurveyConfig(saddles=False, levels=0)
    nodes = [Node("m00", 0.0), Node("m01", 1.0), Node("m02", 1.0)]
    over = {f"minimum/seed={i}" for i in range(3)} | {f"characterise/{n.id}" for n in nodes}
    over |= {"connect/m00-m01", "connect/m00-m02"}
    known = {Search("m00", "m01"): Bound.exactly(1.1)}
    assert "connect/m01-m02" in [job.key for job in pending(config, 3, nodes, known, over)]


def test_saddles_and_level_sets_follow_the_tree() -> None:
    config = SurveyConfig(searches_per_minimum=1, repeats=1)
    nodes = [Node("m00", 0.0), Node("m01", 0.5), Node("m02", 1.0)]
    over = {f"minimum/seed={i}" for i in range(3)} | {f"characterise/{n.id}" for n in nodes}
    results = {
        Search("m00", "m01"): Bound.exactly(3.0),
        Search("m00", "m02"): Bound.exactly(2.0),
        Search("m01", "m02"): Bound.exactly(4.0),
    }
    over |= {f"connect/{s.a}-{s.b}" for s in results}
    jobs = [job.key for job in pending(config, 3, nodes, results, over)]
    assert jobs == ["saddle/m00-m02", "saddle/m00-m01", "levels/m00-m01"]
    less = dataclasses.replace(config, saddles=False, levels=0)
    assert pending(less, 3, nodes, results, over) == []


def test_minima_come_first_then_measures_then_paths() -> None:
    config, over = SurveyConfig(), set()
    nodes = [Node("m00", 0.0), Node("m01", 0.0)]
    assert [j.kind for j in pending(config, 2, [], {}, over)] == ["minimum"] * 2
    over |= {"minimum/seed=0", "minimum/seed=1"}
    assert [j.kind for j in pending(config, 2, nodes, {}, over)] == ["characterise"] * 2
    over |= {"characterise/m00", "characterise/m01"}
    assert [j.key for j in pending(config, 2, nodes, {}, over)] == ["connect/m00-m01"]
    over |= {"connect/m00-m01", "connect/m00-m01/1", "connect/m00-m01/2"}
    assert pending(config, 2, nodes, {}, over) == []
