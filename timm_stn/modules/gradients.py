"""The freeze and the penalty: both change gradients only, in training mode; the forward pass is the identity.

`hold` acts between localization network and transform, `attach_penalty` between theta and grid. (The third knob,
`lr_scale`, is in :class:`timm_stn.modules.regression.ThetaRegression`.)
"""
from collections.abc import Callable
from functools import partial
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .._torch import after_backward, in_forward_mode
from ..geometry.grid import has_values

__all__ = ['COUNT', 'attach_penalty', 'hold', 'lattice_of_glimpse', 'placement_penalty', 'without_counts']

COUNT = 'backward_passes'  # name of the counter buffer of `hold`
SIDE = 5  # points per side of the lattice that measures a glimpse's place
KEPT = 0.25  # below this share of the base's side, or of the bases' distance, glimpses are collapsing
SLACK = 1e-3  # distance outside that is ignored; well above rounding errors
TINY = 1e-12
FOLLOW = 0.1  # weight of one pass in the running norm of theta's gradient


def hold(params: Tensor, count: Tensor, steps: int) -> Tensor:
    """``params``, with a gradient of exactly zero in the first ``steps`` backward passes.

    Each completed backward pass adds one to ``count``, an integer tensor, however often it passes through here. A
    failed pass adds nothing. Compiled code cannot wait for the end of a pass. There, several backward passes count as
    one if all their forward passes came before the first of them.
    """
    if in_forward_mode():  # what acts in backward passes has no part in it
        return params
    return _Hold.apply(params, count, steps)  # type: ignore[no-untyped-call, no-any-return]


def attach_penalty(
        theta: Tensor,
        penalty: Callable[[Tensor], Tensor],
        strength: float,
        usual: Tensor,
        glimpses: int = 1,
) -> Tensor:
    """``theta`` itself; its gradient is increased by that of ``penalty``.

    Let p be the gradient of an image's penalty to its theta (of all its glimpses). The gradient of each of the N images
    is increased by

        strength * usual / N * p / max(1, |p|)

    so over the batch by at most ``strength * usual``. ``usual`` is a running norm of the gradient of the loss to theta,
    summed over the batch. The sum is used because single images' gradients partly cancel, but their penalties do not.
    Each backward pass first moves ``usual`` a tenth of the way to its own norm; the first pass sets it to that norm. A
    norm that is zero or not finite leaves it unchanged. So an image with a zero gradient, which sees nothing, is still
    pulled back once any pass had a gradient. The added gradient follows the loss scale.

    An image whose p is not finite gets nothing added. ``torch.func`` uses ``usual`` without changing it.

    Args:
        theta: (N * G, ...).
        penalty: From theta to (N,), differentiable.
        strength: At least 0.
        usual: float32 scalar, changed in place; 0 before the first pass.
        glimpses: Number G of glimpses of each image.
    """
    if in_forward_mode():
        return theta
    keep = has_values(theta) or torch.compiler.is_compiling()
    theta, judged = _Fork.apply(theta, usual, keep, strength, glimpses)  # type: ignore[no-untyped-call]
    return _Join.apply(theta, penalty(judged))  # type: ignore[no-untyped-call, no-any-return]


def lattice_of_glimpse(ndim: int, like: Tensor) -> Tensor:
    """Output points (SIDE ** ndim, ndim) in [-1, 1], edges included, on the device of ``like``, in its dtype."""
    axis = torch.linspace(-1, 1, SIDE, dtype=like.dtype, device=like.device)
    return torch.stack(torch.meshgrid(*[axis] * ndim, indexing='ij'), -1).reshape(-1, ndim)


def placement_penalty(points: Tensor, start: Tensor) -> Tensor:
    """Penalty (N,) for glimpses that are outside the image, shrunk or too close together; 0 for the bases.

    - Outside: the distance, on each axis, of points beyond the edge of the image (or beyond the base's own reach).
    - Shrunk: lattice cells whose side is below a quarter of the base's.
    - Together: pairs of glimpses closer (root mean square over the points) than a quarter of their bases' distance.

    Within these limits, each term and its gradient are 0.

    Args:
        points: Image of `lattice_of_glimpse` under theta, (N, G, SIDE ** d, d).
        start: Image of it under the bases, (G, SIDE ** d, d).
    """
    return (_outside(points, start) + _shrunk(points, start)).sum(1) + _together(points, start)


