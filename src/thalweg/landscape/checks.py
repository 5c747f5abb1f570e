"""What is checked at the door: that the loss is a function, a mean, and differentiable."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.utils._pytree import tree_map

from thalweg.landscape.data import cut, divisible, fingerprint, leading, not_finite, tensors
from thalweg.landscape.memory import Meter, OverLimit
from thalweg.landscape.second_order import explained
from thalweg.landscape.seeding import preserve_rng
from thalweg.landscape.sweep import Census, Sweep, as_leaves

__all__ = ["check_function"]

FIRST, SECOND = 20_221, 81_799
HALVED = 3


@contextmanager
def _seeded(sweep: Sweep, seed: int) -> Iterator[None]:
    """Start every RNG that the data could draw from at `seed`, and put all of them back."""
    with sweep.guard(), preserve_rng(seed):
        for generator in sweep.source.generators():
            generator.manual_seed(seed)
        yield


def _close(a: float, b: float, dtype: torch.dtype, floor: float = 1e-6) -> bool:
    """Say whether two losses agree; below `floor` their difference is judged absolutely."""
    if a != a or b != b:
        return (a != a) == (b != b)
    tolerance = min(max(1e3 * torch.finfo(dtype).eps, 1e-9), 0.05)
    return a == b or abs(a - b) <= tolerance * max(abs(a), abs(b), floor)


def _global_states(device: torch.device) -> tuple[object, ...]:
    """Return the states of the global RNGs, comparable."""
    words: Any = np.random.get_state(legacy=True)  # noqa: NPY002 (only compared)
    numpy = (np.asarray(words[1]).tobytes(), *words[2:])
    states = random.getstate(), numpy, torch.get_rng_state().numpy().tobytes()
    if device.type == "cuda":
        return *states, torch.cuda.get_rng_state(device).numpy().tobytes()
    return states


def _pass(
    sweep: Sweep, theta: Tensor, seed: int, *, parts: bool = False
) -> tuple[Census, list[float]]:
    """Go through the data once; return what was seen and every batch's mean loss."""
    census, state, means = Census(), hashlib.blake2b(digest_size=16), []
    views = sweep.network.spec.views(theta)
    sweep.ledger.add(losses=1, passes=1)
    weight = 0.0
    with _seeded(sweep, seed), torch.no_grad():
        untouched = _global_states(sweep.network.device)
        for number, batch in enumerate(sweep.batches()):
            if leading(batch) == 0:
                raise ValueError(f"batch {number} of the data holds zero examples")
            if not_finite(batch):
                raise ValueError(
                    f"batch {number} of the data holds NaN or infinite values; clean the data "
                    "before building a landscape on it"
                )
            state.update(fingerprint(batch))
            if number == 0 and not parts:
                _check_call(sweep, views, batch)
            mean, given = _batch_mean(sweep, views, batch, parts)
            if not given >= 0:
                raise ValueError(f"loss returned the weight {given} for batch {number}")
            census.examples += leading(batch)
            weight += given
            means.append(mean)
        census.draws = _global_states(sweep.network.device) != untouched
    census.weight, census.digest = weight, state.hexdigest()
    return census, means


def _batch_mean(
    sweep: Sweep, views: Mapping[str, Tensor], batch: Any, parts: bool
) -> tuple[float, float]:
    """Return a batch's mean loss and weight; check them against its parts' if asked."""
    total, weights = 0.0, 0.0
    for piece in sweep.pieces("loss", batch):
        outputs = sweep.network.call(views, piece)
        mean, given = sweep.objective(outputs, piece)
        count, weight = leading(piece), float(given)
        alike = count > 1 and divisible(piece) and divisible(outputs)
        if parts and alike and leading(outputs) == count:
            _compare_parts(sweep, piece, outputs)
        total += weight * float(mean) if weight else 0.0
        weights += weight
    return total / weights if weights > 0 else float("nan"), weights


def active_dropout(module: nn.Module) -> list[str]:
    """Return the names of the modules whose dropout is on."""
    found = []
    for name, part in module.named_modules():
        rate = part.p if isinstance(part, _DropoutNd) else getattr(part, "dropout", 0.0)
        if part.training and isinstance(rate, float) and rate > 0:
            found.append(f"{name or 'the model'} ({type(part).__name__}, p={rate:g})")
    return found


