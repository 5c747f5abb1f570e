"""Paths between minima of six networks, beside AutoNEB's and Garipov's at the same budget.

    python benchmarks/paths.py [--full] [--autoneb FOLDER] [--nets ...] [--out FILE.json]
    python benchmarks/paths.py --table docs/benchmarks-paths.json   # rewrites the docs

The budget is in gradients over all the data; a gradient on a minibatch counts as its share. All
paths join the same two minima, and one bracket measures how high each of them climbs. See
docs/benchmarks-paths.md for what each number means.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path as File
from typing import Any

import _path_peers
import torch
from _measure import machine
from _path_nets import NETS, Net
from _path_tables import rewrite, show
from _turns import reason, version
from torch import Tensor

from thalweg.landscape import ModelLandscape
from thalweg.paths import autoneb_schedule, band, connect, line, measure

DOCS = File(__file__).resolve().parents[1] / "docs"
SAMPLES = 400  # evaluations for a bracket
OURS = "connect"

Search = Callable[[ModelLandscape, Tensor, Tensor, int, int], Tensor]


@dataclass(frozen=True)
class Contestant:
    """One way from a minimum to another.

    Args:
        name: What the tables call it.
        search: From a landscape, two ends, a budget and a seed to corners of a path.
        how: Whose code it is.
    """

    name: str
    search: Search
    how: str


def ours(land: ModelLandscape, a: Tensor, b: Tensor, budget: int, seed: int) -> Tensor:
    """Run `connect` as a newcomer would."""
    return connect(land, a, b, max_gradients=budget, seed=seed).points


def scheduled(land: ModelLandscape, a: Tensor, b: Tensor, budget: int, seed: int) -> Tensor:
    """Run AutoNEB's published schedule on our band."""
    batch = min(_path_peers.AUTONEB_BATCH, land.examples)
    return band(
        land, a, b, schedule=autoneb_schedule(budget), max_gradients=budget, batch_size=batch,
        seed=seed,
    ).points  # fmt: skip


def contestants(checkout: File | None) -> tuple[Contestant, ...]:
    """Return everyone, AutoNEB by its own code where there is a checkout."""

    def own(land: ModelLandscape, a: Tensor, b: Tensor, budget: int, seed: int) -> Tensor:
        with _path_peers.autoneb(checkout) as neb:
            return _path_peers.run_autoneb(neb, land, a, b, budget, seed)

    def garipov(kind: str) -> Search:
        return lambda land, a, b, budget, seed: _path_peers.run_garipov(
            land, a, b, budget, seed, kind
        )

    published = "published schedule, on our landscape"
    return (
        Contestant(OURS, ours, "thalweg"),
        Contestant("AutoNEB", own, "its own code, steps scaled to the budget")
        if checkout is not None
        else Contestant("AutoNEB", scheduled, "published schedule, on our band"),
        Contestant("Garipov, Bezier", garipov("bezier"), published),
        Contestant("Garipov, chain", garipov("chain"), published),
    )


def attempt(
    one: Contestant,
    land: ModelLandscape,
    ends: tuple[Tensor, Tensor],
    budget: int,
    pair: int,
    worth: float,
) -> dict[str, Any]:
    """Run one contestant once; whatever a peer raises is a result."""
    before, start = land.cost, time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            corners = one.search(land, *ends, budget, pair)
    except Exception as error:
        if one.name == OURS:
            raise
        return {"fails": reason(error)}
    seconds, cost = time.process_time() - start, land.cost - before
    found = measure(land, corners.to(land.dtype), tolerance=worth, max_samples=SAMPLES)
    return {
        "height": found.height.upper,
        "lower": found.height.lower,
        "length": found.normalised_length,
        "passes": cost.passes,
        "seconds": seconds,
    }


def judge(mine: list[dict[str, Any]], theirs: list[dict[str, Any]], worth: list[float]) -> Any:
    """Compare pair by pair: no higher, or both too low to matter.

    Returns:
        The ratios of the heights and whether all pairs pass; None where a peer has none.
    """
    both = [(m, t, w) for m, t, w in zip(mine, theirs, worth, strict=True) if "height" in t]
    if not both:
        return None
    ratios = [m["height"] / max(t["height"], 1e-300) for m, t, _ in both]
    fine = [m["height"] <= t["height"] or max(m["height"], t["height"]) <= w for m, t, w in both]
    return {"ratios": ratios, "passed": all(fine), "pairs": len(both)}


