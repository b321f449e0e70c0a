"""Megapixel MNIST: five digits of 28 pixels on a black canvas of 1500 x 1500, among 50 marks, generated on the fly.

The recipe is that of Katharopoulos and Fleuret 2019 (arXiv:1905.03711) and of their generator, in words: three of the
five digits are of one class, which is the answer; the others are of any other classes. Their boxes are anywhere inside
the canvas, and do not overlap. A mark is as large as a digit: two straight lines, one pixel wide, of a brightness from
0.8 to 1. A line runs from a corner of the mark's box, at 0 to 72 degrees to one of the axes, until it leaves the box;
the second is mirrored along each axis in a third of the cases. Marks keep 28 pixels off the canvas's edge, may overlap,
and hide what they lie on: all of their box.

Ours differ in what is drawn anew: they make 5,000 images to train on and 1,000 to test on once, with 50 marks for each
set. Here each image has marks of its own, whose 28 x 28 factors of brightness are one table an image, and each epoch
has other images. The answer is the class of a given digit, so that it is as frequent as in MNIST. A digit takes the
first of three places that is clear of the digits before it (were none clear, the last: once in a million images).
"""
import os
from math import pi

import torch
from torch import Tensor

from timm_stn.data.distortions import DIGIT, as_float, between, integer
from timm_stn.data.mnist import load_mnist

__all__ = ['COUNT', 'DRAWS', 'SIZE', 'load_rows', 'majority_boxes', 'megapixel_digits']

SIZE = 1500  # side of the canvas, pixels
COUNT, MAJORITY, MARKS = 5, 3, 50
ROWS = {'train': 5000, 'test': 1000}  # images of an epoch, and to test on
TRIES = 3  # places of a digit
STEEPEST = pi / 2.5  # of a line, radians
MIRRORED = 0.33
POINTS = 56  # of a line
PARTS = {  # uniform numbers per image
    'same': MAJORITY - 1, 'others': COUNT - MAJORITY, 'places': 2 * TRIES * COUNT, 'mark_places': 2 * MARKS,
    'angles': 2 * MARKS, 'mirrors': 2 * MARKS, 'brightness': DIGIT ** 2}
DRAWS = sum(PARTS.values())


def load_rows(data: str | os.PathLike[str] | None = None, split: str = 'train') -> tuple[Tensor, Tensor]:
    """All digits of a split, an equal number of them for each image of an epoch.

    Returns:
        Bytes (5000, 12, 28, 28) and classes (5000, 12), int64, of 'train'; of 'test' (1000, 10, 28, 28) and (1000, 10).
        Of files with fewer digits than that, one for each image.

    Raises:
        FileNotFoundError, ValueError: As `load_mnist`.
    """
    digits, labels = load_mnist(data, split)
    rows = min(ROWS[split], len(digits))
    kept = len(digits) // rows * rows
    return digits[:kept].reshape(rows, -1, DIGIT, DIGIT), labels[:kept].reshape(rows, -1)