def _check_call(sweep: Sweep, views: Mapping[str, Tensor], batch: Any) -> None:
    """Look for side effects of one small call: on its batch, on buffers, on the RNG."""
    module, device = sweep.network.module, sweep.network.device
    few = cut(batch, 0, min(leading(batch), 2)) if divisible(batch) else batch
    few = tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, few)
    versions = [tensor._version for tensor in tensors(few)]
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    states = _global_states(device)
    sweep.score(views, few)
    draws = _global_states(device) != states
    after = dict(module.named_buffers())
    if versions != [tensor._version for tensor in tensors(few)]:
        raise ValueError(
            "the model or the loss writes into the batch that it is given (a layer with "
            "inplace=True on the inputs, or targets that are masked in place), so each pass would "
            "change the data; copy before writing"
        )
    for name, value in before.items():
        if not torch.equal(after[name].nan_to_num(), value.nan_to_num()):
            raise ValueError(
                f"a forward pass changes the buffer {name}, so the loss depends on the calls "
                "before it and is not a function of the parameters. Call model.eval() before "
                "building the landscape, or keep that state out of forward()"
            )
    active = active_dropout(module)
    if draws and active:
        raise ValueError(
            f"the loss is not a function of the parameters: dropout is on in {', '.join(active)}. "
            "Call model.eval() before building the landscape"
        )


def _check_same(
    sweep: Sweep,
    theta: Tensor,
    first: tuple[Census, list[float]],
    second: tuple[Census, list[float]],
) -> None:
    """Refuse data or a loss that differ between two passes."""
    (census, means), (again, others) = first, second
    if census.examples != again.examples:
        raise ValueError(
            f"one pass over the data saw {census.examples} examples and the next "
            f"{again.examples}: it can be gone through only once, or changes; pass tensors, a "
            "list of batches or a map-style Dataset"
        )
    if census.digest != again.digest:
        raise ValueError(
            f"two passes over the data differ: {sweep.source.suspect()}. A landscape needs the "
            "same examples in the same order each time: pass shuffle=False and a deterministic "
            "transform, or the Dataset itself"
        )
    for pair in zip(means, others, strict=True):
        if not _close(*pair, sweep.network.dtype):
            _refuse_randomness(sweep, theta, pair)


def _refuse_randomness(sweep: Sweep, theta: Tensor, losses: tuple[float, float]) -> None:
    modes = {part: part.training for part in sweep.network.module.modules()}
    sweep.network.module.eval()
    _, first = _pass(sweep, theta, FIRST)
    _, second = _pass(sweep, theta, SECOND)
    for part, mode in modes.items():
        part.training = mode
    shown = f"the same parameters gave a batch the losses {losses[0]:.6g} and {losses[1]:.6g}"
    if all(_close(*pair, sweep.network.dtype) for pair in zip(first, second, strict=True)):
        raise ValueError(
            "the loss is not a function of the parameters: the model draws random numbers in "
            f"training mode, and {shown}. Call model.eval() before building the landscape"
        )
    raise ValueError(
        f"the loss is not a function of the parameters: {shown}, in evaluation mode too. "
        "The model or the loss draws random numbers; make it deterministic"
    )


def _check_independence(sweep: Sweep, views: Mapping[str, Tensor]) -> None:
    """Compare the loss of the first batches with that of their parts, each run by itself."""
    if sweep.policy == "batch":
        return
    with sweep.guard(), torch.no_grad():
        for number, batch in enumerate(sweep.batches()):
            if number >= HALVED:
                return
            piece = next(sweep.pieces("loss", batch))
            if leading(piece) > 1 and divisible(piece):
                _compare_parts(sweep, piece, None, views)


