"""Independent truths for the tests: naive losses, and photographs of what must not change."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jaxtyping
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

Truth = Callable[[Tensor], Tensor]


def naive(
    model: nn.Module,
    loss: Callable[[Any, Any], Any],
    batches: Sequence[tuple[Any, Any]],
    *,
    names: Sequence[str] | None = None,
    penalty: Callable[[Tensor], Tensor] | None = None,
    call: Callable[[Callable[..., Any], Any], Any] | None = None,
) -> Truth:
    """Write a network's loss as one function of one vector, independently of the library."""
    model = copy.deepcopy(model).double()
    own = dict(model.named_parameters())
    chosen = list(own) if names is None else list(names)

    def double(value: Any) -> Any:
        return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value

    def truth(theta: Tensor) -> Tensor:
        state, first = {}, 0
        for name in chosen:
            state[name] = theta[first : first + own[name].numel()].reshape(own[name].shape)
            first += own[name].numel()
        assert first == len(theta)

        def run(*inputs: Any, **keywords: Any) -> Any:
            return torch.func.functional_call(model, state, inputs, keywords)

        total, weights = torch.zeros((), dtype=torch.float64), 0.0
        for inputs, targets in batches:
            with sdpa_kernel(SDPBackend.MATH):
                outputs = call(run, inputs) if call else run(double(inputs))
            result = loss(outputs, double(targets))
            weight = float(len(targets))
            if isinstance(result, tuple):
                result, weight = result[0], float(result[1])
            if weight:
                total, weights = total + weight * result, weights + weight
        return total / weights + (penalty(theta) if penalty else 0.0)

    return truth


def photograph(things: Any) -> Any:
    """Return everything observable about modules, tensors, generators and the global RNGs."""
    if isinstance(things, nn.Module):
        parts = []
        for name, value in [*things.named_parameters(), *things.named_buffers()]:
            grad = None if value.grad is None else value.grad.clone()
            marks = id(value), value.requires_grad, value._version
            parts.append((name, value.clone(), grad, marks))
        modes = [
            (name, part.training, vars(part).get("track_running_stats"))
            for name, part in things.named_modules()
        ]
        flat = [
            [id(w) for w in part._flat_weights]
            for part in things.modules()
            if isinstance(part, nn.RNNBase)
        ]
        hooks = [len(part._forward_pre_hooks) for part in things.modules()]
        return parts, modes, flat, hooks
    if isinstance(things, torch.Generator):
        return things.get_state()
    if isinstance(things, Tensor):
        return things.clone(), things._version
    return [photograph(thing) for thing in things]


def same(a: Any, b: Any) -> bool:
    """Compare two photographs bit for bit."""
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a.nan_to_num(), b.nan_to_num())
    return bool(a == b)


def global_rng() -> tuple[Any, ...]:
    """Return the states of the global RNGs."""
    numpy = np.random.get_state(legacy=True)  # noqa: NPY002 (only looked at)
    return random.getstate(), numpy[1].tolist(), numpy[2], torch.get_rng_state()


@contextmanager
def untouched(*things: Any) -> Iterator[None]:
    """Assert that the block leaves these things, the RNGs and global switches as they were."""
    switches = (
        torch.backends.mha.get_fastpath_enabled,
        torch.is_grad_enabled,
        torch.get_default_dtype,
        torch.is_inference_mode_enabled,
        torch.backends.cuda.flash_sdp_enabled,
        torch.backends.cuda.mem_efficient_sdp_enabled,
        torch.backends.cudnn.is_available,
    )
    before = photograph(things), global_rng(), [switch() for switch in switches]
    try:
        with shapes_unchecked():  # beartype draws from Python's global RNG
            yield
    finally:
        assert same(photograph(things), before[0]), "something that is not ours was changed"
        assert same(global_rng(), before[1]), "a global RNG was touched"
        assert [switch() for switch in switches] == before[2], "a global switch was left turned"


@contextmanager
def shapes_unchecked() -> Iterator[None]:
    """Meet the library's own messages instead of those of the tests' shape checks."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)
