"""Freeman and Bruna (2017) again: lengths and beads against the level.

``python examples/level_sets quadratic --seeds 10 --out FOLDER`` does the searches that are not in
FOLDER yet, loosely as published and strictly; kill it and run it again to go on. ``--table`` prints
the tables of docs/level-sets.md from what is there, ``--figure FILE.png`` draws it (chromium; an
``.html`` needs none).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

import networks
import polynomials
import searches
import tables

NAMES = (*polynomials.TASKS, *networks.NAMES)


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and do what it says."""
    parser = argparse.ArgumentParser(prog="level_sets", description=__doc__.partition("\n")[0])
    parser.add_argument("experiment", choices=NAMES)
    parser.add_argument("--seeds", type=int, default=10, help="pairs of networks")
    parser.add_argument("--out", type=Path, required=True, help="where the searches are kept")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--loose", dest="kinds", action="store_const", const=["loose"])
    kind.add_argument("--strict", dest="kinds", action="store_const", const=["strict"])
    kind.add_argument(
        "--ours", dest="kinds", action="store_const", const=["ours"],
        help="below the level itself, with the options of dynamic_string as they come",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="a toy size, in a folder of its own")
    parser.add_argument("--data", type=Path, help="a folder in the format of MNIST, for cnn")
    parser.add_argument("--table", action="store_true", help="print tables; search nothing")
    parser.add_argument("--figure", type=Path, help="draw .png or .html; search nothing")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    out = asked.out / "quick" if asked.quick else asked.out
    name = asked.experiment
    if asked.table:
        print(tables.table(out, name))
    if asked.figure is not None:
        tables.figure(out, name, asked.figure)
    if asked.table or asked.figure is not None:
        return
    try:
        if name in polynomials.TASKS:
            experiment = polynomials.experiment(name, asked.seeds, out, quick=asked.quick)
        else:
            experiment = networks.experiment(
                name, asked.seeds, out, quick=asked.quick, data=asked.data
            )
    except FileNotFoundError as error:
        parser.exit(2, f"{name} is skipped: {error}\n")
    kinds = asked.kinds or ["loose", "strict"]
    done = searches.run(experiment, range(asked.seeds), kinds, out)
    print(f"{done} searches done; the rest were in {out} already")
    print(tables.table(out, name))


if __name__ == "__main__":
    main()
