"""NCHW, NHWC and token layouts, seen as one: (N, C, H, W)."""
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

__all__ = ['Layout', 'empty_like', 'infer_layout', 'like', 'size_that_enters', 'told_of_layout']


@dataclass(frozen=True)
class Layout:
    """How a stage lays out its features.

    Args:
        fmt: ``NCHW``, ``NHWC``, or ``NLC`` (tokens).
        channels: Number C of channels.
        size: (H, W) of the features for the usual input; tells the aspect ratio of tokens.
        prefix: Number of tokens (class, register) before the spatial ones; they pass by untouched.
        item: Where the features are in a tuple or list that has other things in it, too; these pass by untouched.
    """

    fmt: Literal['NCHW', 'NHWC', 'NLC']
    channels: int
    size: tuple[int, int]
    prefix: int = 0
    item: int | None = None

    def fits(self, x: Any) -> bool:
        """Whether x is what the stage yields, and not something else."""
        if self.item is None:
            return isinstance(x, Tensor)
        return type(x) in (tuple, list) and self.item < len(x) and isinstance(x[self.item], Tensor)

    def pick(self, x: Any) -> Any:
        """The features in what the stage yields."""
        return x if self.item is None else x[self.item]

    def put(self, features: Tensor, x: Any) -> Any:
        """What the stage yields, with other features."""
        if self.item is None:
            return features
        return type(x)(features if i == self.item else part for i, part in enumerate(x))

    def maps(self, x: Tensor) -> Tensor:
        """Features in this layout to (N, C, H, W)."""
        if self.fmt == 'NCHW':
            return x
        if self.fmt == 'NHWC':
            return x.permute(0, 3, 1, 2)
        h, w = self.token_size(x.shape[1] - self.prefix)
        return x[:, self.prefix:].transpose(1, 2).reshape(x.shape[0], x.shape[2], h, w)

    def restore(self, maps: Tensor, x: Tensor) -> Tensor:
        """(N, C, H, W) back to the layout of ``x``, whose prefix tokens are kept."""
        if self.fmt == 'NCHW':
            return maps
        if self.fmt == 'NHWC':
            return maps.permute(0, 2, 3, 1)
        tokens = maps.flatten(2).transpose(1, 2)
        return torch.cat([x[:, :self.prefix], tokens], 1) if self.prefix else tokens

    def token_size(self, tokens: int) -> tuple[int, int]:
        """(H, W) of a number of tokens: as usual, else the factors whose aspect ratio is nearest to the usual one."""
        if tokens == self.size[0] * self.size[1]:
            return self.size
        aspect = self.size[0] / self.size[1]
        pairs = [(h, tokens // h) for h in range(1, tokens + 1) if tokens % h == 0]
        stretch = {(h, w): max(h / w / aspect, aspect * w / h) for h, w in pairs}
        best = min(pairs, key=lambda pair: stretch[pair], default=None)
        if best is None or stretch[best] > 2:
            usual = f'{self.size[0]}:{self.size[1]}'
            raise ValueError(f'{tokens} tokens do not form a map with an aspect ratio near {usual}.')
        return best


def like(image: Tensor, values: Tensor) -> Tensor:
    """`values` (M, C, *out) in the dtype and memory format of `image` (N, C, *size)."""
    if _is_channels_last(image):  # with operations that torch.vmap and exporters know
        values = values.permute(_last(image)).contiguous().permute(0, image.ndim - 1, *range(1, image.ndim - 1))
    return values.type_as(image)


def empty_like(image: Tensor, shape: Sequence[int]) -> Tensor:
    """Memory for (M, C, h, w) in the dtype and memory format of `image` (N, C, H, W)."""
    form = torch.channels_last if _is_channels_last(image) else torch.contiguous_format
    return torch.empty(shape, dtype=image.dtype, device=image.device, memory_format=form)


def _is_channels_last(image: Tensor) -> bool:
    return not image.is_contiguous() and image.permute(_last(image)).is_contiguous()


def _last(image: Tensor) -> tuple[int, ...]:
    """The order of its dimensions with the channels last."""
    return 0, *range(2, image.ndim), 1


def infer_layout(
        shape: tuple[int, ...],
        channels: int | None,
        output_fmt: str | None,
        size: tuple[int, int],
        prefix: int,
) -> Layout | None:
    """Layout of a stage's output, or None where it is no map of features.

    Args:
        shape: Of the output for an input of the usual size.
        channels: Number of channels, where the model says it.
        output_fmt: What the model says of its features' format, if anything.
        size: (H, W) that is expected, from the reduction of the stage.
        prefix: Number of prefix tokens the model says it has.
    """
    if len(shape) == 4:
        told = channels in (shape[1], shape[-1]) and shape[1] != shape[-1]
        last = shape[-1] == channels if told else output_fmt == 'NHWC'
        _, a, b, c = shape
        return Layout('NHWC', c, (a, b)) if last else Layout('NCHW', a, (b, c))
    if len(shape) != 3 or channels not in (None, shape[2]):
        return None
    for p in (prefix, 0):
        for h, w in (size, _near_square(shape[1] - p, size)):
            if h * w == shape[1] - p and h * w > 0:
                return Layout('NLC', shape[2], (h, w), p)
    return None


def told_of_layout(net: Any) -> dict[str, Any]:
    """What a network says of the layout of its features, for :func:`infer_layout`."""
    fmt = getattr(net, 'output_fmt', None)
    return dict(output_fmt=str(getattr(fmt, 'value', fmt)), prefix=int(getattr(net, 'num_prefix_tokens', 0) or 0))


def size_that_enters(net: Any) -> tuple[int, int, int]:
    """(C, H, W) of the images that a timm model was made for."""
    channels, *size = net.pretrained_cfg['input_size']
    height, width = getattr(net, '_traits', {}).get('img_size') or size
    return getattr(net, 'in_chans', None) or channels, height, width


def _near_square(tokens: int, size: tuple[int, int]) -> tuple[int, int]:
    """Tokens to (H, W) with the aspect ratio of ``size``, (0, 0) where none fits."""
    h = round((max(tokens, 0) * size[0] / max(size[1], 1)) ** 0.5)
    return (h, tokens // h) if h and tokens % h == 0 else (0, 0)
