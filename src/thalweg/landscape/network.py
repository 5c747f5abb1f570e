"""The private copy of a network: its parameters as a vector, its buffers as constants."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import UninitializedParameter

from thalweg.landscape.checkpoint import strip_prefix
from thalweg.landscape.seeding import make_generator, preserve_rng
from thalweg.landscape.spec import ParameterSpec

__all__ = ["STATISTICS", "Network", "join"]

STATISTICS = ("running_mean", "running_var")


def join(module: str, key: str) -> str:
    """Return the full name of a module's tensor; the model itself has the empty name."""
    return f"{module}.{key}" if module else key


def _unwrap(model: nn.Module) -> nn.Module:
    """Return the module inside DataParallel, DistributedDataParallel or ``torch.compile``."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, (nn.DataParallel, DistributedDataParallel)):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def _private_copy(model: nn.Module) -> nn.Module:
    """Copy a module without its gradients, leaving the original untouched."""
    lazy = [n for n, p in model.named_parameters() if isinstance(p, UninitializedParameter)]
    if lazy:
        raise ValueError(
            f"the model has uninitialised lazy parameters ({', '.join(lazy)}); "
            "run it once on a batch before building a landscape"
        )
    memo: dict[int, Any] = {id(p.grad): None for p in model.parameters() if p.grad is not None}
    try:
        return copy.deepcopy(model, memo)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise ValueError(
            f"the model cannot be copied: {error}. A landscape works on a private copy, so every "
            "tensor stored on the module must be a parameter, a buffer or detached"
        ) from error


def _common_dtype(module: nn.Module) -> torch.dtype:
    dtypes = {p.dtype for p in module.parameters() if p.is_floating_point()}
    if len(dtypes) != 1:
        found = ", ".join(sorted(map(str, dtypes))) or "none"
        raise ValueError(
            f"the model's parameters have {len(dtypes)} floating dtypes ({found}); pass dtype="
        )
    return dtypes.pop()


def _common_device(module: nn.Module) -> torch.device:
    devices = {p.device for p in module.parameters()}
    if len(devices) != 1:
        raise ValueError(f"the model lies on several devices ({devices}); pass device=")
    return devices.pop()


class Network:
    """A private, frozen copy of a module, called with its parameters given from outside.

    Args:
        model: The user's module; never modified.
        patterns: Name patterns of the coordinates; None takes every parameter that
            requires a gradient.
        dtype: The dtype to compute in; None takes the model's.
        device: The device to compute on; None takes the model's.
        forward: How to call the module on a batch; None calls it on the batch's inputs.
        start: Re-initialises a module in place, ``start(module, generator)``.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        patterns: str | Sequence[str] | None,
        dtype: torch.dtype | None,
        device: torch.device | str | None,
        forward: Callable[[nn.Module, Any], Any] | None,
        start: Callable[[nn.Module, torch.Generator], None] | None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
        self.module = _private_copy(_unwrap(model))
        if not list(self.module.parameters()):
            raise ValueError("the model has no parameters, so its loss is no landscape")
        self.dtype = dtype or _common_dtype(self.module)
        self.device = torch.empty(0, device=device or _common_device(self.module)).device
        self.module.to(device=self.device, dtype=self.dtype)
        self.forward = forward
        self.restart = start
        self._forwarder = _Forwarder(self.module, forward) if forward else self.module
        self.spec = self._make_spec(patterns)
        self.module.requires_grad_(False)
        self.reference: dict[str, Tensor] = {
            name: value
            for name, value in self.module.state_dict().items()
            if isinstance(value, Tensor)
        }
        self.norms: dict[str, _NormBase] = {
            name: module
            for name, module in self.module.named_modules()
            if isinstance(module, _BatchNorm)
            or (isinstance(module, _NormBase) and module.track_running_stats)
        }
        self.stored: dict[str, Tensor] = {
            join(name, key): getattr(norm, key)
            for name, norm in self.norms.items()
            for key in STATISTICS
            if getattr(norm, key) is not None
        }
        self._check_finite()

    def _check_finite(self) -> None:
        """Refuse constants and statistics that are not numbers; `vector` checks the rest."""
        constants = {n: p for n, p in self.module.named_parameters() if n not in self.spec.shapes}
        for name, value in {**constants, **self.stored}.items():
            if not torch.isfinite(value).all():
                raise ValueError(
                    f"{name} holds NaN or infinite values: this is not a working network"
                )

    def _make_spec(self, patterns: str | Sequence[str] | None) -> ParameterSpec:
        unique = {
            name: parameter
            for name, parameter in self.module.named_parameters()
            if parameter.is_floating_point()
        }
        every = ParameterSpec({name: tuple(p.shape) for name, p in unique.items()})
        if patterns is None:
            chosen = tuple(name for name, p in unique.items() if p.requires_grad)
        else:
            chosen = every.select(patterns)
        if not chosen:
            raise ValueError("no parameter requires a gradient; name some with parameters=")
        first = {id(p): name for name, p in unique.items()}
        tied = {
            name: first[id(p)]
            for name, p in self.module.named_parameters(remove_duplicate=False)
            if name not in unique and first.get(id(p)) in chosen
        }
        return ParameterSpec({name: tuple(unique[name].shape) for name in chosen}, tied)

    def call(
        self,
        parameters: Mapping[str, Tensor],
        batch: Any,
        buffers: Mapping[str, Tensor] | None = None,
    ) -> Any:
        """Return the network's outputs on a batch, with these parameters."""
        try:
            return self._call(parameters, batch, buffers)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise ValueError(
                "a batch of one example has no batch statistics, and batchnorm='batch' and "
                "'recompute' need those of every batch: choose a batch size that does not leave "
                f"one example over, or batchnorm='frozen' ({error})"
            ) from error

    def _call(
        self,
        parameters: Mapping[str, Tensor],
        batch: Any,
        buffers: Mapping[str, Tensor] | None,
    ) -> Any:
        state = {**parameters, **buffers} if buffers else dict(parameters)
        if self.forward is not None:
            prefixed = {f"module.{name}": value for name, value in state.items()}
            return functional_call(self._forwarder, prefixed, (batch,))
        if isinstance(batch, Mapping):
            return functional_call(self.module, state, (), dict(batch))
        if isinstance(batch, (tuple, list)):
            inputs = batch[:-1] if len(batch) > 1 else batch
            if len(inputs) == 1 and isinstance(inputs[0], Mapping):
                return functional_call(self.module, state, (), dict(inputs[0]))
            if len(inputs) == 1 and isinstance(inputs[0], (tuple, list)):
                inputs = inputs[0]
            return functional_call(self.module, state, tuple(inputs))
        return functional_call(self.module, state, (batch,))

    def parameters(self) -> dict[str, Tensor]:
        """Return the copy's own tensors by name, aliases left out."""
        return {name: p.detach() for name, p in self.module.named_parameters()}

    def theta(self) -> Tensor:
        """Return the copy's own parameters as a flat vector."""
        return self.spec.flatten(self.parameters()).clone()

    def vector(self, state: Mapping[str, Tensor], *, frozen_statistics: bool) -> Tensor:
        """Turn a state dict into the flat vector, checking that it is this network.

        Raises:
            ValueError: If tensors are missing, unknown, of another shape, not finite, tied
                but different, or if what is held constant here differs there.
        """
        own = self.reference
        state = {name: value for name, value in state.items() if isinstance(value, Tensor)}
        if not all(name in own for name in state):
            state = strip_prefix(state)
        self._check_names(state, own)
        found: dict[str, Tensor] = {}
        for name, shape in self.spec.shapes.items():
            aliases = [name, *(a for a, to in self.spec.tied.items() if to == name)]
            present = [alias for alias in aliases if alias in state]
            tensor = state[present[0]].detach().to(device=self.device, dtype=self.dtype)
            for alias in present[1:]:
                here, there = state[present[0]], state[alias]
                if here.shape != there.shape or not torch.equal(
                    there.to(self.device, self.dtype), here.to(self.device, self.dtype)
                ):
                    raise ValueError(
                        f"{present[0]} and {alias} are one tied tensor here, but the state dict "
                        "holds two different values for them"
                    )
            if tuple(tensor.shape) != shape:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {shape}")
            bad = int((~torch.isfinite(tensor)).sum())
            if bad:
                raise ValueError(
                    f"{name} holds {bad} NaN or infinite values of {tensor.numel()}: these are "
                    "not the weights of a working network"
                )
            found[name] = tensor
        self._check_constants(state, own, frozen_statistics)
        return self.spec.flatten(found)

    def _check_names(self, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
        missing = [
            name
            for name in self.spec.names
            if name not in state
            and not any(to == name and alias in state for alias, to in self.spec.tied.items())
        ]
        unknown = [name for name in state if name not in own]
        if missing or unknown:
            parts = [f"missing: {', '.join(missing)}"] if missing else []
            parts += [f"unknown: {', '.join(unknown)}"] if unknown else []
            raise ValueError(
                f"this is not a state dict of this network ({'; '.join(parts)}); "
                f"it has {', '.join(self.spec.names)}"
            )

    def _check_constants(
        self, state: Mapping[str, Tensor], own: Mapping[str, Tensor], frozen_statistics: bool
    ) -> None:
        known = {*self.spec.names, *self.spec.tied}
        statistics = self.stored
        absent = [name for name in statistics if name not in state]
        if absent and frozen_statistics:
            raise ValueError(
                f"the state dict lacks the BatchNorm statistics ({absent[0]}), and this landscape "
                "is frozen to those of the network it was built from, which may be another. Pass "
                "the whole state dict, or use batchnorm='recompute' or 'batch'"
            )
        for name, value in state.items():
            if name in known or name.rpartition(".")[2] == "num_batches_tracked":
                continue
            here = own[name]
            same = value.shape == here.shape and torch.equal(
                value.to(device=here.device, dtype=here.dtype), here
            )
            if same or (name in statistics and not frozen_statistics):
                continue
            if name in statistics:
                raise ValueError(
                    f"the BatchNorm statistics differ ({name}): this landscape is frozen to the "
                    "statistics of the network it was built from, and those weights under these "
                    "statistics are a network that nobody trained. Use batchnorm='recompute' to "
                    "compare networks, or batchnorm='batch' to differentiate"
                )
            raise ValueError(
                f"{name} is a constant of this landscape, but has another value there; make it a "
                "coordinate with parameters=, or build the landscape from that network"
            )

    def load_into(self, model: nn.Module, theta: Tensor, statistics: Mapping[str, Tensor]) -> None:
        """Write a vector, the constants and the statistics into a module, all or nothing."""
        if not isinstance(model, nn.Module):
            raise TypeError(f"load_into takes a torch.nn.Module, not {type(model).__name__}")
        model = _unwrap(model)
        targets: dict[str, Tensor] = {
            **dict(model.named_parameters(remove_duplicate=False)),
            **dict(model.named_buffers(remove_duplicate=False)),
        }
        values = {
            name: value
            for name, value in {**self.reference, **statistics}.items()
            if name.rpartition(".")[2] != "num_batches_tracked"
        }
        values.update(self.spec.views(theta))
        values.update({alias: values[name] for alias, name in self.spec.tied.items()})
        for name, value in values.items():
            if name not in targets or targets[name].shape != value.shape:
                have = tuple(targets[name].shape) if name in targets else "no such tensor"
                raise ValueError(
                    f"the model does not match this landscape: {name} should have shape "
                    f"{tuple(value.shape)}, found {have}; nothing was written"
                )
        with torch.no_grad():
            for name, value in [*values.items(), *statistics.items()]:  # a shared layer's last
                targets[name].copy_(value)

    def draw(self, generator: torch.Generator) -> Tensor:
        """Return the flat vector of a re-initialised copy.

        Raises:
            ValueError: If a module owns parameters but has no `reset_parameters`.
        """
        fresh = copy.deepcopy(self.module)
        if self.restart is not None:
            with preserve_rng(make_generator(generator)[1]):
                self.restart(fresh, generator)
        else:
            _reset(fresh, generator)
        return self.spec.flatten({n: p.detach() for n, p in fresh.named_parameters()}).clone()


class _Forwarder(nn.Module):
    """Lets a user's forward function be called with swapped parameters."""

    def __init__(self, module: nn.Module, function: Callable[[nn.Module, Any], Any]) -> None:
        super().__init__()
        self.module = module
        self.function = function
        self.training = module.training

    def forward(self, batch: Any) -> Any:
        """Call the user's function on the private module."""
        return self.function(self.module, batch)


def _reset(module: nn.Module, generator: torch.Generator) -> None:
    """Re-initialise every part, children first, from one seed drawn from `generator`."""
    parts: OrderedDict[str, nn.Module] = OrderedDict(module.named_modules())
    for name, part in parts.items():
        owns = any(p is not None for p in part._parameters.values())
        if owns and _resetter(part) is None:
            raise ValueError(
                f"{name or 'the model'} ({type(part).__name__}) owns parameters but has no "
                "reset_parameters(), so a random start is unknown; give it one, or pass "
                "start=function(module, generator)"
            )
    with preserve_rng(make_generator(generator)[1]), torch.no_grad():
        for part in reversed(parts.values()):
            reset = _resetter(part)
            if reset is not None:
                reset()


def _resetter(part: nn.Module) -> Callable[[], Any] | None:
    for name in ("reset_parameters", "_reset_parameters"):
        found = getattr(part, name, None)
        if callable(found):
            return found  # type: ignore[no-any-return]  # Module.__getattr__ is untyped
    return None
