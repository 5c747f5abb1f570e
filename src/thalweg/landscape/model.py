"""A torch module, a loss and data, seen as a function of one flat vector."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from thalweg.estimate import Cost, Estimate
from thalweg.landscape.checkpoint import read_checkpoint, strip_prefix
from thalweg.landscape.checks import check_function
from thalweg.landscape.data import ListSource, make_source
from thalweg.landscape.enclosure import Enclosures, NetworkEnclosure
from thalweg.landscape.linear import ModelBatch, linearised
from thalweg.landscape.memory import Budget, parse_bytes
from thalweg.landscape.metrics import Metric, loss_estimate, make_metrics, measure
from thalweg.landscape.network import Network
from thalweg.landscape.normalisation import apply_policy
from thalweg.landscape.objective import Objective, Penalty
from thalweg.landscape.own_losses import example_losses
from thalweg.landscape.point import ModelPoint
from thalweg.landscape.protocols import Ledger, check_theta
from thalweg.landscape.spec import ParameterSpec
from thalweg.landscape.sweep import Sweep

__all__ = ["ModelLandscape"]

DEFAULT_MEMORY = "2 GiB"


class ModelLandscape:
    r"""The loss of a network over data, as a function of the network's parameters.

    $$ L(\theta) = \frac{\sum_i w_i\, \ell_i(\theta)}{\sum_i w_i} + R(\theta) $$

    over all examples $i$ of the data, with the penalty $R$ kept apart. The landscape works
    on a private copy: the model, the data loader and every global RNG are bit-identical
    after any call, also after an exception. At construction it verifies that the loss is a
    function (two passes from different RNG states), a mean over examples, and
    differentiable; this costs two passes, which the tally shows.

    Args:
        model: Any module. Its modes are kept (call ``model.eval()`` if it has dropout),
            except BatchNorm's, which `batchnorm` sets.
        loss: ``loss(outputs, targets)``, the mean over a batch's examples; or returning
            ``(mean, weight)`` where the mean is over something else, such as tokens. The
            targets are the last item of a tuple batch; for a dict or a single tensor, the
            batch itself.
        data: A DataLoader that does not shuffle, a Dataset, a tuple ``(inputs, targets)`` of
            tensors, or a list of batches. A dict batch is passed to the model by keyword.
        penalty: Weight decay $\lambda$, for $R = \frac{\lambda}{2} \|\theta\|^2$, or a function
            of one vector; left out of Fisher matrices and gradient noise.
        parameters: Shell-style name patterns of the coordinates; by default every parameter
            that requires a gradient. The rest are constants.
        batchnorm: ``"frozen"`` (stored statistics), ``"batch"`` (statistics of each batch of
            the fixed partition, differentiated through) or ``"recompute"`` (re-estimated at
            each vector; loss and metrics only).
        metrics: ``"accuracy"``, several such names, or a mapping of names to functions
            ``f(outputs, targets)`` that return one value per example.
        dtype: What to compute in; by default the model's dtype. Floating data is cast.
        device: Where to compute; by default the model's device.
        memory: The cap on tensor bytes that a call may hold beside its arguments and
            results, such as ``"512 MiB"``.
        batch_size: How tensors or a Dataset are cut into batches.
        start: ``start(module, generator)``, which re-initialises a module in place; needed
            where a module owns parameters but has no ``reset_parameters``.
        forward: ``forward(module, batch)``, which returns the outputs; needed where a batch
            is neither ``(inputs, targets)`` nor a dict of keyword arguments.

    Attributes:
        spec: Names, shapes, layers and filters of the coordinates.
        initial: The vector of the model that it was built from.
        size: The total weight of the data.
        examples: The number of examples.
        digest: A digest of the data's values and order.

    Raises:
        ValueError: If the loss is not a function, not a mean, not a scalar or not
            differentiable; if the data is empty, not finite or ambiguous; if the weights are
            not finite. The message names the remedy.
        TypeError: If an argument is of the wrong kind.
        MemoryError: If not even one example fits under the cap.

    Example:
        >>> import torch, torch.nn.functional as F
        >>> model = torch.nn.Linear(3, 2).eval()
        >>> x, y = torch.eye(3), torch.tensor([0, 1, 0])
        >>> land = ModelLandscape(model, F.cross_entropy, (x, y), metrics="accuracy")
        >>> theta = land.vector(model)
        >>> bool(torch.isclose(land.loss(theta), F.cross_entropy(model(x), y)))
        True
        >>> with land.at(theta) as point:
        ...     point.hvp(torch.ones(2, land.dim)).shape
        torch.Size([2, 8])
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Any, Any], Any],
        data: Any,
        *,
        penalty: float | Callable[[Tensor], Tensor] = 0.0,
        parameters: str | Sequence[str] | None = None,
        batchnorm: str = "frozen",
        metrics: str | Sequence[str] | Mapping[str, Metric] | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        memory: int | str = DEFAULT_MEMORY,
        batch_size: int | None = None,
        start: Callable[[nn.Module, torch.Generator], None] | None = None,
        forward: Callable[[nn.Module, Any], Any] | None = None,
    ) -> None:
        """Copy the model, check that the loss is a function, and count the data."""
        network = Network(
            model, patterns=parameters, dtype=dtype, device=device, forward=forward, start=start
        )
        apply_policy(network, batchnorm)
        self._model_name = type(model).__name__
        self._metrics = make_metrics(metrics)
        self._batch_size = batch_size
        self._enclosures = Enclosures()
        self._sweep = Sweep(
            network=network,
            source=make_source(data, batch_size),
            objective=Objective(loss, network.dtype, network.device),
            penalty=Penalty(penalty),
            budget=Budget(parse_bytes(memory)),
            ledger=Ledger(),
            policy=batchnorm if network.norms else None,
        )
        network.vector(network.reference, frozen_statistics=True)
        self._examine()

    def _examine(self) -> None:
        """Check that this is a function, and count the data."""
        sweep = self._sweep
        # `recompute` has no gradient to check, so the door is guarded under stored statistics.
        sweep.census = check_function(sweep, sweep.network.theta())

    @property
    def spec(self) -> ParameterSpec:
        """Names, shapes, layers and filters of the coordinates."""
        return self._sweep.network.spec

    @property
    def dim(self) -> int:
        """The number of coordinates."""
        return self.spec.dim

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the vectors and results."""
        return self._sweep.network.dtype

    @property
    def device(self) -> torch.device:
        """Where the vectors live."""
        return self._sweep.network.device

    @property
    def size(self) -> float:
        """The total weight of the data: examples, or what the objective counts."""
        return self._sweep.weight()

    @property
    def initial(self) -> Float[Tensor, " dim"]:
        """The parameters of the model that the landscape was built from, as a copy."""
        return self._sweep.network.theta()

    @property
    def examples(self) -> int:
        """The number of examples."""
        return self._sweep.census.examples

    @property
    def digest(self) -> str:
        """A digest of the data's values and order."""
        return self._sweep.digest()

    @property
    def batchnorm(self) -> str | None:
        """The BatchNorm policy, or None where the network has no such layer."""
        return self._sweep.policy

    @property
    def cost(self) -> Cost:
        """The running tally, minibatches and other policies of this landscape included."""
        return self._sweep.ledger.total

    @property
    def plan(self) -> dict[str, Any]:
        """The kernels and chunk sizes chosen so far, all by rules of size."""
        sweep = self._sweep
        return {
            "memory cap": sweep.budget.cap,
            "examples at once": dict(sweep.budget.chosen),
            "many vectors": sweep.many or "not used yet",
            "products": {None: "not used yet", True: "retained", False: "rebuilt"}[sweep.keeps],
        }

    def _rows(self, theta: Tensor) -> Tensor:
        return check_theta(theta, self.dim, self.dtype, self.device).reshape(-1, self.dim)

    def _differentiable(self, what: str) -> None:
        if self.batchnorm == "recompute":
            raise ValueError(
                f"{what} is not defined under batchnorm='recompute', where the statistics are "
                "re-estimated at each vector; use land.with_batchnorm('batch') to differentiate "
                "through batch statistics, or 'frozen' for stored ones"
            )

    def loss(self, theta: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch"]:
        """Return the loss at every row of `theta`; NaN and infinity are returned as such.

        Args:
            theta: One or many vectors, `(..., dim)`.

        Returns:
            The losses, `(...)`.

        Raises:
            ValueError: If the shape or device is wrong.
            TypeError: If the dtype is wrong.
        """
        return self._sweep.losses(self._rows(theta)).reshape(theta.shape[:-1])

    def gradient(self, theta: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Return the gradient at every row of `theta`; see `value_and_gradient`."""
        return self.value_and_gradient(theta)[1]

    def value_and_gradient(
        self, theta: Float[Tensor, "*batch dim"]
    ) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch dim"]]:
        """Return loss and gradient at every row of `theta`, in one sweep.

        Args:
            theta: One or many vectors, `(..., dim)`.

        Returns:
            Losses `(...)` and gradients `(..., dim)`.

        Raises:
            ValueError: If the shape is wrong, or the policy is ``recompute``.
        """
        self._differentiable("the gradient")
        values, gradients = self._sweep.gradients(self._rows(theta))
        return values.reshape(theta.shape[:-1]), gradients.reshape(theta.shape)

    @contextmanager
    def at(self, theta: Float[Tensor, " dim"]) -> Iterator[ModelPoint]:
        """Open the landscape at one vector, for Hessian products that share one graph.

        Raises:
            ValueError: If `theta` is not one finite vector, or the policy is ``recompute``.
        """
        self._differentiable("the Hessian")
        theta = check_theta(theta, self.dim, self.dtype, self.device, single=True)
        if not torch.isfinite(theta).all():
            raise ValueError("theta holds NaN or infinite values, so there is no curvature there")
        with torch.inference_mode(False):
            point = ModelPoint(self._sweep, theta)
        try:
            yield point
        finally:
            point.close()

    def start(self, generator: torch.Generator) -> Float[Tensor, " dim"]:
        """Draw a random start: the modules' own initialisation, from `generator`.

        Raises:
            ValueError: If a module owns parameters but has no ``reset_parameters``.
        """
        return self._sweep.network.draw(generator)

    def vector(self, model: nn.Module | Mapping[str, Tensor] | str | Path) -> Float[Tensor, " dim"]:
        """Return the flat vector of a module, a state dict or a checkpoint file.

        Args:
            model: A module of this architecture, its state dict, or a path to a
                ``.safetensors`` file or a torch file (read without running any code).

        Returns:
            The vector, `(dim,)`.

        Raises:
            ValueError: If it is another network: missing, unknown or misshapen tensors, NaN
                weights, tied tensors that differ, constants or frozen BatchNorm statistics
                that differ.
            FileNotFoundError: If there is no such file.
        """
        return self._sweep.network.vector(
            _state_of(model), frozen_statistics=self.batchnorm == "frozen"
        )

    def as_shipped(self, model: nn.Module | Mapping[str, Tensor] | str | Path) -> Estimate:
        """Return the loss of a network as it is stored, with its own BatchNorm statistics.

        What paths and surveys compare is the loss under one policy for all; this is what
        the network gives where it is deployed. Without BatchNorm the two are the same.

        Args:
            model: As in `vector`.

        Returns:
            The loss over the data, with its sampling error.

        Raises:
            ValueError: If it is another network, or lacks the statistics.
            FileNotFoundError: If there is no such file.
        """
        state, network = _state_of(model), self._sweep.network
        theta = network.vector(state, frozen_statistics=False)
        if not network.norms:
            return loss_estimate(self._sweep, theta)
        own = strip_prefix(state)
        if missing := [name for name in network.stored if name not in own]:
            raise ValueError(
                f"the state dict lacks the BatchNorm statistics ({missing[0]}), without which "
                "there is no network to ship; pass the whole state dict"
            )
        network = copy.deepcopy(network)
        network.stored = {
            name: own[name].detach().to(here.device, here.dtype)
            for name, here in network.stored.items()
        }
        apply_policy(network, "frozen")
        return loss_estimate(self._sweep.under(network, "frozen"), theta)

    def load_into(self, model: nn.Module, theta: Float[Tensor, " dim"]) -> None:
        """Make a module the network at `theta`: coordinates, constants and statistics.

        The BatchNorm statistics are the stored ones under ``frozen``, else re-estimated at
        `theta`.

        Raises:
            ValueError: If the module is of another architecture; nothing is written then.
        """
        theta = check_theta(theta, self.dim, self.dtype, self.device, single=True)
        network = self._sweep.network
        statistics = dict(network.stored)
        if self.batchnorm in ("batch", "recompute") and network.stored:
            other = self.with_batchnorm("recompute")
            with other._sweep.guard():
                statistics = other._sweep.statistics(theta)
        network.load_into(model, theta, statistics)

    def metrics(self, theta: Float[Tensor, " dim"]) -> dict[str, Estimate]:
        """Return every metric at one vector, with the data's sampling error."""
        theta = check_theta(theta, self.dim, self.dtype, self.device, single=True)
        return measure(self._sweep, self._metrics, theta)

    def loss_estimate(self, theta: Float[Tensor, " dim"]) -> Estimate:
        """Return the loss with its sampling error, the data seen as a sample.

        Raises:
            ValueError: If the examples cannot be told apart.
        """
        theta = check_theta(theta, self.dim, self.dtype, self.device, single=True)
        return loss_estimate(self._sweep, theta)

    def example_losses(self, theta: Float[Tensor, " dim"]) -> tuple[Tensor, Tensor]:
        """Return every example's own loss and weight, `(examples,)` each, without the penalty.

        Raises:
            ValueError: If the examples cannot be told apart.
        """
        theta = check_theta(theta, self.dim, self.dtype, self.device, single=True)
        return example_losses(self._sweep, theta)

    def enclosure(self) -> NetworkEnclosure:
        """Return what bounds loss and slope along segments, proven by interval arithmetic.

        Raises:
            NoEnclosure: If the network is no chain of known layers with a known loss; the
                message says what stands in the way.
        """
        return self._enclosures.of(self._sweep)

    def minibatch(self, indices: Sequence[int] | Tensor) -> ModelLandscape:
        """Return the landscape of some examples; its cost is counted here, as a fraction.

        Args:
            indices: Positions of the examples in the data, `(n,)`.

        Returns:
            A landscape of the same network and loss. Under ``batchnorm="batch"`` the examples
            form one batch (or one per batch that they come from, for a list of batches).

        Raises:
            ValueError: If there is none, or one is out of range.
        """
        chosen = torch.as_tensor(indices)
        if chosen.numel() and (chosen.dtype == torch.bool or chosen.is_floating_point()):
            raise ValueError(
                f"indices must be integer positions, not {chosen.dtype}; a mask becomes positions "
                "with mask.nonzero().flatten()"
            )
        chosen = chosen.long().cpu()
        if chosen.ndim != 1 or not len(chosen):
            raise ValueError(
                f"indices must be a list of at least one position, got shape {tuple(chosen.shape)}"
            )
        if int(chosen.min()) < 0 or int(chosen.max()) >= self.examples:
            wrong = chosen[(chosen < 0) | (chosen >= self.examples)][:5].tolist()
            raise ValueError(f"indices must lie in [0, {self.examples}), got {wrong}")
        sweep = self._sweep
        with sweep.guard():
            items = sweep.source.take(chosen)
        part = copy.copy(self)
        part._sweep = sweep.minibatch(ListSource(items), len(chosen))
        return part

    def batches(self, theta: Float[Tensor, " dim"]) -> Iterator[ModelBatch]:
        """Go through the data at one vector: outputs, Jacobian products, own gradients.

        The penalty is left out, so that Fisher matrices and gradient noise are the data's.

        Raises:
            ValueError: If the policy is ``recompute``.
        """
        self._differentiable("the Jacobian")
        theta = check_theta(theta, self.dim, self.dtype, self.device, single=True)
        return linearised(self._sweep, theta)

    def with_batchnorm(self, policy: str) -> ModelLandscape:
        """Return this landscape under another BatchNorm policy; the cost is counted here.

        Raises:
            ValueError: If the policy is unknown, or a layer cannot follow it.
        """
        if policy == self.batchnorm:
            return self
        network = copy.deepcopy(self._sweep.network)
        apply_policy(network, policy)
        other = copy.copy(self)
        other._sweep = self._sweep.under(network, policy if network.norms else None)
        return other

    def with_data(self, data: Any) -> ModelLandscape:
        """Return the same network, loss and penalty over other data, such as a held-out set."""
        other = copy.copy(self)
        other._sweep = self._sweep.over(make_source(data, self._batch_size))
        other._examine()
        return other

    def describe(self) -> dict[str, Any]:
        """Return what this landscape is, for provenance: plain values only."""
        sweep = self._sweep
        return {
            "kind": "network",
            "model": self._model_name,
            "parameters": {name: list(shape) for name, shape in self.spec.shapes.items()},
            "tied": dict(self.spec.tied),
            "dim": self.dim,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": str(self.device),
            "loss": sweep.objective.describe(),
            "penalty": sweep.penalty.describe(),
            "batchnorm": self.batchnorm,
            "data": sweep.source.kind,
            "examples": self.examples,
            "weight": self.size,
            "digest": self.digest,
            "memory cap": sweep.budget.cap,
        }

    def __str__(self) -> str:
        """Return one line that names the network, the data and the policy."""
        norm = f", batchnorm={self.batchnorm}" if self.batchnorm else ""
        return (
            f"{self._model_name} with {self.dim} coordinates over {self.examples} examples "
            f"({str(self.dtype).removeprefix('torch.')} on {self.device}{norm})"
        )

    __repr__ = __str__


def _state_of(model: nn.Module | Mapping[str, Tensor] | str | Path) -> Mapping[str, Tensor]:
    """Return the state dict of a module, a mapping or a checkpoint file."""
    if isinstance(model, nn.Module):
        return model.state_dict()
    if isinstance(model, (str, Path)):
        return read_checkpoint(model)
    if isinstance(model, Mapping):
        return model
    raise TypeError(
        f"expected a module, a state dict or a path to a checkpoint, not {type(model).__name__}"
    )
