"""Small networks of scalable size: an MLP, a CNN, a ResNet, a transformer, an LSTM.

All are ordinary ``torch.nn`` modules that return class scores `(batch, classes)`. Each
factory takes a seed and leaves the global RNG as it found it. Every module that owns
parameters has a ``reset_parameters``, so that `ModelLandscape.start` can draw a new
network; none has dropout, so that each is a function of its parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from thalweg.landscape.seeding import Seed, make_generator, preserve_rng

__all__ = [
    "CNN",
    "LSTM",
    "MLP",
    "Classifier",
    "ResNet",
    "Transformer",
    "cnn",
    "lstm",
    "mlp",
    "resnet",
    "transformer",
]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "identity": nn.Identity,
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}


def _activation(name: str) -> nn.Module:
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}; use one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]()


def _check_positive(**numbers: int) -> None:
    for label, number in numbers.items():
        if number < 1:
            raise ValueError(f"{label} must be at least 1, got {number}")


def _rows(images: Tensor) -> Float[Tensor, "batch rows columns"]:
    """Read an image as a sequence of its rows; a sequence of vectors passes through."""
    if images.ndim == 4 and images.shape[1] == 1:
        return images.squeeze(1)
    if images.ndim != 3:
        raise ValueError(
            f"inputs have shape {tuple(images.shape)}; this network reads images "
            "(batch, 1, rows, columns) or sequences (batch, rows, columns)"
        )
    return images


class Classifier(nn.Module):
    """What the networks of the zoo share: a recorded seed and a parameter count.

    Attributes:
        seed: The seed of the initial parameters.
    """

    seed: int

    @property
    def size(self) -> int:
        """The number of trainable parameters."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)


Net = TypeVar("Net", bound=Classifier)


def _build(make: Callable[[], Net], seed: Seed) -> Net:
    """Build a network from its own seed; the global RNG stays as it was."""
    _, number = make_generator(seed)
    with preserve_rng(number):
        model = make()
    model.seed = number
    return model


class MLP(Classifier):
    """A multi-layer perceptron; see `mlp`."""

    def __init__(self, widths: Sequence[int], activation: str) -> None:
        if len(widths) < 2:
            raise ValueError(f"widths needs at least an input and an output, got {list(widths)}")
        _check_positive(**{f"widths[{i}]": width for i, width in enumerate(widths)})
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        for i, (inputs, outputs) in enumerate(pairwise(widths)):
            layers += [_activation(activation)] if i else []
            layers.append(nn.Linear(inputs, outputs))
        self.layers = nn.Sequential(*layers)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the scores of a batch of vectors or images."""
        scores: Tensor = self.layers(inputs)
        return scores


def mlp(widths: Sequence[int], *, activation: str = "tanh", seed: Seed = None) -> MLP:
    """Return a multi-layer perceptron.

    Args:
        widths: Sizes of the layers, input and output among them; ``(64, 32, 10)`` is one
            hidden layer of 32. Images are flattened.
        activation: ``"tanh"`` (smooth, so that Hessians and saddles exist everywhere),
            ``"relu"``, ``"gelu"``, ``"silu"``, ``"elu"``, ``"softplus"``, ``"sigmoid"`` or
            ``"identity"`` (a deep linear network).
        seed: What draws the parameters; recorded in ``model.seed``.

    Raises:
        ValueError: If a width is not positive or the activation is unknown.

    Example:
        >>> model = mlp((64, 32, 10), seed=0)
        >>> model.size
        2410
    """
    return _build(lambda: MLP(widths, activation), seed)


class CNN(Classifier):
    """A convolutional network; see `cnn`."""

    def __init__(
        self, channels: Sequence[int], activation: str, grid: int, inputs: int, classes: int
    ) -> None:
        if not channels:
            raise ValueError("channels needs at least one layer, for example (8, 16)")
        _check_positive(
            **{f"channels[{i}]": n for i, n in enumerate(channels)},
            grid=grid,
            in_channels=inputs,
            classes=classes,
        )
        super().__init__()
        layers: list[nn.Module] = []
        for narrow, wide in pairwise((inputs, *channels)):
            layers += [nn.Conv2d(narrow, wide, 3, stride=2, padding=1), _activation(activation)]
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(grid), nn.Flatten())
        self.head = nn.Linear(channels[-1] * grid**2, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores of a batch of images `(batch, channels, height, width)`."""
        if images.ndim != 4:
            raise ValueError(
                f"inputs have shape {tuple(images.shape)}; this network reads images "
                "(batch, channels, height, width)"
            )
        scores: Tensor = self.head(self.features(images))
        return scores


