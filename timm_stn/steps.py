"""No update of an optimizer moves theta far, and less where its gradients do not agree.

Theta's gradient sums over all pixels. SGD, at a rate that suits the rest of a network, moves theta out of the image in
a few steps, from where nothing leads back; AdamW moves it by the same whether there is something to find or not, and a
look that jumps about is all that the rest then learns from. What bounds the steps stands around
`torch.optim.Optimizer.step`, of every optimizer of the process: so it holds under any optimizer, learning rate and
training script, for gradients that were accumulated, averaged over processes or unscaled, and is the same in all
processes. Not so where weight and bias of a regression belong to different optimizers, nor with FSDP1 and
`ZeroRedundancyOptimizer`.

An update may move theta by `STEP` times the agreement of its gradients (below), and any other tensor of the
localization network by `SHARE` of its norm: what went further keeps that part of the way. For optimizers with momentum,
whose step is the sum of many gradients, gradients are scaled down beforehand where a plain step of SGD would be more
than a tenth of that (as in adaptive gradient clipping, Brock et al. 2021, arXiv:2102.06171); others, that divide by the
gradients' size, hardly notice.

Agreement: of gradients of length 1, what part of the squared length is left in their running mean, less what would be
left of random ones, from `AGREED` on counted as full. The running mean is not in checkpoints: a run that is resumed
finds it again within some ten steps, and takes small ones meanwhile.
"""
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from .grid import coordinate_dtype

__all__ = ['STEP', 'agreement', 'bound_steps', 'excess']

STEP = 1e-3  # most that an update moves theta, at lr_scale 1: root mean square over images
TOGETHER = 8  # parameters; of more (tps, several glimpses), each may move as far as one of so many
AGREED, DISAGREED = 0.03, 0.1  # agreement that allows a full step, and the share of it that is always allowed
DECAY = 0.98  # of the running mean of gradients
SHARE = 0.01  # most that an update changes a tensor of the layers before, of its norm
LEAST = 0.01  # root mean square of a tensor that counts as none: biases start at zero
MOMENTUM = 10  # plain steps that momentum adds up

Excess = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]  # (tensors, their changes) -> how many times too far

_bounded: WeakSet[Any] = WeakSet()
_means: WeakKeyDictionary[Any, tuple[Tensor, int]] = WeakKeyDictionary()  # of gradients of length 1, and their number
_before: WeakKeyDictionary[Optimizer, list[tuple[list[Any], Excess, list[Tensor]]]] = WeakKeyDictionary()  # in a step


def bound_steps(localization: Any) -> None:
    """From now on, bound the steps of a localization network whose regression sees standardized features."""
    _bounded.add(localization)


def excess(weight: Tensor, bias: Tensor) -> Tensor:
    """How many times `STEP`, 1 at least, an update of the weights (P, F) and the bias (P,) moves theta.

    Features that are uncorrelated, of mean 0 and variance F, and divided by F (as
    :class:`timm_stn.standardize.Standardize` and :class:`timm_stn.localization.ThetaRegression` have them) move the P
    parameters by the root of the sum of squares; correlated ones by more or less.
    """
    limit = STEP * max(1.0, (len(bias) / TOGETHER) ** 0.5)
    return (_joined(weight, bias).norm() / limit).clamp_min(1)


def agreement(mean: Tensor, count: int) -> Tensor:
    """What part of the squared length of gradients they have in common: 0 on average if they are random, 1 if equal.

    Args:
        mean: Running mean (D,), from 0, of ``count`` gradients of length 1.
        count: Their number, 2 at least.
    """
    seen = 1 - DECAY ** count
    of_random = (1 - DECAY) / (1 + DECAY) * (1 + DECAY ** count) / seen
    return ((mean / seen).square().sum() - of_random) / (1 - of_random)


@torch.no_grad()
def _before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    _before.pop(optimizer, None)  # of a step that failed
    localizations = [m for m in _bounded if m.training and m.standardize.active]
    if not localizations:
        return
    rates = {id(p): group['lr'] for group in optimizer.param_groups for p in group['params']}
    kept = []
    unscale = 1 / scale if (scale := getattr(optimizer, 'grad_scale', None)) is not None else 1.0  # fused, with AMP
    for part, make in (pair for m in localizations for pair in _parts(m)):
        if all(id(p) in rates and p.grad is not None for p in part):
            times_too_far = make()
            times = times_too_far(part, [p.grad * (rates[id(p)] * MOMENTUM * unscale) for p in part])
            for p in part:
                p.grad.div_(times)
            kept.append((part, times_too_far, [p.clone() for p in part]))
    _before[optimizer] = kept


@torch.no_grad()
def _after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    for part, times_too_far, old in _before.pop(optimizer, ()):
        share = 1 / times_too_far(old, [p - q for p, q in zip(part, old)])
        for p, q in zip(part, old):
            p.copy_(torch.lerp(q, p, share.to(p.dtype)))


def _parts(localization: Any) -> Iterator[tuple[list[Any], Callable[[], Excess]]]:
    """Parameters that are shortened alike, and what makes of their gradients what they are shortened by."""
    layer = localization.regression
    if layer.weight.ndim != 2:  # a flat part of it, as FSDP1 leaves: what it does to theta cannot be told
        return
    yield [layer.weight, layer.bias], lambda: partial(_excess_of_theta, _allowed(layer))
    for parameter in localization.body.parameters():
        yield [parameter], lambda: _excess_of_share


def _allowed(layer: Any) -> Tensor:
    """Takes in the gradients of this step, and gives the share of `STEP` that they are good for."""
    grad = _joined(layer.weight.grad, layer.bias.grad).nan_to_num(0, 0, 0)
    grad = grad / grad.norm().clamp_min(torch.finfo(torch.float32).tiny)
    mean, count = _means.get(layer, (torch.zeros_like(grad), 0))
    mean = torch.lerp(grad, mean.to(grad), DECAY)
    _means[layer] = mean, count + 1
    agreed = agreement(mean, count + 1) if count else torch.zeros_like(grad[0])
    return (agreed / AGREED).clamp(DISAGREED, 1)


def _joined(weight: Tensor, bias: Tensor) -> Tensor:
    """Weights (P, F) and bias (P,) as one vector, whose length is what they do to theta; float32 or float64."""
    dtype = coordinate_dtype(weight.dtype)
    return torch.cat([(weight.to(dtype) / weight.shape[1] ** 0.5).flatten(), bias.to(dtype)])


def _excess_of_theta(allowed: Tensor, values: Sequence[Tensor], changes: Sequence[Tensor]) -> Tensor:
    weight, bias = changes
    return excess(weight / allowed, bias / allowed)


def _excess_of_share(values: Sequence[Tensor], changes: Sequence[Tensor]) -> Tensor:
    (value,), (change,) = values, changes
    most = SHARE * value.norm().clamp_min(LEAST * value.numel() ** 0.5)
    return (change.norm() / most).clamp_min(1)


register_optimizer_step_pre_hook(_before_step)
register_optimizer_step_post_hook(_after_step)
