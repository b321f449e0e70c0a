"""`torch.ops.timm_stn.warp`: images and matrices, or a grid, to warped images, as one operator with its gradients.

    warp(Tensor image, Tensor at, SymInt[] size, int padding, Tensor? fill) -> Tensor

`image` is (N, C, H, W) in float32, bfloat16 or float16; `at` float32 matrices (M, 2, 3) or (M, 3, 3), or a grid
(M, *size, 2), with M = G * N: output m is of image m // G, and the result is (M, C, *size). `padding` is 0 for zeros, 1
for border, 2 for reflection; `fill` (C,) in float32 stands for the zeros, and gets no gradient.

On CUDA, the kernels of `kernels/fused` do it: no grid in memory, gradients that are repeatable bit by bit. Elsewhere,
and where these cannot be used, torch's kernel does the same.
"""
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .grid import has_values, lattice
from .kernels import fused
from .layout import empty_like, like
from .transforms.matrix import MIN_DENOMINATOR, away_from_zero, guard, matrix_grid
from .transforms.numeric import exact_matmul

__all__ = ['DTYPES', 'PADDINGS', 'warp_operator']

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PADDINGS = {'zeros': 0, 'border': 1, 'reflection': 2, 'fill': 0}
REACH = 2 ** 31  # offsets within an image are 32-bit integers
MOST_CHANNELS = 2 ** 17  # 4 to a program of the second axis of a launch, which has up to 65,535

Sizes = Sequence[int]


def warp_operator(image: Tensor, at: Tensor, size: Sizes, padding: int, fill: Tensor | None = None) -> Tensor:
    """Warped images (M, C, *size); see the top of this file. Also within `torch.func` and `torch.vmap`."""
    known = torch.compiler.is_compiling() or (has_values(image) and has_values(at))
    warp = torch.ops.timm_stn.warp if known else _Warp.apply
    return warp(image, at, size, padding, fill)  # type: ignore[no-any-return]


class Plain:
    """By torch's kernel, on any device."""

    @staticmethod
    def forward(image: Tensor, at: Tensor, size: Sizes, padding: int, fill: Tensor | None = None) -> Tensor:
        values = torch.grid_sampler(_pixels(image, at, fill), _grid(at, size), 0, padding, False)
        return like(image, values if fill is None else values + fill.view(-1, 1, 1))

    @staticmethod
    def theta_gradient(
            grad: Tensor, image: Tensor, at: Tensor, size: Sizes, padding: int, fill: Tensor | None = None,
    ) -> Tensor:
        grid, pixels = _grid(at, size), _pixels(image, at, fill)
        found = torch.ops.aten.grid_sampler_2d_backward(grad.float(), pixels, grid, 0, padding, False, [False, True])[1]
        if at.ndim == 4:
            return found
        theta, points = guard(at), lattice(size, at.device).flatten(0, 1)
        points = torch.cat([points, torch.ones_like(points[:, :1])], 1)  # (h * w, 3)
        found = found.flatten(1, 2)  # (M, h * w, 2)
        if at.shape[1] == 3:
            w = exact_matmul(points, theta[:, 2, :, None])
            found = found / away_from_zero(w)
            to_w = -(found * grid.flatten(1, 2)).sum(-1, keepdim=True)
            found = torch.cat([found, torch.where(w.abs() < MIN_DENOMINATOR, 0, to_w)], -1)
        usable = (theta == at).flatten(1).all(1)[:, None, None]
        return torch.where(usable, exact_matmul(found.transpose(1, 2), points), 0)

    @staticmethod
    def image_gradient(grad: Tensor, image: Tensor, at: Tensor, size: Sizes, padding: int) -> Tensor:
        found = torch.ops.aten.grid_sampler_2d_backward(
            grad.float(), _pixels(image, at), _grid(at, size), 0, padding, False, [True, False])[0]
        return like(image, found.unflatten(0, (image.shape[0], _maps(image, at))).sum(1))


def _grid(at: Tensor, size: Sizes) -> Tensor:
    return at if at.ndim == 4 else matrix_grid(at, size)


def _pixels(image: Tensor, at: Tensor, fill: Tensor | None = None) -> Tensor:
    """An image for each output, in float32, less the colour of what is outside."""
    pixels = image.float() if fill is None else image.float() - fill.view(-1, 1, 1)
    maps = _maps(image, at)
    return pixels if maps == 1 else pixels.repeat_interleave(maps, 0)


