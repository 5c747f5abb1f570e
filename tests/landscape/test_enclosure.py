"""Enclosures along segments: every sampled value and slope inside, and what has none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thalweg.landscape import FunctionLandscape, ModelLandscape, NoEnclosure, enclose
from thalweg.landscape.enclosure import NetworkEnclosure, own_rounding
from thalweg.landscape.enclosure_layers import Activation, Affine, Jet, Segment
from thalweg.zoo import models

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky": lambda: nn.LeakyReLU(0.1),
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "softplus": lambda: nn.Softplus(beta=2.0),
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "elu": nn.ELU,
    "identity": nn.Identity,
}
X = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
Y = torch.randn(20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
CLASSES = torch.arange(20) % 2


def chain(make: Callable[[], nn.Module]) -> nn.Module:
    """Three linear layers."""
    layers = [nn.Linear(3, 6), make(), nn.Linear(6, 5), make(), nn.Linear(5, 2)]
    return nn.Sequential(*layers).double()


def mean_of_sums(outputs: Tensor, targets: Tensor) -> Tensor:
    """Half the squared distance, averaged over examples."""
    return 0.5 * ((outputs - targets) ** 2).sum(1).mean()


def holds(land: ModelLandscape, parts: int, scale: float = 2.0, room: float = 1e-12) -> Any:
    """Check values and slopes of many points against the enclosure, and return it."""
    g = torch.Generator().manual_seed(3)
    a, b = scale * land.start(g), scale * land.start(g)
    knots = np.linspace(0, 1, parts + 1)
    found = land.enclosure().slope_range(a, b, knots[:-1], knots[1:])
    t = knots[:-1, None] + np.linspace(0, 1, 5) / parts
    theta = a + torch.from_numpy(t).reshape(-1, 1).to(a.dtype) * (b - a)
    values, gradients = land.value_and_gradient(theta)
    v, s = (part.double().numpy().reshape(t.shape) for part in (values, gradients @ (b - a)))
    assert (found.value_lo[:, None] - room <= v).all()
    assert (v <= found.value_hi[:, None] + room).all()
    assert (found.slope_lo[:, None] - room <= s).all()
    assert (s <= found.slope_hi[:, None] + room).all()
    assert (found.middle_lo - room <= v[:, 2]).all()
    assert (v[:, 2] <= found.middle_hi + room).all()
    return found


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize(("loss", "targets"), [(mean_of_sums, Y), (F.cross_entropy, CLASSES)])
def test_everything_sampled_lies_inside(name: str, loss: Any, targets: Tensor) -> None:
    torch.manual_seed(0)
    land = ModelLandscape(chain(ACTIVATIONS[name]), loss, (X, targets), penalty=0.01)
    coarse, fine = holds(land, 4), holds(land, 64)
    widths = [float((r.slope_hi - r.slope_lo).mean()) for r in (coarse, fine)]
    assert widths[1] < widths[0] / 8  # first order in the width
    assert float((fine.middle_hi - fine.middle_lo).max()) < 1e-9


def test_convolutions_and_pools_in_float32() -> None:
    x = torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for activation in ("tanh", "relu"):
        model = models.cnn((3, 4), activation=activation, seed=0)
        land = ModelLandscape(model, F.cross_entropy, (x, torch.arange(10)), batch_size=4)
        found = holds(land, 8, scale=1.0, room=1e-5)
        assert np.isfinite(found.value_hi).all()
        assert (found.value_lo < found.value_hi).all()
    land = ModelLandscape(models.mlp((64, 9, 10), seed=0), F.cross_entropy, (x, torch.arange(10)))
    assert (holds(land, 8, room=1e-5).slope_lo < 0).any()


def test_rows_within_an_example_keep_their_own_weights() -> None:
    """Linear layers over `(examples, rows, entries)`, with as many sub-intervals as examples."""
    g = torch.Generator().manual_seed(4)
    x = torch.randn(6, 4, 3, dtype=torch.float64, generator=g)
    y = torch.randn(6, 4, 2, dtype=torch.float64, generator=g)
    land = ModelLandscape(chain(nn.ReLU), F.mse_loss, (x, y))
    holds(land, 6)
    shallow = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    assert not np.isfinite(ModelLandscape(shallow, F.mse_loss, (x, y)).enclosure().exact_operations)


def test_softplus_as_torch_has_it_lies_inside() -> None:
    """Above its threshold torch drops up to 2.1e-9, which is more than rounding."""
    model = nn.Sequential(nn.Linear(1, 1), nn.Softplus(), nn.Linear(1, 1)).double()
    x = torch.ones(1, 1, dtype=torch.float64)
    land = ModelLandscape(model, F.mse_loss, (x, 0 * x))
    a = torch.tensor([20.0, 0.0, 1.0, -20.0], dtype=torch.float64)
    b = a + torch.tensor([0.1, 0.0, 0.0, 0.0], dtype=torch.float64)
    t = np.linspace(0, 1, 33)
    found = land.enclosure().slope_range(a, b, t, t)
    v = land.loss(a + torch.from_numpy(t)[:, None] * (b - a)).numpy()
    assert (found.middle_lo <= v).all()
    assert (v <= found.middle_hi).all()


def test_softplus_dropped_off_the_middle_is_inside_too() -> None:
    """Over the threshold at one end of the sub-interval alone, and not at its middle."""
    model = nn.Sequential(nn.Linear(1, 2), nn.Softplus(), nn.Linear(2, 1)).double()
    x = torch.ones(1, 1, dtype=torch.float64)
    land = ModelLandscape(model, F.mse_loss, (x, torch.full_like(x, 1.2)))
    a = torch.tensor([0, 0, 19.9985, 9.9985, 1, -1, 0], dtype=torch.float64)
    step = torch.tensor([0, 0, 0.002, 0.002, 0, 0, 0], dtype=torch.float64)
    a[5] = -1 / torch.sigmoid(a[3])  # so that nothing else changes much
    t = torch.linspace(0, 1, 2001, dtype=torch.float64)[:, None]
    v = land.loss(a - step + 2 * t * step).numpy()
    found = land.enclosure().slope_range(a - step, a + step, np.zeros(1), np.ones(1))
    assert v.max() - v.min() > 1e-9
    assert found.value_lo[0] <= v.min()
    assert v.max() <= found.value_hi[0]


class Applied(nn.Module):
    """A function as a module."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def test_an_average_pool_is_enclosed_as_a_module_and_as_a_function() -> None:
    images = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    for pool in (nn.AvgPool2d(2), lambda x: F.avg_pool2d(x, 2)):
        model = nn.Sequential(nn.Conv2d(1, 2, 1), Applied(pool)).double()
        land = ModelLandscape(model, F.mse_loss, (images, torch.zeros(3, 2, 2, 2).double()))
        theta = land.start(torch.Generator().manual_seed(1))
        low, high = land.enclosure().value_range(theta, theta, np.zeros(1))
        assert low[0] <= float(land.loss(theta)) <= high[0]
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.AvgPool2d(2, divisor_override=3)).double()
    land = ModelLandscape(model, F.mse_loss, (images, torch.zeros(3, 2, 2, 2).double()))
    with pytest.raises(NoEnclosure, match="a divisor of its own"):
        land.enclosure()


