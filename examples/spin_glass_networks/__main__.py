"""Networks against spin glasses (Choromanska et al. 2015), as published and on real digits.

``python examples/spin_glass_networks --out FOLDER`` trains the networks, lets the spin glasses
descend, counts negative eigenvalues, and prints the tables; kill it and run it again to go on.
``--table`` prints what is there, ``--figure FILE.png`` draws losses, variance and index (chromium;
an ``.html`` needs none).
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import accounts
import campaign
import drawings
import ensembles
import glasses
import pictures
from campaign import Plan, Unit

DATA = tuple[str, Path | None, tuple[int, int] | None]
RATES = {"scaled": 0.1, "cube": 0.01}


def network_units(plan: Plan, label: str, data: DATA, start: str, out: Path) -> list[Unit]:
    """Return the groups to train, narrowest first."""
    how = ensembles.Training(plan.epochs, rate=RATES[start], start=start)
    units = []
    for width, count in sorted(plan.networks.items()):
        for number, of in enumerate(campaign.groups(count, plan.group)):
            name = f"n-{width:04d}_group-{number:03d}"
            folder = out / f"networks-{label}"
            vectors, state = folder / "vectors" / f"{name}.pt", folder / f"{name}.state"
            arguments = (width, of, data, how, vectors, state)
            units.append(Unit(ensembles.group, arguments, folder / f"{name}.json"))
    return units


def index_units(plan: Plan, label: str, data: DATA, out: Path) -> list[Unit]:
    """Return the networks whose negative eigenvalues are counted, narrowest first."""
    units = []
    for width, count in sorted(plan.index.items()):
        for number in range(count):
            group, place = divmod(number, plan.group)
            vectors = out / f"networks-{label}" / "vectors" / f"n-{width:04d}_group-{group:03d}.pt"
            file = out / f"index-{label}" / f"n-{width:04d}_net-{number:04d}.json"
            units.append(Unit(ensembles.index, (width, number, place, data, vectors), file))
    return units


def glass_units(plan: Plan, out: Path) -> list[Unit]:
    """Return the starts on spin glasses, smallest first: one disorder, then many."""
    units = []
    for n in sorted(plan.starts):
        for part, of in enumerate(campaign.groups(plan.starts[n], plan.together(n))):
            file = out / "glasses" / f"n-{n:04d}_disorder-0000_part-{part:03d}.json"
            units.append(Unit(glasses.starts, (n, 0, of), file))
        disorders, each = plan.disorders.get(n, (0, 0))
        for block, of in enumerate(campaign.groups(disorders, max(1, 100 // each if each else 1))):
            file = out / "glasses" / f"n-{n:04d}_many-{block:03d}.json"
            units.append(Unit(glasses.disorders, (n, range(of.start + 1, of.stop + 1), each), file))
    return units


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="spin_glass_networks", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--out", type=Path, required=True, help="where the results are kept")
    parser.add_argument("--images", choices=("digits", "fashion"), default="digits")
    parser.add_argument("--data", type=Path, help="a folder in the format of MNIST, such as MNIST")
    parser.add_argument("--scale", choices=("laptop", "paper"), default="laptop")
    parser.add_argument("--quick", action="store_true", help="a toy size")
    parser.add_argument(
        "--start", choices=ensembles.STARTS, default="scaled",
        help="weights uniform within ±1 / sqrt(fan-in), or in [0, 1]",
    )  # fmt: skip
    parser.add_argument("--only", choices=("networks", "glasses"))
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--table", action="store_true", help="print tables; run nothing")
    parser.add_argument("--figure", type=Path, help="draw .png or .html; run nothing")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and do what it says."""
    asked = parsed(arguments)
    plan = campaign.PLANS["quick" if asked.quick else asked.scale]
    label = asked.images
    if asked.data is not None:
        label = "mnist" if pictures.is_mnist(asked.data) else asked.data.resolve().name
    if label != "digits" and plan.name == "laptop":
        plan = replace(plan, images=campaign.LAPTOP_IMAGES, epochs=campaign.LAPTOP_EPOCHS)
    data = ("folder" if asked.data else asked.images, asked.data, plan.images)
    label += "" if asked.start == "scaled" else f"-{asked.start}"
    out = asked.out / plan.name
    if not asked.table and asked.figure is None:
        pictures.load(*data)
        units = [] if asked.only == "networks" else glass_units(plan, out)
        if asked.only != "glasses":
            units += network_units(plan, label, data, asked.start, out)
        done = campaign.run(sorted(units, key=lambda unit: unit.file.stem[:6]), asked.workers)
        if asked.only != "glasses":
            done += campaign.run(index_units(plan, label, data, out), asked.workers)
        print(f"{done} units done; the rest were in {out} already")
    if asked.figure is not None:
        drawings.figure(accounts.collect(out, label), asked.figure)
    if asked.table or asked.figure is None:
        print(accounts.table(accounts.collect(out, label), data))


if __name__ == "__main__":
    try:
        main()
    except FileNotFoundError as error:
        sys.exit(f"the data are not there: {error}")