def _maps(image: Tensor, at: Tensor) -> int:
    """Of each image."""
    return at.shape[0] // image.shape[0] if image.shape[0] else 1


def _run(name: str, *args: Any) -> Tensor:
    """By the fused kernels if they can be used."""
    tensors = [x for x in args if isinstance(x, Tensor) and x.ndim == 4]  # of images, gradients and grids
    image, size = tensors[0], next(x for x in args if isinstance(x, (list, tuple)))
    far = any(max(sum((n - 1) * step for n, step in zip(x.shape[1:], x.stride()[1:])), x.shape[1:].numel()) >= REACH
              for x in tensors)
    pixels = size[0] * size[1] * (len(image) if name == 'image_gradient' else image.shape[1])  # torch sorts that many
    if far or pixels >= REACH or image.shape[1] > MOST_CHANNELS or fused.why_not(image.device):
        return getattr(Plain, name)(*args)  # type: ignore[no-any-return]
    from .kernels.fused import launch  # imports Triton
    return getattr(launch, name)(*args)  # type: ignore[no-any-return]


def _define(name: str, arguments: str, method: str, fake: Callable[..., Tensor]) -> None:
    name = f'timm_stn::{name}'
    torch.library.define(name, f'({arguments}) -> Tensor')
    torch.library.impl(name, 'default', lambda *args: _run(method, *args))
    torch.library.register_fake(name, fake)
    torch.library.register_vmap(name, partial(_batched, getattr(torch.ops.timm_stn, name[10:])))


def _batched(operator: Any, info: Any, dims: Sequence[Any], *args: Any) -> tuple[Tensor, int]:
    """One call for a batch of calls: images and what belongs to them, one call after another."""
    tensors, count = [x for x in args[:3] if isinstance(x, Tensor)], info.batch_size
    if isinstance(args[-1], Tensor) and dims[-1] is not None:
        raise NotImplementedError('torch.vmap over fill: give one fill for all')
    moved = [x.expand(count, *x.shape) if dim is None else x.movedim(dim, 0) for x, dim in zip(tensors, dims)]
    found = operator(*(x.flatten(0, 1) for x in moved), *args[len(tensors):])
    return found.unflatten(0, (count, -1)), 0


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    image, at, ctx.size, ctx.padding, fill = inputs
    ctx.save_for_backward(image, at, fill)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    image, at, fill = ctx.saved_tensors
    to_image, to_theta = (_Image.apply, _Theta.apply) if torch.is_grad_enabled() else (
        torch.ops.timm_stn.warp_image_gradient, torch.ops.timm_stn.warp_theta_gradient)
    where = ctx.size, ctx.padding
    return (to_image(grad, image, at, *where) if ctx.needs_input_grad[0] else None,
            to_theta(grad, image, at, *where, fill) if ctx.needs_input_grad[1] else None, None, None, None)


def _refuse(ctx: Any, grad: Tensor) -> None:
    raise NotImplementedError('a warp has no second derivatives, as torch.nn.functional.grid_sample has none')


def _function(name: str, setup: Callable[..., None], backward: Callable[..., Any]) -> Any:
    """An operator for `torch.func`, which does not take gradients that are registered."""
    operator = getattr(torch.ops.timm_stn, name)
    methods = dict(forward=lambda *args: operator(*args), setup_context=setup, backward=backward)
    members: dict[str, Any] = {name: staticmethod(method) for name, method in methods.items()}
    return type(name, (torch.autograd.Function,), members | {'generate_vmap_rule': True})


def _empty(image: Tensor, at: Tensor, size: Sizes, padding: int, fill: Tensor | None = None) -> Tensor:
    return empty_like(image, (at.shape[0], image.shape[1], *size))


_define('warp', 'Tensor image, Tensor at, SymInt[] size, int padding, Tensor? fill=None', 'forward', _empty)
_define('warp_theta_gradient', 'Tensor grad, Tensor image, Tensor at, SymInt[] size, int padding, Tensor? fill=None',
        'theta_gradient', lambda grad, image, at, *_: at.new_empty(at.shape))
_define('warp_image_gradient', 'Tensor grad, Tensor image, Tensor at, SymInt[] size, int padding', 'image_gradient',
        lambda grad, image, *_: empty_like(image, image.shape))
torch.library.register_autograd('timm_stn::warp', _backward, setup_context=_setup)
_Warp = _function('warp', _setup, _backward)
_Theta, _Image = (_function(f'warp_{of}_gradient', lambda *_: None, _refuse) for of in ('theta', 'image'))
