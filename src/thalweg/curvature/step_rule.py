"""What a torch optimiser does to a quadratic: its preconditioner and where it turns unstable."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from thalweg.landscape.protocols import Landscape, Structured
from thalweg.landscape.spec import ParameterSpec

__all__ = ["Momentum", "StepRule"]

Momentum = Literal["heavy-ball", "nesterov", "average"]
_FORMS = ("heavy-ball", "nesterov", "average")
_WRAPPERS = ("module.", "_orig_mod.")
_KNOWN = "SGD, Adam, AdamW, RMSprop"


@dataclass(frozen=True, eq=False)
class StepRule:
    r"""One step of an optimiser, as far as its stability on a quadratic is concerned.

    $$ \theta \leftarrow \theta - \eta\, P^{-1} m, \qquad m \text{ a momentum of } g + W\theta,$$

    with a diagonal $P$ and weight decay $W$. On a quadratic with Hessian $H$ the step is
    stable exactly while $\eta\, \lambda_{\max}(P^{-1}(H + W))$ is below `threshold`.

    Args:
        lr: The learning rate $\eta$; that of the fastest parameter group.
        momentum: $\beta$; 0 for none.
        form: ``"heavy-ball"``: $m \leftarrow \beta m + (1 - d) g$ (Polyak; torch's SGD and
            RMSprop); ``"nesterov"``: the step is $g + \beta m$ after $m \leftarrow \beta m
            + g$; ``"average"``: $m \leftarrow \beta m + (1 - \beta) g$ (Adam).
        dampening: $d$, of the heavy ball alone.
        diagonal: $P$, `(dim,)`; None is the identity. Infinity marks a coordinate that the
            optimiser does not move.
        decay: $W$, the weight decay that is added to the gradient: one number, or `(dim,)`.
        decoupled: AdamW's $\omega$: the step begins with $\theta \leftarrow (1 - \eta\omega)
            \theta$.
        name: What to call it.
        pending: Whether the optimiser has yet to take its first step, so that its
            preconditioner does not exist.

    Raises:
        ValueError: If a number is out of range or `form` is unknown.

    References:
        J. Cohen et al. (2021), Gradient descent on neural networks typically occurs at the
        edge of stability, §2 and appendix B (heavy ball, Nesterov); J. Cohen et al. (2022),
        Adaptive gradient methods at the edge of stability, eq. 3 (Adam).

    Example:
        >>> StepRule(lr=0.1).threshold, StepRule(lr=0.1, momentum=0.9).threshold
        (2.0, 3.8)
        >>> round(StepRule(lr=1e-3, momentum=0.9, form="average").threshold, 9)
        38.0
    """

    lr: float
    momentum: float = 0.0
    form: Momentum = "heavy-ball"
    dampening: float = 0.0
    diagonal: Float[Tensor, " dim"] | None = None
    decay: Float[Tensor, " dim"] | float = 0.0
    decoupled: float = 0.0
    name: str = "gradient descent"
    pending: bool = False

    def __post_init__(self) -> None:
        """Refuse numbers that no optimiser has."""
        if not (self.lr >= 0 and math.isfinite(self.lr)):
            raise ValueError(f"lr must be a finite number >= 0, got {self.lr!r}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {self.momentum!r}")
        if self.form not in _FORMS:
            raise ValueError(f"form must be one of {', '.join(_FORMS)}, not {self.form!r}")
        if not self.dampening < 1:
            raise ValueError(f"dampening must be below 1, got {self.dampening!r}")
        if not self.decoupled >= 0:
            raise ValueError(f"decoupled must not be negative, got {self.decoupled!r}")
        if self.diagonal is not None and not bool((self.diagonal > 0).all()):
            raise ValueError("the diagonal of a preconditioner must be positive everywhere")

    @property
    def adaptive(self) -> bool:
        """Whether the step is preconditioned."""
        return self.diagonal is not None or self.pending

    @property
    def ceiling(self) -> float:
        r"""The threshold without decoupled decay.

        $(2 + 2\beta)/(1 - d)$ for the heavy ball, $(2 + 2\beta)/(1 + 2\beta)$ for Nesterov's
        momentum, $(2 + 2\beta)/(1 - \beta)$ for an average; 2 where $\beta = 0$.
        """
        beta = self.momentum
        if self.form == "nesterov":
            return (2 + 2 * beta) / (1 + 2 * beta)
        if self.form == "average":
            return (2 + 2 * beta) / (1 - beta)
        return (2 + 2 * beta) / (1 - self.dampening) if beta else 2.0

    @property
    def threshold(self) -> float:
        r"""The largest stable $\eta\,\lambda$: `ceiling` times $1 - \eta\omega/2$."""
        return self.ceiling * (1 - self.lr * self.decoupled / 2)

    def largest_step(self, sharpness: float) -> float:
        r"""Return the learning rate at which this rule turns unstable.

        Args:
            sharpness: $\lambda_{\max}(P^{-1}(H + W))$.

        Returns:
            $c / (\lambda + c\,\omega/2)$ with $c$ the `ceiling`; infinity where nothing bounds
            it.
        """
        rate = sharpness + self.ceiling * self.decoupled / 2
        if math.isnan(rate):
            return math.nan
        return self.ceiling / rate if rate > 0 else math.inf

    def scaled(self, vector: Float[Tensor, " dim"]) -> Float[Tensor, " dim"]:
        r"""Return $P^{1/2} v$ (0 where the optimiser does not move), float64.

        In these coordinates the step is plain descent, and the eigenvectors of
        $P^{-1/2} H P^{-1/2}$ are orthonormal.
        """
        if self.diagonal is None:
            return vector.double()
        root = self.diagonal.double().sqrt()
        return torch.where(torch.isfinite(root), root * vector.double(), 0.0)

    def __str__(self) -> str:
        """Return the rule in words."""
        parts = [f"lr {self.lr:g}"]
        if self.momentum:
            parts.append(f"{self.form} momentum {self.momentum:g}")
        if self.adaptive:
            parts.append("no step taken yet" if self.pending else "preconditioned")
        return f"{self.name} ({', '.join(parts)}; stable below {self.threshold:g})"

    @classmethod
    def read(
        cls,
        optimizer: torch.optim.Optimizer,
        land: Landscape,
        model: nn.Module | None = None,
    ) -> StepRule:
        """Read the rule off a torch optimiser; the optimiser is not changed.

        Args:
            optimizer: ``torch.optim.SGD``, ``Adam``, ``AdamW`` or ``RMSprop``. Groups may
                differ in learning rate, eps and weight decay.
            land: The landscape whose coordinates the optimiser moves.
            model: The module whose parameters it holds. Needed where their order is not that
                of the coordinates: several groups, or some parameters only.

        Returns:
            The rule, its preconditioner and weight decay in the landscape's order.

        Raises:
            TypeError: If the optimiser is of another kind.
            ValueError: If its parameters cannot be matched with the coordinates, or its groups
                differ in momentum.
        """
        return _read(optimizer, land, model)


def _read(optimizer: torch.optim.Optimizer, land: Landscape, model: nn.Module | None) -> StepRule:
    kind = _kind(optimizer)
    _refuse_ascent(optimizer)
    entries = [
        (group, parameter, place)
        for (group, parameter), place in zip(
            _parameters(optimizer), _places(optimizer, land, model), strict=True
        )
        if place is not None
    ]
    groups = [group for group, _, _ in entries]
    lr = max(float(group["lr"]) for group in groups)
    common = _momentum(kind, groups)
    decays = [
        0.0 if _is_decoupled(kind, group) else float(group["weight_decay"]) for group in groups
    ]
    decoupled = max(
        float(group["lr"]) / lr * float(group["weight_decay"])
        if _is_decoupled(kind, group) and lr
        else 0.0
        for group in groups
    )
    roots: list[Tensor | float | None] = [
        _root(kind, group, optimizer.state.get(parameter, {})) for group, parameter, _ in entries
    ]
    pending = kind != "SGD" and all(root is None for root in roots)
    moved = torch.zeros(land.dim, dtype=torch.bool)
    diagonal = torch.full((land.dim,), math.inf, dtype=torch.float64, device=land.device)
    decay = torch.zeros(land.dim, dtype=torch.float64, device=land.device)
    for (group, _, place), root, own in zip(entries, roots, decays, strict=True):
        moved[place] = True
        decay[place] = own
        if root is not None and float(group["lr"]) > 0:
            flat = root.reshape(-1) if isinstance(root, Tensor) else root
            diagonal[place] = flat * (lr / float(group["lr"]))
    plain = kind == "SGD" and bool((diagonal == 1).all())
    even = bool((decay == decay[0]).all()) and bool(moved.all())
    return StepRule(
        lr=lr,
        diagonal=None if plain or pending else diagonal.to(land.dtype),
        decay=float(decay[0]) if even else decay.to(land.dtype),
        decoupled=decoupled,
        name=type(optimizer).__name__,
        pending=pending,
        **common,
    )


def _kind(optimizer: torch.optim.Optimizer) -> str:
    for kind in (torch.optim.AdamW, torch.optim.Adam, torch.optim.RMSprop, torch.optim.SGD):
        if isinstance(optimizer, kind):
            return kind.__name__
    raise TypeError(
        f"the step of {type(optimizer).__name__} is not known here (known: {_KNOWN}); describe it "
        "yourself with StepRule(lr=..., momentum=..., diagonal=...) and pass that"
    )


def _refuse_ascent(optimizer: torch.optim.Optimizer) -> None:
    if any(group.get("maximize") for group in optimizer.param_groups):
        raise ValueError("this optimiser ascends (maximize=True); stability is that of descent")


def _is_decoupled(kind: str, group: Mapping[str, Any]) -> bool:
    return kind == "AdamW" or bool(group.get("decoupled_weight_decay"))


def _momentum(kind: str, groups: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the momentum that all groups share."""
    found = set()
    for group in groups:
        if kind in ("Adam", "AdamW"):
            found.add((float(group["betas"][0]), "average", 0.0))
        elif kind == "RMSprop":
            found.add((float(group["momentum"]), "heavy-ball", 0.0))
        else:
            form = "nesterov" if group["nesterov"] else "heavy-ball"
            found.add((float(group["momentum"]), form, float(group["dampening"])))
    if len(found) > 1:
        raise ValueError(
            f"the parameter groups differ in momentum ({sorted(found)}), so there is no one "
            "threshold; look at each group by itself"
        )
    beta, form, dampening = found.pop()
    return {"momentum": beta, "form": form, "dampening": dampening}


