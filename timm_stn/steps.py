"""No update of an optimizer moves theta far, and less where its gradients do not agree.

Theta's gradient sums over all pixels. SGD, at a rate that suits the rest of a network, moves theta out of the image in
a few steps, from where nothing leads back; AdamW moves it by the same whether there is something to find or not, and a
look that jumps about is all that the rest then learns from. What bounds the steps stands around
`torch.optim.Optimizer.step`, of every optimizer of the process: so it holds under any optimizer, learning rate and
training script, for gradients that were accumulated, averaged over processes, unscaled or made in a closure, and is
the same in all processes. Where a step calls that of another optimizer (`ZeroRedundancyOptimizer`), the outer one
counts. Weight and bias of a regression that belong to two optimizers are bounded each for itself. Not bounded are the
flat parameters of FSDP1.

An update may move theta by `STEP` times the agreement of its gradients (below), and any other tensor of the
localization network by `SHARE` of its norm: what went further keeps that part of the way. For optimizers with momentum,
whose step is the sum of many gradients, gradients are scaled down beforehand where a plain step of SGD would be more
than a tenth of that (as in adaptive gradient clipping, Brock et al. 2021, arXiv:2102.06171); others, that divide by the
gradients' size, hardly notice.

Agreement: of gradients of length 1, what part of the squared length is left in their running mean, less what would be
left of random ones, from `AGREED` on counted as full. Gradients of zero do not count before the first of another size
(`stn_freeze_steps`). The running mean is not in checkpoints: a run that is resumed finds it again within some ten
steps, and takes small ones meanwhile.

All of it happens on the device, in tensors that stay: nothing waits for it, and CUDA graphs can hold it.
"""
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

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

Named = Mapping[str, Any]  # 'weight' and 'bias' of a regression, or one of them


class _Theta(NamedTuple):
    """What an optimizer has of a regression, and where it was before the step."""
    layer: Any
    own: Named
    old: Named


class _Step(NamedTuple):
    """What an optimizer's step may change, as it was before."""
    thetas: list[_Theta]
    agreed: list[Tensor | None]  # of each of these, what its gradients allow; None: they were not there yet
    others: list[Any]
    old: list[Tensor]

    def changed(self) -> Iterator[Any]:
        yield from self.others
        for theta in self.thetas:
            yield from theta.own.values()


_bounded: WeakKeyDictionary[Any, None] = WeakKeyDictionary()  # in order, which is that of all processes
_means: WeakKeyDictionary[Any, dict[tuple[str, ...], tuple[Tensor, Tensor]]] = WeakKeyDictionary()  # by regression
_open: WeakKeyDictionary[Optimizer, _Step] = WeakKeyDictionary()  # steps that have begun


def bound_steps(localization: Any) -> None:
    """From now on, bound the steps of a localization network whose regression sees standardized features."""
    _bounded[localization] = None


def excess(change: Named) -> Tensor:
    """How many times `STEP`, 1 at least, an update of the ``weight`` (P, F) and the ``bias`` (P,) moves theta.

    Features that are uncorrelated, of mean 0 and variance F, and divided by F (as
    :class:`timm_stn.standardize.Standardize` and :class:`timm_stn.localization.ThetaRegression` have them) move the P
    parameters by the root of the sum of squares; correlated ones by more or less.
    """
    params = max(len(value) for value in change.values())
    limit = STEP * max(1.0, (params / TOGETHER) ** 0.5)
    return (_joined(change).norm() / limit).clamp_min(1)


def agreement(mean: Tensor, seen: Tensor) -> Tensor:
    """What part of the squared length of gradients they have in common: 0 on average if they are random, 1 if equal.

    Args:
        mean: Running mean (D,), from 0, of n gradients of length 1.
        seen: The same running mean of n ones, 1 - DECAY ** n. Of one gradient nothing can be told: 0.
    """
    of_random = (1 - DECAY) / (1 + DECAY) * (2 - seen) / seen
    found = ((mean / seen).square().sum() - of_random) / (1 - of_random)
    return torch.where(seen > 1.5 * (1 - DECAY), found, torch.zeros_like(found))


@torch.no_grad()
def _before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    _open.pop(optimizer, None)  # of a step that failed
    localizations = [m for m in _bounded if m.training and m.standardize.active]
    if not localizations:
        return
    rates = {}
    for group in optimizer.param_groups:
        scale = getattr(optimizer, 'grad_scale', None)  # fused, with AMP
        rate = group['lr'] * MOMENTUM / (1.0 if scale is None else scale)
        rates.update({id(p): rate for p in group['params'] if p.requires_grad})
    for step in _open.values():  # that has called this one
        for p in step.changed():
            rates.pop(id(p), None)
    step = _begin(localizations, rates)
    _open[optimizer] = step
    for i, theta in enumerate(step.thetas):
        if grads := _gradients(theta.own):
            step.agreed[i] = allowed = _allowed(theta.layer, grads)
            times = excess({n: g * rates[id(theta.own[n])] / allowed for n, g in grads.items()})
            for grad in grads.values():
                _local(grad).div_(times)
    there = [(p, p.grad) for p in step.others if p.grad is not None]
    if there:
        values, gradients = zip(*there)
        many = _excess_of_share(values, gradients, [rates[id(p)] for p in values])
        torch._foreach_div_([_local(g) for g in gradients], many)


