"""The memory cap holds, costs no accuracy, and says what it needs when it cannot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import Dataset

from thalweg.landscape import ModelLandscape
from thalweg.landscape.memory import Budget, Meter, OverLimit, parse_bytes
from thalweg.zoo import cnn, mlp, transformer

SLACK = 1.10
Network = tuple[nn.Module, Tensor, Tensor]


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def networks() -> dict[str, Callable[[], Network]]:
    targets = torch.arange(240) % 10
    return {
        "mlp": lambda: (mlp((20, 40, 40, 10), seed=0).double(), numbers(240, 20), targets),
        "cnn": lambda: (cnn((4, 8), seed=0).double(), numbers(40, 1, 12, 12), targets[:40]),
        "transformer": lambda: (
            transformer(8, 2, 1, length=6, features=5, seed=0).double(),
            numbers(24, 6, 5),
            targets[:24],
        ),
    }


def peak(work: Callable[[], object]) -> tuple[int, object]:
    meter = Meter()
    with meter:
        result = work()
    return meter.peak, result


def products(land: ModelLandscape, theta: Tensor, vectors: Tensor) -> Tensor:
    with land.at(theta) as point:
        return point.hvp(vectors)


def own_gradients(land: ModelLandscape, theta: Tensor) -> None:
    for batch in land.batches(theta):
        batch.per_example_gradients()


slowly = pytest.mark.slow


@pytest.mark.parametrize(
    "cap",
    [
        pytest.param(300_000, marks=slowly),
        500_000,
        pytest.param(1_500_000, marks=slowly),
        pytest.param(4_000_000, marks=slowly),
        pytest.param(30_000_000, marks=slowly),
    ],
)
@pytest.mark.parametrize("name", networks())
def test_the_cap_holds(name: str, cap: int) -> None:
    """Planning included; arguments and results are not counted."""
    model, inputs, targets = networks()[name]()
    data = inputs, targets
    built, land = peak(lambda: ModelLandscape(model, F.cross_entropy, data, memory=cap))
    theta = land.vector(model)
    width = theta.nbytes
    assert built - 2 * width <= SLACK * cap, "construction"
    rows = theta + 0.01 * numbers(5, land.dim)
    for again in range(2):
        for what, given_rows, results in (
            (land.loss, theta, 0),
            (land.loss, rows, 0),
            (land.gradient, theta, 1),
            (land.gradient, rows, 5),
        ):
            used, _ = peak(lambda what=what, r=given_rows: what(r))
            assert used - results * width <= SLACK * cap, (what, again, land.plan)
        used, _ = peak(lambda: products(land, theta, rows))
        assert used - 5 * width <= SLACK * cap, ("hvp", again, land.plan)
    largest = max(len(batch.indices) for batch in land.batches(theta))
    used, _ = peak(lambda: own_gradients(land, theta))
    assert used - largest * width <= SLACK * cap, ("own gradients", land.plan)
    if cap in (500_000, 30_000_000) and name != "cnn":
        assert land.plan["products"] == ("rebuilt" if cap == 500_000 else "retained")


def test_the_cap_is_used() -> None:
    """A cap that is kept by taking one example at a time would be no feat."""
    model, inputs, targets = networks()["mlp"]()
    for cap in (300_000, 1_000_000):
        land = ModelLandscape(model, F.cross_entropy, (inputs, targets), memory=cap)
        theta = land.vector(model)
        products(land, theta, theta)
        used, _ = peak(lambda land=land, theta=theta: products(land, theta, theta))
        assert used > 0.5 * cap
        assert land.plan["products"] == "rebuilt"
    assert ModelLandscape(model, F.cross_entropy, (inputs, targets)).plan["memory cap"] == 2**31


@pytest.mark.parametrize(
    "name", ["mlp", pytest.param("cnn", marks=slowly), pytest.param("transformer", marks=slowly)]
)
def test_chunks_change_nothing_but_rounding(name: str) -> None:
    """Retained and rebuilt graphs, whole and cut batches, vmap and loop agree."""
    model, inputs, targets = networks()[name]()
    inputs, targets = inputs[:60], targets[:60]
    results, kernels = [], set()
    little = {"mlp": 200_000, "cnn": 120_000, "transformer": 500_000}[name]
    for options in (
        {},
        {"memory": little},
        {"memory": 2 * little, "batch_size": 13},
        {"memory": 20 * little, "batch_size": 7},
    ):
        land = ModelLandscape(model, F.cross_entropy, (inputs, targets), penalty=0.1, **options)
        theta = land.vector(model)
        rows = theta + 0.1 * numbers(3, land.dim)
        with land.at(theta) as point:
            results.append(
                [
                    land.loss(rows),
                    *land.value_and_gradient(rows),
                    land.loss(theta),
                    land.gradient(theta),
                    point.hvp(rows),
                    point.loss,
                    point.gradient,
                ]
            )
            kernels.add(point.kernel)
    assert kernels == {"retained", "rebuilt"}
    for others in results[1:]:
        for value, first in zip(others, results[0], strict=True):
            scale = float(first.abs().max())
            assert float((value - first).abs().max()) <= 1e-12 * scale


def test_ragged_lengths() -> None:
    """Batches of other shapes have plans of their own."""
    model = nn.Sequential(nn.Embedding(11, 6), nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3))
    model = model.double()

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = model

        def forward(self, ids: Tensor) -> Tensor:
            return self.body(ids).mean(1)

    generator = torch.Generator().manual_seed(1)
    data = [
        (torch.randint(11, (count, length), generator=generator), torch.arange(count) % 3)
        for count, length in ((9, 4), (3, 40), (1, 120), (17, 4), (2, 9))
    ]
    cap = 200_000
    land = ModelLandscape(Pooled(), F.cross_entropy, data, memory=cap)
    whole = ModelLandscape(Pooled(), F.cross_entropy, data)
    theta = land.vector(Pooled())
    for work in (
        lambda at: at.loss(theta),
        lambda at: at.gradient(theta),
        lambda at: products(at, theta, theta),
    ):
        used, found = peak(lambda work=work: work(land))
        assert used - theta.nbytes <= SLACK * cap
        torch.testing.assert_close(found, work(whole), rtol=1e-12, atol=1e-14)
    assert land.plan["products"] == "rebuilt"


class Streamed(Dataset[tuple[Tensor, Tensor]]):
    """Examples made on demand, always the same ones."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        if i >= self.count:
            raise IndexError(i)
        return torch.linspace(-1, 1, 20, dtype=torch.float64) * (i % 7 + 1), torch.tensor(i % 10)


