"""Standardizes the inputs of the regression of theta, so that it learns the differences between images.

The features of a localization network differ little between images: their common part is many times larger. Without
standardization, a step of the regression moves theta by almost the same amount for all images, and learns nothing
else. Here features have mean 0 and variance 1 over the data. The common part then acts only through the bias, and the
differences between images move theta as much as a step of the bias does.
"""
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..geometry.grid import coordinate_dtype, has_values
from .casts import as_count

__all__ = ['Standardize', 'without_statistics']

MOMENTUM = 0.1  # weight of one batch in the statistics after the first ten
FLOOR = 0.01  # this share of the mean variance is added to each: features that hardly vary are noise
MOST = 3.0  # features are clamped to this many standard deviations from the mean
MANY = 2 ** 20  # batches, where a checkpoint has lost their number
AS_THEY_COME = -1  # value of num_batches_tracked without statistics: features pass unchanged, for good
MEAN_OF_RELU, STD_OF_RELU = 1 / math.sqrt(2 * math.pi), math.sqrt(0.5 - 0.5 / math.pi)  # of a standard normal variable


class Standardize(nn.Module):
    """Features (N, F) minus their mean, divided by their standard deviation, times the square root of F.

    The statistics are running statistics, also in training. So the result for an image depends on no other image, for
    any batch size, and is the same in training and evaluation. The statistics take in a batch when its backward pass
    begins (:meth:`track`). Recomputation (gradient checkpointing), dry runs and ``torch.func`` leave them unchanged.
    They start at mean 0 and variance 1.

    The gradient in training is that of batch norm with the batch's own statistics; the difference to the running ones
    is treated as constant (Ioffe 2017, Batch Renormalization, arXiv:1702.03275). It has no component that shifts or
    scales a feature equally for all images, because the running statistics would undo such a change. So the layers
    before learn only from batches of three or more images. With fewer, only the regression learns.

    A :class:`timm_stn.modules.regression.ThetaRegression` divides by F. Together, for optimizers with steps of one size
    for all weights (AdamW, Lion), a step changes the differences between images as much as the bias, for any F.

    Older checkpoints without statistics leave features unchanged, for good: see :func:`without_statistics`.

    Args:
        features: Number F of features.
        relu: Apply a ReLU to the standardized features, then standardize the result, as if they were normal variables.
            The ReLU is active for about half of the images, so no feature is dead.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, features: int, relu: bool = False, device: Any = None) -> None:
        super().__init__()
        self.features, self.relu = features, relu
        self.active = True
        self.register_buffer('running_mean', torch.zeros(features, dtype=torch.float32, device=device))
        self.register_buffer('running_var', torch.ones(features, dtype=torch.float32, device=device))
        self.register_buffer('num_batches_tracked', torch.zeros((), dtype=torch.long, device=device))

    def train(self, mode: bool = True) -> 'Standardize':
        """Set the mode, and read from the buffers whether there are statistics: DDP or EMA may have written them."""
        super().train(mode)
        if not self.num_batches_tracked.is_meta:
            self.active = bool(self.num_batches_tracked >= 0)
        return self

    def reset_parameters(self) -> None:
        """Reset the statistics."""
        self.active = True
        with torch.no_grad():
            self.running_mean.zero_()
            self.running_var.fill_(1)
            self.num_batches_tracked.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """(N, F) in any dtype to (N, F), float32 or float64."""
        if not self.active:
            return x.relu() if self.relu else x
        x = x.to(coordinate_dtype(x.dtype))
        if self.training and x.requires_grad:
            x = _with_gradient_of_batch_norm(x)
        mean, var = self.running_mean.to(x.dtype), self.running_var.to(x.dtype)  # (F,)
        x = (x - mean) * (var + FLOOR * var.mean() + torch.finfo(torch.float32).tiny).rsqrt()
        x = torch.where(x.abs() < math.inf, x.clamp(-MOST, MOST), x)  # NaN and infinity must stay visible to `guard`
        if self.relu:
            x = (x.relu() - MEAN_OF_RELU) / STD_OF_RELU
        return x * math.sqrt(self.features)

    def track(self, out: Tensor, x: Tensor) -> Tensor:
        """``out`` itself, computed from features x (N, F). In training, its backward pass adds x to the statistics."""
        if not (self.active and self.training and out.requires_grad):
            return out
        if not (has_values(out) or torch.compiler.is_compiling()):
            return out
        return _Track.apply(  # type: ignore[no-any-return, no-untyped-call]
            out, x.detach(), self.running_mean, self.running_var, self.num_batches_tracked)

    def _apply(self, fn: Callable, recurse: bool = True) -> 'Standardize':
        """Moves and casts the module; the statistics stay float32 for any dtype of the model."""
        before = {name: self._buffers[name] for name in ('running_mean', 'running_var')}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, old in before.items():
            new = self._buffers[name]
            if new is not None and old is not None and new.dtype != torch.float32:
                self._buffers[name] = new.float() if old.is_meta else old.to(new.device)
        return self

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        key = prefix + 'num_batches_tracked'
        if key in state_dict:
            state_dict[key] = as_count(state_dict[key], lost=MANY)
        super()._load_from_state_dict(state_dict, prefix, *args)
        count = state_dict.get(key)
        if count is not None and not count.is_meta:
            self.active = bool(count >= 0)

    def extra_repr(self) -> str:
        return f'{self.features}, relu={self.relu}, active={self.active}'


def without_statistics(state_dict: Mapping[str, Tensor], *weights: str) -> dict[str, Tensor]:
    """Entries that an older checkpoint lacks: statistics that leave its features unchanged.

    Args:
        state_dict: State dict of a network or of a part of it; not changed.
        *weights: Keys of regressions' weights, ``stn.localization.regression.weight``. Default: all.

    Returns:
        These entries for each regression in ``state_dict`` without statistics. A regression without its buffer gets
        none: a state dict of parameters alone does not tell whether the network had statistics.
    """
    lacking = {}
    for key in weights or [k for k in state_dict if k.endswith('.localization.regression.weight')]:
        prefix = key.removesuffix('regression.weight') + 'standardize.'
        buffer = key.removesuffix('weight') + 'lr_scale_nano'
        if key in state_dict and buffer in state_dict and prefix + 'num_batches_tracked' not in state_dict:
            made = Standardize(state_dict[key].shape[1], device=state_dict[key].device).state_dict()
            made['num_batches_tracked'].fill_(AS_THEY_COME)
            lacking.update({prefix + name: value for name, value in made.items()})
    return lacking


def _with_gradient_of_batch_norm(x: Tensor) -> Tensor:
    """x, bit for bit. Its gradient cannot shift or scale a feature (column) for all images."""
    mean, var, _ = _moments(x)
    scale = (var + torch.finfo(torch.float32).tiny).sqrt()
    known = torch.where(x.isfinite().all(1, keepdim=True), x, 0.0)
    moved = (known - mean) / scale * scale.detach()
    return x.detach() + (moved - moved.detach())


class _Track(torch.autograd.Function):
    @staticmethod
    def forward(out: Tensor, x: Tensor, mean: Tensor, var: Tensor, count: Tensor) -> Tensor:
        return out.view_as(out)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        _, x, *ctx.statistics = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, = ctx.saved_tensors
        _take_in(x, *ctx.statistics)
        return grad, None, None, None, None


def _take_in(x: Tensor, mean: Tensor, var: Tensor, count: Tensor) -> None:
    """Move running mean and variance (F,) towards those of a batch (N, F).

    The variance is taken about the running mean, so single images contribute too; for the first batch, about zero.
    """
    of_batch, within, n = (t.to(mean.dtype) for t in _moments(x.to(coordinate_dtype(x.dtype))))
    usable = (n > 0) & (count >= 0) & (within + of_batch.square()).isfinite().all()
    weight = torch.where(usable, (1 / (count + 1)).clamp_min(MOMENTUM), 0.0)
    apart = torch.where(usable, of_batch - mean, 0.0)
    within = torch.where(usable, within, 0.0)
    about_zero = within + of_batch.square() / n.clamp_min(1)
    about_mean = (1 - weight) * (var + weight * apart.square()) + weight * within
    var.copy_(torch.where((count == 0) & usable, about_zero, about_mean))
    mean.add_(weight * apart)
    count.add_(usable.to(count.dtype))


def _moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (F,) and variance (F,) of x (N, F) over the images with finite features, and the number of these."""
    finite = x.isfinite().all(1, keepdim=True)
    n = finite.sum()
    known = torch.where(finite, x, 0.0)
    mean = known.sum(0) / n.clamp_min(1)
    within = torch.where(finite, x - mean, 0.0).square().sum(0) / n.clamp_min(1)
    return mean, within, n
