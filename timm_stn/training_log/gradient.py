"""Thetas of an optimizer step with their gradients, seen while a network trains."""
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .._torch import after_backward
from ..modules.localization import Regressed
from ..modules.spatial_transformer import SpatialTransformer

__all__ = ['Gradients', 'named_transformers']

Guard = Callable[[Callable[..., None]], Callable[..., None]]


def named_transformers(network: Any) -> dict[str, SpatialTransformer]:
    """All transformers of a network: by stage, those of further towers or somebody's own by the name of the module."""
    named = network.spatial_transformers() if hasattr(network, 'spatial_transformers') else {}
    stages = {id(stn): str(stage) for stage, stn in named.items()}
    return {stages.get(id(stn), name): stn for name, stn in network.named_modules()
            if isinstance(stn, SpatialTransformer)}


class _Hook:
    """A hook of a module; that of a copy, or of a pickle, does nothing."""

    def __init__(self, run: Callable[..., None] | None = None) -> None:
        self.run = run

    def __call__(self, *args: Any) -> None:
        if self.run is not None:
            self.run(*args)

    def __reduce__(self) -> tuple[type['_Hook'], tuple[()]]:
        return _Hook, ()


class Gradients:
    """Gathers thetas of training passes, those that a gradient came to, over all backward passes of a step.

    Gradients are taken right after each backward pass: both norms of the ratio are then of the same loss, with its
    scale of mixed precision in both, before gradients are clipped, and after processes have averaged them.

    Args:
        network: With ``spatial_transformers()``.
        wanted: Whether the step to come is to be gathered.
        guard: Around all that runs in the training.
    """

    def __init__(self, network: Any, wanted: Callable[[], bool], guard: Guard) -> None:
        self.named = named_transformers(network)
        own = {id(p) for stn in self.named.values() for p in stn.parameters()}
        self._rest: list[nn.Parameter] = [p for p in network.parameters() if id(p) not in own]
        self._names = {stn: name for name, stn in self.named.items()}
        self._wanted, self._guard = wanted, guard
        self.clear()
        self._handles = [stn.localization.register_forward_hook(_Hook(guard(partial(self._regressed, name))))
                         for name, stn in self.named.items()]
        saw = guard(self._saw)

        def recorder(stn: SpatialTransformer, theta: Tensor) -> None:  # a method: of the class, as networks are pickled
            saw(stn, theta)

        SpatialTransformer.recorder = recorder  # type: ignore[assignment]

    def detach(self) -> None:
        """See no more."""
        SpatialTransformer.recorder = None
        for handle in self._handles:
            handle.remove()

    def clear(self) -> None:
        """Begin with another step."""
        self._thetas: defaultdict[str, list[Tensor]] = defaultdict(list)
        self._squares: defaultdict[str, list[Tensor]] = defaultdict(list)
        self._params: defaultdict[str, list[Tensor]] = defaultdict(list)  # of the forward pass in progress
        self._finite: defaultdict[str, list[Tensor]] = defaultdict(list)
        self._norm: Tensor | None = None
        self._waits = False

    def thetas(self) -> dict[str, Tensor]:
        """By transformer, of all images of the step."""
        return {name: torch.cat(self._thetas[name]) for name in self.named if name in self._thetas}

    def finite(self, name: str) -> Tensor:
        """Whether all parameters were finite, for each row of the transformer's thetas."""
        return torch.cat(self._finite[name])

    def columns(self, name: str) -> int:
        """Of a transformer, glimpses or streams: what has a line of its own."""
        return self.named[name].rows * self.named[name].glimpses

    def ratios(self, name: str) -> list[float] | None:
        """For each glimpse or stream, the norm of theta's gradient over that of all parameters outside transformers.

        Theta is that of all images of the step, side by side: each has the gradient of the mean loss to its own. Of
        several processes, the first sees its own images alone; those of the others are taken to be as these. None
        where there is no such gradient, as of a frozen backbone.
        """
        if self._norm is None or name not in self._squares:
            return None
        processes = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        mine = torch.stack(self._squares[name]).sum(0).double().sqrt() / processes ** 0.5
        return (mine.cpu() / self._norm.double().cpu()).tolist()

    def _regressed(self, name: str, module: nn.Module, args: Any, out: Any) -> None:
        if self._wanted() and self.named[name].training and torch.is_grad_enabled():
            params = out.params if isinstance(out, Regressed) else out
            self._params[name].append(params.detach().isfinite())

    def _saw(self, stn: SpatialTransformer, theta: Tensor) -> None:
        name = self._names.get(stn)
        if name is None or not (self._wanted() and stn.training and torch.is_grad_enabled()):
            return
        each = [finite.reshape(len(theta), -1).all(1) for finite in self._params.pop(name, [])]
        finite = torch.stack(each).all(0) if each else torch.ones(len(theta), dtype=torch.bool, device=theta.device)
        if theta.requires_grad:
            came = self._guard(partial(self._came, name, theta.detach(), finite))
            theta.register_hook(came)  # type: ignore[no-untyped-call]
        else:  # frozen
            self._thetas[name].append(theta.detach())
            self._finite[name].append(finite)

    def _came(self, name: str, theta: Tensor, finite: Tensor, gradient: Tensor) -> None:
        stn = self.named[name]
        columns = self.columns(name)
        self._thetas[name].append(theta)
        self._finite[name].append(finite)
        self._squares[name].append(gradient.detach().float().reshape(-1, columns, theta[0].numel() // stn.glimpses)
                                   .square().sum((0, 2)))
        if not self._waits:
            self._waits = True
            # twice: what processes average is there after a callback of theirs, which may come after the first of ours
            after_backward(partial(after_backward, self._guard(self._measure)))

    def _measure(self) -> None:
        self._waits = False
        gradients = [p.grad.detach() for p in self._rest if p.grad is not None]
        self._norm = torch.nn.utils.get_total_norm(gradients) if gradients else None
        if self._norm is not None and not (self._norm > 0 and self._norm.isfinite()):  # an overflow: no step follows
            self._norm = None
            for held in (self._squares, self._thetas, self._finite):
                held.clear()
