"""What is checked at the door: that the loss is a function, a mean, and differentiable."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from thalweg.landscape.data import cut, divisible, fingerprint, leading, not_finite
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


def _tolerance(dtype: torch.dtype) -> float:
    return 1e-9 if dtype == torch.float64 else 1e-4


def _close(a: float, b: float, dtype: torch.dtype) -> bool:
    if a != a or b != b:
        return (a != a) == (b != b)
    return a == b or abs(a - b) <= _tolerance(dtype) * max(abs(a), abs(b), 1e-6)


def _global_states() -> tuple[object, ...]:
    """Return the states of the global RNGs, comparable."""
    words = np.random.get_state(legacy=True)  # noqa: NPY002 (only compared)
    return random.getstate(), str(words), torch.get_rng_state().numpy().tobytes()


def _pass(sweep: Sweep, theta: Tensor, seed: int) -> tuple[Census, float]:
    """Go through the data once; return what was seen and the mean loss."""
    census, state, total = Census(), hashlib.blake2b(digest_size=16), 0.0
    views = sweep.network.spec.views(theta)
    sweep.ledger.add(losses=1, passes=1)
    with _seeded(sweep, seed), torch.no_grad():
        untouched = _global_states()
        for number, batch in enumerate(sweep.batches()):
            if leading(batch) == 0:
                raise ValueError(f"batch {number} of the data holds zero examples")
            if not_finite(batch):
                raise ValueError(
                    f"batch {number} of the data holds NaN or infinite values; clean the data "
                    "before building a landscape on it"
                )
            state.update(fingerprint(batch))
            mean, given = sweep.score(views, batch)
            weight = float(given)
            if not weight >= 0:
                raise ValueError(f"loss returned the weight {weight} for batch {number}")
            census.examples += leading(batch)
            census.weight += weight
            total += weight * float(mean)
        census.draws = _global_states() != untouched
    if census.examples == 0:
        raise ValueError("data holds zero batches; pass at least one batch with one example")
    if census.weight == 0:
        raise ValueError("the weights that loss returned sum to zero, so there is no mean loss")
    census.digest = state.hexdigest()
    return census, total / census.weight


def active_dropout(module: nn.Module) -> list[str]:
    """Return the names of the modules whose dropout is on."""
    found = []
    for name, part in module.named_modules():
        rate = part.p if isinstance(part, _DropoutNd) else getattr(part, "dropout", 0.0)
        if part.training and isinstance(rate, float) and rate > 0:
            found.append(f"{name or 'the model'} ({type(part).__name__}, p={rate:g})")
    return found


def _refuse_randomness(sweep: Sweep, theta: Tensor, losses: tuple[float, float]) -> None:
    active = active_dropout(sweep.network.module)
    modes = {part: part.training for part in sweep.network.module.modules()}
    sweep.network.module.eval()
    _, first = _pass(sweep, theta, FIRST)
    _, second = _pass(sweep, theta, SECOND)
    for part, mode in modes.items():
        part.training = mode
    shown = f"the same parameters gave the losses {losses[0]:.6g} and {losses[1]:.6g}"
    if _close(first, second, sweep.network.dtype):
        cause = f"dropout is on in {', '.join(active)}" if active else (
            "the model draws random numbers in training mode"
        )
        raise ValueError(
            f"the loss is not a function of the parameters: {cause}, and {shown}. "
            "Call model.eval() before building the landscape"
        )
    raise ValueError(
        f"the loss is not a function of the parameters: {shown}, in evaluation mode too. "
        "The model or the loss draws random numbers; make it deterministic"
    )


def _check_mean(sweep: Sweep, theta: Tensor) -> None:
    """Compare the loss of the first batches with the weighted mean of their parts."""
    views = sweep.network.spec.views(theta)
    with sweep.guard(), torch.no_grad():
        for number, batch in enumerate(sweep.batches()):
            if number >= HALVED:
                return
            count = leading(batch)
            if count < 2 or not divisible(batch):
                continue
            outputs = None
            if sweep.policy == "batch":
                outputs = sweep.network.call(views, batch)
                if not divisible(outputs) or leading(outputs) != count:
                    continue
            for at in {count // 2, max(count // 3, 1)}:
                _compare(sweep, views, batch, outputs, at)


def _compare(
    sweep: Sweep, views: dict[str, Tensor], batch: object, outputs: object, at: int
) -> None:
    count, dtype = leading(batch), sweep.network.dtype
    values, weights = [], []
    for start, stop in ((0, count), (0, at), (at, count)):
        part = cut(batch, start, stop)
        if outputs is None:
            mean, weight = sweep.score(views, part)
        else:
            mean, weight = sweep.objective(cut(outputs, start, stop), part)
        values.append(float(mean))
        weights.append(float(weight))
    whole = weights[1] + weights[2]
    if whole == 0 or values[0] != values[0]:
        return
    parts = sum(w * v for w, v in zip(weights[1:], values[1:], strict=True) if w) / whole
    if _close(values[0], parts, dtype) and _close(weights[0], whole, dtype):
        return
    hint = (
        " It looks like a sum: use reduction='mean'."
        if _close(values[0], values[1] + values[2], dtype)
        else ""
    )
    raise ValueError(
        f"the loss is not a mean over examples: a batch of {count} has loss {values[0]:.6g}, but "
        f"its parts of {at} and {count - at} average to {parts:.6g}.{hint} If it is a mean over "
        "something else (tokens that are not ignored, say), return (mean, weight) from the loss; "
        "if examples of a batch depend on each other, it is not a sum over examples at all"
    )


def _check_differentiable(sweep: Sweep, theta: Tensor) -> None:
    with sweep.guard(), sweep.second_order(), torch.enable_grad():
        for batch in sweep.batches():
            few = cut(batch, 0, min(leading(batch), 4)) if divisible(batch) else batch
            mean, _ = sweep.score(as_leaves(sweep.network.spec.views(theta)), few)
            if not mean.requires_grad:
                raise ValueError(
                    "the loss does not depend differentiably on the parameters: look for argmax, "
                    ".item(), .detach(), numpy or a comparison in the model or the loss. A number "
                    "that is only to be reported belongs in metrics="
                )
            return


def check_function(sweep: Sweep, theta: Tensor) -> Census:
    """Verify that the sweep defines a differentiable function of the parameters.

    Two passes that start from different RNG states must see the same data in the same
    order and give the same loss; the first batches' losses must equal the weighted means
    of their parts; the loss must have a gradient.

    Args:
        sweep: What is to be checked; its policy for BatchNorm is in force.
        theta: The vector to check at.

    Returns:
        The number of examples, their weight, and the digest of the data.

    Raises:
        ValueError: If it is not such a function; the message names the cause and a remedy.
    """
    census, first = _pass(sweep, theta, FIRST)
    again, second = _pass(sweep, theta, SECOND)
    if census.digest != again.digest:
        raise ValueError(
            f"two passes over the data differ: {sweep.source.suspect()}. A landscape needs the "
            "same examples in the same order each time: pass shuffle=False and a deterministic "
            "transform, or the Dataset itself"
        )
    if not _close(first, second, sweep.network.dtype):
        _refuse_randomness(sweep, theta, (first, second))
    _check_mean(sweep, theta)
    _check_differentiable(sweep, theta)
    return census
