"""Passes of a network over images: what each of its transformers does, and what that does to the answers."""
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..._progress import progress
from ...modules.trial import LAST
from ..geometry_of_looks import looks
from .examined import Examined
from .watch import watched

__all__ = ['Batch', 'IsRight', 'answered_right', 'batches_of', 'examine']

NOISE = 0.1  # of the images' standard deviation, added to see how much theta follows it
GRADIENTS = 64  # images of which gradients are taken

Batch = tuple[Tensor, Tensor | None, Tensor | None]  # images (n, C, H, W), targets, boxes (n, B, 4)
IsRight = Callable[[Tensor, Tensor], Tensor]


def answered_right(logits: Tensor, targets: Tensor) -> Tensor:
    return logits.argmax(1) == targets


def batches_of(loader: Iterable[Any], most: int, of_classes: bool = True) -> list[Batch]:
    """The first ``most`` images of a loader, batch by batch, on the CPU.

    Args:
        loader: See :func:`timm_stn.diagnose`.
        most: So many images at most.
        of_classes: Targets must be classes, (N,) or (N, 1).

    Raises:
        TypeError: What it gives is not images, with targets or without.
        ValueError: There are fewer than two images.
    """
    found: list[Batch] = []
    count = 0
    for given in loader:
        images, targets, boxes = _batch(given, of_classes)
        if not len(images):
            continue
        keep = most - count
        targets, boxes = (None if x is None else x[:keep] for x in (targets, boxes))
        found.append((images[:keep], targets, boxes))
        count += len(found[-1][0])
        if count >= most:
            break
    if count < 2:
        raise ValueError(f'loader must give at least 2 images, got {count}.')
    return found


def _batch(given: Any, of_classes: bool) -> Batch:
    parts = list(given) if isinstance(given, (list, tuple)) else [given]
    fits = 1 <= len(parts) <= 3 and all(isinstance(part, Tensor) for part in parts) and parts[0].ndim >= 4
    if fits and not parts[0].is_floating_point():
        raise TypeError('images must be normalised as the network takes them, in floating point, got '
                        f'{parts[0].dtype}.')
    if not fits:
        raise TypeError('loader must give (images (N, C, H, W), targets), (images, targets, boxes) or images alone, '
                        f'as tensors; got {_what(given)}.')
    images, targets, boxes = [part.detach().cpu().clone() for part in parts] + [None] * (3 - len(parts))
    if targets is not None and of_classes:
        are_classes = targets.shape in ((len(images),), (len(images), 1)) and not targets.is_floating_point()
        if not are_classes:
            raise TypeError(f'targets must be classes, {len(images)} integers for as many images, got {targets.dtype} '
                            f'of shape {tuple(targets.shape)}; for others, give is_right.')
        targets = targets.reshape(-1).long()
    return images, targets, None if boxes is None else boxes.reshape(len(images), -1, 4).float()


def _what(given: Any) -> str:
    parts = given if isinstance(given, (list, tuple)) else [given]
    return ', '.join(str(tuple(p.shape)) if isinstance(p, Tensor) else f'a {type(p).__name__}' for p in parts)


def examine(
        model: nn.Module,
        batches: list[Batch],
        is_right: IsRight = answered_right,
        seed: int = 0,
) -> list[Examined]:
    """What each transformer of a network does with images, in the order of the first passes.

    The network runs over the images as it is and with noise, then for each transformer at its start and with thetas
    shuffled between images; and once backwards. Its mode, parameters, buffers and gradients are left as they are.

    Args:
        model: The network.
        batches: Of :func:`batches_of`.
        is_right: From logits and targets to (n,).
        seed: Of the noise and of the shuffling.

    Raises:
        ValueError: There is no spatial transformer in it, or none that a forward pass runs, as in compiled code.
    """
    with torch.inference_mode(False):
        return _examine(model, batches, is_right, seed)


