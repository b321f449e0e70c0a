"""Whether theta depends on the image. A transformer that does the same for all images is a crop, and learns nothing."""
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .training import lattice_of_glimpse

__all__ = ['Dependence', 'advice', 'dependence']

LITTLE = 0.005  # half-widths of the image; a quarter of a pixel of 100
HELP = 'docs/training.md#it-does-nothing'


class Dependence(NamedTuple):
    """What a transformer did with several images.

    ``spread`` is the standard deviation over the images of where the look's points lie (a lattice of 5 x 5), in
    half-widths of the image, root mean square over points and axes; for a translation it is theta's. ``dead`` of the
    ``features`` that the regression sees are the same for all images.
    """
    images: int
    spread: float
    dead: int
    features: int


def dependence(stn: Any, theta: Tensor, features: Tensor | None = None) -> Dependence:
    """Of a transformer and what it made of N images.

    Args:
        stn: The transformer.
        theta: Its thetas, (N, ...) or (N, G, ...), as ``last_theta`` has them.
        features: What its regression saw, (N, F).
    """
    flat = theta.flatten(0, 1) if stn.glimpses > 1 else theta
    points = stn.map_points(flat, lattice_of_glimpse(stn.transform.ndim, flat))
    spread = points.reshape(len(theta), -1).double().var(0, correction=0).mean().sqrt()
    if features is None:
        return Dependence(len(theta), float(spread), 0, 0)
    dead = torch.eq(features.amax(0), features.amin(0))
    return Dependence(len(theta), float(spread), int(dead.sum()), features.shape[1])


def advice(stage: Any, found: Dependence) -> str | None:
    """One line where theta hardly depends on the image; None where it does, or where one image says nothing."""
    if found.images < 2 or found.spread >= LITTLE:
        return None
    dead = f'; {found.dead} of {found.features} features are dead' if found.features else ''
    return (f'the transformer at {stage} does the same for all {found.images} images (standard deviation '
            f'{found.spread:.4f}{dead}): see {HELP}')
