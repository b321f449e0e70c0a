"""torch's grid sampler as a custom operator, which `torch.compile` does not decompose, with its gradients."""
from typing import Any

import torch
from torch import Tensor

__all__ = ['grid_sampler']


@torch.library.custom_op('timm_stn::grid_sampler', mutates_args=())
def grid_sampler(image: Tensor, grid: Tensor, kernel: int, padding: int) -> Tensor:
    """`torch.grid_sampler` with half-pixel centres; `kernel` and `padding` are its integer codes."""
    return torch.grid_sampler(image, grid, kernel, padding, False)


@torch.library.custom_op('timm_stn::grid_sampler_backward', mutates_args=())
def grid_sampler_backward(
        grad: Tensor,
        image: Tensor,
        grid: Tensor,
        kernel: int,
        padding: int,
        need_image: bool,
        need_grid: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of `grid_sampler` to image and grid; an empty tensor if not needed."""
    backward = torch.ops.aten.grid_sampler_2d_backward if image.ndim == 4 else torch.ops.aten.grid_sampler_3d_backward
    grads = backward(grad, image, grid, kernel, padding, False, [need_image, need_grid])
    return _or_empty(grads[0], need_image, image), _or_empty(grads[1], need_grid, grid)


@grid_sampler.register_fake
def _(image: Tensor, grid: Tensor, kernel: int, padding: int) -> Tensor:
    return image.new_empty((*image.shape[:2], *grid.shape[1:-1]))


@grid_sampler_backward.register_fake
def _(
        grad: Tensor,
        image: Tensor,
        grid: Tensor,
        kernel: int,
        padding: int,
        need_image: bool,
        need_grid: bool,
) -> tuple[Tensor, Tensor]:
    return _or_empty(image.new_empty(image.shape), need_image, image), \
        _or_empty(grid.new_empty(grid.shape), need_grid, grid)


def _or_empty(grad: Tensor, needed: bool, like: Tensor) -> Tensor:
    return grad.contiguous() if needed else like.new_empty(0)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int, int], output: Tensor) -> None:
    image, grid, ctx.kernel, ctx.padding = inputs
    ctx.save_for_backward(image, grid)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
    need_image, need_grid = ctx.needs_input_grad[:2]
    grads = grid_sampler_backward(grad, *ctx.saved_tensors, ctx.kernel, ctx.padding, need_image, need_grid)
    return grads[0] if need_image else None, grads[1] if need_grid else None, None, None


grid_sampler.register_autograd(_backward, setup_context=_setup_context)
