"""Count the critical points of small spherical spin glasses, all of them, against Kac and Rice.

``python examples/spin_glass_counts --out FOLDER`` does the enumerations that are not in FOLDER yet
(about an hour for everything, most of it n = 8 at p = 4); kill it and run it again to go on.
``--table`` prints the tables of docs/spin-glass-counts.md from what is there.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

import runs
import tables


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and do what it says."""
    parser = argparse.ArgumentParser(
        prog="spin_glass_counts", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--out", type=Path, required=True, help="where the counts are kept")
    parser.add_argument("--n", type=int, nargs="+", default=[2, 3, 4, 5, 6, 7, 8])
    parser.add_argument("--p", type=int, nargs="+", default=[3, 4])
    parser.add_argument(
        "--samples", type=int, help="spin glasses of each size; 2000 to n = 5, 200 above"
    )
    parser.add_argument("--table", action="store_true", help="print the tables; enumerate nothing")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    sizes = [(n, p) for p in asked.p for n in asked.n]
    if not asked.table:
        for n, p in sorted(sizes, key=lambda size: (size[0] > 5, size[1], size[0])):
            done = runs.run(n, p, asked.samples or runs.samples_of(n), asked.out)
            print(f"p = {p}, n = {n}: {done} batches done now", flush=True)
    print(tables.table(sizes, asked.samples, asked.out))


if __name__ == "__main__":
    main()
