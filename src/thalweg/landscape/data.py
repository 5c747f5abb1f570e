"""Data as a fixed, ordered sequence of batches, whatever the user holds it in.

A source never shuffles, never keeps more than one batch of a stream, and yields the same
batches in the same order each time, which `fingerprint` lets the landscape verify.
"""

from __future__ import annotations

import hashlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    default_collate,
)

__all__ = ["Source", "cut", "fingerprint", "leading", "make_source", "place", "target_of"]

STREAM_BATCH = 256
SCAN = 2**14
"""How many numbers are looked at together, so that looking takes no memory to speak of."""


def tensors(batch: Any) -> list[Tensor]:
    """Return the tensors of a nested batch."""
    return [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)]


def plain(batch: Any) -> Any:
    """Return a dict-like batch (Hugging Face's BatchEncoding) as a plain dict."""
    return dict(batch) if isinstance(batch, Mapping) else batch


def target_of(batch: Any) -> Any:
    """Return what the loss compares the outputs with: the last item, or the batch itself."""
    return batch[-1] if isinstance(batch, (tuple, list)) and len(batch) > 1 else batch


def leading(batch: Any) -> int:
    """Return the number of examples in a batch: the first axis of its targets.

    Raises:
        ValueError: If the batch holds no tensor with an axis, or none of its examples.
    """
    for part in (target_of(batch), batch):
        sizes = [t.shape[0] for t in tensors(part) if t.ndim]
        if sizes:
            return int(sizes[0])
    raise ValueError(
        f"a batch holds no tensor with a leading axis of examples; it is a {type(batch).__name__}"
    )


def divisible(batch: Any) -> bool:
    """Say whether every tensor of the batch has the same leading axis."""
    sizes = {t.shape[0] if t.ndim else None for t in tensors(batch)}
    return len(sizes) == 1 and None not in sizes


def cut(batch: Any, start: int, stop: int) -> Any:
    """Return examples `start` to `stop` of a divisible batch, as views."""
    return tree_map(lambda leaf: leaf[start:stop] if isinstance(leaf, Tensor) else leaf, batch)


def pick(batch: Any, indices: Tensor) -> Any:
    """Return the chosen examples of a divisible batch, as copies.

    Raises:
        ValueError: If the batch cannot be divided.
    """
    if not divisible(batch):
        shapes = [tuple(t.shape) for t in tensors(batch)]
        raise ValueError(
            "a minibatch needs batches whose tensors all share their first axis, the examples; "
            f"here they have the shapes {shapes}"
        )
    return tree_map(
        lambda leaf: leaf[indices.to(leaf.device)] if isinstance(leaf, Tensor) else leaf, batch
    )


