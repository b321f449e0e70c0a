"""Bounds how far each optimizer step moves theta.

Theta's gradient sums over all pixels. At a learning rate that suits the rest of a network, SGD moves theta out of the
image in a few steps, and no gradient leads back. At a high learning rate, AdamW makes the look jump about, and the
rest of the network learns from unstable crops. So hooks around `torch.optim.Optimizer.step`, of every optimizer of the
process, bound the steps. This works for any optimizer, learning rate and training script, and for gradients that were
accumulated, averaged over processes, unscaled or computed in a closure. The bounds are equal in all processes. If a
step calls the step of another optimizer (`ZeroRedundancyOptimizer`) or of its parent class, only the outer step is
bounded. If two optimizers own the weight and the bias of a regression, each is bounded separately. Not bounded: the
flat parameters of FSDP1, an optimizer's own copies of parameters, and weights computed by a parametrization.

An update may move theta by at most `STEP`, and any other tensor of the localization network by at most `SHARE` of its
norm. A larger update is shortened to this. With momentum, a step sums many gradients. So gradients are scaled down
first if a plain SGD step would exceed a tenth of the bound (as in adaptive gradient clipping, Brock et al. 2021,
arXiv:2102.06171). Optimizers that divide by the gradient's size are hardly affected.

Everything runs on the device without synchronisation, and CUDA graphs can capture it.
"""
import inspect
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import FrameType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from .._torch import clamp_each_min_, div_each_, norm_of_each
from ..geometry.grid import coordinate_dtype

__all__ = ['STEP', 'bound_steps', 'excess']

STEP = 3e-4  # largest update of theta at lr_scale 1: root mean square over images
TOGETHER = 8  # with more parameters than this (tps, several glimpses), the bound grows with their square root
SHARE = 0.01  # largest update of a tensor in the layers before, as a share of its norm
LEAST = 0.01  # smallest root mean square assumed for a tensor: biases start at zero
MOMENTUM = 10  # number of plain steps that momentum sums up

Named = Mapping[str, Any]
TooFar = Callable[[Named, Named], list[Tensor]]  # (tensors, changes) -> for each, change / bound, at least 1


class _Part(NamedTuple):
    """Parameters of an optimizer that are bounded together, with their values before its step."""
    own: Named
    old: Named
    too_far: TooFar


class _Step(NamedTuple):
    """A step in progress, identified by its stack frame."""
    frame: FrameType | None
    parts: list[_Part]


class _Steps(threading.local):
    """The steps in progress of a thread, outer ones first."""

    def __init__(self) -> None:
        self.open: list[_Step] = []


_bounded: WeakKeyDictionary[Any, None] = WeakKeyDictionary()  # in order of creation, equal in all processes
_steps = _Steps()


def bound_steps(localization: Any) -> None:
    """Register a localization network. Its steps are bounded while its features are standardized."""
    _bounded[localization] = None


def excess(change: Named) -> Tensor:
    """How far an update of ``weight`` (P, F) and ``bias`` (P,) moves theta, divided by the bound, at least 1.

    This assumes uncorrelated features of mean 0 and variance F that are divided by F, as in
    :class:`timm_stn.modules.standardize.Standardize` and :class:`timm_stn.modules.regression.ThetaRegression`. They
    move the P parameters by the root of the sum of squares; correlated features by more or less.
    """
    params = max(len(value) for value in change.values())
    limit = STEP * max(1.0, (params / TOGETHER) ** 0.5)
    return (_joined(change).norm() / limit).clamp_min(1)


