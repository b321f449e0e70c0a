"""Digit sequences: one to five MNIST digits in a row on a coloured texture, generated on the fly.

They stand for the paper's SVHN (section 4.2), whose images are photographs of house numbers. As there, a sequence of
unknown length is to be read, the classes are 0 to 9 and "none", and there are two crops:

| size | crop | the row's box |
| --- | --- | --- |
| 64 | tight, as Goodfellow et al. 2013 (arXiv:1312.6082) | a 1.3th of the side, within 10 %, near the centre |
| 128 | loose | 0.7 to 1.1 of the pixels that it has at size 64, anywhere inside |

The box is that of the turned row's ink, of which the longer side counts; pixels stay square. Lengths are equally
frequent. Each row has one colour and is turned within 15 degrees; digits differ in scale (0.85 to 1.15), height in the
row, and gaps. The background is a colour plus three gratings of sines. Four pieces of digits lie on it as clutter,
beneath the row. The colours of row and background, each in its mean over the channels, differ by 0.35 at least, less
what clamping takes.
"""
import math

import torch
from torch import Tensor

from timm_stn.data.distortions import DIGIT, between, integer
from timm_stn.geometry.sampler import sample
from timm_stn.geometry.transforms import matrix_grid

__all__ = ['DRAWS', 'LENGTH', 'NONE', 'SIZES', 'digit_sequences']

LENGTH = 5  # digits of the longest sequence
NONE = 10  # class of a missing digit
SIZES = (64, 128)  # of the tight and the loose crop, pixels
GRATINGS, STROKES = 3, 4
CONTRAST = 0.35
PARTS = {  # uniform numbers per image
    'length': 1, 'others': LENGTH - 1, 'scales': LENGTH, 'heights': LENGTH, 'gaps': LENGTH, 'angle': 1, 'zoom': 1,
    'place': 2, 'lightness': 2, 'tints': 6, 'gratings': 6 * GRATINGS, 'strokes': 8 * STROKES}
DRAWS = sum(PARTS.values())