def without_counts(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without the counts of `hold`, so that a new training starts at zero."""
    return {k: v for k, v in state_dict.items() if k.rpartition('.')[2] != COUNT}


class _Hold(torch.autograd.Function):
    @staticmethod
    def forward(params: Tensor, count: Tensor, steps: int) -> Tensor:
        return params.view_as(params)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
        _, ctx.count, ctx.steps = inputs  # the live buffer: other backward passes may come first
        ctx.seen = ctx.count.clone() if torch.compiler.is_compiling() else None

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        count = ctx.count
        if torch.compiler.is_compiling():
            seen = ctx.seen
            count.copy_(seen + 1)
        else:
            seen = count.clone()
            after_backward(partial(_advance, count, seen))  # sets the same value, however often this pass queues it
        return torch.where(seen < ctx.steps, torch.zeros_like(grad), grad), None, None


def _advance(count: Tensor, seen: Tensor) -> None:
    count.copy_(seen + 1)


class _Fork(torch.autograd.Function):
    """theta twice: for the loss, and for the penalty. Backward scales the penalty's gradient by the loss's."""

    generate_vmap_rule = True

    @staticmethod
    def forward(theta: Tensor, usual: Tensor, keep: bool, strength: float, glimpses: int) -> tuple[Tensor, Tensor]:
        return theta.view_as(theta), theta.view_as(theta)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        _, ctx.usual, ctx.keep, ctx.strength, ctx.glimpses = inputs  # the live buffer, as in _Hold

    @staticmethod
    def backward(ctx: Any, grad: Tensor, pull: Tensor) -> tuple[Tensor | None, ...]:
        shape = len(grad) // ctx.glimpses, ctx.glimpses, *grad.shape[1:]
        ours, theirs = pull.reshape(shape).flatten(1), grad.reshape(shape).flatten(1)
        usual = _followed(ctx.usual, torch.linalg.vector_norm(theirs.detach().sum(0)))
        if ctx.keep:
            ctx.usual.copy_(usual)
        length = torch.linalg.vector_norm(ours, dim=1, keepdim=True)
        added = ctx.strength * usual / len(ours) * (ours / length.clamp_min(1))
        added = torch.where(length.isfinite(), added, torch.zeros_like(added))
        return (theirs + added).reshape(grad.shape), None, None, None, None


def _followed(usual: Tensor, norm: Tensor) -> Tensor:
    """The running norm after one more pass, as a new tensor."""
    norm = norm.to(usual.dtype)
    moved = torch.where(usual > 0, torch.lerp(usual, norm, FOLLOW), norm)
    return torch.where((norm > 0) & norm.isfinite(), moved, usual)


class _Join(torch.autograd.Function):
    """theta; backward gives the penalty (N,) a gradient of 1."""

    generate_vmap_rule = True

    @staticmethod
    def forward(theta: Tensor, penalty: Tensor) -> Tensor:
        return theta.view_as(theta)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.images = inputs[1].shape[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad, grad.new_ones(ctx.images)


def _outside(points: Tensor, start: Tensor) -> Tensor:
    """(N, G)"""
    edge = start.abs().amax(1, keepdim=True).clamp_min(1) + SLACK
    over = (points.abs() - edge).clamp_min(0)
    over = F.smooth_l1_loss(over, torch.zeros_like(over), reduction='none')  # linear, not quadratic, for far points
    return over.sum(-1).mean(-1) * (2 ** points.shape[-1] / KEPT)


def _shrunk(points: Tensor, start: Tensor) -> Tensor:
    """(N, G)"""
    d = points.shape[-1]
    ratio = _volumes(points) / _volumes(start)
    side = (ratio.square() + TINY) ** (0.5 / d)
    return _short(side, torch.full_like(side, KEPT)).mean(-1)


def _together(points: Tensor, start: Tensor) -> Tensor:
    """(N,)"""
    pairs = list(combinations(range(points.shape[1]), 2))
    if not pairs:
        return points.new_zeros(points.shape[0])
    first, second = (list(index) for index in zip(*pairs))
    return _short(_distance(points[:, first], points[:, second]), KEPT * _distance(start[first], start[second])).sum(-1)


def _distance(first: Tensor, second: Tensor) -> Tensor:
    return ((first - second).square().sum(-1).mean(-1) + TINY).sqrt()


def _short(value: Tensor, wanted: Tensor) -> Tensor:
    """Half the square of the missing share of ``wanted``; no share is missing if ``wanted`` is almost 0."""
    missing = (wanted - value).clamp_min(0) / wanted.clamp_min(SLACK)
    return missing.square() / 2


def _volumes(points: Tensor) -> Tensor:
    """Signed areas or volumes (..., cells) of the cells of a lattice (..., SIDE ** d, d)."""
    d = points.shape[-1]
    grid = points.reshape(*points.shape[:-2], *[SIDE] * d, d)
    axes = range(grid.ndim - 1 - d, grid.ndim - 1)
    edges = []
    for axis in axes:
        edge = grid.diff(dim=axis)
        for other in axes:
            edge = edge if other == axis else edge.narrow(other, 0, SIDE - 1)
        edges.append(edge.flatten(-1 - d, -2))
    if d == 3:
        return (torch.linalg.cross(edges[0], edges[1]) * edges[2]).sum(-1)
    return edges[0][..., 0] * edges[1][..., 1] - edges[0][..., 1] * edges[1][..., 0]