@torch.no_grad()
def _after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    step = _open.pop(optimizer, None)
    if step is None:
        return
    for theta, allowed in zip(step.thetas, step.agreed):
        if allowed is None:
            allowed = _allowed(theta.layer, _gradients(theta.own))
        share = 1 / excess({n: (p - theta.old[n]) / allowed for n, p in theta.own.items()})
        for n, p in theta.own.items():
            _local(p).copy_(torch.lerp(_local(theta.old[n]), _local(p), share.to(p.dtype)))
    if step.others:
        many = _excess_of_share(step.old, [p - q for p, q in zip(step.others, step.old)])
        torch._foreach_reciprocal_(many)
        others, old = [_local(p) for p in step.others], [_local(p) for p in step.old]
        shares = [share.to(p.dtype) for share, p in zip(many, others)]
        torch._foreach_copy_(others, torch._foreach_lerp(old, others, shares))


def _begin(localizations: Iterable[Any], rates: Mapping[int, Any]) -> _Step:
    """Of the parameters that have a rate."""
    thetas, others = [], {}
    for m in localizations:
        if m.regression.weight.ndim != 2:  # a flat part of it, as FSDP1 leaves: what it does to theta cannot be told
            continue
        if own := {n: p for n, p in m.regression.named_parameters() if id(p) in rates}:
            thetas.append(_Theta(m.regression, own, {n: p.clone() for n, p in own.items()}))
        others.update({id(p): p for p in m.body.parameters() if id(p) in rates})
    return _Step(thetas, [None] * len(thetas), list(others.values()), [p.clone() for p in others.values()])


def _gradients(own: Named) -> Named:
    return {n: p.grad for n, p in own.items() if p.grad is not None}


def _allowed(layer: Any, grads: Named) -> Tensor:
    """Takes in the gradients of this step, and gives the share of `STEP` that they are good for."""
    if not grads:
        return torch.ones_like(_joined(dict(layer.named_parameters()))[0])
    grad = _joined(grads).nan_to_num(0, 0, 0)
    length = grad.norm()
    grad = grad / length.clamp_min(torch.finfo(torch.float32).tiny)
    means = _means.setdefault(layer, {})
    mean, seen = means.get(tuple(grads)) or (torch.zeros_like(grad), torch.zeros_like(length))
    means[tuple(grads)] = mean, seen = mean.to(grad), seen.to(length)
    weight = (1 - DECAY) * ((length > 0) | (seen > 0)).to(grad.dtype)
    mean.add_(weight * (grad - mean))
    seen.add_(weight * (1 - seen))
    agreed = torch.where(seen > 0, agreement(mean, seen.clamp_min(1 - DECAY)), 0.0)
    return (agreed / AGREED).clamp(DISAGREED, 1)


def _joined(values: Named) -> Tensor:
    """Weights (P, F) and bias (P,) as one vector, whose length is what they do to theta; float32 or float64."""
    parts = []
    for name, value in values.items():
        value = _whole(value.to(coordinate_dtype(value.dtype)))
        parts.append((value / value.shape[1] ** 0.5).flatten() if name == 'weight' else value)
    return torch.cat(parts)


def _excess_of_share(values: Sequence[Tensor], changes: Sequence[Tensor], times: Sequence[Any] = ()) -> list[Tensor]:
    """How many times `SHARE`, 1 at least, tensors are changed, by so many times ``changes``."""
    most, found = _norms(values), _norms(changes)
    torch._foreach_clamp_min_(most, [LEAST * v.numel() ** 0.5 for v in values])
    torch._foreach_mul_(most, SHARE)
    if times:
        torch._foreach_mul_(found, list(times))
    torch._foreach_div_(found, most)
    torch._foreach_clamp_min_(found, 1.0)
    return found


def _norms(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Each a scalar, float32 or float64, of whole tensors where these are shards (DTensor)."""
    tensors = [t.to(coordinate_dtype(t.dtype)) for t in tensors]
    if any(hasattr(t, 'full_tensor') for t in tensors):
        return [_whole(torch.linalg.vector_norm(t)) for t in tensors]
    return list(torch._foreach_norm(tensors))


def _whole(tensor: Any) -> Tensor:
    """A sharded tensor in one piece; others as they are."""
    return tensor.full_tensor() if hasattr(tensor, 'full_tensor') else tensor


def _local(tensor: Any) -> Tensor:
    """The shard of this process, of a sharded tensor; others as they are."""
    return tensor.to_local() if hasattr(tensor, 'to_local') else tensor


register_optimizer_step_pre_hook(_before_step)
register_optimizer_step_post_hook(_after_step)
