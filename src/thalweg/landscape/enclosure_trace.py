"""Which chain of known layers and which known loss a network is, found without its data.

The module and the loss run once on the meta device, where tensors have shapes but no values,
while every torch function that they call is recorded. A branch that depends on values
cannot run there, a function that is not in the tables is refused by name, and what was
recorded is all that there is: so the chain is the network, for any data of these shapes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name

from thalweg.landscape.data import leading, place, signature, tensors
from thalweg.landscape.enclosure_layers import (
    Activation,
    Affine,
    Convolution,
    Flatten,
    Layer,
    Pool,
)
from thalweg.landscape.enclosure_losses import CrossEntropy, Loss, SquaredError
from thalweg.landscape.network import Network
from thalweg.landscape.sweep import Sweep

__all__ = ["NoEnclosure", "names_of", "recognise", "trace_loss", "trace_network"]


class NoEnclosure(ValueError):
    """No rigorous enclosure exists here; the message says why."""


_ACTIVATIONS: dict[str, str] = {
    name: kind
    for kind in ("relu", "tanh", "sigmoid", "leaky_relu", "softplus", "gelu", "silu", "elu")
    for name in (
        f"torch.{kind}",
        f"torch.{kind}_",
        f"torch.Tensor.{kind}",
        f"torch.Tensor.{kind}_",
        f"torch.nn.functional.{kind}",
        f"torch.nn.functional.{kind}_",
    )
}
_DEFAULTS: dict[str, tuple[tuple[str, Any], ...]] = {
    "leaky_relu": (("negative_slope", 0.01), ("inplace", False)),
    "softplus": (("beta", 1.0), ("threshold", 20.0)),
    "elu": (("alpha", 1.0), ("inplace", False)),
    "relu": (("inplace", False),),
    "silu": (("inplace", False),),
    "gelu": (("approximate", "none"),),
}


def _bind(names: tuple[tuple[str, Any], ...], args: tuple[Any, ...], kwargs: Any) -> dict[str, Any]:
    """Return the arguments after the first by name, defaults filled in."""
    bound = dict(names)
    bound.update({name: value for (name, _), value in zip(names, args[1:], strict=False)})
    bound.update(kwargs)
    return bound


_QUESTIONS = ("size", "dim", "ndimension", "numel", "stride", "__len__", "is_floating_point")


def _harmless(name: str) -> bool:
    """Say whether a call that returns no tensor only asks for shapes and kinds."""
    return name.endswith(".__get__") or name.rpartition(".")[2] in _QUESTIONS


class _Recorder(TorchFunctionMode):
    """Hands every call of a torch function, with what it returned, to `note`."""

    def __init__(self, note: Callable[[str, tuple[Any, ...], dict[str, Any], Any], None]) -> None:
        super().__init__()
        self.note = note

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run the function and note it."""
        out = func(*args, **(kwargs or {}))
        if tensors((args, kwargs or {}, out)):
            self.note(resolve_name(func) or repr(func), args, kwargs or {}, out)
        return out


