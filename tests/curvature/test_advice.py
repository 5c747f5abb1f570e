"""Thresholds by simulation, preconditioners against torch's own steps, noise scales by hand."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from thalweg.curvature import Hessian, MatrixOperator
from thalweg.curvature.advice import (
    Preconditioned,
    largest_stable_step,
    optimiser_sharpness,
    sharpness_bound,
)
from thalweg.curvature.eigenpairs import eigenpairs
from thalweg.curvature.step_rule import StepRule
from thalweg.landscape import FunctionLandscape, ModelLandscape

sys.path.insert(0, str(Path(__file__).parents[1] / "landscape"))
from truth import untouched

H = torch.tensor([0.5, 2.0, 5.0], dtype=torch.float64)


def bowl(diagonal=H):
    return FunctionLandscape(lambda x: 0.5 * (diagonal * x**2).sum(), dim=len(diagonal))


def growth(make, rate, steps=4000):
    """Run torch's own optimiser on x^2 / 2 and return how far the last steps are from zero."""
    x = torch.ones(1, dtype=torch.float64, requires_grad=True)
    optimiser = make([x], rate)
    for _ in range(steps):
        x.grad = x.detach().clone()
        optimiser.step()
        if abs(float(x.detach())) > 1e6:
            return math.inf
    return abs(float(x.detach()))


def sgd(**options):
    return lambda p, lr: torch.optim.SGD(p, lr=lr, **options)


class TestThresholds:
    @pytest.mark.parametrize(
        "make",
        [
            sgd(),
            sgd(momentum=0.9),
            sgd(momentum=0.5, dampening=0.3),
            sgd(momentum=0.9, nesterov=True),
            sgd(momentum=0.3, nesterov=True),
            sgd(weight_decay=0.25),
            sgd(momentum=0.8, weight_decay=0.5),
        ],
    )
    def test_torch_s_sgd_turns_unstable_where_the_rule_says(self, make):
        land = bowl(torch.ones(1, dtype=torch.float64))
        probe = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        limit = largest_stable_step(land, probe.detach(), optimizer=make([probe], 0.1), seed=0)
        assert growth(make, 0.99 * limit.lower) < 1e-6
        assert growth(make, 1.01 * limit.upper) == math.inf

    @pytest.mark.parametrize("beta", [0.0, 0.5, 0.9])
    @pytest.mark.parametrize("decay", [0.0, 0.3])
    def test_an_average_with_decoupled_decay_by_its_companion_matrix(self, beta, decay):
        def radius(lr):
            step = lr * (1 - beta)
            companion = [[1 - lr * decay - step, -lr * beta], [1 - beta, beta]]
            return max(abs(np.linalg.eigvals(np.array(companion))))

        rule = StepRule(lr=0.1, momentum=beta, form="average", decoupled=decay)
        limit = rule.largest_step(1.0)
        assert radius(0.999 * limit) < 1 < radius(1.001 * limit)
        at = StepRule(lr=limit, momentum=beta, form="average", decoupled=decay)
        assert at.threshold == pytest.approx(limit)  # both forms of the same condition

    @pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
    @pytest.mark.parametrize("decay", [0.0, 0.4])
    def test_torch_s_adam_with_its_preconditioner_held_fixed(self, kind, decay):
        """A second moment that is held in place makes Adam a linear map, whose growth is seen."""
        inside = decay if kind is torch.optim.Adam else 0.0

        def run(lr):
            x = torch.zeros(1, dtype=torch.float64, requires_grad=True)
            x.grad = torch.zeros_like(x)
            adam = kind([x], lr=lr, eps=0.1, weight_decay=decay)
            adam.step()  # makes the state, and does not move
            adam.state[x]["step"] += 100_000  # the corrections for a short past are over
            x.data += 1e-3
            for _ in range(3000):
                x.grad = 2 * x.detach()
                fresh = 1e-3 * ((2 + inside) * x.detach()) ** 2
                adam.state[x]["exp_avg_sq"] = (0.25 - fresh) / 0.999  # 0.25 after the step
                adam.step()
                if abs(float(x.detach())) > 1e3:
                    break
            return x, adam

        land = bowl(torch.full((1,), 2.0, dtype=torch.float64))
        x, adam = run(1e-3)
        rule = StepRule.read(adam, land)
        assert float(rule.diagonal) == pytest.approx(0.6)
        limit = largest_stable_step(land, x.detach() * 0, optimizer=rule, seed=0)
        assert abs(float(run(0.98 * limit.lower)[0].detach())) < 1e-3
        assert abs(float(run(1.02 * limit.upper)[0].detach())) > 1e3

    def test_known_values(self):
        assert StepRule(lr=1).threshold == 2
        assert StepRule(lr=1, momentum=0.9).threshold == pytest.approx(3.8)
        assert StepRule(lr=1, momentum=0.9, form="nesterov").threshold == pytest.approx(3.8 / 2.8)
        assert StepRule(lr=1, momentum=0.9, form="average").threshold == pytest.approx(38)
        assert StepRule(lr=1).largest_step(-1.0) == math.inf
        assert math.isnan(StepRule(lr=1).largest_step(math.nan))

    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"lr": -1.0}, "lr must be a finite number >= 0, got -1.0"),
            ({"lr": math.nan}, "lr must be"),
            ({"lr": 1.0, "momentum": 1.0}, r"momentum must lie in \[0, 1\)"),
            ({"lr": 1.0, "dampening": 1.0}, "dampening must be below 1"),
            ({"lr": 1.0, "decoupled": -1.0}, "decoupled must not be negative"),
            ({"lr": 1.0, "diagonal": torch.zeros(2)}, "must be positive everywhere"),
        ],
    )
    def test_numbers_that_no_optimiser_has_are_refused(self, options, match):
        with pytest.raises(ValueError, match=match):
            StepRule(**options)

    def test_an_unknown_form_is_refused(self, unchecked):
        with pytest.raises(ValueError, match="form must be one of heavy-ball, nesterov, average"):
            StepRule(lr=1.0, form="polyak")


