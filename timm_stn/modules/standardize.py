"""Features as the regression of theta sees them: centred and scaled, so that it learns what differs between images.

The features of a localization network are much alike for all images: what they have in common is many times what
differs. A step of the regression then moves theta alike for all, by less for each image's own part the smaller that
is, and nothing else is learned. Here features have mean 0 and variance 1 over the data, so that what is common moves
the bias alone, and what differs reaches theta at the size of the bias's step.
"""
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..geometry.grid import coordinate_dtype, has_values

__all__ = ['Standardize', 'without_statistics']

MOMENTUM = 0.1  # weight of one batch in the statistics, once there were ten
FLOOR = 0.01  # share of the mean variance that is added to each: features that hardly vary are noise
MOST = 3.0  # standard deviations that a feature may be from the mean: others say no more than that
AS_THEY_COME = -1  # in place of the number of batches: there are no statistics, and never will be
MEAN_OF_RELU, STD_OF_RELU = 1 / math.sqrt(2 * math.pi), math.sqrt(0.5 - 0.5 / math.pi)  # of a standard normal variable


class Standardize(nn.Module):
    """Features (N, F) less their mean, over their standard deviation, times the square root of F.

    The statistics are running ones, in training, too: what an image gives depends on no other image, in batches of any
    size, and is the same in training and evaluation. They take in a batch when the backward pass of what was made of it
    begins (:meth:`track`), so that recomputation (gradient checkpointing), dry runs and ``torch.func`` leave them
    alone. Before the first they are 0 and 1.

    The gradient in training is that of batch norm, with the batch's own statistics in its place and the difference
    taken for constant (Ioffe 2017, Batch Renormalization, arXiv:1702.03275): it has no part that moves or scales a
    feature for all images alike, which the running statistics would follow, and undo. So what comes before learns from
    batches of three images or more; of less, the regression alone does.

    A :class:`timm_stn.modules.regression.ThetaRegression` divides by F. Together, a step of an optimizer that is as
    large for all weights (AdamW, Lion) moves what differs between images as far as it moves the bias, whatever F is.

    Weights of before there were statistics give features as they come, for good: see :func:`without_statistics`.

    Args:
        features: Number F.
        relu: Apply a ReLU after centring and scaling, and centre and scale what it makes of a normal variable: it is
            on for about every other image, and so no feature is dead.
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
        """As any module; what the buffers say by now counts, whatever has written them (DDP, averages of weights)."""
        super().train(mode)
        if not self.num_batches_tracked.is_meta:
            self.active = bool(self.num_batches_tracked >= 0)
        return self

    def reset_parameters(self) -> None:
        """Forget all batches."""
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
        mean, var = self.running_mean.to(x.dtype), self.running_var.to(x.dtype)
        x = (x - mean) * (var + FLOOR * var.mean() + torch.finfo(torch.float32).tiny).rsqrt()
        x = torch.where(x.isfinite(), x.clamp(-MOST, MOST), x)  # what is not finite must not become a place
        if self.relu:
            x = (x.relu() - MEAN_OF_RELU) / STD_OF_RELU
        return x * math.sqrt(self.features)

    def track(self, out: Tensor, x: Tensor) -> Tensor:
        """``out``, what was made of features x (N, F); in training, its backward pass takes x into the statistics."""
        if not (self.active and self.training and out.requires_grad):
            return out
        if not (has_values(out) or torch.compiler.is_compiling()):
            return out
        return _Track.apply(  # type: ignore[no-any-return, no-untyped-call]
            out, x.detach(), self.running_mean, self.running_var, self.num_batches_tracked)

    def _apply(self, fn: Callable, recurse: bool = True) -> 'Standardize':
        """Moves and casts as any module, but the statistics stay float32 in a model of another dtype."""
        before = {name: self._buffers[name] for name in ('running_mean', 'running_var')}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, old in before.items():
            new = self._buffers[name]
            if new is not None and old is not None and new.dtype != torch.float32:
                self._buffers[name] = new.float() if old.is_meta else old.to(new.device)
        return self

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        count = state_dict.get(prefix + 'num_batches_tracked')
        if count is not None and not count.is_meta:
            self.active = bool(count >= 0)

    def extra_repr(self) -> str:
        return f'{self.features}, relu={self.relu}, active={self.active}'


def without_statistics(state_dict: Mapping[str, Tensor], *weights: str) -> dict[str, Tensor]:
    """What weights of before there were statistics lack: statistics that leave features as they come.

    Args:
        state_dict: Of a network, or of a part of it.
        *weights: Keys of regressions' weights, ``stn.localization.regression.weight``. Default: all.

    Returns:
        For each regression in ``state_dict`` without statistics beside it, these; ``state_dict`` is not touched. Not
        for one without the buffer that every regression has: parameters alone tell nothing of statistics.
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
    """x, bit for bit, whose gradient has no part that moves or scales a feature (column) for all images alike."""
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

    The variance is that about the running mean, so that single images tell of it, too; at first, when there is none,
    that of the batch and of its mean about zero.
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
    """Mean (F,) and variance (F,) of (N, F) over the N images whose features are finite, and their number."""
    finite = x.isfinite().all(1, keepdim=True)
    n = finite.sum()
    known = torch.where(finite, x, 0.0)
    mean = known.sum(0) / n.clamp_min(1)
    within = torch.where(finite, x - mean, 0.0).square().sum(0) / n.clamp_min(1)
    return mean, within, n