def megapixel_digits(digits: Tensor, labels: Tensor, index: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Images (N, 1, 1500, 1500) in [0, 1], and the class (N,) that three of their five digits have.

    An image depends on its own row of `index` and `u` only. CUDA graphs can capture the call.

    Args:
        digits: Digits (M, D, 28, 28) to choose from, floating point in [0, 1] or uint8, of two classes at least.
        labels: Their classes (M, D), or (M,) where D is 1, int64, from 0 to 9.
        index: Of each image the row (N,), int64, whose first digit begins with it, and is one of the three.
        u: All that is random, (N, DRAWS), uniform in [0, 1).

    Raises:
        ValueError: A shape is not as above.
    """
    _check(digits, labels, index, u)
    draw = _parts(u)
    first = index * digits.shape[1]
    digits, labels = digits.reshape(-1, DIGIT, DIGIT), labels.reshape(-1)
    answer = labels[first]
    chosen = _chosen(labels, first, answer, draw)  # (N, 5)
    canvas = torch.zeros(len(u), 1, SIZE, SIZE, dtype=u.dtype, device=u.device)
    for corner, which in zip(_digit_corners(draw).unbind(1), chosen.unbind(1), strict=True):
        _put(canvas, as_float(digits[which]).to(u.dtype), corner)
    for corner, mark in zip(_mark_corners(draw).unbind(1), _marks(draw).unbind(1), strict=True):
        _put(canvas, mark, corner)
    return canvas, answer


def majority_boxes(labels: Tensor, index: Tensor, u: Tensor) -> Tensor:
    """Boxes (N, 3, 4) of the digits that the answer is about: left, top, right, bottom, in [-1, 1] from edge to edge.

    Arguments are those of `megapixel_digits`.
    """
    corner = _digit_corners(_parts(u))[:, :MAJORITY].flip(2).to(u.dtype)  # x, y
    return torch.cat([corner, corner + DIGIT], 2) * (2 / SIZE) - 1


def _check(digits: Tensor, labels: Tensor, index: Tensor, u: Tensor) -> None:
    accepted = {'digits': (digits, digits.ndim == 4 and digits.shape[2:] == (DIGIT, DIGIT), '(M, D, 28, 28)'),
                'labels': (labels, labels.numel() == digits.shape[0] * digits.shape[1], '(M, D)'),
                'u': (u, u.shape == (len(index), DRAWS), f'({len(index)}, {DRAWS})')}
    for name, (tensor, fits, shape) in accepted.items():
        if not fits:
            raise ValueError(f'{name} must have shape {shape}, got {tuple(tensor.shape)}.')


def _parts(u: Tensor) -> dict[str, Tensor]:
    return dict(zip(PARTS, torch.split(u, list(PARTS.values()), dim=1), strict=True))


def _chosen(labels: Tensor, first: Tensor, answer: Tensor, draw: dict[str, Tensor]) -> Tensor:
    """Indices (N, 5) of the digits: three of the answer's class, of which one is given, and two of other classes."""
    order = labels.argsort(stable=True)
    counts = (labels == torch.arange(10, device=labels.device)[:, None]).sum(1)
    start, count = (part[answer, None] for part in (counts.cumsum(0) - counts, counts))  # (N, 1)
    same = start + _below(draw['same'], count)
    other = _below(draw['others'], len(labels) - count)
    other = torch.where(other < start, other, other + count)
    return torch.cat([first[:, None], order[same], order[other]], 1)


def _below(u: Tensor, count: Tensor) -> Tensor:
    """Integers below counts, equally frequent, of uniform numbers."""
    return torch.minimum((u.double() * count).long(), count - 1)


def _digit_corners(draw: dict[str, Tensor]) -> Tensor:
    """Upper left corners (N, 5, 2) of the digits' boxes, pixels, row and column."""
    places = (draw['places'] * (SIZE - DIGIT)).round().long().reshape(-1, COUNT, TRIES, 2)
    taken = [places[:, 0, 0]]
    for tries in places[:, 1:].unbind(1):  # (N, TRIES, 2)
        place = tries[:, -1]
        for earlier in tries[:, :-1].flip(1).unbind(1):
            place = torch.where(_is_clear(earlier, taken), earlier, place)
        taken.append(place)
    return torch.stack(taken, 1)


def _is_clear(place: Tensor, taken: list[Tensor]) -> Tensor:
    """Whether boxes at places (N, 2) overlap none of those before: (N, 1)."""
    apart = (torch.stack(taken, 1) - place[:, None]).abs().amax(2)
    return (apart >= DIGIT).all(1, keepdim=True)


def _mark_corners(draw: dict[str, Tensor]) -> Tensor:
    """Upper left corners (N, 50, 2) of the marks' boxes, pixels, row and column."""
    return DIGIT + integer(draw['mark_places'], SIZE - 2 * DIGIT).reshape(-1, MARKS, 2)


def _marks(draw: dict[str, Tensor]) -> Tensor:
    """Marks (N, 50, 28, 28): two lines each."""
    first, second = _lines(draw['angles']).reshape(-1, MARKS, 2, DIGIT, DIGIT).unbind(2)
    mirrored = (draw['mirrors'] < MIRRORED).reshape(-1, MARKS, 2, 1, 1)
    for axis in (2, 3):
        second = torch.where(mirrored[:, :, axis - 2], second.flip(axis), second)
    factors = between(draw['brightness'], 0.8, 1.).reshape(-1, 1, DIGIT, DIGIT)
    return torch.maximum(first, second) * factors


def _lines(u: Tensor) -> Tensor:
    """Lines (N, K, 28, 28), ones on zeros, from the upper left corner: an angle of 0 goes down along the rows."""
    slope = (u * STEEPEST).tan()[:, :, None]
    last = DIGIT - 0.51  # rounds to the last pixel
    along = torch.linspace(0, 1, POINTS, dtype=u.dtype, device=u.device) * (last / slope.clamp(min=1))
    pixels = (along.round() * DIGIT + (along * slope).clamp(max=last).round()).long()  # (N, K, POINTS)
    lines = torch.zeros(*u.shape, DIGIT ** 2, dtype=u.dtype, device=u.device)
    return lines.scatter(2, pixels, 1.).reshape(*u.shape, DIGIT, DIGIT)


def _put(canvas: Tensor, pictures: Tensor, corner: Tensor) -> None:
    """Replace what is at corners (N, 2) of canvases (N, 1, S, S) by pictures (N, 28, 28)."""
    rows, columns = (corner[:, axis, None] + torch.arange(DIGIT, device=corner.device) for axis in (0, 1))
    batch = torch.arange(len(corner), device=corner.device)[:, None, None]
    canvas[batch, 0, rows[:, :, None], columns[:, None]] = pictures
