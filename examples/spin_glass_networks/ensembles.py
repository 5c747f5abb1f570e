"""Networks with one hidden layer of ReLUs, many trained at once.

All networks of a group are one stack of matrices; each has its own weights at the start and its
own order of the images, both drawn from its own number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pictures
import torch
import torch.nn.functional as F
from campaign import THRESHOLD
from scipy.linalg import eigvalsh_tridiagonal, ldl
from torch import Tensor

from thalweg.landscape import ModelLandscape
from thalweg.landscape.replacing import replacing
from thalweg.zoo import ImageData, mlp

CLASSES = 10
AGREEMENT = 1e-5  # relative, of the losses in single precision and through the landscape
STARTS = ("scaled", "cube")


@dataclass(frozen=True)
class Training:
    """Plain SGD with a decaying rate.

    Attributes:
        epochs: Sweeps over the images.
        batch: Images of a step; what is left of a sweep is skipped.
        rate: Of the first epoch; that of epoch e is `rate / (1 + decay e)`.
        decay: Of the rate, per epoch.
        start: ``"scaled"``: weights uniform within ±1 / sqrt(inputs of the layer);
            ``"cube"``: uniform in [0, 1].
    """

    epochs: int
    batch: int = 10
    rate: float = 0.1
    decay: float = 0.1
    start: str = "scaled"


def generator(width: int, number: int, epoch: int) -> torch.Generator:
    """Return what draws for one network in one epoch (-1 for its weights)."""
    key = np.random.SeedSequence([width, number, epoch + 1]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(key[0] >> np.uint64(1)))


def draw(inputs: int, width: int, number: int, start: str) -> list[Tensor]:
    """Draw one network: `(inputs, width)`, `(1, width)`, `(width, 10)` and `(1, 10)`."""
    source = generator(width, number, -1)
    drawn = []
    for fan_in, shape in (
        (inputs, (inputs, width)), (inputs, (1, width)), (width, (width, CLASSES)),
        (width, (1, CLASSES)),
    ):  # fmt: skip
        unit = torch.rand(shape, generator=source)
        drawn.append(unit if start == "cube" else (2 * unit - 1) / math.sqrt(fan_in))
    return drawn


def epoch(weights: list[Tensor], data: ImageData, orders: Tensor, rate: float, batch: int) -> None:
    """Go through the images once, `(networks, images)` in each network's order, in place."""
    first, b1, second, b2 = weights
    step = -rate / batch
    for at in range(0, orders.shape[1] - batch + 1, batch):
        chosen = orders[:, at : at + batch]
        x = data.inputs[chosen]
        hidden = torch.baddbmm(b1, x, first).relu_()
        rest = torch.baddbmm(b2, hidden, second).softmax(2)
        wanted = data.targets[chosen][..., None]
        rest.scatter_add_(2, wanted, rest.new_full(wanted.shape, -1.0))
        back = torch.bmm(rest, second.mT).mul_(hidden > 0)
        second.baddbmm_(hidden.mT, rest, alpha=step)
        b2.add_(rest.sum(1, keepdim=True), alpha=step)
        first.baddbmm_(x.mT, back, alpha=step)
        b1.add_(back.sum(1, keepdim=True), alpha=step)


