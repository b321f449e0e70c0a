"""Megapixel MNIST against an independent construction in numpy, image by image and mark by mark."""
import math
import os

import numpy as np
import pytest
import torch
from makers import rand, write_mnist

from timm_stn.data import TASKS, megapixel
from timm_stn.data.megapixel import DRAWS, SIZE, load_rows, majority_boxes, megapixel_digits

LABELS = torch.tensor([[0, 3, 1], [1, 0, 2], [2, 2, 0], [3, 1, 0]])  # four rows of three


@pytest.fixture(scope='module')
def digits():
    """Twelve pictures of one grey each, which tells them apart."""
    return torch.arange(20, 32).reshape(4, 3, 1, 1).expand(4, 3, 28, 28).to(torch.uint8)


def draws(count, seed=0, **parts):
    """Uniform numbers, of which some parts are given: one value, or values for all."""
    u, start = rand(count, DRAWS, seed=seed), 0
    for name, width in megapixel.PARTS.items():
        if name in parts:
            u[:, start:start + width] = torch.as_tensor(parts[name], dtype=u.dtype)
        start += width
    return u


def parts_of(u):
    """The numbers (float64) of one image by name."""
    ends = np.cumsum(list(megapixel.PARTS.values()))
    return dict(zip(megapixel.PARTS, np.split(u.numpy(), ends[:-1]), strict=True))