def _examine(model: nn.Module, batches: list[Batch], is_right: IsRight, seed: int) -> list[Examined]:
    classifies = getattr(model, 'num_classes', None) != 0
    found = [Examined(watch, classifies) for watch in watched(model)]
    if not found:
        raise ValueError(f'model must have a spatial transformer; there is none in this {type(model).__name__}.')
    generator = torch.Generator().manual_seed(seed)
    total = len(batches) * (2 + 2 * len(found)) + 1
    with _in_evaluation(model):
        for _ in progress(_passes(model, found, batches, is_right, generator), 'diagnosing', total, 'pass'):
            pass
    ran = [each for each in found if each.thetas]
    if not ran:
        raise ValueError('no forward pass of model ran a spatial transformer: is it compiled? Give the network itself. '
                         'Where your own module calls `look`, let it call `remember(theta)`, too.')
    return ran


def _passes(
        model: nn.Module,
        found: list[Examined],
        batches: list[Batch],
        is_right: IsRight,
        generator: torch.Generator,
) -> Iterator[None]:
    order = _deranged(sum(len(images) for images, *_ in batches), generator)
    with torch.no_grad():
        yield from _as_it_is(model, found, batches, is_right)
        yield from _with_noise(model, found, batches, generator)
        for each in found:
            yield from _at_start(model, each, batches, is_right)
            yield from _shuffled(model, each, batches, is_right, order)
    _take_gradients(model, found, batches)
    yield


def _as_it_is(model: nn.Module, found: list[Examined], batches: list[Batch], is_right: IsRight) -> Iterator[None]:
    with ExitStack() as stack:
        thetas = [stack.enter_context(each.watch.recorded()) for each in found]
        hooks = [stack.enter_context(each.watch.hooked()) for each in found]
        for images, targets, boxes in batches:
            here = _placed(images, model)
            logits = model(here)
            for each, theta, hook in zip(found, thetas, hooks):
                if theta:
                    each.take(here, theta, hook)
                    _answer(each, '', logits, targets, is_right)
                    if boxes is not None and each.looks_at_images:
                        each.parts['boxes'].append(boxes)
                for left in (theta, *hook):
                    left.clear()
            yield


def _with_noise(
        model: nn.Module,
        found: list[Examined],
        batches: list[Batch],
        generator: torch.Generator,
) -> Iterator[None]:
    with ExitStack() as stack:
        thetas = [stack.enter_context(each.watch.recorded()) for each in found]
        for images, *_ in batches:
            noise = torch.randn(images.shape, generator=generator) * (NOISE * images.float().std())
            model(_placed(images + noise.to(images.dtype), model))
            for each, theta in zip(found, thetas):
                if theta:
                    each.parts['noisy'].append(each.watch.points(theta, len(images)).cpu())
                theta.clear()
            yield


def _at_start(model: nn.Module, each: Examined, batches: list[Batch], is_right: IsRight) -> Iterator[None]:
    with each.watch.recorded() as thetas, each.watch.at_start():
        for images, targets, _ in batches:
            logits = model(_placed(images, model))
            if thetas:
                each.parts['start'].append(each.watch.points(thetas, len(images)).cpu())
                each.parts['start_scale'] += [looks(each.watch.stn, t, each.size).scale.flatten().cpu() for t in thetas]
                _answer(each, '_start', logits, targets, is_right)
            thetas.clear()
            yield


def _shuffled(
        model: nn.Module,
        each: Examined,
        batches: list[Batch],
        is_right: IsRight,
        order: Tensor,
) -> Iterator[None]:
    """Each image gets theta of another one, whatever batch that was in."""
    if not each.thetas:
        yield from (None for _ in batches)
        return
    others = torch.cat(each.thetas)[order]
    for (images, targets, _), theirs in zip(batches, torch.split(others, [len(images) for images, *_ in batches])):
        calls = iter(torch.split(theirs, each.views, 1))
        with each.watch.edited(lambda theta, calls=calls: next(calls).flatten(0, 1).to(theta)):  # type: ignore[misc]
            logits = model(_placed(images, model))
        _answer(each, '_shuffled', logits, targets, is_right)
        yield


