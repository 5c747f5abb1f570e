"""The tables: what was found, beside what is published, and what follows from theory."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import campaign
import laws
import numpy as np
import pictures
import published
from laws import Array
from numpy.typing import NDArray

from thalweg.estimate import Estimate

Rows = dict[int, list[dict[str, Any]]]


@dataclass(frozen=True)
class Found:
    """Everything that a folder holds.

    Attributes:
        label: The images' name.
        networks: Rows of the networks, by width.
        index: Rows of the counted networks, by width.
        glasses: Rows of the descents on one disorder, by size.
        many: Rows of the descents on many disorders, by size.
        cpu: Seconds of processor time that all of it took.
    """

    label: str
    networks: Rows
    index: Rows
    glasses: Rows
    many: Rows
    cpu: float

    @cached_property
    def scale(self) -> laws.Scale | None:
        """The published scaling of the test losses."""
        return laws.scale({n: column(rows, "test") for n, rows in self.networks.items()})

    @cached_property
    def incomparable(self) -> str:
        """Why the networks' numbers are not the paper's; empty on MNIST."""
        if self.label == "mnist":
            return ""
        which = {"digits": "8 x 8 digits, 1,442 images", "fashion": "Fashion-MNIST"}
        return f"{which.get(self.label, self.label)} in the place of MNIST"

    def clusters(self, n: int) -> list[Array]:
        """Return the energies of many disorders, those of a disorder together."""
        of: dict[int, list[float]] = defaultdict(list)
        for row in self.many[n]:
            of[row["disorder"]].append(row["energy"])
        return [np.array(energies) for energies in of.values()]


def collect(out: Path, label: str) -> Found:
    """Read every result of a folder."""
    cpu = 0.0
    kinds: list[Rows] = []
    for folder, pattern in (
        (f"networks-{label}", "*"), (f"index-{label}", "*"), ("glasses", "*disorder-*"),
        ("glasses", "*many-*"),
    ):  # fmt: skip
        rows: Rows = defaultdict(list)
        for result in campaign.read(out / folder, pattern):
            cpu += result["cpu_seconds"]
            for row in result.get("rows", [result]):
                rows[row["width"] if "width" in row else row["n"]].append(row)
        kinds.append(dict(sorted(rows.items())))
    networks, index, glasses, many = kinds
    return Found(label, networks, index, glasses, many, cpu)


def column(rows: list[dict[str, Any]], key: str) -> list[float]:
    """Return one quantity of all rows."""
    return [float(row[key]) for row in rows]


def shares(rows: list[dict[str, Any]]) -> NDArray[np.float64]:
    """Return the normalised indices."""
    return np.array([row["negative"] / row["dim"] for row in rows])


def markdown(head: str, lines: list[list[str]]) -> str:
    """Return a table."""
    names = head.split("|")
    return "\n".join(
        "| " + " | ".join(cells) + " |" for cells in (names, ["---"] * len(names), *lines)
    )


def short(e: Estimate) -> str:
    """Write an estimate with its interval's ends."""
    if not math.isfinite(e.interval[0]):
        return f"{e.value:.3g} (too few for an interval)" if math.isfinite(e.value) else "-"
    return f"{e.value:.3g} [{e.interval[0]:.3g}, {e.interval[1]:.3g}]"


def network_table(found: Found) -> str:
    """Return losses, variance and correlation of the networks by width."""
    lines = []
    for n, rows in found.networks.items():
        train, test = column(rows, "train"), column(rows, "test")
        known = published.CORRELATION.get(n)
        near = "-" if n not in published.TEST_RANGE else "{:g} to {:g}".format(
            *published.TEST_RANGE[n]
        )  # fmt: skip
        lines.append([
            str(n), str(len(rows)), f"{np.mean(train):.4f} ({min(train):.4f} to {max(train):.4f})",
            f"{np.mean(test):.4f} ({min(test):.4f} to {max(test):.4f})", near,
            f"{np.mean(test) / found.scale.of(n):.4g}" if found.scale else "-",
            short(laws.variance(laws.apart(test), n)[0]),
            f"{published.TEST_VARIANCE[n]:.2g}" if known else "-",
            short(laws.correlation(train, test)), "-" if known is None else f"{known:g}",
        ])  # fmt: skip
    head = (
        "units|nets|train loss (range)|test loss (range)|theirs|scaled|variance of test|theirs|"
        "correlation|theirs"
    )
    return markdown(head, lines)