def train(
    width: int, numbers: range, data: ImageData, how: Training, state: Path | None = None
) -> Tensor:
    """Train a group; a killed one goes on after its last epoch that was kept.

    Args:
        width: Hidden units.
        numbers: The networks' numbers.
        data: Flat images.
        how: The training.
        state: Where the epochs are kept; removed by the caller once the result is written.

    Returns:
        The parameters `(networks, D)`, in the order of `ModelLandscape.vector`.
    """
    inputs = data.inputs.shape[1]
    done = 0
    if state is not None and state.exists():
        kept = torch.load(state, weights_only=True)
        done, weights = kept["epochs"], kept["weights"]
    else:
        drawn = [draw(inputs, width, number, how.start) for number in numbers]
        weights = [torch.stack(parts) for parts in zip(*drawn, strict=True)]
    pause = max(1, how.epochs // 20)
    for e in range(done, how.epochs):
        orders = torch.stack(
            [torch.randperm(len(data), generator=generator(width, i, e)) for i in numbers]
        )
        epoch(weights, data, orders, how.rate / (1 + how.decay * e), how.batch)
        if state is not None and (e + 1) % pause == 0:
            keep({"epochs": e + 1, "weights": weights}, state)
    first, b1, second, b2 = weights
    parts = [first.mT.flatten(1), b1.flatten(1), second.mT.flatten(1), b2.flatten(1)]
    return torch.cat(parts, 1)


def keep(content: Any, file: Path) -> None:
    """Save tensors in one move."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as out:
        torch.save(content, out)


def matrices(theta: Tensor, inputs: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return a vector's weights `(width, inputs)`, `(width,)`, `(10, width)` and `(10,)`."""
    width = (len(theta) - CLASSES) // (inputs + 1 + CLASSES)
    sizes = [width * inputs, width, CLASSES * width, CLASSES]
    first, b1, second, b2 = torch.split(theta, sizes)
    return first.view(width, inputs), b1, second.view(CLASSES, width), b2


def batched_losses(theta: Tensor, data: ImageData) -> Tensor:
    """Return the loss of every row of `(networks, D)`, computed as in training."""
    losses = []
    for row in theta:
        first, b1, second, b2 = matrices(row, data.inputs.shape[1])
        hidden = torch.relu(torch.addmm(b1, data.inputs, first.T))
        losses.append(F.cross_entropy(torch.addmm(b2, hidden, second.T), data.targets))
    return torch.stack(losses)


def landscape(width: int, data: ImageData) -> ModelLandscape:
    """Return the loss of such a network on the images, in double precision."""
    model = mlp((data.inputs.shape[1], width, CLASSES), activation="relu", seed=0).double()
    return ModelLandscape(model, F.cross_entropy, (data.inputs.double(), data.targets))


def group(
    width: int, numbers: range, data: tuple[str, Path | None, tuple[int, int] | None],
    how: Training, vectors: Path, state: Path,
) -> dict[str, Any]:  # fmt: skip
    """Train a group and measure it; the vectors are kept for those whose index is wanted."""
    train_set, test_set = pictures.load(*data)
    theta = train(width, numbers, train_set, how, state)
    on_train, on_test = landscape(width, train_set), landscape(width, test_set)
    rows = []
    fast = zip(batched_losses(theta, train_set), batched_losses(theta, test_set), strict=True)
    for number, vector, quick in zip(numbers, theta, fast, strict=True):
        losses = [float(on_train.loss(vector.double())), float(on_test.loss(vector.double()))]
        gaps = [abs(float(q) - x) / max(x, 1e-3) for q, x in zip(quick, losses, strict=True)]
        if not max(gaps) < AGREEMENT:
            raise RuntimeError(
                f"network {number} of width {width} has losses {losses} through the landscape, but "
                f"{[float(q) for q in quick]} as it was trained; they must agree to {AGREEMENT:g}"
            )
        rows.append(
            {"width": width, "number": number, "train": losses[0], "test": losses[1],
             "gap": max(gaps), **told_of(vector.double(), on_train, train_set, test_set)}
        )  # fmt: skip
    keep(theta, vectors)
    state.unlink(missing_ok=True)
    return {"rows": rows, "training": vars(how), "images": str(train_set)}


def told_of(
    vector: Tensor, land: ModelLandscape, train_set: ImageData, test_set: ImageData
) -> dict[str, Any]:
    """Return what else is asked of a trained network: errors, gradient, norm, active units."""
    inputs = train_set.inputs.shape[1]
    first, b1, second, b2 = matrices(vector, inputs)
    hidden = torch.relu(torch.addmm(b1, test_set.inputs.double(), first.T))
    wrong = torch.addmm(b2, hidden, second.T).argmax(1) != test_set.targets
    active = (torch.addmm(b1, train_set.inputs.double(), first.T) > 0).double()
    share = active.mean(0)
    pairs = torch.corrcoef(active[:, (share > 0) & (share < 1)].T).abs()
    off = pairs[~torch.eye(len(pairs), dtype=torch.bool)] if pairs.ndim == 2 else pairs.new_zeros(0)
    return {
        "test_error": float(wrong.double().mean()),
        "gradient": float(torch.linalg.vector_norm(land.gradient(vector))),
        "mean_square": float((vector**2).mean()),
        "dim": len(vector),
        "activity": [float(share.min()), float(share.mean()), float(share.max())],
        "dead": int((share == 0).sum()),
        "correlation": float(off.mean()) if off.numel() else math.nan,
    }


def hessian(vector: Tensor, data: ImageData) -> Tensor:
    r"""Return the dense Hessian of the mean cross-entropy, `(D, D)`, block by block.

    With $S_i = \mathrm{diag}(p) - pp^T$ the curvature in the scores and $J_i$ their Jacobian it is
    the mean of $J_i^T S_i J_i$ and, between first and second layer, of $p - y$ times the
    derivative of one layer's part in the other. A ReLU adds nothing where it is smooth.

    Args:
        vector: The parameters `(D,)`, in double precision.
        data: Flat images.
    """
    x, (first, b1, second, b2) = data.inputs.double(), matrices(vector, data.inputs.shape[1])
    width, inputs = first.shape
    before = torch.addmm(b1, x, first.T)
    active, hidden = (before > 0).double(), before.relu()
    p = torch.addmm(b2, hidden, second.T).softmax(1)
    rest = (p - F.one_hot(data.targets, CLASSES)) / len(x)
    curved = (torch.diag_embed(p) - p[:, :, None] * p[:, None]) / len(x)  # (N, 10, 10)
    ones, dim = x.new_ones(len(x), 1), len(vector)
    lower, upper = torch.cat([x, ones], 1), torch.cat([hidden, ones], 1)
    rows = torch.cat([torch.arange(width * inputs).view(width, inputs),
                      width * inputs + torch.arange(width)[:, None]], 1)  # fmt: skip
    base = width * (inputs + 1)
    tops = torch.cat([base + torch.arange(CLASSES * width).view(CLASSES, width),
                      base + CLASSES * width + torch.arange(CLASSES)[:, None]], 1)  # fmt: skip
    whole = x.new_zeros(dim, dim)
    for j in range(width):
        left = (lower * active[:, j : j + 1]).T  # (inputs + 1, N)
        pull = curved @ second[:, j]  # (N, 10)
        weights = (pull @ second) * active  # (N, width)
        block = left @ (weights[:, :, None] * lower[:, None]).flatten(1)
        whole[rows[j][:, None], rows.flatten()] = block
        cross = (pull[:, :, None] * upper[:, None]).flatten(1)
        cross.view(len(x), CLASSES, width + 1)[:, :, j] += rest
        block = left @ cross
        whole[rows[j][:, None], tops.flatten()] = block
        whole[tops.flatten()[:, None], rows[j]] = block.T
    for c in range(CLASSES):
        block = upper.T @ (curved[:, c, :, None] * upper[:, None]).flatten(1)
        whole[tops[c][:, None], tops.flatten()] = block
    return whole


def below(matrix: Tensor, level: float) -> int:
    """Count eigenvalues below a level by Sylvester's law, from a factorisation LDL'."""
    shifted = matrix.numpy() - level * np.eye(len(matrix))
    _, blocks, _ = ldl(shifted, overwrite_a=True, check_finite=True)
    values = eigvalsh_tridiagonal(np.diag(blocks), np.diag(blocks, 1))
    return int((values < 0).sum())


def index(
    width: int, number: int, place: int,
    data: tuple[str, Path | None, tuple[int, int] | None], vectors: Path,
) -> dict[str, Any]:  # fmt: skip
    """Count the eigenvalues below, within and above the threshold, for one network."""
    vector = torch.load(vectors, weights_only=True)[place].double()
    full = hessian(vector, pictures.load(*data)[0])
    full = (full + full.T) / 2
    negative, up_to = below(full, -THRESHOLD), below(full, THRESHOLD)
    return {
        "width": width, "number": number, "dim": len(vector), "negative": negative,
        "zero": up_to - negative, "positive": len(vector) - up_to, "tau": THRESHOLD,
    }  # fmt: skip
