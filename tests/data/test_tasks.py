"""The tasks made of MNIST: addition against two distortions, volumes against scipy, and what all promise."""
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import generator, rand, write_mnist
from scipy.ndimage import affine_transform

from timm_stn import data
from timm_stn.data import TASKS, addition, distort, load_mnist, volumes
from timm_stn.data.distortions import DISTORTIONS
from timm_stn.data.tasks import batches_of

MADE = [kind for kind, task in TASKS.items() if task.load is load_mnist]  # the others have files of their own
SMALL = [kind for kind in MADE if kind != 'VOLUME']


@pytest.fixture(scope='module')
def digits():
    """Twelve smooth blobs as bytes, which are not alike, and their classes."""
    y, x = torch.meshgrid(torch.arange(28.), torch.arange(28.), indexing='ij')
    blobs = [torch.exp(-((x - 9 - i) ** 2 / 40 + (y - 18 + i / 2) ** 2 / 15)) for i in range(12)]
    return (255 * torch.stack(blobs)[:, None]).to(torch.uint8), torch.arange(12) % 10


@pytest.mark.parametrize('kind', MADE)
def test_what_a_task_says_of_itself(kind, digits):
    task = TASKS[kind]
    count = 2 if task.elements > 10 ** 5 else 40
    x, y = task.make(*digits, torch.arange(count) % 12, rand(count, task.draws))
    assert x.shape == (count, task.channels, *[task.size] * task.dims) and x.dtype == torch.float32
    assert x[0].numel() == task.elements and x.min() >= 0 and 0.5 < x.max() <= 1
    assert y.shape == ((count,) if task.answers == 1 else (count, task.answers)) and y.dtype == torch.int64
    assert y.min() >= 0 and y.max() < task.classes and task.outputs == task.answers * task.classes


