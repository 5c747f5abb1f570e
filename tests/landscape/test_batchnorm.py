"""BatchNorm under its three policies, against naive code."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thalweg.landscape import ModelLandscape, for_evaluation

EXAMPLES, CUTS = 23, (0, 9, 15, 23)


def network(seed: int = 0, **options: object) -> nn.Module:
    """A small network with two BatchNorm layers, its statistics those of some training."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3),
        nn.BatchNorm2d(3, **options),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(48, 5),
        nn.BatchNorm1d(5, **options),
        nn.Tanh(),
        nn.Linear(5, 3),
    ).double()
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
                tensor.add_(0.3 * noise).abs_() if tensor.ndim == 1 else tensor.add_(0.3 * noise)
    return model.eval()


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    inputs = torch.randn(EXAMPLES, 1, 6, 6, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(3, (EXAMPLES,), generator=generator)


def ragged() -> list[tuple[Tensor, Tensor]]:
    inputs, targets = data()
    return [(inputs[a:b], targets[a:b]) for a, b in itertools.pairwise(CUTS)]


@torch.no_grad()
def naive_statistics(model: nn.Module) -> nn.Module:
    """Return a copy with the statistics of all data, by loops: weighted, unbiased, pooled."""
    model = copy.deepcopy(model)
    for number, layer in enumerate(model):
        if not isinstance(layer, nn.modules.batchnorm._BatchNorm):
            continue
        seen = []
        for inputs, _ in ragged():
            x = inputs
            for before in model[:number]:
                x = batch_normalised(before, x)
            seen.append(x.transpose(0, 1).flatten(1))
        values = torch.cat(seen, dim=1)
        layer.running_mean.copy_(values.mean(1))
        layer.running_var.copy_(values.var(1, unbiased=True))
    return model


def batch_normalised(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply a layer; BatchNorm by the statistics of this very batch."""
    if not isinstance(layer, nn.modules.batchnorm._BatchNorm):
        return layer(x)
    return F.batch_norm(x, None, None, layer.weight, layer.bias, training=True, eps=layer.eps)


def test_frozen_is_the_networks_own_evaluation():
    model = network()
    land = ModelLandscape(model, F.cross_entropy, ragged())
    inputs, targets = data()
    own = F.cross_entropy(model(inputs), targets).detach()
    assert float(land.loss(land.vector(model))) == pytest.approx(float(own), rel=1e-12)


def test_frozen_ignores_that_the_user_left_training_on():
    model = network()
    land = ModelLandscape(model, F.cross_entropy, ragged())
    training = ModelLandscape(copy.deepcopy(model).train(), F.cross_entropy, ragged())
    theta = land.vector(model)
    assert torch.equal(training.loss(theta), land.loss(theta))


def test_frozen_refuses_another_networks_statistics():
    land = ModelLandscape(network(0), F.cross_entropy, ragged())
    with pytest.raises(ValueError, match=r"BatchNorm statistics differ .*recompute"):
        land.vector(network(1))
    other = land.with_batchnorm("recompute")
    assert other.vector(network(1)).shape == (land.dim,)


def test_batch_is_training_mode_on_the_fixed_partition():
    model = network()
    land = ModelLandscape(model, F.cross_entropy, ragged(), batchnorm="batch")
    theta = land.vector(model)
    total = torch.zeros((), dtype=torch.float64)
    parameters = list(model.parameters())
    for inputs, targets in ragged():
        x = inputs
        for layer in model:
            x = batch_normalised(layer, x)
        total = total + F.cross_entropy(x, targets, reduction="sum") / EXAMPLES
    slopes = torch.autograd.grad(total, parameters)
    value, gradient = land.value_and_gradient(theta)
    assert float(value) == pytest.approx(float(total.detach()), rel=1e-12)
    torch.testing.assert_close(
        gradient, torch.cat([s.reshape(-1) for s in slopes]), rtol=1e-9, atol=1e-13
    )


def test_batch_refuses_a_cap_that_would_divide_a_batch():
    with pytest.raises(MemoryError, match=r"whole batch .*make the batches smaller"):
        ModelLandscape(network(), F.cross_entropy, data(), batchnorm="batch", memory="12 KiB")


def test_recompute_is_the_naive_pooled_statistic_on_ragged_batches():
    model = network()
    land = ModelLandscape(model, F.cross_entropy, ragged(), batchnorm="recompute")
    inputs, targets = data()
    truth = F.cross_entropy(naive_statistics(model)(inputs), targets).detach()
    theta = land.vector(model)
    found = [float(land.loss(theta)) for _ in range(3)]
    assert found == [pytest.approx(float(truth), rel=1e-10)] * 3
    unweighted = copy.deepcopy(model)
    torch.optim.swa_utils.update_bn([x for x, _ in ragged()], unweighted)
    wrong = F.cross_entropy(unweighted.eval()(inputs), targets).detach()
    assert abs(float(wrong) - float(truth)) > 1e-6, "the data does not tell the two apart"


def test_recompute_is_torchs_update_bn_on_one_batch():
    model = network()
    land = ModelLandscape(model, F.cross_entropy, data(), batchnorm="recompute")
    inputs, targets = data()
    updated = copy.deepcopy(model)
    torch.optim.swa_utils.update_bn([inputs], updated)
    truth = F.cross_entropy(updated.eval()(inputs), targets).detach()
    assert float(land.loss(land.vector(model))) == pytest.approx(float(truth), rel=1e-10)


@pytest.mark.parametrize("what", ["gradient", "value_and_gradient", "batches"])
def test_recompute_has_no_derivatives_and_says_where_they_are(what):
    land = ModelLandscape(network(), F.cross_entropy, data(), batchnorm="recompute")
    theta = land.vector(network())
    with pytest.raises(ValueError, match=r"recompute.*with_batchnorm\('batch'\).*'frozen'"):
        list(getattr(land, what)(theta))


def test_recompute_has_no_hessian_and_says_where_it_is():
    land = ModelLandscape(network(), F.cross_entropy, data(), batchnorm="recompute")
    message = r"recompute.*with_batchnorm\('batch'\).*'frozen'"
    with pytest.raises(ValueError, match=message), land.at(land.vector(network())):
        pass


def test_policies_do_not_disturb_each_other():
    model = network()
    frozen = ModelLandscape(model, F.cross_entropy, ragged())
    theta = frozen.vector(model)
    before = frozen.loss(theta)
    batch, recompute = (frozen.with_batchnorm(policy) for policy in ("batch", "recompute"))
    losses = [float(land.loss(theta)) for land in (batch, recompute)]
    assert torch.equal(frozen.loss(theta), before)
    assert [float(land.loss(theta)) for land in (batch, recompute)] == losses
    assert len({*losses, float(before)}) == 3
    back = batch.with_batchnorm("frozen")
    assert torch.equal(back.loss(theta), before)


def test_cost_of_another_policy_is_counted_here():
    land = ModelLandscape(network(), F.cross_entropy, ragged())
    theta, before = land.vector(network()), land.cost
    land.with_batchnorm("recompute").loss(theta)
    spent = land.cost - before
    assert (spent.losses, spent.passes) == (1, 2)


def test_paths_and_comparisons_see_recomputed_statistics():
    land = ModelLandscape(network(), F.cross_entropy, ragged(), batchnorm="batch")
    assert for_evaluation(land).batchnorm == "recompute"
    plain = ModelLandscape(nn.Linear(2, 2), F.mse_loss, (torch.ones(2, 2), torch.ones(2, 2)))
    assert for_evaluation(plain) is plain


def test_load_into_writes_the_statistics_that_belong_to_the_weights():
    source, target = network(0), network(1)
    land = ModelLandscape(target, F.cross_entropy, ragged(), batchnorm="batch")
    theta = land.vector(source)
    land.load_into(target, theta)
    truth = naive_statistics(source)
    for name, value in truth.state_dict().items():
        if "num_batches" not in name:
            torch.testing.assert_close(target.state_dict()[name], value, rtol=1e-10, atol=1e-12)


def test_counters_are_never_coordinates():
    model = network()
    land = ModelLandscape(model, F.cross_entropy, ragged())
    assert land.dim == sum(p.numel() for p in model.parameters())
    moved = copy.deepcopy(model)
    moved[1].num_batches_tracked.add_(1000)
    assert torch.equal(land.vector(moved), land.vector(model))


def test_layers_without_statistics_need_the_batch_policy():
    model = network(track_running_stats=False)
    for policy in ("frozen", "recompute"):
        with pytest.raises(ValueError, match=r"no running statistics.*batchnorm='batch'"):
            ModelLandscape(model, F.cross_entropy, ragged(), batchnorm=policy)
    land = ModelLandscape(model, F.cross_entropy, ragged(), batchnorm="batch")
    assert torch.isfinite(land.loss(land.vector(model)))


@pytest.mark.parametrize("options", [{"affine": False}, {"momentum": None}])
@pytest.mark.parametrize("policy", ["frozen", "batch", "recompute"])
def test_variants_of_the_layer(options, policy):
    model = network(**options)
    land = ModelLandscape(model, F.cross_entropy, ragged(), batchnorm=policy)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert torch.isfinite(land.loss(land.vector(model)))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_unknown_policy_is_refused():
    with pytest.raises(ValueError, match=r"frozen, batch, recompute, not 'fresh'"):
        ModelLandscape(network(), F.cross_entropy, ragged(), batchnorm="fresh")
