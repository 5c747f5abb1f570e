"""Networks of four kinds through one call: same ends, same policy, the model left alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path as File
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thalweg.landscape import ModelLandscape
from thalweg.landscape.protocols import for_evaluation
from thalweg.optim import minimise, train
from thalweg.paths import (
    Path,
    connect,
    dynamic_string,
    level_set_geometry,
    refine,
    shorten,
    simplex,
)
from thalweg.paths.along import along
from thalweg.zoo import digits, tiny

NAMES = (
    "mlp",
    pytest.param("transformer", marks=pytest.mark.slow),
    pytest.param("resnet", marks=pytest.mark.slow),
    pytest.param("lstm", marks=pytest.mark.slow),
)
BUDGET = 40
PENALTY = 1e-3


def _sorted_units(theta: Tensor) -> Tensor:
    """Return the MLP with its hidden units in the order of their biases: the same function."""
    first, bias, last, out = theta.split([16 * 64, 16, 10 * 16, 10])
    order = bias.argsort()
    moved = first.view(16, 64)[order].flatten(), bias[order], last.view(10, 16)[:, order].flatten()
    return torch.cat([*moved, out])


@dataclass(frozen=True)
class Case:
    """Two trained modules, their landscape, the path that was found, and how they were."""

    modules: tuple[nn.Module, nn.Module]
    land: ModelLandscape
    path: Path
    before: list[Any]
    after: list[Any]

    @property
    def ends(self) -> tuple[Tensor, Tensor]:
        return self.path.points[0], self.path.points[-1]


def _everything(modules: tuple[nn.Module, ...]) -> list[Any]:
    """Return all that a search must leave as it was, torch's and numpy's random numbers included.

    Not Python's own: the shape checks draw from them.
    """
    found: list[Any] = [
        torch.get_rng_state().clone(),
        str(np.random.get_state()),  # noqa: NPY002 (the global one)
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
    ]
    for module in modules:
        found += [(name, value.clone()) for name, value in module.state_dict().items()]
        found += [part.training for part in module.modules()]
        for name, p in module.named_parameters():
            found.append((name, p.data_ptr(), p.requires_grad))
            found.append(None if p.grad is None else p.grad.clone())
    return found


def _same(one: Any, other: Any) -> bool:
    """Compare bit for bit."""
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and one.numpy().tobytes() == other.numpy().tobytes()
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


def _modules(name: str) -> tuple[nn.Module, nn.Module, ModelLandscape]:
    """Return two modules trained a little from seeds of their own, and the first's landscape."""
    first, inputs, targets = tiny(name, examples=130)
    land = ModelLandscape(
        first,
        F.cross_entropy,
        (inputs, targets),
        penalty=PENALTY,
        batchnorm="batch" if name == "resnet" else "frozen",
        metrics="accuracy",
    )
    modules = []
    for seed in (0, 1):
        module, *_ = tiny(name, seed=seed)
        epochs, lr = (15, 5e-2) if name == "lstm" else (4, 1e-2)
        theta = land.vector(module)
        theta = train(land, theta, epochs=epochs, batch_size=65, lr=lr, seed=seed).theta
        land.load_into(module, theta)
        if name == "resnet":  # statistics of its own, as training leaves them: of few images
            module.train()
            with torch.no_grad():
                module(inputs[:8])
        module.eval()
        modules.append(module)
    modules[0].train()  # a mode, a gradient and a frozen tensor that the search must not touch
    parameter = next(modules[1].parameters())
    parameter.grad = torch.ones_like(parameter)
    return modules[0], modules[1], land


@pytest.fixture(scope="module")
def case() -> Callable[[str], Case]:
    """Search once for each network."""
    known: dict[str, Case] = {}

    def of(name: str) -> Case:
        if name not in known:
            first, second, land = _modules(name)
            ends = land.vector(first), land.vector(second)
            before = _everything((first, second))
            path = connect(land, *ends, max_gradients=BUDGET, max_samples=30, seed=0)
            known[name] = Case((first, second), land, path, before, _everything((first, second)))
        return known[name]

    return of


@pytest.mark.parametrize("name", NAMES)
def test_one_call_connects_without_edits(case: Callable[[str], Case], name: str) -> None:
    found = case(name)
    line = connect(found.land, *found.ends, method="line", max_samples=30)
    assert found.path.maximum.upper < line.maximum.upper
    assert found.path.height.upper < 0.7 * line.height.upper
    assert found.path.method != "line"
    assert found.path.seed == 0


