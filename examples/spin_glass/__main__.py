"""The spherical 3-spin glass in five figures.

``python examples/spin_glass --out FOLDER`` draws complexity by index, energy bands, index against
energy, a spectrum against its law, and the floor of descents against n; some minutes on one core.
A figure that is in FOLDER already is not drawn again. ``--format html`` needs no chromium.
"""

from __future__ import annotations

import argparse
import sys
from functools import cache
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

import pictured
from canvas import save

from thalweg.theory.spin_glass.critical_points import CriticalPoints


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and draw what is missing."""
    parser = argparse.ArgumentParser(prog="spin_glass", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="where the figures go")
    parser.add_argument("--quick", action="store_true", help="a toy size")
    parser.add_argument("--format", choices=("png", "html"), default="png")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    quick = asked.quick

    @cache
    def points() -> CriticalPoints:
        return pictured.found_points(quick)

    figures = {
        "complexity": lambda: pictured.complexities(quick),
        "bands": lambda: pictured.bands(points()),
        "index-energy": lambda: pictured.index_against_energy(points()),
        "spectra": lambda: pictured.spectra(quick),
        "floor": lambda: pictured.floors(quick, asked.out),
    }
    for name, draw in figures.items():
        file = asked.out / f"spin-glass-{name}.{asked.format}"
        if not file.exists():
            save(draw(), file)
            print(file, flush=True)


if __name__ == "__main__":
    main()
