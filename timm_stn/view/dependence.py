"""Measures how much theta depends on the image. If it does not, the transformer is a fixed crop."""
import math
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple
from weakref import ref

import torch
from torch import Tensor

from ..modules.gradients import lattice_of_glimpse
from ..modules.orbit import Orbit
from ..modules.spatial_transformer import SpatialTransformer

__all__ = ['Dependence', 'Witness', 'advice', 'dependence', 'tell', 'witnessing']

LITTLE = 0.005  # half-widths of the image; a quarter of a pixel of 100
HELP = 'https://github.com/timm-stn/timm_stn/blob/main/docs/training.md#it-does-nothing'


class Dependence(NamedTuple):
    """How much a transformer's theta depends on the image, over several images.

    ``spread`` is the standard deviation over the images of the positions of a 5 x 5 lattice of the look, in half-widths
    of the image, root mean square over points and axes. For a translation it is the standard deviation of theta.
    ``features`` is the number of inputs of the regression of theta; ``dead`` of them are the same for all images.
    """
    images: int
    spread: float
    dead: int
    features: int


def dependence(stn: SpatialTransformer, theta: Tensor, features: Tensor | None = None) -> Dependence:
    """The :class:`Dependence` of a transformer over N images.

    Args:
        stn: The transformer.
        theta: Its thetas, (N, ...) or (N, G, ...), as in ``last_theta``.
        features: The inputs of its regression, (N, F).
    """
    tally = _Tally(stn)
    tally.add(stn, theta, features)
    return tally.found()


def advice(stage: Any, found: Dependence) -> str | None:
    """One line if theta hardly depends on the image; None if it does, or for fewer than two images."""
    if found.images < 2 or found.spread >= LITTLE:
        return None
    dead = f'; {found.dead} of {found.features} features are dead' if found.features else ''
    return (f'the transformer at {stage} does the same for all {found.images} images (standard deviation '
            f'{found.spread:.4f}{dead}): see {HELP}')


def tell(lines: Iterable[str]) -> None:
    """Print advice on stderr, in the first process of a distributed run only."""
    if os.environ.get('RANK', '0') == '0':
        for line in lines:
            with suppress(OSError):  # stderr may be closed; that is no failure
                print(f'timm-stn: {line}', file=sys.stderr, flush=True)


class Witness:
    """Records statistics of all transformers over the images of the last evaluation, in constant memory.

    It starts again at the first forward pass in evaluation mode after one in training mode. It does not see compiled
    code or replicas of ``nn.DataParallel``.

    Args:
        warmup: Number of first evaluation passes of each transformer to skip, because their input is noise.
    """

    def __init__(self, warmup: float = 0) -> None:
        self.warmup = warmup
        self._trained = False
        self._tallies: dict[ref[SpatialTransformer], _Tally] = {}  # entries outlive their transformer

    def see(self, stn: SpatialTransformer, theta: Tensor) -> None:
        """Record a forward pass; theta is (N, ...) or (N, G, ...), detached."""
        if stn.training:
            self._trained = True
            return
        if isinstance(stn.localization, Orbit):  # of which it is the point to leave upright images as they are
            return
        if theta.is_meta or len(theta) == 0 or getattr(stn, '_is_replica', False):
            return
        if self._trained:
            self._trained = False
            self._tallies.clear()
        tally = self._tallies.setdefault(ref(stn), _Tally(stn))
        tally.passes += 1
        if tally.passes > self.warmup:
            tally.add(stn, theta, getattr(stn.localization, 'last_features', None))

    def found(self) -> list[tuple[int | str, Dependence]]:
        """(stage as in ``stn_stages``, :class:`Dependence`) of each transformer, in the order of the first passes."""
        return [(tally.stage, tally.found()) for tally in self._tallies.values()]

    def advice(self) -> list[str]:
        """One line for each stage whose theta hardly depends on the image (the first of several transformers)."""
        lines: dict[int | str, str] = {}
        for stage, found in self.found():
            line = advice(stage, found)
            if line is not None:
                lines.setdefault(stage, line)
        return list(lines.values())


@contextmanager
def witnessing(warmup: float = 0, witness: Witness | None = None) -> Iterator[Witness]:
    """Context with a new :class:`Witness`, or the given one, which sees all spatial transformers inside it."""
    witness, before = witness or Witness(warmup), SpatialTransformer.witness
    SpatialTransformer.witness = witness.see
    try:
        yield witness
    finally:
        SpatialTransformer.witness = before


class _Tally:
    """Running statistics of one transformer: moments of its points' positions, and the range of each feature."""

    def __init__(self, stn: SpatialTransformer) -> None:
        self.stage, self.rows = stn.stage, stn.rows
        self.passes = self.count = 0
        self.mean = self.square = torch.zeros((), dtype=torch.float64, device='cpu')  # sum of squares about the mean
        self.low, self.high = (torch.tensor(s * math.inf, device='cpu') for s in (1, -1))  # 0-d: no features yet

    def add(self, stn: SpatialTransformer, theta: Tensor, features: Tensor | None) -> None:
        points = stn.pose_of(theta).map_points(lattice_of_glimpse(stn.transform.ndim, theta))
        points = points.detach().reshape(len(theta), -1).cpu().double()
        mean, total = points.mean(0), self.count + len(points)
        apart, share = mean - self.mean, len(points) / total
        self.square = self.square + (points - mean).square().sum(0) + apart.square() * (self.count * share)
        self.mean = self.mean + apart * share
        self.count = total
        if features is not None:
            self.low = torch.minimum(self.low, features.detach().amin(0).cpu())
            self.high = torch.maximum(self.high, features.detach().amax(0).cpu())

    def found(self) -> Dependence:
        spread = (self.square / max(self.count, 1)).mean().sqrt()
        features = len(self.low) if self.low.ndim else 0
        return Dependence(self.count // self.rows, float(spread), int((self.low == self.high).sum()), features)