def _root(kind: str, group: Mapping[str, Any], state: Mapping[str, Any]) -> Tensor | float | None:
    r"""Return $P$ for one tensor, Adam's bias corrections included; None before its first step."""
    if kind == "SGD":
        return 1.0
    if "step" not in state:
        return None
    eps, step = float(group["eps"]), float(state["step"])
    if kind == "RMSprop":
        mean: Tensor = state["square_avg"].detach().double()
        if group["centered"]:
            mean = mean - state["grad_avg"].detach().double() ** 2
        return mean.sqrt() + eps
    first, second = (1.0 - math.pow(float(beta), step) for beta in group["betas"])
    square: Tensor = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"]
    return first * ((square.detach().double() / second).sqrt() + eps)


def _parameters(optimizer: torch.optim.Optimizer) -> list[tuple[dict[str, Any], Tensor]]:
    return [(group, p) for group in optimizer.param_groups for p in group["params"]]


def _places(
    optimizer: torch.optim.Optimizer, land: Landscape, model: nn.Module | None
) -> list[slice | None]:
    """Return where each of the optimiser's tensors lies in the vector; None for a constant."""
    tensors = [p for _, p in _parameters(optimizer)]
    if len(tensors) == 1 and tuple(tensors[0].shape) == (land.dim,):
        return [slice(0, land.dim)]
    spec = land.spec if isinstance(land, Structured) else None
    names = _names(optimizer, model)
    if spec is not None and names is not None:
        return _by_name(spec, names, tensors)
    shapes = [tuple(p.shape) for p in tensors]
    same = shapes == list(map(tuple, spec.shapes.values())) if spec is not None else False
    alone = spec is None and sum(p.numel() for p in tensors) == land.dim
    if len(optimizer.param_groups) > 1 or not (same or alone):
        raise ValueError(
            f"the optimiser's {len(tensors)} tensors in {len(optimizer.param_groups)} groups "
            f"cannot be matched by order with the {land.dim} coordinates; pass model=, the module "
            "whose parameters they are"
        )
    ends = torch.tensor([p.numel() for p in tensors]).cumsum(0).tolist()
    return [slice(end - p.numel(), end) for p, end in zip(tensors, ends, strict=True)]