def cnn(
    channels: Sequence[int],
    *,
    activation: str = "tanh",
    grid: int = 2,
    in_channels: int = 1,
    classes: int = 10,
    seed: Seed = None,
) -> CNN:
    """Return a convolutional network for images of any size.

    3 x 3 convolutions that each halve the image (stride 2), then average pooling to a fixed
    grid and one linear layer. There is no max-pooling, so with a smooth activation the loss
    is smooth (Springenberg et al. 2015, "Striving for simplicity", on strides for pooling).

    Args:
        channels: Channels of each convolution, for example ``(8, 16)``.
        activation: As for `mlp`.
        grid: Side of the grid that the linear layer reads; 1 is global average pooling.
        in_channels: Channels of the images.
        classes: How many scores.
        seed: What draws the parameters; recorded in ``model.seed``.

    Raises:
        ValueError: If a number is not positive or the activation is unknown.

    Example:
        >>> model = cnn((8, 16), seed=0)
        >>> model.size, model(torch.zeros(5, 1, 28, 28)).shape
        (1898, torch.Size([5, 10]))
    """
    return _build(lambda: CNN(channels, activation, grid, in_channels, classes), seed)


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with BatchNorm, and a way round them."""

    def __init__(self, narrow: int, wide: int, stride: int, activation: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(narrow, wide, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(wide)
        self.conv2 = nn.Conv2d(wide, wide, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(wide)
        self.act = _activation(activation)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or narrow != wide:
            self.shortcut = nn.Sequential(
                nn.Conv2d(narrow, wide, 1, stride=stride, bias=False), nn.BatchNorm2d(wide)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output; height and width shrink by the stride."""
        inner = self.norm2(self.conv2(self.act(self.norm1(self.conv1(x)))))
        out: Tensor = self.act(inner + self.shortcut(x))
        return out