def index_table(found: Found) -> str:
    """Return the normalised index of networks and spin glasses by size."""
    lines = []
    for n, rows in found.index.items():
        share, norms = shares(rows), column(found.networks[n][: len(rows)], "gradient")
        lines.append([
            f"network, {n}", str(len(rows)), short(laws.mean(list(share))), f"{share.max():.3g}",
            f"{100 * (share == 0).mean():.0f} %", f"{np.median(norms):.1e}",
            published.judge(Estimate(share.max(), 0.0, (share.max(),) * 2, len(rows)), 0.0,
                            published.INDEX_LIMIT, found.incomparable),
        ])  # fmt: skip
    for n, rows in found.glasses.items():
        share = shares(rows)
        lines.append([
            f"spin glass, {n}", str(len(rows)), short(laws.mean(list(share))), f"{share.max():.3g}",
            f"{100 * (share == 0).mean():.0f} %", f"{np.median(column(rows, 'gradient')):.1e}", "",
        ])  # fmt: skip
    head = "system|points|mean index / dimension|largest|share at 0|gradient norm|at most 0.015"
    return markdown(head, lines)


def glass_table(found: Found) -> str:
    """Return the energies that descents reach, by size: one disorder, and many."""
    lines = []
    for n, rows in found.glasses.items():
        energies = np.array(column(rows, "energy"))
        cells = [
            str(n), str(len(rows)), str(sum(row["certified"] for row in rows)),
            str(len(np.unique(energies.round(7)))),
            f"{energies.mean():.4f} ({energies.min():.4f} to {energies.max():.4f})",
            short(laws.variance(laws.apart(list(energies)), n)[0]),
        ]  # fmt: skip
        if n in found.many:
            clusters = found.clusters(n)
            flat = np.concatenate(clusters)
            means = laws.mean([float(c.mean()) for c in clusters])
            cells += [f"{len(clusters)} x {len(clusters[0])}", str(means),
                      f"{flat.std(ddof=1):.4f}", short(laws.variance(clusters, n)[0])]  # fmt: skip
        lines.append(cells + ["-"] * (10 - len(cells)))
    head = (
        "spins|starts|proven minima|energies apart|energy per spin, one disorder (range)|variance|"
        "disorders x starts|energy, many disorders|standard deviation|variance "
    )
    return markdown(head, lines)


def laws_told(found: Found) -> list[str]:
    """Return the fitted laws in words."""

    def told(name: str, clusters: dict[int, list[Array]]) -> str:
        return f"- {name}: {laws.power(clusters) or 'too few sizes or results for a power'}"

    tests = {n: laws.apart(column(rows, "test")) for n, rows in found.networks.items()}
    energies = {n: laws.apart(column(rows, "energy")) for n, rows in found.glasses.items()}
    said = [f"- Scaling of the test loss, as published: {found.scale}"] if found.scale else []
    if found.scale:
        scaled = {
            n: laws.apart([x / found.scale.of(n) for x in column(rows, "test")])
            for n, rows in found.networks.items()
        }
        said.append(told("Networks, scaled test loss", scaled))
    said.append(told("Networks, test loss", tests))
    said.append(told("Spin glass, one disorder, energy per spin", energies))
    many = {n: found.clusters(n) for n in found.many}
    return [*said, told("Spin glass, many disorders, energy per spin", many)]


def verdicts(found: Found) -> str:
    """Return every published number and statement beside ours."""
    lines: list[list[str]] = []
    low_high: Callable[[float, float], str] = lambda a, b: f"{a:g} to {b:g}"  # noqa: E731
    if (rows := found.glasses.get(500)) is not None:
        ours = laws.mean(column(rows, "energy"))
        middle, low, high = published.GLASS_500
        lines.append([
            "spin glass, 500 spins, one disorder: energy (Fig. 3)",
            f"{middle:g}, from {low:g} to {high:g}", str(ours), published.judge(ours, low, high),
        ])  # fmt: skip
        lines.append([
            "the same is at -E_inf, as the text says", f"{published.THRESHOLD_ENERGY:g}", str(ours),
            published.judge(ours, published.THRESHOLD_ENERGY, published.THRESHOLD_ENERGY),
        ])  # fmt: skip
    pairs = {n: (column(r, "train"), column(r, "test")) for n, r in found.networks.items()}
    for n, (train, test) in pairs.items():
        for name, values, known in (
            ("train", train, published.TRAIN_RANGE), ("test", test, published.TEST_RANGE),
        ):  # fmt: skip
            if n in known:
                lines.append([
                    f"network, {n} units: {name} loss (Fig. 7)", low_high(*known[n]),
                    str(laws.mean(values)),
                    published.judge(laws.mean(values), *known[n], found.incomparable),
                ])  # fmt: skip
        if n in published.CORRELATION:
            rho, theirs = laws.correlation(train, test), published.CORRELATION[n]
            lines.append([
                f"network, {n} units: correlation (Table 1)", f"{theirs:g}", short(rho),
                published.judge(rho, theirs, theirs, found.incomparable),
            ])  # fmt: skip
    return markdown("what|published|here|verdict", lines + statements(found, pairs))


