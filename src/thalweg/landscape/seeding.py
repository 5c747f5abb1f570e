"""Randomness is an argument: seeds and generators, never the global RNG."""

from __future__ import annotations

import random
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral

import numpy as np
import torch

__all__ = ["Seed", "make_generator", "preserve_rng"]

Seed = int | torch.Generator | None


def make_generator(seed: Seed, device: torch.device | str = "cpu") -> tuple[torch.Generator, int]:
    """Return a fresh generator and the integer that reproduces it.

    Args:
        seed: An integer; a generator, from which one integer is drawn; or None, which
            draws from the operating system's entropy.
        device: Where the generator draws.

    Returns:
        The generator, and the seed to record beside the result.

    Raises:
        TypeError: If `seed` is none of the three.
        ValueError: If an integer seed is negative or needs more than 63 bits.

    Example:
        >>> _, recorded = make_generator(7)
        >>> recorded
        7
    """
    if isinstance(seed, torch.Generator):
        number = int(torch.randint(2**62, (), generator=seed, device=seed.device))
    elif seed is None:
        number = secrets.randbelow(2**62)
    elif isinstance(seed, Integral) and not isinstance(seed, bool):
        number = int(seed)
    else:
        raise TypeError(
            f"seed must be an int, a torch.Generator or None, not {type(seed).__name__}"
        )
    if not 0 <= number < 2**63:
        raise ValueError(f"seed must lie in [0, 2**63), got {number}")
    return torch.Generator(device=device).manual_seed(number), number


@contextmanager
def preserve_rng(seed: int | None = None) -> Iterator[None]:
    """Leave every global RNG (Python, numpy, torch CPU and CUDA) as it was found.

    Some code that a landscape must call draws from a global RNG: iterating over a
    DataLoader does, and so do the initialisers of ``torch.nn``.

    Args:
        seed: Where the global RNGs start inside the block; None leaves them where they
            are.
    """
    python_state = random.getstate()
    numpy_state = np.random.get_state()  # noqa: NPY002 (saved, to be put back)
    started = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    cuda = torch.cuda.is_available() and started
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if cuda else []):
            if seed is not None:
                random.seed(seed)
                np.random.seed(seed % 2**32)  # noqa: NPY002 (put back below)
                torch.manual_seed(seed)
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