class TestPreconditioned:
    def test_the_dense_matrix(self, with_spectrum, generator):
        inner = with_spectrum([-1.0, 0.5, 2.0, 7.0])
        diagonal = torch.rand(4, generator=generator, dtype=torch.float64) + 0.1
        decay = torch.rand(4, generator=generator, dtype=torch.float64)
        found = Preconditioned(inner, diagonal, decay=decay).to_dense()
        root = torch.diag(diagonal.rsqrt())
        truth = root @ (inner.matrix + torch.diag(decay)) @ root
        assert torch.allclose(found, truth, atol=1e-14)
        own = torch.linalg.eigvals((inner.matrix + torch.diag(decay)) / diagonal[:, None]).real
        assert torch.allclose(torch.linalg.eigvalsh(found), own.sort().values, atol=1e-12)

    def test_an_infinite_entry_holds_a_coordinate_still(self):
        inner = MatrixOperator(torch.tensor([[2.0, 1.0], [1.0, 3.0]]))
        found = Preconditioned(inner, torch.tensor([1.0, math.inf])).to_dense()
        assert torch.equal(found, torch.tensor([[2.0, 0.0], [0.0, 0.0]]))

    def test_definite_only_where_both_parts_are(self):
        inner = MatrixOperator(torch.eye(2))
        ones = torch.ones(2)
        assert not Preconditioned(inner, ones).definite  # nobody said that the identity is
        inner.definite = True
        assert Preconditioned(inner, ones).definite
        assert not Preconditioned(inner, ones, decay=-1.0).definite

    def test_a_wrong_diagonal_is_refused(self):
        inner = MatrixOperator(torch.eye(2))
        with pytest.raises(ValueError, match=r"shape \(3,\), but the operator is 2 x 2"):
            Preconditioned(inner, torch.ones(3))
        with pytest.raises(ValueError, match="1 of 2 entries of the diagonal are not positive"):
            Preconditioned(inner, torch.tensor([1.0, 0.0]))


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double().eval()


