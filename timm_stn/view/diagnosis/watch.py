"""One transformer of a network under examination: what it does, and what is done to it, in forward passes."""
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...geometry.pose import pose_of
from ...geometry.reading import read_at
from ...modules.gradients import lattice_of_glimpse
from ...modules.localization import Regressed
from ...modules.orbit import Orbit
from ...modules.spatial_transformer import SpatialTransformer

__all__ = ['Passed', 'Watch', 'watched']


class Passed(NamedTuple):
    """What forward passes left."""
    params: list[Tensor]
    pictures: list[tuple[Tensor, Tensor]]  # input and output


class Watch:
    """A transformer, with its name in ``named_modules`` of the network.

    A *view* is one glimpse of one image: there are V of each image, G glimpses in each of its rows of the batch.
    """

    def __init__(self, name: str, stn: SpatialTransformer) -> None:
        self.name, self.stn = name, stn

    @property
    def learns(self) -> bool:
        """Whether it has something to learn: a search for the pose has not."""
        return not isinstance(self.stn.localization, Orbit)

    @contextmanager
    def recorded(self) -> Iterator[list[Tensor]]:
        """Every forward pass adds its theta, (N * rows, ...) or (N * rows, G, ...), with its graph, to the list."""
        thetas: list[Tensor] = []
        with _set(self.stn, 'recorder', thetas.append):
            yield thetas

    @contextmanager
    def edited(self, edit: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """In forward passes, what ``edit`` makes of theta, (N * V, ...), takes its place."""
        with _set(self.stn, 'editor', edit):
            yield

    @contextmanager
    def at_start(self) -> Iterator[None]:
        """It does what it would with nothing regressed: parameters of zero, and no pose that was searched for."""
        handle = self.stn.localization.register_forward_hook(_nothing)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def hooked(self) -> Iterator['Passed']:
        """Forward passes add what was regressed, and what came in and out where it was called itself."""
        found = Passed([], [])

        def regressed(module: nn.Module, args: Any, out: Any) -> None:
            found.params.append(out.params if isinstance(out, Regressed) else out)

        def passed(module: nn.Module, args: Any, out: Tensor) -> None:
            if self.stn.recorder is not None:  # not in a glance, of which theta is not recorded either
                found.pictures.append((args[0], out))

        handles = [self.stn.localization.register_forward_hook(regressed), self.stn.register_forward_hook(passed)]
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()

    def flat(self, theta: Tensor) -> Tensor:
        """theta of all views, (N * V, ...)."""
        return theta.flatten(0, 1) if self.stn.glimpses > 1 else theta

    def views(self, thetas: list[Tensor], images: int) -> Tensor:
        """theta (N, V, ...) of all views of N images, over the calls of one forward pass."""
        return torch.cat([self.flat(theta).reshape(images, -1, *self.flat(theta).shape[1:]) for theta in thetas], 1)

    def points(self, thetas: list[Tensor], images: int) -> Tensor:
        """Where the lattice of each view lies in the input: (N, V, 25, 2), or 125 points of volumes."""
        theta = self.views(thetas, images)
        lattice = lattice_of_glimpse(self.stn.transform.ndim, theta)
        points = pose_of(theta.flatten(0, 1), self.stn.theta_transform).map_points(lattice)
        return points.reshape(*theta.shape[:2], *points.shape[1:])

    def pictures(self, images: Tensor, found: 'Passed', thetas: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Of each call what it looked at, (N * rows, C, H, W), and what each view showed, (N * V, C, h, w)."""
        layout = getattr(self.stn, 'layout', None)
        if found.pictures and layout is not None:
            return [(layout.maps(before), layout.maps(seen)) for before, seen in found.pictures]
        if found.pictures:
            return [(before, self.flat(seen)) for before, seen in found.pictures]
        size = self.stn.size or tuple(images.shape[2:])  # the network called `look`
        return [(images, self.flat(read_at(
            images, self.stn.pose_of(theta).at(size), size, self.stn.sampling, self.stn.glimpses))) for theta in thetas]


def watched(model: nn.Module) -> list[Watch]:
    """Those of all spatial transformers of a network, in the order of its modules."""
    return [Watch(name, m) for name, m in model.named_modules() if isinstance(m, SpatialTransformer)]


@contextmanager
def _set(module: nn.Module, name: str, value: Any) -> Iterator[None]:
    """An attribute of its own, which afterwards is what it was, or the class's again."""
    own = vars(module)
    before = {name: own[name]} if name in own else {}
    own[name] = value
    try:
        yield
    finally:
        del own[name]
        own.update(before)


def _nothing(module: nn.Module, args: Any, out: Any) -> Any:
    if isinstance(out, Regressed):
        return Regressed(torch.zeros_like(out.params), out.energy)
    return torch.zeros_like(out)
