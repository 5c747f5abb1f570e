"""BatchNorm as a stated policy: frozen, batch, recompute."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from truth import naive, photograph, same

from thalweg.estimate import Cost
from thalweg.landscape import FunctionLandscape, ModelLandscape, Normalised, for_evaluation
from thalweg.landscape.normalisation import Moments
from thalweg.zoo import tiny

Batches = list[tuple[Tensor, Tensor]]


def network(**options: object) -> nn.Module:
    """Two BatchNorms, so that the second one's input depends on how the first normalises."""
    model = nn.Sequential(
        nn.Linear(4, 6),
        nn.BatchNorm1d(6, **options),
        nn.Tanh(),
        nn.Linear(6, 5),
        nn.BatchNorm1d(5, **options),
        nn.Tanh(),
        nn.Linear(5, 3),
    ).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        for part in (model[1], model[4]):
            if part.running_mean is not None:
                part.running_mean.uniform_(-1, 1, generator=generator)
                part.running_var.uniform_(0.5, 2, generator=generator)
    return model


def batches(sizes: Sequence[int] = (12, 7, 14)) -> Batches:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(sum(sizes), 4, generator=generator, dtype=torch.float64)
    targets = torch.randint(3, (sum(sizes),), generator=generator)
    return list(zip(inputs.split(list(sizes)), targets.split(list(sizes)), strict=True))


def land_of(model: nn.Module, data: object, policy: str, **options: object) -> ModelLandscape:
    return ModelLandscape(model, F.cross_entropy, data, batchnorm=policy, **options)


def without_statistics(model: nn.Module) -> nn.Module:
    """The same network in training mode, which never touches a running statistic."""
    model = copy.deepcopy(model).train()
    for part in model.modules():
        if isinstance(part, nn.BatchNorm1d):
            part.track_running_stats, part.running_mean, part.running_var = False, None, None
    return model


def two_pass(model: nn.Module, data: Batches) -> dict[str, Tensor]:
    """Every layer's inputs under batch statistics, pooled, then mean and unbiased variance."""
    naked, seen = without_statistics(model), {1: [], 4: []}
    for index in seen:
        naked[index].register_forward_pre_hook(
            lambda _, given, kept=seen[index]: kept.append(given[0].detach().clone())
        )
    for inputs, _ in data:
        naked(inputs)
    found = {}
    for index, values in seen.items():
        pooled = torch.cat(values)
        found[f"{index}.running_mean"] = pooled.sum(0) / len(pooled)
        found[f"{index}.running_var"] = ((pooled - found[f"{index}.running_mean"]) ** 2).sum(0) / (
            len(pooled) - 1
        )
    return found


def evaluated(model: nn.Module, data: Batches, statistics: dict[str, Tensor]) -> float:
    model = copy.deepcopy(model).eval()
    state = model.state_dict()
    state.update(statistics)
    model.load_state_dict(state)
    total = sum(len(y) * F.cross_entropy(model(x), y).item() for x, y in data)
    return total / sum(len(y) for _, y in data)


def test_frozen_is_the_network_in_eval_mode() -> None:
    model, data = network(), batches()
    land = land_of(model, data, "frozen")
    assert land.batchnorm == "frozen"
    assert isinstance(land, Normalised)
    expected = evaluated(model, data, {})
    assert land.loss(land.vector(model)).item() == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("momentum", [0.1, None, 1.0])
@pytest.mark.parametrize("affine", [True, False])
def test_batch_is_the_network_in_training_mode(momentum: float | None, affine: bool) -> None:
    model, data = network(momentum=momentum, affine=affine), batches()
    land = land_of(model, data, "batch")
    theta = land.vector(model)
    truth = naive(without_statistics(model), F.cross_entropy, data)
    leaf = theta.clone().requires_grad_()
    value = truth(leaf)
    (slope,) = torch.autograd.grad(value, leaf, create_graph=True)
    (product,) = torch.autograd.grad(slope @ theta, leaf)
    assert land.loss(theta).item() == pytest.approx(value.item(), rel=1e-12)
    torch.testing.assert_close(land.gradient(theta), slope, rtol=1e-9, atol=1e-11)
    with land.at(theta) as point:
        torch.testing.assert_close(point.hvp(theta), product, rtol=1e-9, atol=1e-10)
    trained = copy.deepcopy(model).train()
    losses = [len(y) * F.cross_entropy(trained(x), y).item() for x, y in data]
    assert land.loss(theta).item() == pytest.approx(sum(losses) / 33, rel=1e-12)