def test_kinks_and_dead_units_exactly_at_the_ends() -> None:
    """Pre-activations that are 0 at a corner, all along, or at one end of a sub-interval."""
    x = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    for make in (nn.ReLU, lambda: nn.LeakyReLU(0.25), nn.ELU):
        model = nn.Sequential(nn.Linear(3, 4), make(), nn.Linear(4, 2)).double()
        land = ModelLandscape(model, F.mse_loss, (x, Y[:3]))
        a = torch.arange(land.dim, dtype=torch.float64) % 3 - 1
        b = 0 * a
        t = np.linspace(0, 1, 9)
        found = land.enclosure().slope_range(a, b, t[:-1], t[1:])
        inner = t[:-1, None] + np.linspace(0, 1, 9) / 8
        theta = a + torch.from_numpy(inner).reshape(-1, 1) * (b - a)
        values = land.loss(theta).numpy().reshape(inner.shape)
        assert (found.value_lo[:, None] <= values).all()
        assert (values <= found.value_hi[:, None]).all()
        rise = np.diff(values, axis=1) / np.diff(inner, axis=1)
        assert (found.slope_lo[:, None] - 1e-12 <= rise).all()
        assert (rise <= found.slope_hi[:, None] + 1e-12).all()


def test_own_rounding_grows_with_the_unit() -> None:
    small, large = (
        own_rounding(dtype, 1.0, 1.0, 1.0 + 1e-8) for dtype in (torch.float64, torch.float32)
    )
    assert small == pytest.approx(1e-8)
    assert large == pytest.approx(1e-8 * 2**29)
    assert own_rounding(torch.float64, 1.0, 1.0, 1.0) == 2.0**-41
    assert own_rounding(torch.float64, 1.0, -np.inf, 1.0) == np.inf


class Odd(nn.Module):
    """A linear layer with something odd after it."""

    def __init__(self, odd: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 2)
        self.odd = odd

    def forward(self, x: Tensor) -> Tensor:
        """Return the odd thing."""
        return self.odd(self.inner(x))


def shortcut(x: Tensor) -> Tensor:
    """Add the input to the output."""
    return x + x.relu()


def by_value(x: Tensor) -> Tensor:
    """Branch on a value."""
    return x.relu() if torch.isfinite(x).all() else x


def blanked(x: Tensor) -> Tensor:
    """Write into the tensor, which returns nothing."""
    x[:, 0] = 0.0
    return x


