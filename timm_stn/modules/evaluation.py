"""A question to a network that leaves no trace: without gradients, without statistics."""
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..geometry.autocast import uncached
from ..geometry.grid import has_values
from .spatial_transformer import SpatialTransformer

__all__ = ['as_in_evaluation']

SEEN = ('recorder', 'witness', 'editor', 'last_theta')  # what a transformer keeps of a look, and who has a part in it

T = TypeVar('T')


def as_in_evaluation(module: nn.Module, x: Tensor, ask: Callable[[], T]) -> T:
    """Without gradients, and with batch norms that use, and leave as they are, the statistics that they have.

    A glance must not change the backbone: the whole image, of another size and scale than what the backbone is trained
    on, would mix its statistics with theirs, which evaluation then uses.
    """
    training = [m for m in module.modules() if m.training]
    glancing = [m for m in module.modules() if isinstance(m, SpatialTransformer)] if has_values(x) else []
    kept = [{key: m.__dict__[key] for key in SEEN if key in m.__dict__} for m in glancing]
    for m in training:
        m.training = False
    for m in glancing:  # who sees their thetas would take this for a look
        m.recorder = m.witness = m.editor = None
    try:  # no context manager of our own: torch.compile of torch 2.6 does not look into one
        with torch.no_grad(), uncached(x):
            return ask()
    finally:
        for m in training:
            m.training = True
        for m, own in zip(glancing, kept):
            for key in SEEN:
                m.__dict__.pop(key, None)
            m.__dict__.update(own)
