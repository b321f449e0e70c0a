"""One look of a network at one image, as pictures and answers."""
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from ..geometry.shrink import shrink
from ..geometry.sizes import as_sides
from ..view.observe import Look, observe
from ..view.sheet import best_answers, denormalized
from ..view.tiles import draw_outlines, framed, heat
from .shelf import Network

__all__ = ['Answers', 'answers', 'plain_logits']

MOST = 5  # answers
SIDE = 320  # of pictures, in pixels

Ranking = Sequence[tuple[str, float]]


class Answers(NamedTuple):
    """What the page shows: pictures with titles, and the best answers with their probabilities, best first.

    ``plain`` are those of the backbone alone; or ``reason`` says why there are none.
    """
    pictures: list[tuple[str, Image.Image]]
    ranking: Ranking
    plain: Ranking | None
    reason: str


def answers(network: Network, pixels: Tensor) -> Answers:
    """What a network makes of an image (C, H, W) in [0, 1].

    Only one thread at a time runs a network: what its transformers saw last is kept in them.
    """
    values = [pixels.new_tensor(network.config[key])[:, None, None] for key in ('mean', 'std')]
    images = ((pixels - values[0]) / values[1])[None].to(next(network.model.parameters()).device)
    with network.lock, torch.inference_mode():
        look = observe(network.model, images)
        plain, reason = plain_logits(network.model, images)
    ranking = best_answers(look.logits, network.classes, MOST)[0]
    of_plain = None if plain is None else best_answers(plain, network.classes, MOST)[0]
    return Answers(_pictures(network, pixels, look), ranking, of_plain, reason)


def _pictures(network: Network, pixels: Tensor, look: Look) -> list[tuple[str, Image.Image]]:
    outlines = look.outlines[0]
    reach = float((1.04 * outlines.abs().amax()).clamp(1.06, 1.5))
    where = ('Where it looked', draw_outlines(pixels, outlines, SIDE, reach))
    if look.before is None:
        seen = denormalized(look.seen[0], network.config)
        return [where, *((f'What it saw{n}', framed(x, SIDE, g)) for g, (n, x) in enumerate(_numbered(seen)))]
    maps = heat(torch.stack((look.before, look.seen), 2).flatten(1, 2))[0]  # before, after of each glimpse
    pairs = [(f'Features {when}{n}', framed(maps[2 * g + after], SIDE, g if after else None))
             for g, (n, _) in enumerate(_numbered(look.seen[0])) for after, when in enumerate(('before', 'after'))]
    return [where, *pairs]


def _numbered(glimpses: Tensor) -> list[tuple[str, Tensor]]:
    return [(f' ({g + 1})' if len(glimpses) > 1 else '', x) for g, x in enumerate(glimpses)]


def plain_logits(model: Any, images: Tensor) -> tuple[Tensor | None, str]:
    """Logits (N, classes) of a network's backbone for whole images, without its transformers; or why there are none.

    The whole image is shrunk to what the backbone sees. Transformers at stages let their input pass.
    """
    if model.joined:
        return None, 'This network has one classifier over several looks; its backbone alone has none.'
    if model.arguments.stacked > 1:
        return None, 'The backbone of this network takes several looks at once, not one image.'
    if model.arguments.size is not None:
        images = shrink(images, as_sides(model.arguments.size))
    try:
        with _passing(model):
            return model.backbone(images), ''
    except _ChangesSize:
        return None, 'Its transformers change the size of features, and the backbone needs them to.'


class _ChangesSize(Exception):
    pass


def _pass(transformer: Any, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
    if out.shape != args[0].shape:
        raise _ChangesSize
    return args[0]


@contextmanager
def _passing(model: Any) -> Iterator[None]:
    """Within it, transformers at stages change nothing."""
    stages = [t for t in model.spatial_transformers().values() if t is not model.stn]
    handles = [stage.register_forward_hook(_pass) for stage in stages]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