def blanked_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Ignore the first output by writing into the outputs."""
    outputs[:, 0] = 0.0
    return F.mse_loss(outputs, targets)


def rounded_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Round the squared error down."""
    found: Tensor = torch.div(F.mse_loss(outputs, targets), 1e-12, rounding_mode="floor")
    return found


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        (blanked, "__setitem__"),
        (lambda x: F.softplus(x, threshold=1.0), "threshold below 20"),
        (shortcut, "torch.Tensor.add|no chain"),
        (by_value, "reads something else|which has no enclosure|without values"),
        (torch.sin, "calls torch.sin, which has no enclosure"),
        (lambda x: F.gelu(x, approximate="tanh"), "tanh approximation"),
        (lambda x: F.leaky_relu(x, -0.5), "leaky ReLU of slope"),
    ],
)
def test_networks_without_an_enclosure_say_why(odd: Any, reason: str) -> None:
    land = ModelLandscape(Odd(odd).double(), F.mse_loss, (X, Y))
    for _ in range(2):  # the second answer is remembered
        with pytest.raises(NoEnclosure, match=reason):
            land.enclosure()


@pytest.mark.parametrize(
    ("loss", "targets", "reason"),
    [
        (F.l1_loss, Y, "l1_loss"),
        (blanked_loss, Y, "__setitem__"),
        (rounded_loss, Y, "torch.div"),
        (lambda o, y: ((2 * o - y) ** 2).mean(), Y, "the loss calls"),
        (lambda o, y: F.cross_entropy(o, y, label_smoothing=0.1), CLASSES, "cross_entropy"),
        (lambda o, y: (F.mse_loss(o, y), len(o)), Y, "weights of its own"),
    ],
)
def test_losses_without_an_enclosure_say_why(loss: Any, targets: Tensor, reason: str) -> None:
    land = ModelLandscape(nn.Linear(3, 2).double(), loss, (X, targets))
    with pytest.raises(NoEnclosure, match=reason):
        land.enclosure()


def test_other_landscapes_say_why() -> None:
    with pytest.raises(NoEnclosure, match="FunctionLandscape cannot bound itself"):
        enclose(FunctionLandscape(lambda x: (x**2).sum(), 2))
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    first = nn.Sequential(nn.ReLU(), nn.Linear(3, 2)).double()
    with pytest.raises(NoEnclosure, match="data themselves go through"):
        ModelLandscape(first, F.mse_loss, (X, Y)).enclosure()
    pooled = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.AvgPool2d(2, divisor_override=1), nn.Flatten(), nn.Linear(18, 2)
    )
    with pytest.raises(NoEnclosure, match="divisor of its own"):
        ModelLandscape(pooled, F.cross_entropy, (x, torch.arange(4) % 2)).enclosure()
    norm = ModelLandscape(models.resnet(2, seed=0), F.cross_entropy, (x, torch.arange(4)))
    with pytest.raises(NoEnclosure, match="BatchNorm"):
        norm.enclosure()
    decay = ModelLandscape(
        nn.Linear(3, 2).double(), F.mse_loss, (X, Y), penalty=lambda theta: theta.abs().sum()
    )
    with pytest.raises(NoEnclosure, match="penalty is a function"):
        decay.enclosure()


def test_a_broken_enclosure_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer that computes something else is met where the model stands."""

    def wrong(self: Activation, jet: Jet, segment: Segment) -> Jet:
        return jet

    land = ModelLandscape(chain(nn.Tanh), F.mse_loss, (X, Y))
    monkeypatch.setattr(Activation, "jet", wrong)
    with pytest.raises(NoEnclosure, match="does not hold"):
        land.enclosure()


def test_cost_is_counted_and_the_model_left_alone() -> None:
    model = chain(nn.ReLU)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    land = ModelLandscape(model, F.mse_loss, (X, Y))
    found = land.enclosure()
    assert isinstance(found, NetworkEnclosure)
    assert isinstance(found.layers[0], Affine)
    start = land.cost
    a = land.initial
    found.slope_range(a, 2 * a, np.array([0.0, 0.5]), np.array([0.5, 1.0]))
    spent = land.cost - start
    assert (spent.passes, spent.losses, spent.gradients) == (4.0, 0, 0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match="0 <= t0 <= t1 <= 1"):
        found.slope_range(a, 2 * a, np.array([0.5]), np.array([0.2]))
    with pytest.raises(ValueError, match="one hidden layer"):
        found.exact_maximum(a, 2 * a)


@pytest.mark.parametrize("make", [nn.Tanh, nn.ReLU, nn.Softplus, nn.GELU])
@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_values_at_places_hold_the_loss_as_narrowly_as_sub_intervals(
    make: Callable[[], nn.Module], decay: float
) -> None:
    land = ModelLandscape(chain(make), F.mse_loss, (X, Y), penalty=decay)
    found, a = land.enclosure(), land.initial
    b = -2 * a
    t = np.linspace(0, 1, 7)
    before = land.cost
    low, high = found.value_range(a, b, t)
    spent = land.cost - before
    assert (spent.passes, spent.losses, spent.gradients) == (7.0, 0, 0)
    v = land.loss(a + torch.from_numpy(t)[:, None] * (b - a)).numpy()
    assert (low <= v).all()
    assert (v <= high).all()
    whole = found.slope_range(a, b, t, t)
    assert (high - low <= (whole.middle_hi - whole.middle_lo) * (1 + 1e-3) + 1e-15).all()
    with pytest.raises(ValueError, match="0 <= t <= 1"):
        found.value_range(a, b, np.array([1.5]))
