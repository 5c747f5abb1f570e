"""A small CNN on Fashion-MNIST and a character LSTM on the texts that scikit-learn ships.

Freeman and Bruna took larger ones (a convnet with 1024 hidden units, a two-layer LSTM on the Penn
Treebank) and thresholds on the test error; here the level is one of the training loss, which can be
bracketed along a segment, given as a perplexity for the LSTM.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from searches import Experiment
from torch import Tensor, nn

from thalweg.landscape import ModelLandscape
from thalweg.landscape.minibatches import Minibatches
from thalweg.landscape.replacing import replacing
from thalweg.landscape.seeding import preserve_rng
from thalweg.zoo import cnn, fashion_mnist, mnist_folder

NAMES = ("cnn", "lstm")
LENGTH = 64  # characters of a sequence
RATE = 2e-3
MEMORY = "32 MiB"  # pieces of the data that stay in the cache: the CNN takes half the time


@dataclass(frozen=True)
class Size:
    """How large an experiment is."""

    examples: int
    levels: tuple[float, ...]
    batch_size: int
    max_epochs: int
    max_gradients: int  # for the beads of one string, in gradients over all the data
    max_samples: int  # losses for the bracket of one segment


SIZES = {
    "cnn": Size(10_000, (0.45, 0.5, 0.6, 0.7, 0.85), 250, 40, 60, 12),
    "lstm": Size(1_500, (7.0, 8.5, 10.0, 12.0, 15.0), 50, 150, 300, 12),
}
QUICK = {
    "cnn": Size(200, (1.5, 2.0), 50, 40, 60, 8),
    "lstm": Size(60, (17.0, 20.0), 15, 60, 200, 8),
}


class CharacterLSTM(nn.Module):
    """Scores of the next character at every place of a sequence."""

    def __init__(self, characters: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, 16)
        self.lstm = nn.LSTM(16, hidden, batch_first=True)
        self.head = nn.Linear(hidden, characters)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return `(batch, characters, length)`, as cross-entropy wants it."""
        states, _ = self.lstm(self.embedding(inputs))
        scores: Tensor = self.head(states)
        return scores.transpose(1, 2)


def text() -> str:
    """Return the descriptions of scikit-learn's data sets, in lower case."""
    folder = resources.files("sklearn.datasets") / "descr"
    files = sorted(file.name for file in folder.iterdir() if file.name.endswith(".rst"))
    if not files:
        raise FileNotFoundError(f"scikit-learn ships no descriptions in {folder}")
    whole = "\n".join((folder / name).read_text("utf-8") for name in files).lower()
    return " ".join(whole.split())


def sequences(examples: int) -> tuple[Tensor, Tensor, int]:
    """Return inputs and targets `(examples, LENGTH)`, and the number of characters.

    Sequences lie next to each other in the text; the rarest characters are one.
    """
    read = text()
    counts = {c: read.count(c) for c in set(read)}
    common = sorted(counts, key=lambda c: (-counts[c], c))[:47]
    place = {c: i for i, c in enumerate(common)}
    codes = torch.tensor([place.get(c, 47) for c in read])
    examples = min(examples, (len(codes) - 1) // LENGTH)
    cut = examples * LENGTH
    return codes[:cut].view(-1, LENGTH), codes[1 : cut + 1].view(-1, LENGTH), 48


def landscape(name: str, size: Size, data: Path | None) -> tuple[ModelLandscape, Any]:
    """Return the landscape, and what makes a network with a seed.

    Raises:
        FileNotFoundError: If the data are absent.
    """
    make: Callable[[int], nn.Module]
    if name == "cnn":
        images = (
            fashion_mnist(subset=size.examples)
            if data is None
            else mnist_folder(data, subset=size.examples)
        )
        channels = (4, 6) if size.examples < 1000 else (16, 28)
        make = lambda seed: cnn(channels, grid=4, seed=seed)  # noqa: E731
        return ModelLandscape(make(0), F.cross_entropy, images.tensors, memory=MEMORY), make
    inputs, targets, characters = sequences(size.examples)
    hidden = 12 if size.examples < 1000 else 48

    def make(seed: int) -> nn.Module:
        with preserve_rng(seed):
            return CharacterLSTM(characters, hidden)

    return ModelLandscape(make(0), F.cross_entropy, (inputs, targets), memory=MEMORY), make


def train(land: ModelLandscape, theta: Tensor, losses: list[float], size: Size, seed: int) -> Any:
    """Descend by Adam on minibatches; keep the vector as it first passes below every level."""
    generator = torch.Generator().manual_seed(seed)
    batches = Minibatches(land, size.batch_size, generator)
    first, second = torch.zeros_like(theta), torch.zeros_like(theta)
    kept: dict[int, Tensor] = {}
    pause = max(1, batches.per_epoch // 2)
    for step in range(1, size.max_epochs * batches.per_epoch + 1):
        gradient = batches.draw().gradient(theta)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        scaled = second.sqrt() / math.sqrt(1 - 0.999**step) + 1e-8
        theta = theta - RATE * first / (1 - 0.9**step) / scaled
        if step % pause == 0:
            now = float(land.loss(theta))
            for i, loss in enumerate(losses):
                if i not in kept and now < loss:
                    kept[i] = theta.clone()
            if len(kept) == len(losses):
                break
    return kept


def experiment(
    name: str, seeds: int, out: Path, *, quick: bool = False, data: Path | None = None
) -> Experiment:
    """Return the experiment; ends are trained when first asked for, and kept in the folder.

    Args:
        name: ``"cnn"`` or ``"lstm"``.
        seeds: How many pairs of ends.
        out: The folder.
        quick: A toy size.
        data: A folder in the format of MNIST; Fashion-MNIST by default.

    Raises:
        FileNotFoundError: If the data are absent.
    """
    size = (QUICK if quick else SIZES)[name]
    land, make = landscape(name, size, data)

    def loss_of(level: float) -> float:
        return math.log(level) if name == "lstm" else level

    known: dict[int, Any] = {}

    def ends(level: float, seed: int) -> Tensor | None:
        file = out / name / f"ends-{seed}.pt"
        if seed not in known and file.exists():
            known[seed] = torch.load(file, weights_only=True)
        if seed not in known:
            losses = [loss_of(x) for x in size.levels]
            numbers = [2 * seed, 2 * seed + 1]
            known[seed] = [train(land, land.vector(make(i)), losses, size, i) for i in numbers]
            file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(file) as kept:
                torch.save(known[seed], kept)
        one, other = known[seed]
        i = size.levels.index(level)
        return torch.stack([one[i], other[i]]) if i in one and i in other else None

    per_epoch = math.ceil(size.examples / size.batch_size)
    options = {
        "lr": RATE / 2,
        "batch_size": size.batch_size,
        "max_steps": size.max_epochs * per_epoch,
        "max_gradients": size.max_gradients,
        "max_samples": size.max_samples,
        "tolerance": 0.02,
    }
    return Experiment(name, lambda: land, size.levels, ends, loss_of, options)
