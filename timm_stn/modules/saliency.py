"""Where features respond: the start of glimpses that look at what is there, before anything is learned."""
import math

import torch
from torch import Tensor

from ..geometry.autocast import full_precision
from ..geometry.grid import centers, coordinate_dtype
from .localization import Localization, Regressed

__all__ = ['Saliency', 'energy_of', 'left_by_others', 'places']

POWER = 3  # of the energy: less, and the background widens glimpses; more, and they shrink to a bird's head
WINDOW = 1.0  # standard deviation, as a share of the largest half-width
APART = 1.0  # and that of what a glimpse takes from those after it, as a share of its half-width
WIDE = 1.4  # so that three quarters of the image's side are met, and the whole is hardly cut


class Saliency(Localization):
    """Feature maps to parameters, and to the energy from which they start: where the maps respond.

    With a pretrained backbone that tends to be the object, or parts of it. The localization network moves glimpses from
    there. No gradient passes from the start to the backbone: it would be many times larger than that of what glimpses
    show, and glimpses would move to the edge.

    Shape:
        (N, C, H, W) to parameters (N, G * P) and energy (N, H, W).
    """

    finds = True

    def forward(self, x: Tensor) -> Regressed:
        return Regressed(super().forward(x).params, energy_of(x))


def energy_of(maps: Tensor) -> Tensor:
    """Energy (N, H, W) of feature maps (N, C, H, W), from 0 to 1; no gradient passes.

    The activations above zero, averaged over the channels, less their mean over the map, and what remains above zero
    (Wei et al. 2017, Selective Convolutional Descriptor Aggregation), as a share of its maximum.
    """
    maps = maps.detach().to(coordinate_dtype(maps.dtype))
    with full_precision(maps):
        energy = maps.relu().mean(1)
        energy = (energy - energy.mean((1, 2), keepdim=True)).relu()
        most = energy.amax((1, 2), keepdim=True).clamp_min(torch.finfo(energy.dtype).tiny)
        return energy / most


def places(
        energy: Tensor,
        tiles: Tensor,
        scales: tuple[float, float],
        training: bool = False,
) -> tuple[Tensor, Tensor]:
    """Where glimpses start: centres (N, G, 2), xy in [-1, 1], and half-widths (N, G, 1).

    They go by a power of the energy. The first is where a Gaussian window holds the most of it, at the centre of mass
    within; so is each of the others, in what the glimpses before it leave.

    Where the scale may vary, a glimpse is 1.4 times as wide as a square with the same standard deviation as the energy
    along its wider axis: times the square root of three. So in evaluation; in training it is the largest, since there
    random crops have shown things larger than they will be seen already (Touvron et al. 2019, FixRes).

    Args:
        energy: (N, H, W), zero or more.
        tiles: (G, 2): the centres of glimpses where there is no energy.
        scales: Least and largest half-width.
        training: Half-widths are the largest.
    """
    with full_precision(energy):
        found, energy = [], energy.pow(POWER)
        for tile in torch.split(tiles.to(energy), 1):
            center, half = _place(energy, tile, scales, training)  # (N, 2) and (N, 1)
            found.append((center, half))
            energy = energy * (1 - _window(energy, center, APART * half))
        return tuple(torch.stack(parts, 1) for parts in zip(*found))  # type: ignore[return-value]


def left_by_others(energy: Tensor, center: Tensor, half: Tensor) -> Tensor:
    """What glimpses see for themselves, (N * G, h, w), less what those before them take.

    Args:
        energy: Of what each sees.
        center: (N, G, 2), in the image.
        half: (N, G, 1), half-widths.
    """
    glimpses = center.shape[1]
    left = list(energy.reshape(-1, glimpses, *energy.shape[1:]).unbind(1))
    with full_precision(energy):
        for g in range(1, glimpses):
            for other in range(g):
                there = (center[:, other] - center[:, g]) / half[:, g]  # as g sees it
                taken = _window(left[g], there, APART * half[:, other] / half[:, g])
                left[g] = left[g] * (1 - taken) ** (1 / POWER)  # so much of the energy's power
    return torch.stack(left, 1).flatten(0, 1)


def _place(energy: Tensor, tile: Tensor, scales: tuple[float, float], training: bool) -> tuple[Tensor, Tensor]:
    least, most = scales
    axes = _axes(energy)
    near = [torch.exp(-((axis[:, None] - axis) / (WINDOW * most)).square() / 2) for axis in axes]
    seen = near[1] @ energy @ near[0]  # (N, H, W)
    peak = seen.flatten(1).argmax(1)
    there = torch.stack([axes[0][peak % energy.shape[2]], axes[1][peak // energy.shape[2]]], 1)
    mass = energy * _window(energy, there, torch.full_like(tile[:, :1], WINDOW * most))
    center, square, total = _moments(mass)
    half = torch.full_like(total, most)
    if least < most and not training:
        spread = (square - center.square()).amax(1, keepdim=True).clamp_min(0.0)  # a variance, within the window
        narrow = 1 / (WINDOW * most) ** 2
        spread = spread / (1 - narrow * spread).clamp_min(0.05)
        half = torch.where(total > 0, (WIDE * (3 * spread).sqrt()).clamp(least, most), half)
    known = total.abs() < math.inf  # not of an image with a NaN in it
    center = torch.where(known & (total > 0), center, tile)
    return center, torch.where(known, half, torch.full_like(half, least))


def _axes(energy: Tensor) -> list[Tensor]:
    return [centers(energy.shape[i], energy.device, energy.dtype) for i in (2, 1)]


def _window(energy: Tensor, center: Tensor, wide: Tensor) -> Tensor:
    """(N, H, W): a Gaussian around centres (N, 2), of standard deviations (N, 1)."""
    x, y = (torch.exp(-((axis - c[:, None]) / wide).square() / 2) for axis, c in zip(_axes(energy), center.unbind(1)))
    return y[:, :, None] * x[:, None]


def _moments(mass: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean of the coordinates (N, 2), of their squares (N, 2), and the mass (N, 1)."""
    total = mass.sum((1, 2))[:, None]
    share = [mass.sum(i) / total.clamp_min(torch.finfo(mass.dtype).tiny) for i in (1, 2)]
    axes = _axes(mass)
    first, second = ([(s * axis ** k).sum(1) for s, axis in zip(share, axes)] for k in (1, 2))
    return torch.stack(first, 1), torch.stack(second, 1), total