@pytest.mark.parametrize("sizes", [(12, 7, 14), (33,), (2, 31)])
@pytest.mark.parametrize("options", [{}, {"momentum": None}, {"affine": False}])
def test_recompute_is_the_naive_two_pass(
    sizes: tuple[int, ...], options: dict[str, float | None]
) -> None:
    model, data = network(**options), batches(sizes)
    land = land_of(model, data, "recompute")
    theta, statistics = land.vector(model), two_pass(model, data)
    assert land.loss(theta).item() == pytest.approx(evaluated(model, data, statistics), rel=1e-12)
    for name, value in land._sweep.statistics(theta).items():
        torch.testing.assert_close(value, statistics[name], rtol=1e-12, atol=1e-13)
    unweighted = {
        name: torch.stack([two_pass(model, [part])[name] for part in data]).mean(0)
        for name in statistics
    }
    if len(sizes) > 1:
        wrong = evaluated(model, data, unweighted)
        assert abs(wrong - evaluated(model, data, statistics)) > 1e-6, "the check sees nothing"


def test_recompute_is_torchs_update_bn_on_one_batch() -> None:
    """torch averages the batches' statistics unweighted; on one batch there is no difference."""
    model, data = network(), batches((33,))
    land = land_of(model, data, "recompute")
    updated = copy.deepcopy(model)
    update_bn([x for x, _ in data], updated)
    updated.eval()
    expected = F.cross_entropy(updated(data[0][0]), data[0][1]).item()
    assert land.loss(land.vector(model)).item() == pytest.approx(expected, rel=1e-12)


def test_recompute_of_right_statistics_is_the_networks_own_loss() -> None:
    """What has its own data's statistics already is evaluated as it is."""
    model, data = network(), batches((33,))
    update_bn([x for x, _ in data], model)
    frozen, recomputed = (land_of(model, data, policy) for policy in ("frozen", "recompute"))
    theta = frozen.vector(model)
    assert recomputed.loss(theta).item() == pytest.approx(frozen.loss(theta).item(), rel=1e-12)
    moved = theta + 0.3
    assert abs(recomputed.loss(moved) - frozen.loss(moved)) > 1e-3


def test_recompute_has_no_derivative() -> None:
    model, data = network(), batches()
    land = land_of(model, data, "recompute")
    theta = land.vector(model)
    message = r"not defined under batchnorm='recompute'.*with_batchnorm\('batch'\).*'frozen'"
    for call in (
        lambda: land.gradient(theta),
        lambda: land.value_and_gradient(theta),
        lambda: land.at(theta).__enter__(),
        lambda: land.batches(theta),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    rows = torch.stack([theta, theta + 0.1, theta])
    losses = land.loss(rows)
    assert torch.equal(losses[0], losses[2])
    assert losses.shape == (3,)
    assert torch.equal(land.loss(rows[:0]), rows.new_zeros(0))


def test_policies_of_one_landscape_share_its_tally() -> None:
    model, data = network(), batches()
    land = land_of(model, data, "frozen", metrics="accuracy")
    theta, before = land.vector(model), land.cost
    first = land.loss(theta)
    other = land.with_batchnorm("recompute")
    other.loss(theta)
    assert land.cost - before == Cost(losses=2, passes=3)
    assert other.cost == land.cost
    batch = other.with_batchnorm("batch")
    batch.gradient(theta)
    assert land.cost - before == Cost(losses=3, gradients=1, passes=4)
    assert torch.equal(land.loss(theta), first)
    assert torch.equal(batch.with_batchnorm("frozen").loss(theta), first)
    assert land.with_batchnorm("frozen") is land
    assert (land.batchnorm, other.batchnorm, batch.batchnorm) == ("frozen", "recompute", "batch")
    assert for_evaluation(land).batchnorm == "recompute"
    assert for_evaluation(other) is other
    accuracy = other.metrics(theta)["accuracy"]
    assert accuracy.cost == Cost(losses=1, passes=2)
    with pytest.raises(ValueError, match="must be one of frozen, batch, recompute, not 'eval'"):
        land.with_batchnorm("eval")
    with pytest.raises(ValueError, match="not 'train'"):
        land_of(model, data, "train")


def test_networks_without_batchnorm_have_no_policy() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3)).double()
    land = ModelLandscape(model, F.cross_entropy, batches())
    assert land.batchnorm is None
    assert for_evaluation(land) is land
    assert land.with_batchnorm("recompute").gradient(land.vector(model)).isfinite().all()
    bowl = FunctionLandscape(lambda x: (x**2).sum(), 2)
    assert for_evaluation(bowl) is bowl


