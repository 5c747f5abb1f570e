"""Ten million parameters on a CPU: the memory cap is respected, by our count and the system's."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from thalweg.curvature import Eigenpairs, Hessian, SpectralDensity, eigenpairs, spectral_density
from thalweg.landscape import ModelLandscape
from thalweg.landscape.memory import Meter
from thalweg.zoo import mlp

pytestmark = pytest.mark.slow

SIZE = "mlp((64, 3100, 3100, 10), activation='relu', seed=0)"  # 9.8 million
MIB = 2**20
CAP = 700 * MIB


@pytest.fixture(scope="module")
def hessian() -> Iterator[Hessian]:
    model = mlp((64, 3100, 3100, 10), activation="relu", seed=0)
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(8, 64, generator=generator), torch.arange(8)
    land = ModelLandscape(model, torch.nn.functional.cross_entropy, (inputs, targets))
    assert land.dim > 9.8e6
    with Hessian(land, land.vector(model)) as H:
        yield H


def own_peak(H: Hessian, run: Callable[[Hessian], Any]) -> tuple[Any, int]:
    """Run, and return the result and the peak bytes beside those of one product."""
    vector = torch.ones(H.dim)
    H @ vector  # opens the point, whose graph has its own cap
    product, meter = Meter(), Meter()
    with product:
        H @ vector
    with meter:
        found = run(H)
    return found, meter.peak - product.peak


@pytest.fixture(scope="module")
def starved(hessian) -> tuple[Eigenpairs, int]:
    """Two eigenpairs under a cap that leaves room for less than 19 vectors."""
    run = lambda H: eigenpairs(H, 2, tol=1e-2, max_products=20, memory=CAP, seed=0)  # noqa: E731
    return own_peak(hessian, run)


def test_eigenpairs_keep_to_their_cap(hessian, starved) -> None:
    found, peak = starved
    assert peak <= 1.1 * CAP
    assert peak > 4 * 2 * hessian.dim  # the meter did see the basis
    assert 0 < found.memory <= CAP
    assert found.to_json()["memory"] == found.memory


def test_eigenpairs_are_as_good_under_a_cap(starved) -> None:
    found, _ = starved
    assert found.rounding < 1e-3 * float(found.values[0])
    assert float(found.values[1] / found.values[0]) > 0.5


def test_a_cap_that_is_too_small_is_refused(hessian) -> None:
    with pytest.raises(ValueError, match="memory"):
        eigenpairs(hessian, 2, memory="50 MiB", seed=0)


def test_the_density_keeps_to_its_cap(hessian) -> None:
    def run(H: Hessian) -> SpectralDensity:
        return spectral_density(H, probes=4, steps=4, deflate=0, memory=CAP, seed=0)

    rho, peak = own_peak(hessian, run)
    # beside the bases: starts, products and the two last vectors of each of four chains
    assert peak <= 1.1 * CAP + 4 * 4 * 4 * hessian.dim
    assert rho.trace().stderr > 0


PROGRAM = """
import json, pathlib, torch
import torch.nn.functional as F
from thalweg.landscape import ModelLandscape
from thalweg.curvature.profile import curvature_profile
from thalweg.zoo import mlp
torch.set_num_threads(1)
def peak():  # in KiB; ru_maxrss would begin at the parent's
    return int(pathlib.Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0])
model = {size}
inputs = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
land = ModelLandscape(model, F.cross_entropy, (inputs, torch.arange(4)))
theta = land.vector(model)
land.gradient(theta)
before = peak()
found = curvature_profile(
    land, theta, eigenvalues=1, probes=4, passes=20, layers=False, memory="1.5 GiB", seed=0
)
after = peak()
print(json.dumps([before, after, found.cost.passes, found.memory, str(found)]))
"""


def test_the_profile_in_a_process_of_its_own() -> None:
    """Peak resident memory by the system's count: the cap, and the products' own memory."""
    source = Path(__file__).resolve().parents[2] / "src"
    program = f"import sys; sys.path.insert(0, {str(source)!r})\n"
    program += textwrap.dedent(PROGRAM).format(size=SIZE)
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    before, after, passes, memory, text = json.loads(ran.stdout)
    grown = (after - before) * 1024  # Linux counts kibibytes
    assert memory == 1536 * MIB
    assert "1536 MiB" in text  # the cap is printed
    assert passes <= 20
    assert grown <= 1.1 * memory + 1024 * MIB  # the landscape's own cap beside it
    assert grown > 100 * MIB