def statements(found: Found, pairs: dict[int, tuple[list[float], list[float]]]) -> list[list[str]]:
    """Return the paper's qualitative statements, which other data can test too."""

    def below_zero(e: Estimate | None) -> str:
        if e is None or not math.isfinite(e.stderr):
            return "too few results"
        low, high = e.interval
        return "agrees" if high < 0 else "**disagrees**" if low > 0 else "unresolved"

    tests = {n: laws.apart(test) for n, (_, test) in pairs.items()}
    energies = {n: laws.apart(column(rows, "energy")) for n, rows in found.glasses.items()}
    lines = []
    for name, of in (("networks' test losses", tests), ("spin glass's energies", energies)):
        law = laws.power(of)
        slope = None if law is None else law.exponent
        lines.append([
            f"the variance of the {name} falls with size", "exponent below 0", str(slope),
            below_zero(slope),
        ])  # fmt: skip
    slope = laws.trend({n: laws.correlation(*pair) for n, pair in pairs.items() if n >= 25})
    lines.append([
        "train and test loss are the less correlated the larger the network (from 25 units)",
        "-0.27 per factor 10", short(slope), below_zero(slope),
    ])  # fmt: skip
    largest = [shares(rows).max() for rows in found.index.values()]
    if largest:
        held = "agrees" if max(largest) <= published.INDEX_LIMIT else "**disagrees**"
        lines.append([
            "the normalised index of trained networks is about 0.01 or less",
            f"at most {published.INDEX_LIMIT:g}", f"at most {max(largest):.3g}", held,
        ])  # fmt: skip
    return lines


def assumptions(found: Found, data: tuple[str, Path | None, tuple[int, int] | None]) -> str:
    """Return the theory's assumptions and whether they hold for the widest network here."""
    if not found.networks:
        return "Assumptions are measured on networks, of which there are none yet."
    width, rows = max(found.networks.items())
    inputs = pictures.load(*data)[0].inputs.double()
    varied = inputs[:, inputs.std(0) > 0].T
    table = np.abs(np.corrcoef(varied.numpy()))
    off = table[~np.eye(len(table), dtype=bool)]
    active = np.array([row["activity"] for row in rows])
    units = np.array(column(rows, "correlation"))
    measured = {
        "activity": " / ".join(
            f"{100 * x:.0f} %"
            for x in (active[:, 0].min(), active[:, 1].mean(), active[:, 2].max())
        ),
        "pixels": f"{off.mean():.2f}", "dim": f"{rows[0]['dim']:,}",
        "units": f"{np.nanmean(units):.2f}" if np.isfinite(units).any() else "unknown",
        "square": f"{np.mean(column(rows, 'mean_square')):.3g}",
    }  # fmt: skip
    lines = [[a.label, a.says, a.here.format(**measured)] for a in published.ASSUMPTIONS]
    head = f"assumption|says|for a trained network of {width} units"
    return markdown(head, lines)


def table(found: Found, data: tuple[str, Path | None, tuple[int, int] | None]) -> str:
    """Return all tables in Markdown."""
    gap = max((row["gap"] for rows in found.networks.values() for row in rows), default=math.nan)
    parts = ["## Networks", network_table(found), "## Spin glasses", glass_table(found),
             "## Index", index_table(found), "## Laws", "\n".join(laws_told(found)),
             "## Published and found", verdicts(found), "## Theory", published.DOES_NOT_FOLLOW,
             assumptions(found, data),
             f"Losses in training and through `ModelLandscape` agree within {gap:.1e}. "
             f"{found.cpu:.0f} s of processor time."]  # fmt: skip
    return "\n\n".join(parts)