def test_without_running_statistics() -> None:
    """track_running_stats=False always uses the batch's: there is nothing to freeze."""
    model, data = network(track_running_stats=False), batches()
    for policy in ("frozen", "recompute"):
        with pytest.raises(ValueError, match=r"^1 keeps no running statistics.*='batch'"):
            land_of(model, data, policy)
    land = land_of(model, data, "batch")
    theta = land.vector(model)
    truth = naive(model, F.cross_entropy, data)
    assert land.loss(theta).item() == pytest.approx(truth(theta).item(), rel=1e-12)
    other = copy.deepcopy(model)
    land.load_into(other, theta + 1)
    assert torch.equal(land.vector(other), theta + 1)


def test_a_network_that_is_a_batchnorm() -> None:
    """The model itself has the empty name."""
    model, (inputs, _) = nn.BatchNorm1d(4).double(), batches((33,))[0]
    with torch.no_grad():
        model.running_mean.fill_(0.3)
        model.weight.fill_(1.2)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs**4).mean()

    for policy, expected in (("frozen", copy.deepcopy(model).eval()), ("batch", model)):
        land = ModelLandscape(model, loss, (inputs, inputs), batchnorm=policy)
        theta = land.vector(model)
        truth = loss(copy.deepcopy(expected)(inputs), inputs).item()
        assert land.loss(theta).item() == pytest.approx(truth, rel=1e-12)
    other = land.with_batchnorm("recompute")
    written = copy.deepcopy(model)
    other.load_into(written, theta)
    torch.testing.assert_close(written.running_mean, inputs.mean(0))
    torch.testing.assert_close(written.running_var, inputs.var(0))


def test_one_layer_in_two_places() -> None:
    """A shared BatchNorm sees both of its inputs, and is written once."""
    shared = nn.BatchNorm1d(4).double()
    shared.running_mean.fill_(0.3)
    model = nn.Sequential(shared, nn.Tanh(), shared, nn.Linear(4, 3)).double()
    ((inputs, targets),) = batches((33,))
    land = land_of(model, (inputs, targets), "recompute")
    theta, written = land.vector(model), copy.deepcopy(model)
    land.load_into(written, theta)
    first = F.batch_norm(inputs, None, None, shared.weight, shared.bias, training=True)
    seen = torch.cat([inputs, torch.tanh(first)]).detach()
    torch.testing.assert_close(written[0].running_mean, seen.mean(0))
    torch.testing.assert_close(written[2].running_var, seen.var(0))
    expected = F.cross_entropy(written.eval()(inputs), targets).item()
    assert land.loss(theta).item() == pytest.approx(expected, rel=1e-12)


def test_a_layer_that_the_forward_pass_skips() -> None:
    """Its statistics cannot be re-estimated, and stay what they were."""
    model, data = network(), batches()
    model.spare = nn.BatchNorm1d(2).double()
    model.spare.running_mean.fill_(7.0)
    land = ModelLandscape(
        model, F.cross_entropy, data, batchnorm="recompute", forward=lambda m, b: m[:7](b[0])
    )
    assert land.loss(land.vector(model)).isfinite()
    assert land._sweep.statistics(land.vector(model))["spare.running_mean"].tolist() == [7.0, 7.0]


def test_other_normalisations() -> None:
    """InstanceNorm with running statistics can be frozen, but not re-estimated."""
    model = nn.Sequential(
        nn.Conv1d(1, 2, 3),
        nn.InstanceNorm1d(2, track_running_stats=True),
        nn.Flatten(),
        nn.Linear(4, 3),
    ).double()
    model[1].running_mean.fill_(0.2)
    ((inputs, targets),) = batches((33,))
    data = inputs[:, None], targets
    land = ModelLandscape(model, F.cross_entropy, data)
    expected = F.cross_entropy(copy.deepcopy(model).eval()(data[0]), targets).item()
    assert land.loss(land.vector(model)).item() == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ValueError, match=r"1 \(InstanceNorm1d\) is not a BatchNorm layer"):
        ModelLandscape(model, F.cross_entropy, data, batchnorm="recompute")
    land = ModelLandscape(model, F.cross_entropy, data, batchnorm="batch")
    expected = F.cross_entropy(copy.deepcopy(model).train()(data[0]), targets).item()
    assert land.loss(land.vector(model)).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("policy", ["batch", "recompute"])
def test_a_batch_of_one_example(policy: str) -> None:
    """32 + 1: the one left over has no variance, and the remedy is said."""
    ((inputs, targets),) = batches((33,))

    def lose() -> None:
        land = land_of(network(), (inputs, targets), policy, batch_size=32)
        land.loss(land.vector(network()))

    with pytest.raises(ValueError, match=r"one example has no batch statistics.*batch size"):
        lose()