class ResNet(Classifier):
    """A residual network with BatchNorm; see `resnet`."""

    def __init__(self, width: int, depth: int, activation: str, inputs: int, classes: int) -> None:
        _check_positive(width=width, in_channels=inputs, classes=classes)
        if depth < 8 or depth % 6 != 2:
            raise ValueError(f"depth must be 6 n + 2 (8, 14, 20, 26, ...), got {depth}")
        super().__init__()
        self.stem = nn.Conv2d(inputs, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.act = _activation(activation)
        blocks: list[nn.Module] = []
        narrow = width
        for stage in range(3):
            wide = width * 2**stage
            for i in range((depth - 2) // 6):
                stride = 2 if stage and not i else 1
                blocks.append(ResidualBlock(narrow, wide, stride, activation))
                narrow = wide
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(narrow, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores of a batch of images `(batch, channels, height, width)`."""
        x = self.blocks(self.act(self.norm(self.stem(images))))
        scores: Tensor = self.head(x.mean(dim=(-2, -1)))
        return scores


def resnet(
    width: int,
    depth: int = 8,
    *,
    activation: str = "relu",
    in_channels: int = 1,
    classes: int = 10,
    seed: Seed = None,
) -> ResNet:
    """Return a residual network with BatchNorm, for images of any size.

    Three stages of `width`, 2 `width` and 4 `width` channels, as He et al. (2016), section
    4.2, use on CIFAR-10; where the shape changes, the way round is a 1 x 1 convolution.

    Args:
        width: Channels of the first stage; 16 in the paper.
        depth: Layers, 6 n + 2 for n blocks in each stage.
        activation: As for `mlp`.
        in_channels: Channels of the images.
        classes: How many scores.
        seed: What draws the parameters; recorded in ``model.seed``.

    Raises:
        ValueError: If `depth` is not 6 n + 2, a number is not positive, or the activation
            is unknown.

    References:
        K. He et al., "Deep residual learning for image recognition", CVPR 2016.

    Example:
        >>> resnet(16, depth=20, in_channels=3, seed=0).size
        272474
    """
    return _build(lambda: ResNet(width, depth, activation, in_channels, classes), seed)


class Positions(nn.Module):
    """A learned vector for each position, added to the sequence."""

    def __init__(self, length: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(length, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the vectors anew, normal with standard deviation 0.02."""
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, x: Float[Tensor, "batch length dim"]) -> Float[Tensor, "batch length dim"]:
        """Return the sequence with the positions added."""
        if x.shape[-2] > len(self.weight):
            raise ValueError(
                f"the sequence has {x.shape[-2]} positions, but this network was built for at "
                f"most {len(self.weight)}; build it with length={x.shape[-2]}"
            )
        return x + self.weight[: x.shape[-2]]


class Attention(nn.Module):
    """Multi-head self-attention: every position reads every other."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "batch length dim"]) -> Float[Tensor, "batch length dim"]:
        """Return the sequence after attention."""
        parts = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(-2))
        return out


class TransformerBlock(nn.Module):
    """Attention and an MLP, each after a LayerNorm and each with a way round it."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, x: Float[Tensor, "batch length dim"]) -> Float[Tensor, "batch length dim"]:
        """Return the sequence after the block."""
        x = x + self.attention(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class Transformer(Classifier):
    """A transformer encoder that classifies sequences; see `transformer`."""

    def __init__(
        self,
        dim: int,
        heads: int,
        layers: int,
        length: int,
        features: int,
        vocabulary: int | None,
        hidden: int,
        classes: int,
    ) -> None:
        _check_positive(
            dim=dim,
            heads=heads,
            layers=layers,
            length=length,
            features=features,
            vocabulary=1 if vocabulary is None else vocabulary,
            hidden=hidden,
            classes=classes,
        )
        if dim % heads:
            raise ValueError(f"dim must be a multiple of heads, got dim={dim}, heads={heads}")
        super().__init__()
        self.reads_tokens = vocabulary is not None
        self.embed: nn.Module = (
            nn.Linear(features, dim) if vocabulary is None else nn.Embedding(vocabulary, dim)
        )
        self.positions = Positions(length, dim)
        self.blocks = nn.Sequential(*(TransformerBlock(dim, heads, hidden) for _ in range(layers)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the scores of images, sequences of vectors, or token ids."""
        x = self.positions(self.embed(inputs if self.reads_tokens else _rows(inputs)))
        scores: Tensor = self.head(self.norm(self.blocks(x)).mean(dim=-2))
        return scores


def transformer(
    dim: int,
    heads: int,
    layers: int,
    *,
    length: int = 28,
    features: int = 28,
    vocabulary: int | None = None,
    hidden: int | None = None,
    classes: int = 10,
    seed: Seed = None,
) -> Transformer:
    """Return a small pre-norm transformer encoder with mean pooling.

    Args:
        dim: Width of the residual stream.
        heads: Attention heads; `dim` is a multiple of it.
        layers: Blocks of attention and MLP.
        length: The most rows of an image, or tokens, that it reads.
        features: Columns of an image: the size of one position's vector.
        vocabulary: Size of the vocabulary; inputs are then integer token ids
            `(batch, length)` and `features` is unused.
        hidden: Width of the MLPs; 4 `dim` by default.
        classes: How many scores.
        seed: What draws the parameters; recorded in ``model.seed``.

    Raises:
        ValueError: If `dim` is not a multiple of `heads` or a number is not positive.

    References:
        A. Vaswani et al. (2017); R. Xiong et al. (2020) for the pre-norm order.

    Example:
        >>> model = transformer(16, heads=2, layers=1, length=8, features=8, seed=0)
        >>> model.size, model(torch.zeros(5, 1, 8, 8)).shape
        (3754, torch.Size([5, 10]))
    """
    return _build(
        lambda: Transformer(
            dim,
            heads,
            layers,
            length,
            features,
            vocabulary,
            4 * dim if hidden is None else hidden,
            classes,
        ),
        seed,
    )


class LSTM(Classifier):
    """A recurrent classifier; see `lstm`."""

    def __init__(self, hidden: int, layers: int, features: int, classes: int) -> None:
        _check_positive(hidden=hidden, layers=layers, features=features, classes=classes)
        super().__init__()
        self.lstm = nn.LSTM(features, hidden, num_layers=layers, batch_first=True)
        self.head = nn.Linear(hidden, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the scores of images, read row by row, or of sequences of vectors."""
        states, _ = self.lstm(_rows(inputs))
        scores: Tensor = self.head(states[:, -1])
        return scores


def lstm(
    hidden: int,
    layers: int = 1,
    *,
    features: int = 28,
    classes: int = 10,
    seed: Seed = None,
) -> LSTM:
    r"""Return a long short-term memory network that reads an image row by row.

    Args:
        hidden: Size of the state.
        layers: Recurrent layers.
        features: Columns of an image: the size of one step's vector.
        classes: How many scores, read from the last state.
        seed: What draws the parameters, uniform in $\pm 1/\sqrt{h}$; recorded in
            ``model.seed``.

    Raises:
        ValueError: If a number is not positive.

    Example:
        >>> model = lstm(12, features=8, seed=0)
        >>> model.size, model(torch.zeros(5, 1, 8, 8)).shape
        (1186, torch.Size([5, 10]))
    """
    return _build(lambda: LSTM(hidden, layers, features, classes), seed)