def _before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    here = inspect.currentframe()
    frame = here.f_back if here else None
    if _steps.open:
        running = set(_running(frame))
        _steps.open = [step for step in _steps.open if step.frame in running]  # others have failed
    known = [ref() for ref in _bounded.keyrefs()]
    localizations = [m for m in known if m is not None and m.training and m.standardize.active]
    if not localizations:
        return
    rates = {}
    scale = getattr(optimizer, 'grad_scale', None)  # fused, with AMP
    for group in optimizer.param_groups:
        rate = group['lr'] * MOMENTUM / (1.0 if scale is None else scale)
        rates.update({id(p): rate for p in group['params'] if p.requires_grad or p.grad is not None})
    for part in (part for step in _steps.open for part in step.parts):  # of a step that has called this one
        for p in part.own.values():
            rates.pop(id(p), None)
    with torch.no_grad():
        parts = [part for m in localizations for part in _parts(m, rates)]
        _steps.open.append(_Step(frame, parts))
        for own, _, too_far in parts:
            if grads := {n: p.grad for n, p in own.items() if p.grad is not None}:
                planned = {n: _wide(g) * rates[id(own[n])] for n, g in grads.items()}
                div_each_([_local(g) for g in grads.values()], too_far({n: own[n] for n in grads}, planned))


def _after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    here = inspect.currentframe()
    if here is None or not _steps.open or _steps.open[-1].frame is not here.f_back:
        return  # it began when there was nothing to bound
    with torch.no_grad():
        for own, old, too_far in _steps.open.pop().parts:
            changes = {n: _wide(p) - _wide(old[n]) for n, p in own.items()}
            for times, n in zip(too_far(old, changes), own):
                p = _local(own[n])
                p.copy_(torch.lerp(_local(old[n]), p, times.reciprocal().to(p.dtype)))


def _running(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _parts(localization: Any, rates: Mapping[int, Any]) -> Iterator[_Part]:
    """The parts of a localization network that the optimizer updates (parameters with a rate)."""
    layer = localization.regression
    if layer.weight.ndim != 2:  # a flat shard of FSDP1: its effect on theta is unknown
        return
    theta = {'weight': layer.weight, 'bias': layer.bias}  # not the inputs of a parametrization or pruning
    for named, too_far in ((theta, _excess_of_theta), (dict(localization.body.named_parameters()), _excess_of_share)):
        own = {n: p for n, p in named.items() if id(p) in rates}
        if own:
            yield _Part(own, {n: p.clone() for n, p in own.items()}, too_far)


def _excess_of_theta(values: Named, changes: Named) -> list[Tensor]:
    return [excess(changes)] * len(changes)


def _excess_of_share(values: Named, changes: Named) -> list[Tensor]:
    most, found = _norms(values.values()), _norms(changes.values())
    clamp_each_min_(most, [LEAST * v.numel() ** 0.5 for v in values.values()])
    div_each_(found, most)
    div_each_(found, SHARE)
    clamp_each_min_(found, 1.0)
    return found


def _joined(values: Named) -> Tensor:
    """Weight (P, F) and bias (P,) as one vector in float32 or float64; its length is their effect on theta."""
    parts = []
    for name, value in values.items():
        value = _whole(_wide(value))
        parts.append((value / value.shape[1] ** 0.5).flatten() if name == 'weight' else value)
    return torch.cat(parts)


def _norms(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Norm of each tensor, a float32 or float64 scalar; of the whole tensor for a shard (DTensor)."""
    tensors = [_wide(t) for t in tensors]
    if any(hasattr(t, 'full_tensor') for t in tensors):
        return [_whole(torch.linalg.vector_norm(t)) for t in tensors]
    return list(norm_of_each(tensors))


def _wide(tensor: Tensor) -> Tensor:
    """The tensor in float32; float64 stays."""
    return tensor.to(coordinate_dtype(tensor.dtype))


def _whole(tensor: Any) -> Tensor:
    """The whole of a sharded tensor; other tensors unchanged."""
    return tensor.full_tensor() if hasattr(tensor, 'full_tensor') else tensor


def _local(tensor: Any) -> Tensor:
    """This process's shard of a sharded tensor; other tensors unchanged."""
    return tensor.to_local() if hasattr(tensor, 'to_local') else tensor


register_optimizer_step_pre_hook(_before_step)
register_optimizer_step_post_hook(_after_step)