def place(batch: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """Move a batch to the landscape's device, its floating tensors to its dtype."""

    def move(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return leaf.to(device=device, dtype=dtype if leaf.is_floating_point() else leaf.dtype)

    return tree_map(move, plain(batch))


def signature(batch: Any) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of one example: batches of one signature cost the same per example."""
    return tuple(tuple(t.shape[1:]) for t in tensors(batch))


def _scan(tensor: Tensor) -> Iterator[Tensor]:
    """Yield a tensor's numbers, flat, a few at a time."""
    flat = tensor.detach().reshape(-1)
    for start in range(0, len(flat), SCAN):
        yield flat[start : start + SCAN]


def fingerprint(batch: Any) -> bytes:
    """Return a digest of a batch's values, shapes and dtypes."""
    state = hashlib.blake2b(digest_size=16)
    for leaf in tree_leaves(batch):
        if isinstance(leaf, Tensor):
            state.update(f"{leaf.dtype}{tuple(leaf.shape)}".encode())
            for part in _scan(leaf):
                state.update(part.cpu().contiguous().view(torch.uint8).numpy().tobytes())
        elif isinstance(leaf, (str, int, float, bool)):
            state.update(repr(leaf).encode())
    return state.digest()


def not_finite(batch: Any) -> bool:
    """Say whether any floating tensor of the batch holds a NaN or an infinity."""
    floating = [t for t in tensors(batch) if t.is_floating_point()]
    return any(not torch.isfinite(part).all() for t in floating for part in _scan(t))


class Source(ABC):
    """A fixed sequence of batches that can be gone through any number of times."""

    kind: str

    @abstractmethod
    def __iter__(self) -> Iterator[Any]:
        """Yield the batches in order."""

    @abstractmethod
    def take(self, indices: Tensor) -> list[Any]:
        """Return the examples at these positions as one or more batches."""

    def generators(self) -> list[torch.Generator]:
        """Return the user's own generators that iterating would advance."""
        return []

    def suspect(self) -> str:
        """Name what makes two passes see different data."""
        return "its items change from one pass to the next (random augmentation?)"


@dataclass(frozen=True)
class TensorSource(Source):
    """Tensors that hold the whole data set, cut into batches."""

    tensors: Any
    batch_size: int | None
    kind: str = "tensors"

    def __iter__(self) -> Iterator[Any]:
        total = leading(self.tensors)
        step = self.batch_size or max(total, 1)
        for start in range(0, total, step):
            yield cut(self.tensors, start, min(start + step, total))

    def take(self, indices: Tensor) -> list[Any]:
        """Return the chosen examples as one batch."""
        return [pick(self.tensors, indices)]


@dataclass(frozen=True)
class ListSource(Source):
    """A list of ready batches."""

    items: Sequence[Any]
    kind: str = "list of batches"

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)

    def take(self, indices: Tensor) -> list[Any]:
        """Return the chosen examples, one batch per batch that they come from, in order."""
        ends = list(itertools.accumulate(leading(plain(item)) for item in self.items))
        home = torch.bucketize(indices.cpu(), torch.tensor(ends), right=True)
        chosen = []
        for number in torch.unique(home).tolist():
            offset = ends[number - 1] if number else 0
            chosen.append(pick(plain(self.items[number]), indices[home == number] - offset))
        return chosen


@dataclass(frozen=True)
class LoaderSource(Source):
    """A DataLoader, gone through one batch at a time."""

    loader: DataLoader[Any]
    kind: str = "DataLoader"

    def __iter__(self) -> Iterator[Any]:
        return iter(self.loader)

    def take(self, indices: Tensor) -> list[Any]:
        """Return the chosen examples, in the loader's order, collated as the loader does."""
        if isinstance(self.loader.dataset, IterableDataset):
            raise TypeError(
                "minibatches need a map-style dataset, and this DataLoader streams an "
                "IterableDataset; load it into tensors first"
            )
        if self.loader.batch_sampler is None:  # the data set's items are batches themselves
            return ListSource([plain(batch) for batch in self]).take(indices)
        items = [self.loader.dataset[self._order[i]] for i in indices.tolist()]
        collate: Callable[[Any], Any] = self.loader.collate_fn or default_collate
        return [collate(items)]

    @cached_property
    def _order(self) -> list[Any]:
        return [i for batch in self.loader.batch_sampler or () for i in batch]

    def generators(self) -> list[torch.Generator]:
        """Return the loader's and its samplers' generators."""
        held = [getattr(part, "generator", None) for part in (self.loader, *_samplers(self.loader))]
        return list({id(g): g for g in held if isinstance(g, torch.Generator)}.values())

    def suspect(self) -> str:
        """Name a shuffling sampler, else the data set."""
        names = [type(sampler).__name__ for sampler in _samplers(self.loader)]
        random = [name for name in names if "Random" in name or "Shuffle" in name]
        return f"the DataLoader shuffles ({random[0]})" if random else super().suspect()


def _samplers(loader: DataLoader[Any]) -> list[Any]:
    """Return the loader's sampler, its batch sampler and the sampler inside that."""
    batched = loader.batch_sampler
    found = [loader.sampler, batched, getattr(batched, "sampler", None)]
    return [sampler for sampler in found if sampler is not None]


def _check_loader(loader: DataLoader[Any]) -> LoaderSource:
    random = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)
    for sampler in _samplers(loader):
        if isinstance(sampler, random):
            raise ValueError(
                f"the DataLoader shuffles ({type(sampler).__name__}), and a landscape needs the "
                "same examples in the same order each time; pass shuffle=False, or the Dataset "
                "itself"
            )
    if loader.drop_last or getattr(loader.batch_sampler, "drop_last", False):
        raise ValueError(
            "the DataLoader drops its last ragged batch (drop_last=True), so part of the data "
            "would be left out of the mean; build it with drop_last=False"
        )
    return LoaderSource(loader)


def _check_list(items: Sequence[Any]) -> ListSource:
    if not items:
        raise ValueError("data holds zero batches; pass at least one batch with one example")
    lengths = {t.shape[0] if isinstance(t, Tensor) and t.ndim else None for t in items}
    if len(items) == 2 and all(isinstance(t, Tensor) for t in items) and len(lengths) == 1:
        raise ValueError(
            "a list of two tensors of equal length is ambiguous: pass a tuple (inputs, targets) "
            "for a data set, or a list of (inputs, targets) pairs for batches"
        )
    return ListSource(list(items))


def make_source(data: Any, batch_size: int | None) -> Source:
    """Recognise what the user holds the data in.

    Args:
        data: A DataLoader, a Dataset, a tuple or dict of tensors (one data set), a single
            tensor, or a list of batches.
        batch_size: How tensors and datasets are cut into batches; None means one batch for
            tensors and 256 examples for a Dataset.

    Returns:
        The source.

    Raises:
        TypeError: If the data is of no known kind, or can be gone through only once.
        ValueError: If it is empty, ambiguous, or its tensors disagree in length.
    """
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if isinstance(data, DataLoader):
        return _check_loader(data)
    if isinstance(data, Dataset):
        loader: DataLoader[Any] = DataLoader(data, batch_size=batch_size or STREAM_BATCH)
        return LoaderSource(loader, kind="Dataset")
    if isinstance(data, (tuple, Tensor, Mapping)):
        whole = plain(data)
        sizes = [t.shape[0] if t.ndim else None for t in tensors(whole)]
        if not sizes:
            raise TypeError("data holds no tensor; pass a tuple (inputs, targets) of tensors")
        if len(set(sizes)) != 1 or None in sizes:
            raise ValueError(
                f"the tensors of a data set must share their first axis, but have lengths {sizes}"
            )
        if sizes[0] == 0:
            raise ValueError("data holds zero examples; pass at least one")
        return TensorSource(whole, batch_size)
    if isinstance(data, Sequence) and not isinstance(data, (str, bytes)):
        return _check_list(data)
    if isinstance(data, Iterator):
        raise TypeError(
            f"data is a {type(data).__name__}, which can be gone through only once; "
            "pass a list of batches, a Dataset or a DataLoader"
        )
    raise TypeError(
        f"data must be a DataLoader, a Dataset, a tuple (inputs, targets) of tensors or a list "
        f"of batches, not {type(data).__name__}"
    )
