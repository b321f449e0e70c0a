"""Thetas of an optimizer step with their gradients, seen while a network trains."""
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .._torch import after_backward
from ..modules.spatial_transformer import SpatialTransformer

__all__ = ['Gradients', 'named_transformers']

Guard = Callable[[Callable[..., None]], Callable[..., None]]


def named_transformers(network: Any) -> dict[str, SpatialTransformer]:
    """All transformers of a network: by stage, those of further towers by the name of the module."""
    stages = {id(stn): str(stage) for stage, stn in network.spatial_transformers().items()}
    return {stages.get(id(stn), name): stn for name, stn in network.named_modules()
            if isinstance(stn, SpatialTransformer)}


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
        saw = guard(self._saw)

        def recorder(stn: SpatialTransformer, theta: Tensor) -> None:  # a method: of the class, as networks are pickled
            saw(stn, theta)

        SpatialTransformer.recorder = recorder  # type: ignore[assignment]

    def detach(self) -> None:
        """See no more."""
        SpatialTransformer.recorder = None

    def clear(self) -> None:
        """Begin with another step."""
        self._thetas: defaultdict[str, list[Tensor]] = defaultdict(list)
        self._squares: defaultdict[str, list[Tensor]] = defaultdict(list)
        self._norm: Tensor | None = None
        self._waits = False

    def thetas(self) -> dict[str, Tensor]:
        """By transformer, of all images of the step."""
        return {name: torch.cat(self._thetas[name]) for name in self.named if name in self._thetas}

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

    def _saw(self, stn: SpatialTransformer, theta: Tensor) -> None:
        name = self._names.get(stn)
        if name is None or not (self._wanted() and stn.training and torch.is_grad_enabled()):
            return
        if theta.requires_grad:
            came = self._guard(partial(self._came, name, theta.detach()))
            theta.register_hook(came)  # type: ignore[no-untyped-call]
        else:  # frozen
            self._thetas[name].append(theta.detach())

    def _came(self, name: str, theta: Tensor, gradient: Tensor) -> None:
        stn = self.named[name]
        columns = stn.rows * stn.glimpses
        self._thetas[name].append(theta)
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
            self._squares.clear()