def data(count=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 4, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(0, 3, (count,), generator=generator)


def trained(make, steps=7):
    """A network, its landscape, and the optimiser after some steps."""
    with torch.random.fork_rng():
        model = network()
    inputs, targets = data()
    optimiser = make(model)
    for _ in range(steps):
        optimiser.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optimiser.step()
    return model, ModelLandscape(model, F.cross_entropy, (inputs, targets)), optimiser


def largest(land, theta, diagonal, decay=0.0):
    """The largest eigenvalue of P^-1 (H + W), densely."""
    dense = Hessian(land, theta).to_dense()
    dense = (dense + dense.T) / 2 + torch.diag(torch.as_tensor(decay).expand(land.dim))
    root = torch.diag(diagonal.rsqrt())
    return float(torch.linalg.eigvalsh(root @ dense @ root).max())


def flat(model, read):
    return torch.cat([read(p).reshape(-1) for p in model.parameters()])


class TestReading:
    @pytest.mark.parametrize("amsgrad", [False, True])
    @pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
    def test_adam_by_hand(self, kind, amsgrad):
        model, land, adam = trained(
            lambda m: kind(m.parameters(), lr=0.02, eps=1e-4, weight_decay=0.1, amsgrad=amsgrad)
        )
        theta = land.vector(model)
        felt = optimiser_sharpness(land, theta, adam, seed=0)
        key = "max_exp_avg_sq" if amsgrad else "exp_avg_sq"
        second = flat(model, lambda p: adam.state[p][key])
        diagonal = ((second / (1 - 0.999**7)).sqrt() + 1e-4) * (1 - 0.9**7)
        coupled = kind is torch.optim.Adam
        truth = largest(land, theta, diagonal, 0.1 if coupled else 0.0)
        assert felt.sharpness.lower - 1e-9 <= truth <= felt.sharpness.upper + 1e-9
        assert felt.product.lower == pytest.approx(0.02 * felt.sharpness.lower)
        assert felt.threshold == pytest.approx(38 * (1 if coupled else 1 - 0.02 * 0.1 / 2))

    def test_adam_s_next_step_is_that_of_the_rule(self):
        model, land, adam = trained(lambda m: torch.optim.Adam(m.parameters(), lr=0.02, eps=1e-4))
        before = land.vector(model)
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        mean = flat(model, lambda p: adam.state[p]["exp_avg"]) * 0.9
        for p in model.parameters():
            adam.state[p]["exp_avg_sq"] /= 0.999  # so that the next step leaves it as it was
        adam.step()
        rule = StepRule.read(adam, land)
        step = land.vector(model) - before
        assert torch.allclose(step, -0.02 * mean / rule.diagonal, rtol=1e-9)

    @pytest.mark.parametrize("centred", [False, True])
    def test_rmsprop_by_hand(self, centred):
        model, land, rms = trained(
            lambda m: torch.optim.RMSprop(m.parameters(), lr=1e-3, momentum=0.5, centered=centred)
        )
        theta = land.vector(model)
        rule = StepRule.read(rms, land)
        square = flat(model, lambda p: rms.state[p]["square_avg"])
        if centred:
            square = square - flat(model, lambda p: rms.state[p]["grad_avg"]) ** 2
        assert torch.allclose(rule.diagonal, square.sqrt() + 1e-8, rtol=1e-12)
        assert rule.threshold == 3.0
        felt = optimiser_sharpness(land, theta, rms, seed=0)
        assert largest(land, theta, rule.diagonal) == pytest.approx(felt.sharpness.upper, rel=1e-3)

    def test_groups_with_their_own_rates_and_decays_in_any_order(self):
        def make(model):
            (a, b), (c, d) = model[0].parameters(), model[2].parameters()
            return torch.optim.SGD(
                [{"params": [c, a], "weight_decay": 0.3}, {"params": [d, b], "lr": 0.05}],
                lr=0.2,
                momentum=0.9,
            )

        model, land, sgd = trained(make)
        theta = land.vector(model)
        with pytest.raises(ValueError, match="4 tensors in 2 groups cannot be matched by order"):
            optimiser_sharpness(land, theta, sgd)
        felt = optimiser_sharpness(land, theta, sgd, model=model, seed=0)
        weights = {id(p) for p in model.parameters() if p.ndim == 2}
        rates = flat(model, lambda p: torch.full_like(p, 1.0 if id(p) in weights else 0.25))
        decay = flat(model, lambda p: torch.full_like(p, 0.3 if id(p) in weights else 0.0))
        truth = largest(land, theta, 1 / rates.detach(), decay.detach())
        assert felt.sharpness.lower <= truth <= felt.sharpness.upper
        assert felt.rule.lr == 0.2

    def test_coordinates_that_the_optimiser_does_not_hold_stand_still(self):
        model, land, sgd = trained(lambda m: torch.optim.SGD(m[2].parameters(), lr=0.1))
        theta = land.vector(model)
        felt = optimiser_sharpness(land, theta, sgd, model=model, seed=0)
        dense = Hessian(land, theta).to_dense()[30:, 30:]
        top = float(torch.linalg.eigvalsh(dense).max())
        assert felt.sharpness.upper == pytest.approx(top, rel=1e-3)

    def test_names_given_to_the_optimiser_do(self):
        model, land, sgd = trained(
            lambda m: torch.optim.SGD(reversed(list(m.named_parameters())), lr=0.1)
        )
        found = optimiser_sharpness(land, land.vector(model), sgd, seed=0)
        plain = eigenpairs(Hessian(land, land.vector(model)), 1, seed=0)
        assert found.sharpness.upper == pytest.approx(float(plain.values[0]), rel=1e-3)

    def test_nothing_is_changed(self):
        model, land, adam = trained(lambda m: torch.optim.Adam(m.parameters()))
        state = [adam.state[p][key] for p in model.parameters() for key in adam.state[p]]
        with untouched(model, *[s for s in state if isinstance(s, torch.Tensor)]):
            optimiser_sharpness(land, land.vector(model), adam)

    def test_refusals(self):
        model, land, adam = trained(lambda m: torch.optim.Adam(m.parameters()), steps=0)
        theta = land.vector(model)
        with pytest.raises(ValueError, match="this Adam has taken no step yet"):
            optimiser_sharpness(land, theta, adam)
        with pytest.raises(TypeError, match="the step of Rprop is not known here"):
            optimiser_sharpness(land, theta, torch.optim.Rprop(model.parameters()))
        ascent = torch.optim.SGD(model.parameters(), lr=0.1, maximize=True)
        with pytest.raises(ValueError, match="ascends"):
            optimiser_sharpness(land, theta, ascent)
        groups = [{"params": [p], "momentum": 0.1 * i} for i, p in enumerate(model.parameters())]
        with pytest.raises(ValueError, match="differ in momentum"):
            optimiser_sharpness(land, theta, torch.optim.SGD(groups, lr=0.1), model=model)
        stranger = network(1)
        with pytest.raises(ValueError, match="none of the optimiser's tensors"):
            optimiser_sharpness(
                land, theta, torch.optim.SGD(stranger.parameters(), lr=0.1), model=model
            )


class TestVerdicts:
    def test_below_at_and_above_the_threshold(self):
        x = torch.ones(3, dtype=torch.float64)
        answers = [
            optimiser_sharpness(bowl(), x, StepRule(lr=lr), seed=0).stable.answer
            for lr in (0.39, 0.41)
        ]
        assert answers == ["yes", "no"]

    def test_what_is_not_settled_is_not_called_stable(self, net):
        case = net()
        rule = StepRule(lr=1e-6)
        found = optimiser_sharpness(case.land, case.theta, rule, max_products=2, seed=0)
        assert found.stable.answer == "unresolved"
        assert "not settled: raise max_products" in found.stable.reason
        enough = optimiser_sharpness(case.land, case.theta, rule, seed=0)
        assert enough.stable.yes

    def test_the_largest_step_is_that_of_the_dense_hessian(self, net):
        case = net()
        top = float(torch.linalg.eigvalsh(case.dense()).max())
        for options, limit in (({}, 2), ({"momentum": 0.9}, 3.8)):
            found = largest_stable_step(case.land, case.theta, seed=0, **options)
            assert found.lower <= limit / top <= found.upper
            assert found.upper / found.lower < 1.01
            assert found.upper_kind == "certified"

    def test_no_positive_curvature_no_limit(self):
        land = bowl(-H)
        found = largest_stable_step(land, torch.zeros(3, dtype=torch.float64), seed=0)
        assert found.lower == found.upper == math.inf

    def test_momentum_and_an_optimiser_together_are_refused(self):
        with pytest.raises(ValueError, match="give either optimizer= or momentum="):
            largest_stable_step(bowl(), H, momentum=0.9, optimizer=StepRule(lr=0.1))

    def test_in_words_and_json(self):
        found = optimiser_sharpness(bowl(), H, StepRule(lr=0.5), seed=0)
        assert "UNSTABLE (threshold 2)" in str(found)
        assert "[red]UNSTABLE[/red]" in found.__rich__()
        assert found.to_json()["threshold"] == 2
        assert found.cost.hvps > 0

    def test_the_bound_refuses_the_other_end(self):
        pairs = eigenpairs(Hessian(bowl(), H), 1, which="smallest", seed=0)
        with pytest.raises(ValueError, match="these are the smallest eigenpairs"):
            sharpness_bound(pairs)
