"""No update of an optimizer moves theta far.

Theta's gradient sums over all pixels. SGD, at a rate that suits the rest of a network, moves theta out of the image in
a few steps, from where nothing leads back; AdamW, at a rate that is high for it, makes the look jump about, and that is
all that the rest then learns from. What bounds the steps stands around `torch.optim.Optimizer.step`, of every optimizer
of the process: so it holds under any optimizer, learning rate and training script, for gradients that were accumulated,
averaged over processes, unscaled or made in a closure, and is the same in all processes. Where a step calls that of
another optimizer (`ZeroRedundancyOptimizer`), or of its parent class, the outer one counts. Weight and bias of a
regression that belong to two optimizers are bounded each for itself. Not bounded are the flat parameters of FSDP1,
copies of parameters that an optimizer keeps for itself, and what a parametrization makes a weight of.

An update may move theta by `STEP`, and any other tensor of the localization network by `SHARE` of its norm: what went
further keeps that part of the way. For optimizers with momentum, whose step is the sum of many gradients, gradients are
scaled down beforehand where a plain step of SGD would be more than a tenth of that (as in adaptive gradient clipping,
Brock et al. 2021, arXiv:2102.06171); others, that divide by the gradients' size, hardly notice.

All of it happens on the device: nothing waits for it, and CUDA graphs can hold it.
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

STEP = 3e-4  # most that an update moves theta, at lr_scale 1: root mean square over images
TOGETHER = 8  # parameters; of more (tps, several glimpses), each may move as far as one of so many
SHARE = 0.01  # most that an update changes a tensor of the layers before, of its norm
LEAST = 0.01  # root mean square of a tensor that counts as none: biases start at zero
MOMENTUM = 10  # plain steps that momentum adds up

Named = Mapping[str, Any]
TooFar = Callable[[Named, Named], list[Tensor]]  # (tensors, their changes) -> how many times too far each went


class _Part(NamedTuple):
    """Parameters of an optimizer that are bounded together, and what they were before its step."""
    own: Named
    old: Named
    too_far: TooFar


class _Step(NamedTuple):
    """A step that has begun, known by the frame that it runs in."""
    frame: FrameType | None
    parts: list[_Part]


class _Steps(threading.local):
    """Those of a thread, outer ones first."""

    def __init__(self) -> None:
        self.open: list[_Step] = []


_bounded: WeakKeyDictionary[Any, None] = WeakKeyDictionary()  # in order, which is that of all processes
_steps = _Steps()


def bound_steps(localization: Any) -> None:
    """From now on, bound the steps of a localization network whose regression sees standardized features."""
    _bounded[localization] = None


def excess(change: Named) -> Tensor:
    """How many times `STEP`, 1 at least, an update of the ``weight`` (P, F) and the ``bias`` (P,) moves theta.

    Features that are uncorrelated, of mean 0 and variance F, and divided by F (as
    :class:`timm_stn.modules.standardize.Standardize` and :class:`timm_stn.modules.regression.ThetaRegression` have
    them) move the P parameters by the root of the sum of squares; correlated ones by more or less.
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
    """Of the parameters that have a rate."""
    layer = localization.regression
    if layer.weight.ndim != 2:  # a flat part of it, as FSDP1 leaves: what it does to theta cannot be told
        return
    theta = {'weight': layer.weight, 'bias': layer.bias}  # not what a parametrization or pruning makes them of
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
    """Weights (P, F) and bias (P,) as one vector, whose length is what they do to theta; float32 or float64."""
    parts = []
    for name, value in values.items():
        value = _whole(_wide(value))
        parts.append((value / value.shape[1] ** 0.5).flatten() if name == 'weight' else value)
    return torch.cat(parts)


def _norms(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Each a scalar, float32 or float64, of whole tensors where these are shards (DTensor)."""
    tensors = [_wide(t) for t in tensors]
    if any(hasattr(t, 'full_tensor') for t in tensors):
        return [_whole(torch.linalg.vector_norm(t)) for t in tensors]
    return list(norm_of_each(tensors))


def _wide(tensor: Tensor) -> Tensor:
    """In float32, or float64 where it is that."""
    return tensor.to(coordinate_dtype(tensor.dtype))


def _whole(tensor: Any) -> Tensor:
    """A sharded tensor in one piece; others as they are."""
    return tensor.full_tensor() if hasattr(tensor, 'full_tensor') else tensor


def _local(tensor: Any) -> Tensor:
    """The shard of this process, of a sharded tensor; others as they are."""
    return tensor.to_local() if hasattr(tensor, 'to_local') else tensor


register_optimizer_step_pre_hook(_before_step)
register_optimizer_step_post_hook(_after_step)
