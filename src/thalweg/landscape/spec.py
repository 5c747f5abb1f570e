"""How named tensors lie in the flat vector: names, shapes, slices, layers, filters."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["ParameterSpec"]


@dataclass(frozen=True)
class ParameterSpec:
    """Where each named tensor sits in the flat vector.

    Args:
        shapes: Name to shape, in the order of the vector.
        tied: Other names of a tensor that is already listed, to the listed name; it
            counts once.

    Raises:
        ValueError: If a tied name points nowhere.

    Example:
        >>> spec = ParameterSpec({"fc.weight": (2, 3), "fc.bias": (2,)})
        >>> spec.dim, spec.slices["fc.bias"]
        (8, slice(6, 8, None))
        >>> views = spec.views(torch.arange(8.0))
        >>> views["fc.weight"].shape
        torch.Size([2, 3])
        >>> spec.layers
        {'fc': ('fc.weight', 'fc.bias')}
        >>> spec.filter_norms(torch.ones(8))
        tensor([1.7321, 1.7321, 1.4142])
    """

    shapes: Mapping[str, tuple[int, ...]]
    tied: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a tied name whose tensor is not listed."""
        lost = {name: to for name, to in self.tied.items() if to not in self.shapes}
        if lost:
            raise ValueError(f"tied names without a tensor: {lost}; known: {list(self.shapes)}")

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors' names, in the order of the vector."""
        return tuple(self.shapes)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """The number of coordinates of each tensor."""
        return tuple(math.prod(shape) for shape in self.shapes.values())

    @cached_property
    def dim(self) -> int:
        """The length of the flat vector."""
        return sum(self.sizes)

    @cached_property
    def slices(self) -> dict[str, slice]:
        """Name to slice of the flat vector."""
        result, position = {}, 0
        for name, size in zip(self.names, self.sizes, strict=True):
            result[name] = slice(position, position + size)
            position += size
        return result

    def views(self, theta: Float[Tensor, "*batch dim"]) -> dict[str, Tensor]:
        """Return every named tensor as a view `(*batch, *shape)` of `theta`."""
        self._check(theta)
        parts = theta.split(self.sizes, dim=-1)  # type: ignore[no-untyped-call]  # in torch
        return {
            name: part.unflatten(-1, shape) if shape else part.squeeze(-1)
            for part, (name, shape) in zip(parts, self.shapes.items(), strict=True)
        }

    def flatten(self, tensors: Mapping[str, Tensor]) -> Float[Tensor, "*batch dim"]:
        """Return the flat vector of named tensors; the inverse of `views`.

        Raises:
            ValueError: If a name is missing or a shape is wrong.
        """
        missing = [name for name in self.names if name not in tensors]
        if missing:
            raise ValueError(f"missing tensors: {', '.join(missing)}")
        parts = []
        for name, shape in self.shapes.items():
            tensor = tensors[name]
            batch = tensor.ndim - len(shape)
            if batch < 0 or tuple(tensor.shape[batch:]) != tuple(shape):
                raise ValueError(
                    f"{name} has shape {tuple(tensor.shape)}, expected (..., "
                    f"{', '.join(map(str, shape))})"
                )
            parts.append(tensor.reshape(*tensor.shape[:batch], math.prod(shape)))
        return torch.cat(parts, dim=-1)

    def select(self, patterns: str | Sequence[str]) -> tuple[str, ...]:
        """Return the names that match any of the shell-style patterns.

        Raises:
            ValueError: If a pattern matches nothing.

        Example:
            >>> ParameterSpec({"a.weight": (1,), "a.bias": (1,)}).select("*.bias")
            ('a.bias',)
        """
        patterns = [patterns] if isinstance(patterns, str) else list(patterns)
        for pattern in patterns:
            if not fnmatch.filter(self.names, pattern):
                raise ValueError(
                    f"pattern {pattern!r} matches no parameter; there are: {', '.join(self.names)}"
                )
        return tuple(name for name in self.names if any(fnmatch.fnmatch(name, p) for p in patterns))

    def mask(self, patterns: str | Sequence[str]) -> Tensor:
        """Return the `(dim,)` boolean mask of the coordinates whose names match."""
        chosen = torch.zeros(self.dim, dtype=torch.bool)
        for name in self.select(patterns):
            chosen[self.slices[name]] = True
        return chosen

    @cached_property
    def layers(self) -> dict[str, tuple[str, ...]]:
        """Layer (the module that owns the tensors) to the names of its tensors."""
        result: dict[str, tuple[str, ...]] = {}
        for name in self.names:
            layer = name.rpartition(".")[0]
            result[layer] = (*result.get(layer, ()), name)
        return result

    @cached_property
    def layer_ids(self) -> Tensor:
        """The `(dim,)` index of the layer that each coordinate belongs to."""
        number = {layer: i for i, layer in enumerate(self.layers)}
        return torch.cat(
            [
                torch.full((size,), number[name.rpartition(".")[0]])
                for name, size in zip(self.names, self.sizes, strict=True)
            ]
        )

    @cached_property
    def filter_ids(self) -> Tensor:
        """The `(dim,)` index of the filter that each coordinate belongs to.

        A filter is what one output unit reads: a slice along the first axis of a tensor
        with two or more axes. A bias or any other vector is one filter.
        """
        ids, first = [], 0
        for filters, size in zip(self._filters, self.sizes, strict=True):
            ids.append(first + torch.arange(filters).repeat_interleave(size // max(filters, 1)))
            first += filters
        return torch.cat(ids)

    @cached_property
    def _filters(self) -> tuple[int, ...]:
        """The number of filters of each tensor; an empty tensor has none."""
        return tuple(
            (shape[0] if len(shape) >= 2 else 1) if size else 0
            for shape, size in zip(self.shapes.values(), self.sizes, strict=True)
        )

    def layer_norms(self, theta: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch layers"]:
        """Return the Euclidean norm of each layer's coordinates, in the order of `layers`."""
        return self._norms(theta, self.layer_ids, len(self.layers))

    def filter_norms(self, theta: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch filters"]:
        """Return the Euclidean norm of each filter's coordinates."""
        return self._norms(theta, self.filter_ids, sum(self._filters))

    def _norms(self, theta: Tensor, ids: Tensor, groups: int) -> Tensor:
        self._check(theta)
        sums = theta.new_zeros(*theta.shape[:-1], groups)
        return sums.index_add(-1, ids.to(theta.device), theta**2).sqrt()

    def _check(self, theta: Tensor) -> None:
        if theta.ndim == 0 or theta.shape[-1] != self.dim:
            raise ValueError(f"theta has shape {tuple(theta.shape)}, expected (..., {self.dim})")

    def __str__(self) -> str:
        """Return one line per tensor."""
        width = max(map(len, self.names), default=0)
        rows = [f"{n:<{width}}  {tuple(s)!s}" for n, s in self.shapes.items()]
        rows += [f"{n:<{width}}  = {to}" for n, to in self.tied.items()]
        return f"{self.dim} coordinates\n" + "\n".join(rows)