def test_memory_does_not_grow_with_the_number_of_batches() -> None:
    """A stream is forgotten as it goes by; only a retained graph grows, up to the cap."""
    model = networks()["mlp"]()[0]
    used: list[list[int]] = []
    for count in (64, 320):
        land = ModelLandscape(
            model, F.cross_entropy, Streamed(count), batch_size=16, memory="600 kB"
        )
        theta = land.vector(model)
        products(land, theta, theta)
        used.append(
            [
                peak(lambda land=land, theta=theta: land.loss(theta))[0],
                peak(lambda land=land, theta=theta: land.gradient(theta))[0],
                peak(lambda land=land, theta=theta: products(land, theta, theta))[0],
            ]
        )
    for few, many in zip(*used, strict=True):
        assert many <= 1.1 * few


def test_plans_do_not_depend_on_what_came_before() -> None:
    """Chunk sizes are rules of size: an earlier call must not change the last bits of a later."""
    model, inputs, targets = networks()["mlp"]()

    def data() -> list[tuple[Tensor, Tensor]]:
        return list(zip(inputs.split([30, 200, 10]), targets.split([30, 200, 10]), strict=True))

    def measured(land: ModelLandscape) -> list[Tensor]:
        theta = land.vector(model)
        rows = torch.stack([theta, theta * 1.1])
        return [land.loss(theta), land.loss(rows), land.gradient(rows), products(land, theta, rows)]

    quiet = ModelLandscape(model, F.cross_entropy, data(), memory=300_000)
    busy = ModelLandscape(model, F.cross_entropy, data(), memory=300_000)
    theta = busy.vector(model)
    for indices in ([0, 1, 2], list(range(0, 240, 3)), [239]):
        part = busy.minibatch(indices)
        part.loss(torch.stack([theta] * 3))
        part.gradient(torch.stack([theta] * 4))
        products(part, theta, theta)
    own_gradients(busy, theta)
    for a, b in zip(measured(quiet), measured(busy), strict=True):
        assert torch.equal(a, b)


