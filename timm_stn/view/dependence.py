"""Whether theta depends on the image. A transformer that does the same for all images is a crop, and learns nothing."""
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
from ..modules.spatial_transformer import SpatialTransformer

__all__ = ['Dependence', 'Witness', 'advice', 'dependence', 'tell', 'witnessing']

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


def dependence(stn: SpatialTransformer, theta: Tensor, features: Tensor | None = None) -> Dependence:
    """Of a transformer and what it made of N images.

    Args:
        stn: The transformer.
        theta: Its thetas, (N, ...) or (N, G, ...), as ``last_theta`` has them.
        features: What its regression saw, (N, F).
    """
    tally = _Tally(stn)
    tally.add(stn, theta, features)
    return tally.found()


def advice(stage: Any, found: Dependence) -> str | None:
    """One line where theta hardly depends on the image; None where it does, or where one image says nothing."""
    if found.images < 2 or found.spread >= LITTLE:
        return None
    dead = f'; {found.dead} of {found.features} features are dead' if found.features else ''
    return (f'the transformer at {stage} does the same for all {found.images} images (standard deviation '
            f'{found.spread:.4f}{dead}): see {HELP}')


def tell(lines: Iterable[str]) -> None:
    """Print advice on stderr; of the processes of one training, the first does."""
    if os.environ.get('RANK', '0') == '0':
        for line in lines:
            with suppress(OSError):  # nobody reads it: no reason to fail
                print(f'timm-stn: {line}', file=sys.stderr, flush=True)


class Witness:
    """What transformers did with the images of the last evaluation: numbers of a fixed size, and no tensor of theirs.

    It starts anew with the first forward pass in evaluation after one in training. What ran as compiled code, or in
    replicas of ``nn.DataParallel``, it does not see.

    Args:
        warmup: So many forward passes in evaluation, the first of each transformer, are of noise and not counted.
    """

    def __init__(self, warmup: float = 0) -> None:
        self.warmup = warmup
        self._trained = False
        self._tallies: dict[ref[SpatialTransformer], _Tally] = {}  # which stay when the transformer is gone

    def see(self, stn: SpatialTransformer, theta: Tensor) -> None:
        """Take in a forward pass; theta is (N, ...) or (N, G, ...), detached."""
        if stn.training:
            self._trained = True
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
        """Stages, as named in ``stn_stages``, and what the transformers there did, in the order of their first pass."""
        return [(tally.stage, tally.found()) for tally in self._tallies.values()]

    def advice(self) -> list[str]:
        """A line for each stage with a transformer that hardly depends on the image; of several the first's."""
        lines: dict[int | str, str] = {}
        for stage, found in self.found():
            line = advice(stage, found)
            if line is not None:
                lines.setdefault(stage, line)
        return list(lines.values())


@contextmanager
def witnessing(warmup: float = 0) -> Iterator[Witness]:
    """Within it, the witness that it gives sees all spatial transformers; see :class:`Witness`."""
    witness, before = Witness(warmup), SpatialTransformer.witness
    SpatialTransformer.witness = witness.see
    try:
        yield witness
    finally:
        SpatialTransformer.witness = before


class _Tally:
    """What one transformer did so far: moments of where its points lie, and the range of each feature."""

    def __init__(self, stn: SpatialTransformer) -> None:
        self.stage, self.rows = stn.stage, stn.rows
        self.passes = self.count = 0
        self.mean = self.square = torch.zeros((), dtype=torch.float64, device='cpu')  # squares about the mean, summed
        self.low, self.high = (torch.tensor(s * math.inf, device='cpu') for s in (1, -1))  # one number: no features

    def add(self, stn: SpatialTransformer, theta: Tensor, features: Tensor | None) -> None:
        flat = theta.flatten(0, 1) if stn.glimpses > 1 else theta
        points = stn.map_points(flat, lattice_of_glimpse(stn.transform.ndim, flat))
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