@pytest.mark.parametrize('kind', MADE)
def test_batches_do_not_matter(kind, digits):
    images, labels = (part[:4] for part in digits) if kind == 'VOLUME' else digits
    whole, = batches_of(kind, images, labels, seed=3)
    parts = list(batches_of(kind, images, labels, seed=3, batch_size=3))
    assert [len(x) for x, _ in parts] == ([3, 1] if kind == 'VOLUME' else [3] * 4)
    for one, other in zip(whole, map(torch.cat, zip(*parts, strict=True)), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    (other, _), = batches_of(kind, images, labels, seed=4)
    assert torch.equal(other, whole[0]) == (TASKS[kind].draws == 0)


@pytest.mark.parametrize('kind', MADE)
def test_bytes_are_shares_of_255(kind, digits):
    task, index = TASKS[kind], torch.tensor([3, 1])
    u = rand(2, task.draws)
    for one, other in zip(task.make(*digits, index, u), task.make(digits[0].float() / 255, digits[1], index, u)):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize('kind', DISTORTIONS)
def test_distorted_digits_are_those_of_distort(kind, digits):
    (x, y), = batches_of(kind, *digits)
    assert torch.equal(x, distort(digits[0], kind, generator())) and torch.equal(y, digits[1])


def test_test_set(tmp_path):
    write_mnist(tmp_path, test=20)
    images, labels = load_mnist(tmp_path, 'test')
    for kind in ('ADD', 'SEQ64', 'TC'):
        x, y = data.test_set(kind, tmp_path, batch_size=7)
        (whole, classes), = batches_of(kind, images, labels)
        assert torch.equal(y, classes) and len(x) == 20
        torch.testing.assert_close(x, whole, rtol=0, atol=1e-6)
    assert torch.equal(data.test_set('SEQ64', tmp_path)[1][:, 0], labels), 'each digit begins one'
    assert not torch.equal(data.test_set('ADD', tmp_path, seed=1)[1], data.test_set('ADD', tmp_path)[1])
    with pytest.raises(ValueError, match="one of R, RTS, P, E, T, TC, UPRIGHT, TURNED, ADD, .*VOLUME; got 'X'"):
        data.test_set('X', tmp_path)


# addition

class Drawn:
    """A generator's numbers, as `distort` asks for them."""

    def __init__(self, monkeypatch, u):
        monkeypatch.setattr(torch, 'rand', lambda *shape, **_: u.reshape(shape))


def test_addends_are_distorted_by_themselves(digits, monkeypatch):
    images, labels = digits
    index, u = torch.tensor([0, 5, 11, 5]), rand(4, addition.DRAWS)
    u[:, 0] = torch.tensor([0.0, 0.5, 1 - 2 ** -24, 0.26])
    x, sums = TASKS['ADD'].make(images, labels, index, u)
    second = torch.tensor([0, 6, 11, 3])  # of twelve digits
    for channel, (chosen, numbers) in enumerate(((index, u[:, 1:5]), (second, u[:, 5:]))):
        with monkeypatch.context() as patch:
            Drawn(patch, numbers)
            assert torch.equal(x[:, channel:channel + 1], distort(images[chosen], 'RTS'))
    assert sums.tolist() == [int(labels[i] + labels[j]) for i, j in zip(index, second, strict=True)] == [0, 11, 2, 8]


def test_both_addends_are_drawn_evenly(digits):
    u = rand(6000, addition.DRAWS)
    _, sums = TASKS['ADD'].make(torch.zeros(10, 1, 28, 28), torch.arange(10), torch.arange(6000) % 10, u)
    expected = np.convolve(np.ones(10), np.ones(10)) / 100
    assert np.abs(np.bincount(sums.numpy(), minlength=19) / 6000 - expected).max() < 0.015


# volumes

STILL = [0.5] * 6  # no rotation, in the middle


def test_a_still_digit_is_repeated_over_ten_voxels(digits):
    x, y = TASKS['VOLUME'].make(*digits, torch.tensor([7]), torch.tensor([STILL]))
    expected = torch.zeros(60, 60, 60)
    expected[25:35, 16:44, 16:44] = digits[0][7, 0] / 255
    torch.testing.assert_close(x[0, 0], expected, rtol=0, atol=1e-5)
    assert y.tolist() == [7]


@settings(max_examples=8, deadline=None)
@given(shift=st.tuples(*[st.sampled_from([-10, -3, 0, 4, 10])] * 3))
def test_the_centre_moves_along_x_y_and_z(shift):
    image = torch.full((1, 1, 28, 28), 1.0)
    u = torch.tensor([[0.5, 0.5, 0.5, *((s / 10 + 1) / 2 for s in shift)]])
    x, _ = volumes.extruded_digits(image, torch.tensor([3]), torch.tensor([0]), u)
    z, y, x = (x[0, 0] > 0.5).nonzero(as_tuple=True)
    middles = [29.5 + s for s in shift]
    assert [float(axis.float().mean()) for axis in (x, y, z)] == pytest.approx(middles, abs=0.01)


@pytest.mark.parametrize('seed', range(3))
def test_turned_digits_are_those_of_scipy(digits, seed):
    """Rotations about x, then y, then z; each in the sense that turns the next axis to the one after it."""
    u = rand(1, volumes.DRAWS, seed=seed)
    found, _ = TASKS['VOLUME'].make(*digits, torch.tensor([seed]), u)
    angles = (2 * u[0, :3].double().numpy() - 1) * math.pi / 4
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    turn = (np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]]) @ np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
            @ np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]]))[::-1, ::-1]  # of z, y, x
    still = np.zeros((60, 60, 60))
    still[25:35, 16:44, 16:44] = digits[0][seed, 0].numpy() / 255
    centre, shift = np.full(3, 29.5), (2 * u[0, 3:].double().numpy()[::-1] - 1) * 10
    back = turn.T  # of voxels to the digit's own
    expected = affine_transform(still, back, centre - back @ (centre + shift), order=1)
    assert expected.sum() > 50 and np.abs(found[0, 0].numpy() - expected).max() < 1e-3