def test_too_small_a_cap() -> None:
    """The error has the numbers: what is needed, what is allowed, what to do."""
    model, inputs, targets = networks()["mlp"]()
    with pytest.raises(
        MemoryError,
        match=r"loss: one example needs at least [\d.e+-]+ MiB, above "
        r"the cap of 0.000286 MiB; raise memory=",
    ):
        ModelLandscape(model, F.cross_entropy, (inputs, targets), memory=300)
    land = ModelLandscape(model, F.cross_entropy, (inputs, targets), memory=40_000)
    theta = land.vector(model)
    assert land.loss(theta).isfinite()
    with pytest.raises(MemoryError, match=r"product: one example needs at least"):
        products(land, theta, theta)
    normed = nn.Sequential(nn.Linear(20, 40), nn.BatchNorm1d(40), nn.Linear(40, 10)).double()
    with pytest.raises(MemoryError, match=r"the whole batch needs .* or make the batches smaller"):
        ModelLandscape(
            normed, F.cross_entropy, (inputs, targets), memory=100_000, batchnorm="batch"
        )
    ModelLandscape(
        normed, F.cross_entropy, (inputs, targets), memory=100_000, batchnorm="batch", batch_size=20
    )


def test_batches_that_cannot_be_divided() -> None:
    """A batch with a tensor of another length goes whole or not at all."""

    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 2).double()

        def forward(self, nodes: Tensor, owner: Tensor) -> Tensor:
            count = int(owner.max()) + 1
            return torch.zeros(count, 2, dtype=nodes.dtype).index_add(0, owner, self.head(nodes))

    model = Graph()
    owners = [torch.tensor([0, 0, 1, 1, 1]), torch.tensor([0, 1, 1, 2])]
    data = [
        (numbers(len(owner), 3), owner, torch.arange(int(owner.max()) + 1) % 2) for owner in owners
    ]
    land = ModelLandscape(model, F.cross_entropy, data)
    theta = land.vector(model)
    assert land.examples == 5
    expected = sum(len(y) * F.cross_entropy(model(x, owner), y).item() for x, owner, y in data) / 5
    assert land.loss(theta).item() == pytest.approx(expected, rel=1e-13)
    assert products(land, theta, theta).isfinite().all()
    with pytest.raises(ValueError, match=r"share their first axis.*\[\(5, 3\), \(5,\), \(2,\)\]"):
        land.minibatch([0])
    with pytest.raises(ValueError, match="cannot be divided"):
        next(land.batches(theta)).per_example_gradients()
    with pytest.raises(ValueError, match="cannot be told apart"):
        land.loss_estimate(theta)
    with pytest.raises(MemoryError, match="the whole batch"):
        ModelLandscape(model, F.cross_entropy, data, memory=50)


def test_meter() -> None:
    """What is alive at once is counted, once per storage; what was there before is not."""
    before = torch.ones(1000, dtype=torch.float64)
    with Meter() as meter:
        for _ in range(5):
            once = before * 2
            view = once.view(10, 100)[:3]
            del view
        assert meter.live == 8000
        before.add_(1)
        before.t()
        del once
    assert meter.peak == 16_000
    assert meter.live == 0
    leaf = torch.ones(1000, requires_grad=True)
    with Meter() as meter:
        (slope,) = torch.autograd.grad((leaf.sin() * leaf).sum(), leaf)
    assert meter.peak >= 3 * 4000
    assert meter.live == slope.nbytes
    with Meter(limit=10_000) as meter, pytest.raises(OverLimit):
        _ = before.clone() + before.clone()
    with pytest.raises(OverLimit), Meter(limit=1) as meter:
        before.clone()


def test_an_abandoned_measurement_is_freed() -> None:
    """autograd keeps what an interrupted backward pass held until the next one begins."""
    model, inputs, targets = networks()["mlp"]()
    land = ModelLandscape(model, F.cross_entropy, (inputs, targets), memory=300_000)
    theta, meter, sweep = land.vector(model), Meter(), land._sweep
    with meter:
        for fraction in (0.3, 0.5, 0.7, 0.9):
            sweep.budget.cap = int(300_000 * fraction)
            sweep.metered(lambda: sweep._vmapped(theta.expand(3, -1), (inputs, targets), True))
        assert meter.live == 0


