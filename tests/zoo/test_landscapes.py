"""The ready-made landscapes: what they promise, and the loss they stand for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.optimize
import scipy.sparse.linalg
import torch
import torch.nn.functional as F

from thalweg.landscape import ModelLandscape
from thalweg.zoo import cnn, digits, fashion_mnist, landscapes, mlp, resnet, tiny_models


def start(land: ModelLandscape) -> torch.Tensor:
    return land.start(torch.Generator().manual_seed(1))


def test_digits_mlp_is_the_loss_that_it_says() -> None:
    land = landscapes.digits_mlp()
    model = mlp((64, 32, 10), seed=5).double()
    inputs, targets = digits("train", image=False).tensors
    theta = land.vector(model)
    by_hand = F.cross_entropy(model(inputs.double()), targets) + 1e-3 / 2 * (theta**2).sum()
    torch.testing.assert_close(land.loss(theta), by_hand.detach(), rtol=1e-12, atol=0)
    right = (model(inputs.double()).argmax(1) == targets).double().mean()
    assert land.metrics(theta)["accuracy"].value == pytest.approx(float(right))


@pytest.mark.parametrize("name", ["digits_mlp", "digits_resnet"])
def test_held_out_images_are_others(name: str) -> None:
    train, test = getattr(landscapes, f"{name}_pair")()
    assert (train.examples, test.examples) == (1442, 355)
    assert train.digest != test.digest
    assert train.digest == getattr(landscapes, name)().digest
    assert test.digest == getattr(landscapes, f"{name}_test")().digest
    assert train.dim == test.dim
    theta = start(train)
    assert torch.equal(theta, start(test))
    assert torch.isfinite(train.gradient(theta)).all()


def test_resnet_uses_the_statistics_of_all_its_images() -> None:
    land = landscapes.digits_resnet("test")
    assert land.batchnorm == "batch"
    model = resnet(4, activation="softplus", seed=2).train()
    inputs, targets = digits("test").tensors
    theta = land.vector(model)
    by_hand = F.cross_entropy(model(inputs), targets).detach() + 1e-3 / 2 * (theta**2).sum()
    torch.testing.assert_close(land.loss(theta), by_hand, rtol=1e-5, atol=0)
    again = land.with_batchnorm("recompute").loss(theta)
    # `recompute` stores the unbiased variance, as PyTorch does: 1 part in 2 * 4 * 355 off
    torch.testing.assert_close(land.loss(theta), again, rtol=1e-3, atol=0)


def test_fashion_cnn(fashion_mnist_folder: Path) -> None:
    train, test = landscapes.fashion_cnn_pair()
    assert train.examples == test.examples == 1500
    assert 2_000 <= train.dim == test.dim <= 10_000
    assert train.digest != test.digest
    model = cnn((6, 12), grid=4, seed=3)
    inputs, targets = fashion_mnist("test", subset=1500, folder=fashion_mnist_folder).tensors
    theta = test.vector(model)
    by_hand = F.cross_entropy(model(inputs), targets).detach() + 5e-3 / 2 * (theta**2).sum()
    torch.testing.assert_close(test.loss(theta), by_hand, rtol=1e-5, atol=0)


def test_fashion_cnn_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THALWEG_FASHION_MNIST", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="apt install dataset-fashion-mnist"):
        landscapes.fashion_cnn()


@pytest.mark.parametrize("name", tiny_models())
def test_tiny_models_start_anew_from_a_seed(name: str) -> None:
    model, inputs, targets = tiny_models()[name]()
    land = ModelLandscape(model, F.cross_entropy, (inputs, targets))
    theta = start(land)
    assert torch.equal(theta, start(land))
    assert not torch.allclose(theta, land.vector(model))
    assert land.dim == model.size


def descend(land: ModelLandscape, steps: int) -> tuple[float, torch.Tensor]:
    def objective(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = land.value_and_gradient(torch.tensor(x, dtype=land.dtype))
        return float(value), gradient.double().numpy()

    options = {"maxcor": 30, "maxiter": steps, "maxfun": 2 * steps, "ftol": 0, "gtol": 1e-9}
    found = scipy.optimize.minimize(
        objective, start(land).double().numpy(), jac=True, method="L-BFGS-B", options=options
    )
    theta = torch.tensor(found.x, dtype=land.dtype)
    return float(land.gradient(theta).norm()), theta


def least_curvature(land: ModelLandscape, theta: torch.Tensor) -> float:
    with land.at(theta) as point:
        hessian = scipy.sparse.linalg.LinearOperator(
            (land.dim, land.dim),
            matvec=lambda v: point.hvp(torch.tensor(v.reshape(-1))).numpy(),
            dtype=np.float64,
        )
        first = np.random.default_rng(0).standard_normal(land.dim)
        values = scipy.sparse.linalg.eigsh(
            hessian, k=1, which="SA", v0=first, ncv=60, tol=1e-2, return_eigenvectors=False
        )
    return float(values[0])


@pytest.mark.slow
def test_digits_mlp_trains_to_a_true_minimum() -> None:
    land = landscapes.digits_mlp()
    norm, theta = descend(land, 3000)
    assert norm < 1e-7
    assert land.metrics(theta)["accuracy"].value == 1.0
    assert landscapes.digits_mlp_test().metrics(theta)["accuracy"].value > 0.95
    assert least_curvature(land, theta) > 1e-6
    # where the descent began there is curvature downwards, so the check above can fail
    assert least_curvature(land, start(land)) < -1e-3


@pytest.mark.slow
def test_resnet_learns() -> None:
    land = landscapes.digits_resnet()
    before = float(land.gradient(start(land)).norm())
    norm, theta = descend(land, 150)
    assert norm < before / 5
    assert land.metrics(theta)["accuracy"].value > 0.95


def test_a_landscape_knows_the_vector_of_its_own_model():
    from thalweg.landscape import ModelLandscape

    model = torch.nn.Linear(3, 2)
    inputs, targets = torch.eye(3), torch.tensor([0, 1, 0])
    land = ModelLandscape(model, torch.nn.functional.cross_entropy, (inputs, targets))
    assert torch.equal(land.initial, land.vector(model))
    land.initial.zero_()  # a copy
    assert torch.equal(land.initial, land.vector(model))
