"""Run every benchmark: ``python benchmarks``; options are passed on, such as ``--quick``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BENCHMARKS = ("hvp.py", "curvature.py", "paths.py", "spin_glass.py")


def main() -> int:
    """Run each in a process of its own; return the first failure's status."""
    here = Path(__file__).resolve().parent
    statuses = [
        subprocess.run([sys.executable, str(here / name), *sys.argv[1:]], check=False).returncode
        for name in BENCHMARKS
    ]
    return next(filter(None, statuses), 0)


if __name__ == "__main__":
    sys.exit(main())
