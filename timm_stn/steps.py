"""No update of an optimizer moves theta far: of one that would, the part of `STEP` is kept.

What stands before and after `torch.optim.Optimizer.step` is compared, in every optimizer of the process; so this holds
under any optimizer, learning rate and training script, for gradients that were accumulated (steps count, not backward
passes) and under DDP (all processes make the same step). It keeps no state.
"""
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook, register_optimizer_step_pre_hook

__all__ = ['STEP', 'bound_steps', 'scale_of_step']

STEP = 1e-3  # most that theta moves in an update, at lr_scale 1: root mean square over the images
SHARE = 5e-3
LEAST = 1e-2
MOMENTUM = 10
USUAL = 8  # parameters; more of them (tps, several glimpses) may move further together, each as far as one of these

_bounded: WeakSet[nn.Module] = WeakSet()
_before: dict[int, list[tuple[Any, Tensor, Tensor]]] = {}  # of each optimizer that is within its step


def bound_steps(localization: nn.Module) -> None:
    """From now on, bound the updates of a localization network's regression from standardized features."""
    _bounded.add(localization)


def scale_of_step(weight: Tensor, bias: Tensor) -> Tensor:
    """What to multiply an update by, at most 1, so that it moves theta by `STEP` at most.

    The update of the weights (P, F), and that of the bias (P,), move the P parameters by the root of the sum of their
    squares, where features are uncorrelated, of mean 0 and variance F (as
    :class:`timm_stn.standardize.Standardize` gives them), and divided by F.
    """
    count, features = weight.shape
    moved = (weight.square().sum() / features + bias.square().sum()).sqrt()
    limit = STEP * max(1.0, (count / USUAL) ** 0.5)
    return limit / moved.clamp_min(limit)


@torch.no_grad()
def _remember(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    mine: list[Any] = [m for m in _bounded if m.training and m.standardize.active]  # type: ignore[union-attr]
    if mine:
        rates = {id(p): group['lr'] for group in optimizer.param_groups for p in group['params']}
        layers = [m.regression for m in mine if id(m.regression.weight) in rates and id(m.regression.bias) in rates]
        for layer in layers:
            _shorten_gradients(layer, rates[id(layer.weight)])
        for localization in mine:
            for parameter in localization.body.parameters():
                if parameter.grad is not None and id(parameter) in rates:
                    _limit_share(parameter, rates[id(parameter)])
        _before[id(optimizer)] = [(r, r.weight.clone(), r.bias.clone()) for r in layers]


def _shorten_gradients(layer: Any, lr: Any) -> None:
    if layer.weight.grad is not None and layer.bias.grad is not None:
        factor = scale_of_step(layer.weight.grad * (MOMENTUM * lr), layer.bias.grad * (MOMENTUM * lr))
        layer.weight.grad.mul_(factor)
        layer.bias.grad.mul_(factor)


def _limit_share(parameter: Tensor, lr: Any) -> None:
    grad: Any = parameter.grad
    most = SHARE * parameter.norm().clamp_min(LEAST * parameter.numel() ** 0.5)
    grad.mul_(most / (lr * grad.norm()).clamp_min(most))


@torch.no_grad()
def _shorten(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    for layer, weight, bias in _before.pop(id(optimizer), ()):
        factor = scale_of_step(layer.weight - weight, layer.bias - bias)
        layer.weight.copy_(torch.lerp(weight, layer.weight, factor))
        layer.bias.copy_(torch.lerp(bias, layer.bias, factor))


register_optimizer_step_pre_hook(_remember)
register_optimizer_step_post_hook(_shorten)