@pytest.mark.parametrize("name", NAMES)
def test_the_ends_have_their_loss_under_the_same_policy(
    case: Callable[[str], Case], name: str
) -> None:
    found = case(name)
    view = for_evaluation(found.land)
    for end, module, loss in zip(
        found.ends, found.modules, found.path.losses[[0, -1]], strict=True
    ):
        assert torch.equal(end, found.land.vector(module))
        assert float(loss) == pytest.approx(float(view.loss(end)), rel=0, abs=1e-6)
        seen = found.path.profile.losses[[0, -1]]
        assert float((seen - loss).abs().min()) <= 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_as_shipped_is_what_the_module_itself_gives(
    case: Callable[[str], Case], name: str
) -> None:
    found = case(name)
    _, inputs, targets = tiny(name, examples=130)
    for module, loss in zip(found.modules, found.path.losses[[0, -1]], strict=True):
        own = copy.deepcopy(module).eval()
        with torch.no_grad():
            fit = float(F.cross_entropy(own(inputs), targets))
        decay = 0.5 * PENALTY * float(found.land.vector(module).square().sum())
        shipped = found.land.as_shipped(module).value
        assert shipped == pytest.approx(fit + decay, abs=1e-6)
        if name == "resnet":  # its own statistics are those of 8 images
            assert abs(shipped - float(loss)) > 1e-3
        else:
            assert shipped == pytest.approx(float(loss), abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_users_models_are_bit_identical(case: Callable[[str], Case], name: str) -> None:
    found = case(name)
    assert _same(found.before, found.after)


def _normalised() -> tuple[nn.Module, ModelLandscape, Tensor, Tensor]:
    """Return a network with BatchNorm that has a frozen tensor and gradients, and two minima."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(40, 3, generator=g, dtype=torch.float64)
    module = nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.0), nn.Tanh(), nn.Linear(4, 2)
    ).double()
    with torch.no_grad():
        module(x[:8])  # statistics of its own, of few examples
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    module[2].eval()  # modes that differ between parts
    module[4].bias.requires_grad_(False)
    land = ModelLandscape(
        module, F.cross_entropy, (x, (x[:, 0] > 0).long()), penalty=PENALTY, batchnorm="batch"
    )
    a = minimise(land, 2 * land.start(g), tol=1e-3, max_gradients=40).theta
    b = torch.cat([a[:16], -a[16:]])  # each hidden unit and its weights out turned: no change
    return module, land, a, b


def _ask(question: str, land: ModelLandscape, a: Tensor, b: Tensor) -> Any:
    """Ask one of the questions about paths, on a tiny budget."""
    few: dict[str, Any] = {"max_samples": 40, "seed": 0}
    level = float(land.loss(a)) + 0.1
    beads = {"level": level, "max_gradients": 40, "max_steps": 20, "batch_size": 20, **few}
    match question:
        case "dynamic_string":
            return dynamic_string(land, a, b, initial_beads=1, **beads)
        case "refine":
            path = connect(land, a, b, method="string", max_gradients=40, batch_size=None, **few)
            return refine(land, path, max_gradients=40, seed=0)
        case "shorten":
            path = dynamic_string(land, a, b, level, shorten=False, max_gradients=300, **few).path
            return shorten(land, path, level, max_gradients=40, batch_size=20, **few)
        case "level_set_geometry":
            del beads["level"]
            return level_set_geometry(land, a, b, [level], seeds=1, **beads)
        case "simplex":
            return simplex(land, torch.stack([a, b]), max_gradients=40, batch_size=20, **few)
    raise AssertionError(question)


@pytest.mark.parametrize(
    "question",
    [
        "dynamic_string",
        pytest.param("refine", marks=pytest.mark.slow),
        pytest.param("shorten", marks=pytest.mark.slow),
        pytest.param("level_set_geometry", marks=pytest.mark.slow),
        pytest.param("simplex", marks=pytest.mark.slow),
    ],
)
def test_every_question_leaves_the_module_bit_identical(question: str) -> None:
    """BatchNorm's statistics, modes, gradients and frozen tensors, and the vectors given."""
    module, land, a, b = _normalised()
    before = [*_everything((module,)), a.clone(), b.clone()]
    found = _ask(question, land, a, b)
    assert found.cost.gradients > 0
    assert _same(before, [*_everything((module,)), a, b])


def test_a_changed_bit_would_be_seen() -> None:
    module = nn.Linear(2, 2)
    before = _everything((module,))
    assert _same(before, _everything((module,)))
    with torch.no_grad():
        module.weight[0, 0] = torch.nextafter(module.weight[0, 0], torch.tensor(9.0))
    assert not _same(before, _everything((module,)))
    before = _everything((module,))
    torch.rand(1)
    assert not _same(before, _everything((module,)))
    before = _everything((module,))
    module.eval()
    assert not _same(before, _everything((module,)))


@pytest.mark.parametrize("name", NAMES)
def test_held_out_loss_and_accuracy_along_the_path(case: Callable[[str], Case], name: str) -> None:
    found = case(name)
    inputs, targets = digits("test").subset(50).tensors
    held = found.land.with_data((inputs.double(), targets))
    seen = along(held, found.path, times=5)
    assert len(seen.losses) == len(seen.metrics["accuracy"]) == 5
    view = for_evaluation(held)
    for end, loss in zip(found.ends, (seen.losses[0], seen.losses[-1]), strict=True):
        assert loss.value == pytest.approx(float(view.loss(end)), abs=1e-6)
    assert all(0 <= part.value <= 1 for part in seen.metrics["accuracy"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "resnet"])
def test_a_killed_search_goes_on_from_its_checkpoint(
    case: Callable[[str], Case], name: str, ctrl_c: Any, tmp_path: File
) -> None:
    found = case(name)
    options: dict[str, Any] = {
        "max_gradients": BUDGET, "max_samples": 30, "seed": 0, "checkpoint": tmp_path / "state"
    }  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        connect(found.land, *found.ends, progress=ctrl_c(5), **options)
    assert list(tmp_path.iterdir())
    again = connect(found.land, *found.ends, **options)
    assert torch.equal(again.points, found.path.points)
    assert torch.equal(again.losses, found.path.losses)


@pytest.mark.slow
def test_a_gauge_gives_the_search_between_the_chosen_ends(case: Callable[[str], Case]) -> None:
    found = case("mlp")
    path = connect(
        found.land, *found.ends, gauge=_sorted_units, max_gradients=20, max_samples=30, seed=0
    )
    assert path.balanced is not None
    for end, chosen in zip(found.ends, path.balanced.points[[0, -1]], strict=True):
        assert torch.equal(chosen, _sorted_units(end))
    assert path.balanced.base == pytest.approx(path.base, abs=1e-9)
    assert path.balanced.length != pytest.approx(path.length, rel=1e-6)
    with pytest.raises(ValueError, match="gauge"):
        connect(found.land, *found.ends, gauge=lambda x: 1.1 * x, max_gradients=20, seed=0)