def _names(optimizer: torch.optim.Optimizer, model: nn.Module | None) -> list[str | None] | None:
    if model is not None:
        known = {id(p): name for name, p in model.named_parameters()}
        return [known.get(id(p)) for _, p in _parameters(optimizer)]
    if all("param_names" in group for group in optimizer.param_groups):
        return [name for group in optimizer.param_groups for name in group["param_names"]]
    return None


def _by_name(
    spec: ParameterSpec, names: list[str | None], tensors: list[Tensor]
) -> list[slice | None]:
    places: list[slice | None] = []
    for name, tensor in zip(names, tensors, strict=True):
        key = name or ""
        while key not in spec.slices and key.startswith(_WRAPPERS):
            key = key.partition(".")[2]
        key = spec.tied.get(key, key)
        if key in spec.slices and tuple(tensor.shape) != tuple(spec.shapes[key]):
            raise ValueError(
                f"{key} has shape {tuple(tensor.shape)} in the optimiser and "
                f"{tuple(spec.shapes[key])} in the landscape: another model"
            )
        places.append(spec.slices.get(key))
    if all(place is None for place in places):
        raise ValueError(
            "none of the optimiser's tensors is a parameter of the model that the landscape "
            f"knows ({', '.join(spec.names[:5])}, ...); pass the module that it was built with"
        )
    return places