def curve(fixed: float, slope: float, kink: int, steep: float) -> Callable[[int], float]:
    """A convex, piecewise linear peak."""
    return lambda n: max(fixed + slope * n, fixed + slope * kink + steep * (n - kink))


@given(
    fixed=st.floats(0, 1e6),
    slope=st.floats(0.1, 1e4),
    kink=st.integers(1, 1000),
    steeper=st.floats(1, 4),
    total=st.integers(1, 5000),
    cap=st.floats(1e3, 1e7),
)
def test_a_plan_keeps_to_the_cap(
    fixed: float, slope: float, kink: int, steeper: float, total: int, cap: float
) -> None:
    """For any convex curve: under the cap, not wastefully far below it, and the same again."""
    bytes_of = curve(fixed, slope, kink, steeper * slope)
    asked: list[int] = []

    def measure(count: int) -> float:
        asked.append(count)
        assert 1 <= count <= total
        return bytes_of(count)

    budget = Budget(int(cap))
    if bytes_of(1) > budget.cap:
        with pytest.raises(MemoryError, match="one example needs at least"):
            budget.plan("loss", "key", total, measure, fixed=fixed)
        return
    fit, used = budget.plan("loss", "key", total, measure, fixed=fixed)
    assert 1 <= fit <= total
    assert bytes_of(fit) <= budget.cap
    best = max(n for n in range(1, total + 1) if bytes_of(n) <= budget.cap)
    assert fit >= min(best, best / 1.25 - 1)
    assert used <= budget.cap
    assert len(asked) <= 25
    count = len(asked)
    assert budget.plan("loss", "key", total, measure, fixed=fixed) == (fit, used)
    assert len(asked) == count
    whole = Budget(int(cap))
    if bytes_of(total) <= whole.cap:
        assert whole.plan("loss", "key", total, bytes_of, whole=True)[0] == total
    else:
        with pytest.raises(MemoryError, match="whole batch needs at least"):
            whole.plan("loss", "key", total, bytes_of, whole=True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (1, 1),
        ("512 MiB", 2**29),
        ("2GB", 2 * 10**9),
        ("1.5 kib", 1536),
        ("3", 3),
        (" 2 TiB ", 2**41),
        ("10 b", 10),
    ],
)
def test_sizes(text: int | str, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "lots", "-1 MiB", 0, "0.1 b", "1.2.3 MiB", ".", "5 mi x"])
def test_sizes_that_are_none(text: int | str) -> None:
    with pytest.raises(ValueError, match="memory must be a positive size such as '512 MiB'"):
        parse_bytes(text)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_resident_memory() -> None:
    """The operating system's own count, in a process of its own."""
    script = textwrap.dedent("""
        import json, pathlib, torch, torch.nn.functional as F
        from torch import nn
        from thalweg.landscape import ModelLandscape

        torch.set_num_threads(1)
        inputs, targets = torch.randn(40000, 128), torch.arange(40000) % 10
        model = nn.Sequential(
            nn.Linear(128, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 10)
        )

        def resident():
            status = pathlib.Path("/proc/self/status").read_text()
            return int(status.partition("VmHWM:")[2].split()[0]) * 1024

        warm = ModelLandscape(model, F.cross_entropy, (inputs[:8], targets[:8]))
        theta = warm.vector(model)
        with warm.at(theta) as point:
            point.hvp(theta)
        before = resident()
        land = ModelLandscape(model, F.cross_entropy, (inputs, targets), memory="100 MiB")
        with land.at(theta) as point:
            point.hvp(theta)
        land.gradient(theta)
        print(json.dumps([resident() - before, land.plan]))
    """)
    # glibc keeps what is freed for later, so that the count would be of its habits, not ours
    habits = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    run = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        timeout=500,
        env={**os.environ, **habits},
    )
    grown, plan = json.loads(run.stdout)
    assert plan["products"] == "rebuilt"
    assert 0.8 < grown / plan["memory cap"] < SLACK
