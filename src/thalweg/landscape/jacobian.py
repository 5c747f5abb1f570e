r"""The outputs of a network as a function of its parameters, and the loss as one of the outputs.

Both are graphs that are built once and differentiated as often as asked. Products with the
Jacobian are the derivative of $u \mapsto J^T u$, which costs about what a gradient does once
its graph is there, and works where torch has no forward mode.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from thalweg.landscape.objective import Objective

__all__ = ["STACKED_WORK", "OutputLoss", "Tape", "agree", "unstacked"]

STACKED_WORK = 2**23
"""Multiply-adds of one product on a CPU below which many vectors travel together."""


class Tape:
    """The graph of one batch's outputs.

    Args:
        leaves: The parameters that were differentiated, by name.
        outputs: What the network made of them: any nest of tensors.
    """

    def __init__(self, leaves: Mapping[str, Tensor], outputs: Any) -> None:
        self._leaves = list(leaves.values())
        self._flat, self._structure = tree_flatten(outputs)
        self._live = [
            i
            for i, part in enumerate(self._flat)
            if isinstance(part, Tensor) and part.requires_grad
        ]

    def nest(self, parts: Sequence[Any]) -> Any:
        """Return a flat list of tensors in the structure of the outputs."""
        return tree_unflatten(list(parts), self._structure)

    def detached(self) -> Any:
        """Return the outputs without their graph."""
        return self.nest([p.detach() if isinstance(p, Tensor) else p for p in self._flat])

    @cached_property
    def _back(self) -> tuple[list[Tensor], list[tuple[int, Tensor]]]:
        """Return dual variables $u$ and the parts of $J^T u$ that depend on them."""
        duals = [torch.zeros_like(self._flat[i], requires_grad=True) for i in self._live]
        with torch.enable_grad():
            parts = torch.autograd.grad(
                [self._flat[i] for i in self._live],
                self._leaves,
                duals,
                create_graph=True,
                allow_unused=True,
            )
        return duals, [(i, p) for i, p in enumerate(parts) if p is not None and p.requires_grad]

    @cached_property
    def convolves(self) -> bool:
        """Whether the graph holds a convolution, whose second derivative torch computes whole.

        Its double backward also makes the derivatives in input and weight that $J v$ does not
        ask for, at twice the price.
        """
        ahead = [self._flat[i].grad_fn for i in self._live]
        seen = set(ahead)
        while ahead:
            node = ahead.pop()
            if "Convolution" in node.name():
                return True
            following = {n for n, _ in node.next_functions if n is not None} - seen
            seen |= following
            ahead.extend(following)
        return False

    def jvp(self, tangent: Sequence[Tensor], *, stacked: bool = False) -> list[Any]:
        r"""Return $J v$, in the flat order of the outputs, for $v$ in parts.

        Args:
            tangent: The parts of $v$, or of many stacked in front.
            stacked: Whether they are.
        """
        front = tangent[0].shape[:1] if stacked else ()
        products = [
            p.new_zeros(*front, *p.shape) if isinstance(p, Tensor) else p for p in self._flat
        ]
        if not self._live:
            return products
        duals, kept = self._back
        if not kept:
            return products
        found = torch.autograd.grad(
            [part for _, part in kept],
            duals,
            [tangent[i] for i, _ in kept],
            retain_graph=True,
            allow_unused=True,
            is_grads_batched=stacked,
        )
        for i, part in zip(self._live, found, strict=True):
            if part is not None:
                products[i] = part
        return products

    def vjp(self, cotangents: Sequence[Any], *, stacked: bool = False) -> list[Tensor]:
        r"""Return $J^\top u$ in parts, for $u$ in the flat order of the outputs.

        Args:
            cotangents: The parts of $u$, or of many stacked in front.
            stacked: Whether they are.
        """
        front = next(u.shape[:1] for u in cotangents if isinstance(u, Tensor)) if stacked else ()
        if not self._live:
            return [leaf.new_zeros(*front, *leaf.shape) for leaf in self._leaves]
        found = torch.autograd.grad(
            [self._flat[i] for i in self._live],
            self._leaves,
            [cotangents[i] for i in self._live],
            retain_graph=True,
            allow_unused=True,
            is_grads_batched=stacked,
        )
        return [
            leaf.new_zeros(*front, *leaf.shape) if part is None else part
            for leaf, part in zip(self._leaves, found, strict=True)
        ]

    def check_adjoint(self) -> None:
        r"""Compare $\langle u, J v \rangle$ with $\langle J^\top u, v \rangle$ for random u, v.

        Where an operation's own backward pass cannot be differentiated, torch leaves it out of
        $J v$ without a word.

        Raises:
            RuntimeError: If they differ.
        """
        if not self._live:
            return
        generator = torch.Generator().manual_seed(0)
        tangent = [torch.randn(p.shape, generator=generator).to(p) for p in self._leaves]
        duals = [
            torch.randn(p.shape, generator=generator).to(p) if i in self._live else p
            for i, p in enumerate(self._flat)
        ]
        ahead, back = self.jvp(tangent), self.vjp(duals)
        live = [(ahead[i], duals[i]) for i in self._live]
        one = sum(float((a.double() * u.double()).sum()) for a, u in live)
        two = sum(
            float((b.double() * v.double()).sum()) for b, v in zip(back, tangent, strict=True)
        )
        pairs = [*live, *zip(back, tangent, strict=True)]
        scale = max(
            float(torch.linalg.vector_norm(a) * torch.linalg.vector_norm(u)) for a, u in pairs
        )
        tolerance = min(max(1e3 * torch.finfo(tangent[0].dtype).eps, 1e-10), 0.2)
        if abs(one - two) > tolerance * scale:
            raise RuntimeError(
                f"Jacobian products of this network are not adjoint to each other ({one:.6g} and "
                f"{two:.6g} for one pair of vectors), so torch leaves an operation out when its "
                "backward pass is differentiated: look for a torch.autograd.Function whose "
                "backward is marked @once_differentiable or computes without torch. Losses and "
                "gradients work"
            )


class OutputLoss:
    """The mean loss of one batch as a function of its outputs.

    Args:
        objective: The loss.
        outputs: Where it is differentiated: any nest of tensors, without a graph.
        batch: What the outputs are compared with.
    """

    def __init__(self, objective: Objective, outputs: Any, batch: Any) -> None:
        flat, self._structure = tree_flatten(outputs)
        self._flat = [
            p.detach().requires_grad_() if isinstance(p, Tensor) and p.is_floating_point() else p
            for p in flat
        ]
        self._live = [i for i, p in enumerate(self._flat) if _floating(p)]
        leaves = [self._flat[i] for i in self._live]
        with torch.enable_grad():
            mean, _ = objective(tree_unflatten(self._flat, self._structure), batch)
            if not mean.requires_grad:
                raise ValueError(
                    "the loss does not depend on the network's outputs, so it has no derivative "
                    "in them; let the network return what the loss is a function of"
                )
            self._slopes = torch.autograd.grad(mean, leaves, create_graph=True, allow_unused=True)

    def _whole(self, parts: Sequence[Tensor | None]) -> Any:
        full = [torch.zeros_like(p) if isinstance(p, Tensor) else p for p in self._flat]
        for i, part in zip(self._live, parts, strict=True):
            if part is not None:
                full[i] = part.detach()
        return tree_unflatten(full, self._structure)

    def gradient(self) -> Any:
        """Return the gradient in the outputs."""
        return self._whole(self._slopes)

    def hvp(self, tangent: Any) -> Any:
        """Return the Hessian in the outputs times one tangent of their structure."""
        given, _ = tree_flatten(tangent)
        kept = [
            (slope, given[i])
            for i, slope in zip(self._live, self._slopes, strict=True)
            if slope is not None and slope.requires_grad
        ]
        if not kept:
            return self._whole([None] * len(self._live))
        found = torch.autograd.grad(
            [slope for slope, _ in kept],
            [self._flat[i] for i in self._live],
            [part for _, part in kept],
            retain_graph=True,
            allow_unused=True,
        )
        return self._whole(found)


def unstacked(nest: Any, count: int) -> list[Any]:
    """Return a nest of stacked tensors as many nests."""
    flat, structure = tree_flatten(nest)
    return [
        tree_unflatten([p[i] if isinstance(p, Tensor) else p for p in flat], structure)
        for i in range(count)
    ]


def agree(found: Any, expected: Any) -> bool:
    """Say whether two nests of tensors agree up to rounding."""
    pairs = [
        (a, b)
        for a, b in zip(tree_flatten(found)[0], tree_flatten(expected)[0], strict=True)
        if b.numel()
    ]
    tolerance = 1e4 * max((torch.finfo(b.dtype).eps for _, b in pairs), default=0.0)
    return all(float((a - b).abs().max()) <= tolerance * float(b.abs().max()) for a, b in pairs)


def _floating(part: Any) -> bool:
    return isinstance(part, Tensor) and part.requires_grad
