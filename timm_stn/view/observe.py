"""Records where the transformers of a network looked in images, as numbers and outlines."""
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .lattice import border, lattice_through

__all__ = ['Look', 'observe']


@dataclass(frozen=True)
class Look:
    """Results of the transformer of one stage for images (N, C, H, W).

    ``theta`` is (N, G, ...), ``logits`` (N, classes) are the network's. ``lattice`` (N, G, K, 2) are points over what
    was seen (`lattice_through`) in coordinates of the images. ``seen`` (N, G, C, h, w) is the output of the
    transformer. ``before`` is its input, of the same shape, for a stage; None for the network's input.
    """
    stage: int | str
    theta: Tensor
    lattice: Tensor
    seen: Tensor
    before: Tensor | None
    logits: Tensor

    @property
    def outlines(self) -> Tensor:
        """The border of what was seen, (N, G, K, 2), in coordinates of the images."""
        return border(self.lattice)


@torch.inference_mode()
def observe(
        model: Any,
        images: Tensor,
        stage: int | str | None = None,
        answer: Callable[[Tensor], Tensor] | None = None,
) -> Look:
    """Run a network and return where one of its spatial transformers looked.

    The features of a stage are assumed to cover the image evenly, as with padded convolutions and patches.

    Args:
        model: A network with ``spatial_transformers()``; its mode (train or eval) is kept.
        images: Inputs of the network, (N, C, H, W).
        stage: One of ``model.spatial_transformers()``. Default: the first, which is the input's if it has one.
        answer: From images to logits, for the look of the input's transformer. Default: the model.

    Raises:
        ValueError: There is no transformer at that stage.
    """
    transformers = model.spatial_transformers()
    stage = next(iter(transformers)) if stage is None else stage
    if stage not in transformers:
        raise ValueError(f'stage must be one of {", ".join(map(repr, transformers))}, got {stage!r}.')
    if transformers[stage] is model.stn:
        seen, theta = model.look(images)
        if model.glimpses == 1:
            seen, theta = seen[:, None], theta[:, None]
        return Look(stage, theta, lattice_through(model.stn, theta), seen, None, (answer or model)(images))
    return _observe_stage(model, transformers[stage], images, stage)


def _observe_stage(model: Any, stn: Any, images: Tensor, stage: int | str) -> Look:
    """As `observe` for a feature stage: the lattice is mapped back through the transformers that ran before it."""
    ran: list[tuple[Any, Tensor, Tensor]] = []
    stages = [t for t in model.spatial_transformers().values() if t is not model.stn]
    handles = [t.register_forward_hook(lambda m, args, out: ran.append((m, args[0], out))) for t in stages]
    try:
        logits = model(images)
    finally:
        for handle in handles:
            handle.remove()
    ran = ran[-len(stages):]  # without earlier passes that only computed where to look
    last = [t for t, _, _ in ran].index(stn)
    points = lattice_through(stn, stn.last_theta)[:, 0]
    for earlier, _, _ in reversed(ran[:last]):
        points = earlier.map_points(earlier.last_theta, points)
    before, seen = (stn.layout.maps(x) for x in ran[last][1:])
    parts = (stn.last_theta, points, before, seen)
    theta, points, before, seen = (t.reshape(len(images), -1, *t.shape[1:]) for t in parts)
    return Look(stage, theta, points if model.stn is None else _through_input(model, points), seen, before, logits)


def _through_input(model: Any, points: Tensor) -> Tensor:
    """Map points (N, S, K, 2) of the backbone's inputs to the images; a whole image comes first and is not mapped."""
    first = points.shape[1] - model.glimpses
    whole, seen = points[:, :first], points[:, first:]
    theta = model.stn.last_theta
    theta = theta[:, :seen.shape[1]].flatten(0, 1) if model.glimpses > 1 else theta
    return torch.cat([whole, model.stn.map_points(theta, seen.flatten(0, 1)).reshape(seen.shape)], 1)