class _Chain:
    """The layers seen so far, and the tensor that the next one must read."""

    def __init__(self, start: Tensor, names: Mapping[int, str]) -> None:
        self.names, self.current, self.layers = names, start, list[Layer]()

    def _name(self, tensor: Any, of: str) -> str | None:
        if tensor is None:
            return None
        if id(tensor) not in self.names:
            raise NoEnclosure(f"{of} reads a weight that is computed, not stored")
        return self.names[id(tensor)]

    def note(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Add one recorded call to the chain."""
        if not isinstance(out, Tensor):
            if not _harmless(name):
                raise NoEnclosure(f"the network calls {name}, which has no enclosure here")
            return
        if not args or args[0] is not self.current:
            raise NoEnclosure(f"the network is no chain of layers: {name} reads something else")
        layer = self._layer(name, args, kwargs, out)
        if layer is not None:
            self.layers.append(layer)
        self.current = out

    def _layer(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor
    ) -> Layer | None:
        short = name.removeprefix("torch.nn.functional.").removeprefix("torch.")
        if name in _ACTIVATIONS:
            kind = _ACTIVATIONS[name]
            options = _bind(_DEFAULTS.get(kind, ()), args, kwargs)
            options.pop("inplace", None)
            if options.pop("approximate", "none") != "none":
                raise NoEnclosure("GELU by its tanh approximation has no enclosure here")
            return Activation(kind, options)
        if short == "linear":
            bound = _bind((("weight", None), ("bias", None)), args, kwargs)
            return Affine(
                self._name(bound["weight"], "a linear layer") or "",
                self._name(bound["bias"], "a linear layer"),
            )
        if short == "conv2d":
            return self._convolution(args, kwargs)
        if short in ("avg_pool2d", "adaptive_avg_pool2d"):
            return self._pool(short, args, kwargs)
        if short == "dropout" and not kwargs.get("training", True):
            return None
        if short.removeprefix("Tensor.") in ("flatten", "view", "reshape"):
            if out.shape == (len(args[0]), args[0][0].numel()):
                return Flatten()
            raise NoEnclosure(f"{name} makes {tuple(out.shape)} of {tuple(args[0].shape)}")
        raise NoEnclosure(f"the network calls {name}, which has no enclosure here")

    def _convolution(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Layer:
        names = ("weight", "bias", "stride", "padding", "dilation", "groups")
        bound = _bind(tuple(zip(names, (None, None, 1, 0, 1, 1), strict=True)), args, kwargs)
        if bound["groups"] != 1:
            raise NoEnclosure("a convolution in groups has no enclosure here")
        options = {key: bound[key] for key in ("stride", "padding", "dilation")}
        weight = self._name(bound["weight"], "a convolution") or ""
        return Convolution(weight, self._name(bound["bias"], "a convolution"), options)

    def _pool(self, short: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Layer:
        apply = getattr(torch.nn.functional, short)
        if args[0].ndim != 4:
            raise NoEnclosure("average pooling is enclosed for batches of images only")
        divisor = args[6] if len(args) > 6 else kwargs.get("divisor_override")
        if divisor is not None:
            raise NoEnclosure("average pooling with a divisor of its own has no enclosure here")
        return Pool(lambda x: apply(x, *args[1:], **kwargs))


def trace_network(network: Network, batch: Any) -> tuple[list[Layer], Tensor]:
    """Return the chain of layers that a network is, and its outputs without values.

    Args:
        network: The private copy.
        batch: A batch of the data: ``(inputs, targets)``.

    Returns:
        The layers, in order, and the outputs on the meta device.

    Raises:
        NoEnclosure: If it is no chain of known layers.
    """
    module = copy.deepcopy(network.module).to("meta")
    names = {id(t): name for name, t in module.named_buffers()}
    names |= {id(t): name for name, t in module.named_parameters()}
    ghost = place(batch, network.dtype, torch.device("meta"))
    chain = _Chain(ghost[0], names)
    fake = copy.copy(network)
    fake.module = module
    with torch.no_grad(), _watched(), _Recorder(chain.note):
        out = fake.call({}, ghost) if network.forward is None else network.forward(module, ghost)
    if out is not chain.current:
        raise NoEnclosure("the network returns something else than its last layer's output")
    return chain.layers, out


@contextmanager
def _watched() -> Iterator[None]:
    """Turn whatever a run without values stumbles over into `NoEnclosure`."""
    try:
        yield
    except NoEnclosure:
        raise
    except Exception as error:
        raise NoEnclosure(f"its course cannot be followed without values: {error}") from error


_SHAPERS = ("squeeze", "unsqueeze", "view", "reshape", "flatten")
_FACTORS = ("mul", "__mul__", "__rmul__", "div", "__truediv__")


class _Terms:
    """What each tensor of a loss is: a name and a factor."""

    def __init__(self, outputs: Tensor, targets: Tensor) -> None:
        self.known: dict[int, tuple[str, float]] = {
            id(outputs): ("outputs", 1.0),
            id(targets): ("targets", 1.0),
        }
        self.kept: list[Any] = [outputs, targets]
        self.rows, self.width = len(outputs), math.prod(outputs.shape[1:])

    def what(self, value: Any) -> tuple[str, float]:
        """Return the name and the factor of a tensor."""
        return self.known.get(id(value), ("?", math.nan))

    def note(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Name one recorded call's result."""
        if not isinstance(out, Tensor):
            if not _harmless(name):
                raise NoEnclosure(f"the loss calls {name} in a way that has no enclosure here")
            return
        term = self._term(name.rpartition(".")[2], args, kwargs, out)
        if term is None:
            raise NoEnclosure(f"the loss calls {name} in a way that has no enclosure here")
        self.known[id(out)] = term
        self.kept.append(out)

    def _term(
        self, short: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor
    ) -> tuple[str, float] | None:
        first = self.what(args[0])
        second = self.what(args[1]) if len(args) > 1 else ("", 1.0)
        pair = {first[0], second[0]} == {"outputs", "targets"}
        if short in _SHAPERS and first[0] in ("outputs", "targets"):
            return first
        if short in ("sub", "__sub__", "subtract") and pair and not kwargs:
            same = args[0].shape == args[1].shape
            return ("difference", 1.0) if same else None
        if short == "mse_loss" and pair and _mean_only(kwargs, len(args)):
            return ("squares", 1.0 / self.width) if args[0].shape == args[1].shape else None
        if short == "cross_entropy" and first[0] == "outputs" and second[0] == "targets":
            plain = _mean_only(kwargs, len(args)) and not kwargs.get("label_smoothing")
            right = args[0].ndim == 2 and args[1].ndim == 1 and not args[1].is_floating_point()
            return ("entropy", 1.0) if plain and right else None
        if first[0] == "difference":
            squared = short in ("pow", "__pow__") and args[1:] == (2,)
            if squared or short == "square" or (short in ("mul", "__mul__") and args[0] is args[1]):
                return "square", 1.0
            return None
        numbers = len(args) == 2 and isinstance(args[1], (int, float)) and args[1] > 0
        numbers = numbers and not kwargs
        if short in _FACTORS and numbers and first[0] in ("square", "rows", "squares"):
            factor = 1 / args[1] if short in ("div", "__truediv__") else args[1]
            return first[0], first[1] * factor
        return self._reduced(short, first, args, kwargs, out)

    def _reduced(
        self,
        short: str,
        first: tuple[str, float],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        out: Tensor,
    ) -> tuple[str, float] | None:
        whole = len(args) == 1 and not kwargs and out.ndim == 0
        axes = _bind((("dim", ()),), args, kwargs)["dim"]
        axes = (axes,) if isinstance(axes, int) else axes
        axes = axes if isinstance(axes, (tuple, list)) else ()
        own = {axis % args[0].ndim for axis in axes} == set(range(1, args[0].ndim))
        per_row = own and out.shape == (self.rows,)
        if first[0] == "square" and short == "mean" and whole:
            return "squares", first[1] / self.width
        if first[0] == "square" and short in ("mean", "sum") and per_row:
            return "rows", first[1] / (self.width if short == "mean" else 1)
        if first[0] == "rows" and short == "mean" and whole:
            return "squares", first[1]
        return None


def _mean_only(kwargs: Mapping[str, Any], positional: int) -> bool:
    """Whether a loss of torch is called with its defaults."""
    plain = {"reduction": "mean", "ignore_index": -100, "label_smoothing": 0.0}
    return positional == 2 and all(
        value is None or value == plain.get(key) for key, value in kwargs.items()
    )


def trace_loss(loss: Callable[[Any, Any], Any], outputs: Tensor, batch: Any) -> Loss:
    """Return the loss that a callable is, recognised by what it does to its arguments.

    Args:
        loss: ``loss(outputs, targets)``.
        outputs: The outputs on the meta device.
        batch: A batch ``(inputs, targets)``.

    Returns:
        The squared error with its factor, or the cross-entropy.

    Raises:
        NoEnclosure: If it is neither.
    """
    targets = place(batch[-1], outputs.dtype, torch.device("meta"))
    if leading(batch) != len(outputs):
        raise NoEnclosure("the network's outputs are not one row per example")
    terms = _Terms(outputs, targets)
    if isinstance(loss, torch.nn.Module):
        loss = copy.deepcopy(loss).to("meta")
    with torch.no_grad(), _watched(), _Recorder(terms.note):
        result = loss(outputs, targets)
    kind, factor = terms.what(result)
    if kind == "squares":
        return SquaredError(factor)
    if kind == "entropy" and factor == 1.0:
        return CrossEntropy()
    raise NoEnclosure("the loss is neither a mean squared error nor a cross-entropy")


def names_of(layer: Layer) -> list[str]:
    """Return the names of a layer's tensors."""
    found = (getattr(layer, "weight", None), getattr(layer, "bias", None))
    return [name for name in found if name is not None]


def recognise(sweep: Sweep) -> tuple[list[Layer], Loss]:
    """Return the chain of layers and the loss, checked against every batch."""
    if sweep.policy is not None:
        raise NoEnclosure("BatchNorm has no enclosure here")
    if sweep.penalty.function is not None:
        raise NoEnclosure("the penalty is a function, not a weight decay")
    if sweep.objective.weighted:
        raise NoEnclosure("the loss returns weights of its own")
    shape: Any = None
    for batch in sweep.batches():
        pair = isinstance(batch, (tuple, list)) and len(batch) == 2
        if not pair or not all(isinstance(part, Tensor) for part in batch):
            raise NoEnclosure("a batch is no pair of tensors (inputs, targets)")
        if shape is None:
            shape = signature(batch)
            layers, outputs = trace_network(sweep.network, batch)
            loss = trace_loss(sweep.objective.loss, outputs, batch)
        if signature(batch) != shape:
            raise NoEnclosure("the examples differ in shape from batch to batch")
        if not batch[1].is_floating_point() and bool((batch[1] < 0).any()):
            raise NoEnclosure("some targets are negative, which cross-entropy ignores")
    for layer in layers:
        if names_of(layer):
            return layers, loss
        if not isinstance(layer, Flatten):
            raise NoEnclosure("the data themselves go through an activation or a pool")
    raise NoEnclosure("the network has no layer with weights")