def measure_net(net: Net, options: argparse.Namespace) -> dict[str, Any]:
    """Run everyone on all pairs of one net, at every budget."""
    land = net.landscape(options.full)
    everyone = contestants(options.autoneb)
    budgets = options.budgets or ((200, 600, 2000) if options.full else net.budgets)
    runs: dict[int, dict[str, list[Any]]] = {
        budget: {one.name: [] for one in everyone} for budget in budgets
    }
    lines, worth, bases = [], [], []
    for pair in range(options.pairs):
        a, b = net.ends(land, pair)
        straight = line(land, a, b, max_samples=SAMPLES)
        lines.append(straight.height.upper)
        worth.append(straight.worth())
        bases.append(straight.base)
        for budget in budgets:
            for one in everyone:
                found = attempt(one, land, (a, b), budget, pair, worth[-1])
                runs[budget][one.name].append(found)
    return {
        "net": net.name,
        "parameters": land.dim,
        "examples": land.examples,
        "dtype": str(land.dtype).removeprefix("torch."),
        "lines": lines,
        "bases": bases,
        "worth": worth,
        "how": {one.name: one.how for one in everyone},
        "budgets": [
            {
                "budget": budget,
                "runs": by_name,
                "verdicts": {
                    name: judge(by_name[OURS], found, worth)
                    for name, found in by_name.items()
                    if name != OURS
                },
            }
            for budget, by_name in runs.items()
        ],
    }


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="all the data, more pairs and budgets")
    parser.add_argument("--quick", action="store_true", help="quick sizes (the default)")
    parser.add_argument("--pairs", type=int, help="pairs of minima a network (2; full: 5)")
    parser.add_argument("--budgets", help="full-data gradients, separated by commas")
    parser.add_argument("--nets", help="some networks, by their names, separated by semicolons")
    parser.add_argument(
        "--autoneb", type=File, metavar="FOLDER",
        help="a checkout of github.com/fdraxler/PyTorch-AutoNEB, whose own code is run then",
    )  # fmt: skip
    parser.add_argument("--out", type=File, help="write the results here as JSON")
    parser.add_argument("--table", type=File, metavar="JSON", help="rewrite the docs from this")
    options = parser.parse_args(arguments)
    if options.full and options.quick:
        parser.error("--full and --quick contradict each other")
    known = [net.name for net in NETS]
    options.nets = options.nets.split(";") if options.nets else known
    if unknown := [name for name in options.nets if name not in known]:
        parser.error(f"no network called {'; '.join(unknown)}; there are: {'; '.join(known)}")
    options.pairs = (5 if options.full else 2) if options.pairs is None else options.pairs
    if options.pairs < 1:
        parser.error(f"--pairs must be at least 1, got {options.pairs}")
    if options.budgets is not None:
        try:
            options.budgets = tuple(int(word) for word in options.budgets.split(","))
        except ValueError:
            parser.error(f"--budgets must be numbers such as 200,600, got {options.budgets}")
        if min(options.budgets) < 50:
            parser.error(f"--budgets must be at least 50 gradients, got {min(options.budgets)}")
    if options.autoneb is not None and not (options.autoneb / "torch_autoneb").is_dir():
        parser.error(f"--autoneb {options.autoneb} is no checkout: it has no folder torch_autoneb")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark, or rewrite the docs."""
    options = parse(arguments)
    if options.table:
        rewrite(DOCS / "benchmarks-paths.md", json.loads(options.table.read_text("utf-8")))
        print(f"rewrote the marked part of {DOCS.name}/benchmarks-paths.md")
        return 0
    torch.set_num_threads(1)
    data: dict[str, Any] = {
        "machine": machine(),
        "versions": {"thalweg": version("thalweg")},
        "full": options.full,
        "pairs": options.pairs,
        "nets": [],
    }
    for net in NETS:
        if net.name in options.nets:
            result = measure_net(net, options)
            data["nets"].append(result)
            if options.out:  # after each, so that a run that is cut short leaves what it has
                options.out.write_text(json.dumps(data, indent=1) + "\n", "utf-8")
            show(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