def digit_sequences(digits: Tensor, labels: Tensor, index: Tensor, u: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Images (N, 3, size, size) in [0, 1], and their classes (N, 5): digits from left to right, then 10 for none.

    An image depends on its own row of `index` and `u` only. CUDA graphs can capture the call.

    Args:
        digits: Digits (M, 1, 28, 28) to make sequences of, floating point in [0, 1] or uint8.
        labels: Their classes (M,), int64.
        index: Each sequence's first digit, (N,), int64.
        u: All that is random, (N, DRAWS), uniform in [0, 1); floating point, and the images have its dtype.
        size: 64 or 128 pixels, see above.

    Raises:
        ValueError: A size that is none of these, or a shape that is not as above.
    """
    if size not in SIZES:
        raise ValueError(f'size must be 64 or 128, got {size!r}.')
    shapes = {'digits': (digits, (len(labels), 1, DIGIT, DIGIT)), 'u': (u, (len(index), DRAWS))}
    for name, (tensor, shape) in shapes.items():
        if tensor.shape != shape:
            raise ValueError(f'{name} must have shape {shape}, got {tuple(tensor.shape)}.')
    draw = dict(zip(PARTS, torch.split(u, list(PARTS.values()), dim=1)))
    back, front = _colours(draw['lightness'], draw['tints'])
    canvas = _texture(back, draw['gratings'], size)
    for stroke in draw['strokes'].reshape(-1, STROKES, 8).unbind(dim=1):
        canvas = _add_stroke(canvas, digits, stroke)
    chosen = torch.cat((index[:, None], integer(draw['others'], len(digits))), dim=1)
    is_there = torch.arange(LENGTH, device=u.device) <= integer(draw['length'], LENGTH)  # (N, LENGTH)
    ink = _row(digits, chosen, is_there, draw, size)
    classes = labels[chosen].masked_fill(~is_there, NONE)
    return torch.lerp(canvas, front[:, :, None, None], ink).clamp(0, 1), classes


def _take(digits: Tensor, chosen: Tensor, like: Tensor) -> Tensor:
    taken = digits[chosen]
    return taken.to(like.dtype) if taken.is_floating_point() else taken.to(like.dtype) / 255


def _colours(lightness: Tensor, tints: Tensor) -> tuple[Tensor, Tensor]:
    """Colours (N, 3) of background and row; the row's lightness is uniform where the contrast is enough."""
    back, u = lightness[:, :1], lightness[:, 1:]
    darker = (back - CONTRAST).clamp(min=0)
    lighter = (1 - CONTRAST - back).clamp(min=0)
    front = u * (darker + lighter)
    front = torch.where(front < darker, front, front - darker + back + CONTRAST)
    tint = between(tints, -0.3, 0.3).reshape(-1, 2, 3)
    tint = tint - tint.mean(dim=2, keepdim=True)
    return (back + tint[:, 0]).clamp(0, 1), (front + tint[:, 1]).clamp(0, 1)


def _texture(colour: Tensor, u: Tensor, size: int) -> Tensor:
    """The colour plus gratings: of 4 to 64 pixels, and of another amplitude (0.12 at most) in each channel."""
    axis = torch.arange(size, dtype=u.dtype, device=u.device)
    canvas = colour[:, :, None, None].expand(-1, -1, size, size)
    for grating in u.reshape(-1, GRATINGS, 6).unbind(dim=1):
        angle, phase = (2 * math.pi * grating[:, i, None, None] for i in (0, 1))
        wave = 2 * math.pi / (4 * 16 ** grating[:, 2, None, None])  # radians per pixel
        sine = (wave * (angle.cos() * axis + angle.sin() * axis[:, None]) + phase).sin()
        canvas = canvas + between(grating[:, 3:], -0.12, 0.12)[:, :, None, None] * sine[:, None]
    return canvas


def _add_stroke(canvas: Tensor, digits: Tensor, u: Tensor) -> Tensor:
    """A piece of a digit, 10 by 10 of its pixels, turned, enlarged 0.7 to 1.7 times, in a grey of its own, anywhere."""
    size = canvas.shape[-1]
    angle, scale = 2 * math.pi * u[:, 0], between(u[:, 1], 0.7, 1.7)
    focus = between(u[:, 2:4], 9, 19)  # the piece's centre, (x, y) in the digit's pixels
    grid = _grid(angle, scale, focus, between(u[:, 4:6], 0, size), size)
    inside = ((grid + 1 - focus[:, None, None] * (2 / DIGIT)).abs() < 10 / DIGIT).all(dim=3)[:, None]
    ink = sample(_take(digits, integer(u[:, 6], len(digits)), u), grid, padding_mode='zeros') * inside
    return torch.lerp(canvas, u[:, 7, None, None, None], 0.6 * ink)


def _row(digits: Tensor, chosen: Tensor, is_there: Tensor, draw: dict[str, Tensor], size: int) -> Tensor:
    """The row's ink, (N, 1, size, size)."""
    taken = [_take(digits, chosen[:, i], draw['zoom']) for i in range(LENGTH)]
    low, high = torch.stack([_box(digit) for digit in taken], dim=1).unbind(dim=2)  # (N, LENGTH, xy)
    scales = between(draw['scales'], 0.85, 1.15)
    sides = (high - low) * scales[:, :, None] * is_there[:, :, None]
    steps = sides[:, :, 0] + between(draw['gaps'], 1., 5.) * is_there
    left = steps.cumsum(dim=1) - steps
    width = (left + sides[:, :, 0]).masked_fill(~is_there, 0).amax(dim=1)
    x = left + sides[:, :, 0] / 2 - width[:, None] / 2  # centres, from the row's
    y = between(draw['heights'], -2., 2.)
    top = (y - sides[:, :, 1] / 2).masked_fill(~is_there, DIGIT).amin(dim=1)
    bottom = (y + sides[:, :, 1] / 2).masked_fill(~is_there, -DIGIT).amax(dim=1)
    y, height = y - (top + bottom)[:, None] / 2, bottom - top

    angle = between(draw['angle'][:, 0], -math.pi / 12, math.pi / 12)
    cos, sin = angle.cos(), angle.sin()
    box = torch.stack((width * cos + height * sin.abs(), width * sin.abs() + height * cos), dim=1)
    tight = SIZES[0] / 1.3 / box.amax(dim=1)
    if size == SIZES[0]:
        zoom = tight * between(draw['zoom'][:, 0], 0.9, 1.1)
        room = 0.05 * size * torch.ones_like(box)
    else:
        zoom = tight * between(draw['zoom'][:, 0], 0.7, 1.1)
        room = (size - 4 - box * zoom[:, None]) / 2
    center = size / 2 + between(draw['place'], -1, 1) * room
    ink = torch.zeros_like(angle)[:, None, None, None]
    for i, digit in enumerate(taken):
        along = torch.stack((cos * x[:, i] - sin * y[:, i], sin * x[:, i] + cos * y[:, i]), dim=1)
        place = center + zoom[:, None] * along
        grid = _grid(angle, zoom * scales[:, i], (low + high)[:, i] / 2, place, size)
        shown = sample(digit, grid, padding_mode='zeros') * is_there[:, i, None, None, None]
        ink = torch.maximum(ink, shown)
    return (1.3 * ink).clamp(max=1)  # what is small is faint else


def _box(digit: Tensor) -> Tensor:
    """Corners (N, 2, 2) of the ink's box, least and largest (x, y), pixels; the whole image where it is blank."""
    is_ink = digit[:, 0] > 0.3
    axis = torch.arange(DIGIT, dtype=digit.dtype, device=digit.device)
    lines = torch.stack((is_ink.any(dim=1), is_ink.any(dim=2)), dim=1)  # (N, xy, DIGIT)
    lines = lines | ~lines.any(dim=2, keepdim=True)
    low, high = axis.masked_fill(~lines, DIGIT).amin(dim=2), (axis + 1).masked_fill(~lines, 0).amax(dim=2)
    return torch.stack((low, high), dim=1)


def _grid(angle: Tensor, scale: Tensor, focus: Tensor, place: Tensor, size: int) -> Tensor:
    """Where to read digits turned by `angle` (x towards y) and enlarged, so that `focus` comes to lie at `place`.

    Both are (N, 2), pixels (x, y) from the corner, of the digit and of the canvas.
    """
    cos, sin = angle.cos() / scale, angle.sin() / scale
    linear = torch.stack((cos, sin, -sin, cos), dim=1).reshape(-1, 2, 2)
    middle = focus + (linear * (size / 2 - place)[:, None]).sum(dim=2)  # what lies at the canvas's centre
    theta = torch.cat((linear * (size / DIGIT), (middle * (2 / DIGIT) - 1)[:, :, None]), dim=2)
    return matrix_grid(theta, (size, size))