def by_hand(digits, labels, row, u):
    """One image, its answer, and the corners of its digits, in numpy, pixel by pixel of its lines."""
    part = parts_of(u)
    digits, labels = digits.reshape(-1, 28, 28).numpy() / np.float32(255), labels.flatten().numpy()
    first = row * (len(digits) // 4)
    answer = labels[first]
    same, other = np.flatnonzero(labels == answer), np.concatenate([
        np.flatnonzero(labels == c) for c in range(10) if c != answer])
    chosen = [first, *(same[int(v * len(same))] for v in part['same']),
              *(other[int(v * len(other))] for v in part['others'])]
    corners = []
    for tries in part['places'].reshape(5, 3, 2):
        places = [np.round(t * np.float32(SIZE - 28)).astype(int) for t in tries]
        clear = [p for p in places if all((abs(p - c) >= 28).any() for c in corners)]
        corners.append((clear or places[-1:])[0] if corners else places[0])
    canvas = np.zeros((SIZE, SIZE), np.float32)
    for which, (r, c) in zip(chosen, corners, strict=True):
        canvas[r:r + 28, c:c + 28] = digits[which]
    for k in range(50):
        mark = np.maximum(line(part['angles'][2 * k]), mirrored(
            line(part['angles'][2 * k + 1]), part['mirrors'][2 * k:2 * k + 2] < 0.33))
        r, c = (28 + int(v * np.float32(SIZE - 56)) for v in part['mark_places'][2 * k:2 * k + 2])
        canvas[r:r + 28, c:c + 28] = mark * (0.8 + 0.2 * part['brightness'].reshape(28, 28))
    return canvas, answer, np.array(corners)


def line(u):
    slope, picture = math.tan(u * math.pi / 2.5), np.zeros((28, 28))
    for step in range(56):
        down = step / 55 * min(27.49, 27.49 / max(slope, 1e-9))
        picture[round(down), round(down * slope)] = 1
    return picture


def mirrored(picture, axes):
    for axis in (0, 1):
        picture = np.flip(picture, axis) if axes[axis] else picture
    return picture


@pytest.mark.parametrize('seed', range(3))
def test_images_are_those_made_by_hand(digits, seed):
    u, index = draws(2, seed), torch.tensor([seed, 3])
    images, classes = megapixel_digits(digits, LABELS, index, u)
    boxes = majority_boxes(LABELS, index, u)
    assert images.shape == (2, 1, SIZE, SIZE) and boxes.shape == (2, 3, 4)
    for i in range(2):
        expected, answer, corners = by_hand(digits, LABELS, int(index[i]), u[i])
        assert int(classes[i]) == answer
        differ = np.abs(images[i, 0].numpy() - expected) > 1e-5
        assert differ.sum() <= 2 * 50, 'but for points of lines that lie between two pixels, in float32'
        pixels = ((boxes[i].double() + 1) * SIZE / 2).numpy()
        np.testing.assert_allclose(pixels[:, :2], corners[:3, ::-1], atol=1e-3)
        np.testing.assert_allclose(pixels[:, 2:] - pixels[:, :2], 28, atol=1e-3)


def greys(image):
    """How many pixels of an image have the grey of each digit (20 to 31)."""
    levels = (image[0] * 255).round().long()
    return {g: n for g in range(20, 32) if (n := int((levels == g).sum()))}


def test_three_of_five_are_of_the_answers_class(digits):
    """Marks lie in one corner; where no digit does, too, all five are there."""
    u, classes, seen = draws(12, mark_places=0.), LABELS.flatten(), 0
    for i, (image, answer) in enumerate(zip(*megapixel_digits(digits, LABELS, torch.arange(12) % 4, u), strict=True)):
        shown = greys(image)
        assert 20 + 3 * (i % 4) in shown, 'the first of the row'
        if sum(shown.values()) == 5 * 784:
            seen += 1
            assert sum(n for g, n in shown.items() if classes[g - 20] == answer) == 3 * 784
    assert seen > 8


def test_all_pictures_of_a_class_are_drawn(digits):
    chosen = megapixel._chosen(LABELS.flatten(), torch.zeros(500, dtype=torch.long), torch.zeros(500).long(),
                               megapixel._parts(draws(500)))
    of_class, others = {0, 4, 8, 11}, {1, 2, 3, 5, 6, 7, 9, 10}
    assert set(chosen[:, 0].tolist()) == {0} and set(chosen[:, 1:3].flatten().tolist()) == of_class
    counts = torch.bincount(chosen[:, 3:].flatten(), minlength=12)
    assert set(chosen[:, 3:].flatten().tolist()) == others
    assert (counts[sorted(others)] - 125).abs().max() < 50  # 4.5 standard deviations


@pytest.mark.parametrize('ends', [0., 1 - 2 ** -24])
def test_extreme_draws(digits, ends):
    u = torch.full((1, DRAWS), ends)
    image, answer = megapixel_digits(digits, LABELS, torch.tensor([2]), u)
    assert image.isfinite().all() and image.min() >= 0 and image.max() <= 1 and int(answer) == 2
    box = (majority_boxes(LABELS, torch.tensor([2]), u) + 1) * SIZE / 2
    assert box.min() >= -1e-3 and box.max() <= SIZE + 1e-3


def test_digits_do_not_overlap():
    """First places on top of each other: the second or third is taken."""
    corners = megapixel._digit_corners(megapixel._parts(draws(3000)))
    apart = (corners[:, :, None] - corners[:, None]).abs().amax(3) + 28 * torch.eye(5, dtype=torch.long)
    assert apart.min() >= 28
    places = torch.rand(5, 3, 2)
    places[:, 0] = 0.4
    places[:, 1] = torch.tensor([0.4, 0.4 + 27 / 1472])  # too near
    corners = megapixel._digit_corners(megapixel._parts(draws(1, places=places.flatten())))[0]
    assert corners[0].tolist() == [589, 589]
    assert torch.equal(corners[1:], (places[1:, 2] * 1472).round().long())


def test_marks_are_two_lines_and_hide_what_they_lie_on(digits):
    """Down along the rows at 0 degrees; the second mirrored to the other side, and upside down, by its own numbers."""
    none, angles = torch.ones(2), torch.zeros(100)
    angles[:2] = torch.tensor([0., 0.625])  # of 72 degrees: 0 and 45
    for mirror, expected in ((none, np.eye(28)), (torch.tensor([1., 0.]), np.eye(28)[:, ::-1]),
                             (torch.tensor([0., 1.]), np.eye(28)[::-1])):
        u = draws(1, angles=angles, mirrors=torch.cat([mirror, torch.ones(98)]), brightness=0.5)
        expected = np.maximum(expected, np.arange(28)[None] == np.zeros((28, 1)))
        np.testing.assert_allclose(megapixel._marks(megapixel._parts(u))[0, 0].numpy(), 0.9 * expected, atol=1e-6)
    u = draws(1, places=0.5, mark_places=0.49, angles=0., mirrors=1.)
    image, _ = megapixel_digits(digits, LABELS, torch.tensor([0]), u)
    r = 28 + int(0.49 * (SIZE - 56))
    hidden = image[0, 0, r:r + 28, r:r + 28]
    assert (hidden[:, 0] >= 0.8).all() and (hidden[:, 1:] == 0).all()


def test_an_image_depends_on_its_own_row(digits):
    u, index = draws(4), torch.tensor([3, 0, 2, 1])
    whole, classes = megapixel_digits(digits, LABELS, index, u)
    alone, answer = megapixel_digits(digits, LABELS, index[2:3], u[2:3])
    assert torch.equal(alone[0], whole[2]) and answer[0] == classes[2]


def test_rows_have_all_digits(tmp_path, monkeypatch):
    monkeypatch.setitem(megapixel.ROWS, 'train', 6)
    write_mnist(tmp_path, train=20)
    from timm_stn.data import load_mnist
    flat, labels = load_mnist(tmp_path)
    rows, classes = load_rows(tmp_path)
    assert rows.shape == (6, 3, 28, 28) and torch.equal(rows.flatten(0, 1), flat[:18, 0])
    assert torch.equal(classes.flatten(), labels[:18])
    monkeypatch.setitem(megapixel.ROWS, 'train', 21)
    assert load_rows(tmp_path)[0].shape == (20, 1, 28, 28), 'fewer digits than images: one for each'


def test_wrong_arguments(digits):
    index, u = torch.arange(4), draws(4)
    with pytest.raises(ValueError, match=r'digits must have shape \(M, D, 28, 28\), got \(4, 28, 28\)'):
        megapixel_digits(digits[:, 0], LABELS, index, u)
    with pytest.raises(ValueError, match=r'labels must have shape \(M, D\), got \(4,\)'):
        megapixel_digits(digits, LABELS[:, 0], index, u)
    with pytest.raises(ValueError, match=rf'u must have shape \(4, {DRAWS}\), got \(4, 7\)'):
        megapixel_digits(digits, LABELS, index, u[:, :7])


@pytest.mark.skipif(not os.environ.get('TIMM_STN_DATA'), reason='TIMM_STN_DATA names no folder with MNIST')
def test_real_digits():
    task = TASKS['MEGAPIXEL']
    rows, classes = task.load(None, 'test')
    assert rows.shape == (1000, 10, 28, 28)
    image, answer = task.make(rows, classes, torch.tensor([7]), rand(1, task.draws))
    assert int(answer) == int(classes[7, 0]) and 1500 < float(image.sum()) < 50 * 112 + 5 * 500
