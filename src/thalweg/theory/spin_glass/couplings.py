r"""The couplings of a spherical spin glass: their law, and how a seed gives them.

Only the symmetric part $T$ of a coupling tensor $J$ matters. With independent standard normal
$J$, the entry of $T$ at a sorted tuple with multiplicities $m_1, m_2, \dots$ averages the
$p! / \prod_k m_k!$ independent couplings at the tuple's distinct orderings, so that

$$T_{i_1 \dots i_p} = a_p\, n^{-(p-1)/2} \sqrt{\tfrac{\prod_k m_k!}{p!}}\; g_{i_1 \dots i_p}
\qquad (i_1 \le \dots \le i_p),$$

with one standard normal $g$ for each sorted tuple: that is the law exactly, from about
$n^p / p!$ draws instead of $n^p$.

**Which $g$ a seed gives.** The tuples whose largest index is $c$ have a stream of their own:
numpy's counter-based Philox generator with the key (seed, degree $+ 2^{32} n$) and the counter
starting at $c \cdot 2^{192}$; its standard normals, in double precision, belong to the tuples in
colexicographic order. So a seed fixes every coupling, whatever the dtype (the rest is rounded
from double), the memory, the number of threads or the order in which the streams are read.
Different $n$ have independent couplings; equal degrees of different mixtures share theirs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int

__all__ = [
    "coupling_streams",
    "joins",
    "rank",
    "repetitions",
    "sorted_count",
    "sorted_tuples",
]


def sorted_count(n: int, degree: int) -> int:
    r"""Return the number of sorted tuples of `degree` indices below `n`.

    $$\binom{n + p - 1}{p}$$

    Example:
        >>> sorted_count(4, 3)
        20
    """
    return math.comb(n + degree - 1, degree) if degree else 1


def sorted_tuples(n: int, degree: int) -> Int[np.ndarray, "tuples degree"]:
    """Return all sorted tuples of indices below `n`, in colexicographic order.

    Those whose largest index is `c` stand together, after those with a smaller one.

    Example:
        >>> sorted_tuples(2, 3).tolist()
        [[0, 0, 0], [0, 0, 1], [0, 1, 1], [1, 1, 1]]
    """
    tuples = np.zeros((1, 0), dtype=np.int64)
    for length in range(degree):
        counts = [sorted_count(c + 1, length) for c in range(n)]
        heads = np.concatenate([tuples[:count] for count in counts])
        tuples = np.column_stack([heads, np.repeat(np.arange(n), counts)])
    return tuples


def rank(tuples: Int[np.ndarray, "*batch degree"]) -> Int[np.ndarray, "*batch"]:
    r"""Return the positions of sorted tuples in colexicographic order.

    $$\sum_{m=1}^{p} \binom{i_m + m - 1}{m}$$

    Example:
        >>> rank(sorted_tuples(3, 2)).tolist()
        [0, 1, 2, 3, 4, 5]
    """
    place = np.zeros(tuples.shape[:-1], dtype=np.int64)
    for m in range(1, tuples.shape[-1] + 1):
        index = tuples[..., m - 1]
        binomial = np.ones_like(index)
        for k in range(m):  # exact: a product of k + 1 neighbours is divisible by (k + 1)!
            binomial = binomial * (index + k) // (k + 1)
        place += binomial
    return place


def joins(n: int, degree: int) -> Int[np.ndarray, "tuples n"]:
    """Return the position of every sorted tuple with one more index, among the longer ones.

    Example:
        >>> joins(2, 1).tolist()  # 00, 01 and 11 have the positions 0, 1, 2
        [[0, 1], [1, 2]]
    """
    tuples = sorted_tuples(n, degree)[:, None]
    spins = np.arange(n)[None, :, None]
    shape = (len(tuples), n)
    longer = np.concatenate(
        [np.broadcast_to(tuples, (*shape, degree)), np.broadcast_to(spins, (*shape, 1))], axis=-1
    )
    longer.sort(axis=-1)
    return rank(longer)


def repetitions(
    tuples: Int[np.ndarray, "tuples degree"],
) -> tuple[Float[np.ndarray, " tuples"], Float[np.ndarray, " tuples"]]:
    r"""Return $\prod_k m_k!$ of every sorted tuple, and how often its largest index occurs.

    Example:
        >>> [part.tolist() for part in repetitions(np.array([[0, 0, 1], [2, 2, 2]]))]
        [[2.0, 6.0], [1.0, 3.0]]
    """
    product, run = np.ones(len(tuples)), np.full(len(tuples), float(tuples.shape[1] > 0))
    for m in range(1, tuples.shape[1]):
        run = np.where(tuples[:, m] == tuples[:, m - 1], run + 1, 1.0)
        product *= run
    return product, run


def coupling_streams(
    n: int, degree: int, amplitude: float, seed: int
) -> Iterator[Float[np.ndarray, " tuples"]]:
    r"""Yield the entries of the symmetric tensor, one array for each largest index.

    Args:
        n: The number of spins.
        degree: The degree $p$.
        amplitude: Its $a_p$.
        seed: A number in $[0, 2^{63})$.

    Yields:
        For $c = 0, \dots, n - 1$ the entries $T_{i_1 \dots i_{p-1} c}$ in double precision,
        $i_1 \le \dots \le i_{p-1} \le c$ in colexicographic order.

    Example:
        >>> [len(stream) for stream in coupling_streams(3, 3, 1.0, seed=0)]
        [1, 3, 6]
    """
    heads = sorted_tuples(n, degree - 1)
    product, last = repetitions(heads)
    scale = amplitude * n ** (-(degree - 1) / 2) / math.sqrt(math.factorial(degree))
    key = np.array([seed, degree + (n << 32)], dtype=np.uint64)
    for c in range(n):
        size = sorted_count(c + 1, degree - 1)
        ending = slice(sorted_count(c, degree - 1), size)  # the heads that end in c themselves
        repeated = product[:size].copy()
        repeated[ending] *= last[ending] + 1
        counter = np.array([0, 0, 0, c], dtype=np.uint64)
        normals = np.random.Generator(np.random.Philox(key=key, counter=counter))
        yield scale * np.sqrt(repeated) * normals.standard_normal(size)