def _compare_parts(
    sweep: Sweep, piece: Any, outputs: Any, views: Mapping[str, Tensor] | None = None
) -> None:
    """Compare a mean with the weighted mean of its parts, on given outputs or afresh."""
    count, dtypes = leading(piece), {sweep.network.dtype}

    def score(start: int, stop: int) -> tuple[float, float]:
        part = cut(piece, start, stop)
        if views is not None:
            mean, weight = sweep.score(views, part)
        else:
            mean, weight = sweep.objective(cut(outputs, start, stop), part)
        dtypes.add(mean.dtype)
        return float(mean), float(weight)

    mean, weight = score(0, count)
    dtype = max(dtypes, key=lambda d: torch.finfo(d).eps)
    if mean != mean or weight == 0:
        return
    for at in {count // 2, max(count // 3, 1)}:
        halves = score(0, at), score(at, count)
        whole = sum(w for _, w in halves)
        average = sum(w * v for v, w in halves if w) / whole if whole else float("nan")
        # The same outputs must agree to rounding; outputs computed afresh differ a little.
        scale = max((abs(v) for v, w in halves if w), default=0.0)
        floor = max(scale, 1e-2) if views is not None else max(scale, 1e-30)
        if _close(mean, average, dtype, floor) and _close(weight, whole, dtype):
            continue
        summed = _close(mean, sum(v for v, _ in halves), dtype, floor)
        hint = " It looks like a sum: use reduction='mean'." if summed else ""
        raise ValueError(
            f"the loss is not a mean over examples: a batch of {count} has loss {mean:.6g}, but "
            f"its parts of {at} and {count - at} average to {average:.6g}."
            f"{hint} If it is a mean over something else (tokens that are not ignored, say), "
            "return (mean, weight) from the loss; if examples of a batch depend on each other, it "
            "is not a sum over examples at all"
        )


def _check_differentiable(sweep: Sweep, theta: Tensor) -> None:
    with sweep.guard():
        batch = next(iter(sweep.batches()))
        few = cut(batch, 0, min(leading(batch), 2)) if divisible(batch) else batch
        with suppress(OverLimit), Meter(limit=sweep.budget.cap):
            _refuse_constants(sweep, theta, few)
        if sweep.policy != "recompute":
            sweep.plan("gradient", batch)


def _refuse_constants(sweep: Sweep, theta: Tensor, few: Any) -> None:
    """Refuse a loss that does not depend on the vector, or not on it alone."""
    leaves = as_leaves(sweep.network.spec.views(theta))
    with sweep.second_order(), explained(), torch.enable_grad():
        mean, _ = sweep.score(leaves, few)
        slopes: tuple[Tensor | None, ...] = (None,)
        if mean.requires_grad:
            slopes = torch.autograd.grad(mean, list(leaves.values()), allow_unused=True)
        if all(slope is None for slope in slopes):
            raise ValueError(
                "the loss does not depend differentiably on the parameters: look for argmax, "
                ".item(), .detach(), numpy or a comparison in the model or the loss, and for a "
                "forward= that calls another module than the one it is given. A number that is "
                "only to be reported belongs in metrics="
            )
        with torch.no_grad():
            outputs = sweep.network.call(leaves, few)
        if sweep.objective(outputs, few)[0].requires_grad:
            raise ValueError(
                "the loss depends on trainable tensors besides the outputs, such as "
                "model.parameters() in a weight penalty: to this landscape they are constants of "
                "the model that you hold. Pass a penalty as penalty=; detach anything else"
            )


def check_function(sweep: Sweep, theta: Tensor) -> Census:
    """Verify that the sweep defines a differentiable function of the parameters.

    Two passes that start from different RNG states must see the same data in the same
    order and give the same losses; every batch's loss must equal the weighted mean of its
    parts; the loss must have a gradient; nothing may change what it is given.

    Args:
        sweep: What is to be checked; its policy for BatchNorm is in force.
        theta: The vector to check at.

    Returns:
        The number of examples, their weight, and the digest of the data.

    Raises:
        ValueError: If it is not such a function; the message names the cause and a remedy.
    """
    views = sweep.network.spec.views(theta)
    sweep.penalty.check(theta)
    first = _pass(sweep, theta, FIRST)
    census = first[0]
    if census.examples == 0:
        raise ValueError("data holds zero batches; pass at least one batch with one example")
    if census.weight == 0:
        raise ValueError("the weights that loss returned sum to zero, so there is no mean loss")
    _check_same(sweep, theta, first, _pass(sweep, theta, SECOND, parts=True))
    _check_independence(sweep, views)
    _check_differentiable(sweep, theta)
    return census