def _answer(each: Examined, when: str, logits: Any, targets: Tensor | None, is_right: IsRight) -> None:
    if not _are_logits(logits) or not each.classifies:
        return
    logits = logits.float().cpu()
    each.parts['answer' + when].append(logits.argmax(1))
    if targets is not None:
        known = targets.reshape(len(targets), -1).amin(1) >= 0
        each.parts['right' + when].append(is_right(logits, targets)[known])
        if is_right is answered_right:
            if int(targets.max()) >= logits.shape[1]:
                raise ValueError(f'targets must be classes of the network, which has {logits.shape[1]}, got '
                                 f'{int(targets.max())}.')
            each.parts['loss' + when].append(F.cross_entropy(logits[known], targets[known], reduction='none'))
            each.parts['class' + when].append(targets[known])


def _take_gradients(model: nn.Module, found: list[Examined], batches: list[Batch]) -> None:
    """The norm of the gradient of the mean cross-entropy to theta, in that to the parameters of all but localization.

    Where targets are not known, the network's own answers are taken for them.
    """
    alike = [batch for batch in batches if batch[0].shape[1:] == batches[0][0].shape[1:]]
    images = _placed(torch.cat([batch[0] for batch in alike])[:GRADIENTS], model)
    known = [batch[1] for batch in alike if batch[1] is not None]
    targets = torch.cat(known)[:GRADIENTS] if len(known) == len(alike) else None
    thetas: dict[int, Tensor] = {}

    def leaf(index: int, theta: Tensor) -> Tensor:
        thetas[index] = theta.detach().requires_grad_()
        return thetas[index]

    own = {id(p) for each in found for p in each.watch.stn.parameters()}
    weights = [p for p in model.parameters() if id(p) not in own and p.requires_grad]
    with torch.enable_grad(), ExitStack() as stack:
        for i, each in enumerate(found):
            stack.enter_context(each.watch.edited(partial(leaf, i)))
        logits = model(images)
        if not _are_logits(logits) or not thetas or not weights:
            return
        if targets is None or targets.ndim > 1 or int(targets.min()) < 0 or int(targets.max()) >= logits.shape[1]:
            targets = logits.detach().argmax(1)
        loss = F.cross_entropy(logits.float(), targets.to(logits.device))
        gradients = torch.autograd.grad(loss, [*thetas.values(), *weights], allow_unused=True)
    backbone = _norm(gradients[len(thetas):])
    for i, gradient in zip(thetas, gradients):
        found[i].gradient = _norm([gradient]) / backbone if backbone > 0 else None


def _norm(tensors: Iterable[Tensor | None]) -> float:
    return math.sqrt(sum(float(t.double().square().sum()) for t in tensors if t is not None))


def _are_logits(out: Any) -> bool:
    return isinstance(out, Tensor) and out.ndim == 2 and out.shape[1] > 1


def _placed(images: Tensor, model: nn.Module) -> Tensor:
    """Where the network is, and of its type."""
    like = next(model.parameters())
    return images.to(like.device, like.dtype if images.is_floating_point() else images.dtype)


def _deranged(count: int, generator: torch.Generator) -> Tensor:
    """For each image another one, at random: (N,)."""
    chosen = torch.randperm(count, generator=generator)
    other = torch.empty_like(chosen)
    other[chosen] = chosen.roll(1)
    return other


@contextmanager
def _in_evaluation(model: nn.Module) -> Iterator[None]:
    training = [m for m in model.modules() if m.training]
    kept = [(m, name, vars(m)[name]) for m in model.modules() for name in LAST if name in vars(m)]
    for m in training:
        m.training = False
    try:
        yield
    finally:
        for m in training:
            m.training = True
        for m, name, value in kept:
            setattr(m, name, value)
