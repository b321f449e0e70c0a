"""Digit sequences: what is promised of them, seen on digits of one tone."""
import os

import pytest
import torch
from makers import generator, rand

from timm_stn.data import load_mnist, sequences
from timm_stn.data.sequences import DRAWS, NONE, SIZES, digit_sequences

COUNT = 60


@pytest.fixture(scope='module')
def digits():
    """Ten white rectangles of several sides; the class is the number."""
    x = torch.zeros(10, 1, 28, 28)
    for i in range(10):
        x[i, 0, 4 + i % 3:24, 14 - 2 - i % 4:14 + 3 + i // 2] = 1
    return x


@pytest.fixture(scope='module')
def u():
    return torch.rand(COUNT, DRAWS, generator=generator())


def index_of(count, classes=10):
    return torch.arange(count) % classes


def draws(u, **parts):
    """The draws with some of their parts put to one value."""
    start, out = 0, u.clone()
    for name, width in sequences.PARTS.items():
        if name in parts:
            out[:, start:start + width] = parts[name]
        start += width
    return out


@pytest.mark.parametrize('size', SIZES)
def test_shapes_and_classes(digits, u, size):
    images, classes = digit_sequences(digits, torch.arange(10), index_of(COUNT), u, size)
    assert images.shape == (COUNT, 3, size, size) and images.dtype == u.dtype
    assert images.min() >= 0 and images.max() <= 1
    assert classes.shape == (COUNT, 5) and classes.dtype == torch.int64
    assert torch.equal(classes[:, 0], index_of(COUNT))
    there = classes != NONE
    assert not (there[:, 1:] & ~there[:, :-1]).any(), 'no digit after a missing one'
    assert set(there.sum(dim=1).tolist()) == {1, 2, 3, 4, 5} and set(classes[there].tolist()) == set(range(10))
    doubles, again = digit_sequences(digits.double(), torch.arange(10), index_of(COUNT), u.double(), size)
    assert torch.equal(again, classes) and doubles.dtype == torch.float64
    torch.testing.assert_close(doubles.float(), images, rtol=0, atol=2e-3)


def test_lengths_are_equally_frequent(digits):
    u = rand(5000, DRAWS)
    _, classes = digit_sequences(digits, torch.arange(10), index_of(5000), u[:5000], 64)
    counts = torch.bincount((classes != NONE).sum(dim=1))[1:]
    assert len(counts) == 5 and ((counts - 1000).abs() < 130).all()  # 4.5 standard deviations


@pytest.mark.parametrize('size', SIZES)
def test_independent_of_batches_and_repeatable(digits, u, size):
    whole, classes = digit_sequences(digits, torch.arange(10), index_of(COUNT), u, size)
    assert torch.equal(digit_sequences(digits, torch.arange(10), index_of(COUNT), u, size)[0], whole)
    parts = [digit_sequences(digits, torch.arange(10), i, part, size)
             for i, part in zip(index_of(COUNT).split([1, 2, 17, 40]), u.split([1, 2, 17, 40]), strict=True)]
    torch.testing.assert_close(torch.cat([part for part, _ in parts]), whole, rtol=0, atol=1e-5)
    assert torch.equal(torch.cat([part for _, part in parts]), classes)


def test_uint8_is_divided_by_255(digits, u):
    levels = (digits * 200).round()
    expected, _ = digit_sequences(levels / 255, torch.arange(10), index_of(COUNT), u, 64)
    found, _ = digit_sequences(levels.byte(), torch.arange(10), index_of(COUNT), u, 64)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('ends', [0., 1 - 2 ** -24])
def test_extreme_draws_and_blank_digits(digits, size, ends):
    u = torch.full((2, DRAWS), ends)
    for these in (digits, torch.zeros_like(digits)):
        images, classes = digit_sequences(these, torch.arange(10), index_of(2), u, size)
        assert images.isfinite().all() and ((classes >= 0) & (classes <= NONE)).all()


def boxes(digits, u, size):
    """Ink boxes (N, 4) of rows, left, top, right, bottom, and the ink: white rows on black, with nothing else."""
    plain = draws(u, gratings=0.5, strokes=0., tints=0.5, lightness=0.)
    blank, _ = digit_sequences(torch.zeros_like(digits), torch.arange(10), index_of(len(u)), plain, size)
    images, classes = digit_sequences(digits, torch.arange(10), index_of(len(u)), plain, size)
    ink = (images - blank).abs().amax(dim=1) / 0.35  # of the least contrast
    seen = ink > 0.5
    x, y = (torch.arange(size).masked_fill(~seen.any(dim=dim), 999).amin(dim=1) for dim in (1, 2))
    right, bottom = (torch.arange(size).masked_fill(~seen.any(dim=dim), -1).amax(dim=1) + 1 for dim in (1, 2))
    return torch.stack((x, y, right, bottom), dim=1).float(), ink, classes


def test_tight_crops_are_filled(digits, u):
    """The longer side of the row's box is 64 / 1.3 pixels, within 10 percent, its centre within 3.2 of the middle."""
    found, _, _ = boxes(digits, u, 64)
    longer = (found[:, 2:] - found[:, :2]).amax(dim=1)
    assert longer.min() > 0.9 * 64 / 1.3 - 6 and longer.max() < 1.1 * 64 / 1.3 + 2  # turned corners are cut
    middle = (found[:, 2:] + found[:, :2]) / 2
    assert (middle - 32).abs().max() < 3.2 + 4 and found.min() > 0 and found.max() < 64


def test_loose_crops_have_the_row_anywhere(digits, u):
    found, _, _ = boxes(digits, u, 128)
    longer = (found[:, 2:] - found[:, :2]).amax(dim=1)
    assert longer.min() > 0.7 * 64 / 1.3 - 6 and longer.max() < 1.1 * 64 / 1.3 + 2
    assert found.min() >= 1 and found.max() <= 127
    middle = (found[:, 2:] + found[:, :2]) / 2
    assert (middle.amin(dim=0) < 35).all() and (middle.amax(dim=0) > 93).all()


def test_digits_stand_in_a_row_and_do_not_touch(digits, u):
    """Upright and of equal height in the row, there are as many runs of inked columns as digits."""
    _, ink, classes = boxes(digits, draws(u, angle=0.5), 64)
    columns = torch.nn.functional.pad((ink > 0.5).any(dim=1).int(), (1, 1))
    runs = (columns.diff(dim=1) == 1).sum(dim=1)
    assert ((runs - (classes != NONE).sum(dim=1)).abs() <= 1).all()
    assert (runs == (classes != NONE).sum(dim=1)).float().mean() > 0.8  # narrow gaps are blurred at times


def test_rows_turn_to_both_sides(digits, u):
    """x towards y where the draw is above a half, by 15 degrees at most."""
    for value, sign in ((0., -1), (1., 1)):
        _, ink, classes = boxes(digits, draws(u, angle=value, length=0.9), 64)
        y, x = torch.meshgrid(torch.arange(64.), torch.arange(64.), indexing='ij')
        total = ink.sum((1, 2))
        mx, my = (ink * x).sum((1, 2)) / total, (ink * y).sum((1, 2)) / total
        dx, dy = x - mx[:, None, None], y - my[:, None, None]
        slope = torch.atan2((ink * dx * dy).sum((1, 2)), (ink * dx * dx).sum((1, 2))) * 180 / torch.pi
        assert (classes != NONE).all() and (sign * slope).min() > 8 and (sign * slope).max() < 20


def test_colours_have_contrast():
    back, front = sequences._colours(rand(1000, 2), torch.full((1000, 6), 0.5))
    assert (back - front).abs().min() > sequences.CONTRAST - 1e-6
    assert ((back > front).float().mean() - 0.5).abs() < 0.1
    back, front = sequences._colours(rand(1000, 2), rand(1000, 6, seed=1))
    assert min(back.min(), front.min()) >= 0 and max(back.max(), front.max()) <= 1
    assert (back.mean(dim=1) - front.mean(dim=1)).abs().min() > 0.15


def test_wrong_arguments(digits, u):
    labels, index = torch.arange(10), index_of(COUNT)
    with pytest.raises(ValueError, match='size must be 64 or 128, got 32'):
        digit_sequences(digits, labels, index, u, 32)
    with pytest.raises(ValueError, match=r'digits must have shape \(10, 1, 28, 28\), got \(10, 28, 28\)'):
        digit_sequences(digits[:, 0], labels, index, u, 64)
    with pytest.raises(ValueError, match=rf'u must have shape \({COUNT}, {DRAWS}\), got \({COUNT}, 3\)'):
        digit_sequences(digits, labels, index, u[:, :3], 64)


@pytest.mark.skipif(not os.environ.get('TIMM_STN_DATA'), reason='TIMM_STN_DATA names no folder with MNIST')
def test_real_digits(u):
    digits, labels = load_mnist(split='test')
    images, classes = digit_sequences(digits, labels, torch.arange(COUNT), u, 64)
    assert classes[:, 0].tolist() == labels[:COUNT].tolist()
    assert (images.flatten(1).amax(dim=1) - images.flatten(1).amin(dim=1)).min() > 0.3