@pytest.mark.parametrize("policy", ["frozen", "batch", "recompute"])
def test_load_into_writes_the_statistics(policy: str) -> None:
    """The module that comes out, in eval mode, is the network that was measured."""
    model, data = network(), batches()
    land = land_of(model, data, policy)
    theta = land.vector(model) + 0.2
    other = network()
    with torch.no_grad():
        for part in (other[1], other[4]):
            part.running_mean.fill_(9.0)
            part.num_batches_tracked.fill_(5)
    before = photograph(model)
    land.load_into(other, theta)
    assert same(photograph(model), before)
    assert torch.equal(nn.utils.parameters_to_vector(other.parameters()), theta)
    assert other[1].num_batches_tracked.item() == 5
    measured = land if policy == "frozen" else land.with_batchnorm("recompute")
    assert evaluated(other, data, {}) == pytest.approx(measured.loss(theta).item(), rel=1e-12)
    statistics = (
        two_pass(other, data)
        if policy != "frozen"
        else {name: value for name, value in model.state_dict().items() if "running" in name}
    )
    for name, value in statistics.items():
        torch.testing.assert_close(other.state_dict()[name], value, rtol=1e-12, atol=1e-13)


def test_minibatches_under_batch_statistics() -> None:
    """The chosen examples form one batch, or one per batch that they come from."""
    model, data = network(), batches()
    inputs, targets = (torch.cat(part) for part in zip(*data, strict=True))
    chosen = [30, 2, 20, 5, 31, 13, 1]
    whole = land_of(model, (inputs, targets), "batch").minibatch(chosen)
    naked = without_statistics(model)
    theta = whole.vector(model)
    expected = F.cross_entropy(naked(inputs[chosen]), targets[chosen]).item()
    assert whole.loss(theta).item() == pytest.approx(expected, rel=1e-12)
    listed = land_of(model, data, "batch").minibatch(chosen)
    groups = [[2, 5, 1], [13], [30, 20, 31]]
    with pytest.raises(ValueError, match="one example has no batch statistics"):
        listed.loss(theta)
    groups[1] = [13, 18]
    listed = land_of(model, data, "batch").minibatch([30, 2, 20, 5, 31, 13, 1, 18])
    expected = (
        sum(len(g) * F.cross_entropy(naked(inputs[g]), targets[g]).item() for g in groups) / 8
    )
    assert listed.loss(theta).item() == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ValueError, match="depend on each other"):
        next(listed.batches(theta)).per_example_gradients()


def test_images() -> None:
    """Statistics of a convolution pool over pixels too: the ResNet of the zoo."""
    model, inputs, targets = tiny("resnet", examples=20)
    land = land_of(model, (inputs, targets), "recompute")
    updated = copy.deepcopy(model)
    update_bn([inputs], updated)
    updated.eval()
    found = land.loss(land.vector(model)).item()
    assert found == pytest.approx(F.cross_entropy(updated(inputs), targets).item(), rel=1e-11)


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_moments_merge_exactly(offset: float) -> None:
    """Chan, Golub and LeVeque's merge does not lose digits to a large mean."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(37, 3, 5, generator=generator, dtype=torch.float64) + offset
    moments = Moments()
    for part in values.split([1, 20, 16]):
        moments.add(part)
    mean, variance = moments.statistics(torch.float64)
    pooled = values.transpose(0, 1).flatten(1)
    torch.testing.assert_close(mean, pooled.mean(1), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(variance, pooled.var(1), rtol=1e-9, atol=0)
    with pytest.raises(ValueError, match="saw no data"):
        Moments().statistics(torch.float64)


@pytest.mark.parametrize("options", [{"affine": False}, {"momentum": None}])
def test_variants_of_the_layer_under_stored_statistics(options: dict[str, object]) -> None:
    """A layer without weights of its own, or with a cumulative average, is frozen like any."""
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, **options), nn.Linear(3, 2)).double()
    inputs = torch.linspace(-1, 2, 24, dtype=torch.float64).reshape(6, 4)
    targets = torch.tensor([0, 1, 0, 1, 1, 0])
    model(inputs)
    model.eval()
    land = ModelLandscape(model, F.cross_entropy, (inputs, targets))
    truth = F.cross_entropy(model(inputs), targets).detach()
    torch.testing.assert_close(land.loss(land.vector(model)), truth, rtol=1e-12, atol=0)
