"""The distorted sets, against scipy and by what must stay."""
import numpy as np
import pytest
import scipy.ndimage
import torch
from makers import generator, rand, write_mnist

from timm_stn import data as mnist_data
from timm_stn.data import DISTORTIONS, distort
from timm_stn.data import distortions as d

KINDS = list(DISTORTIONS)


COUNT = 40


@pytest.fixture(scope='module')
def digits():
    """Blobs of ink within the middle 20 x 20 pixels."""
    x = torch.zeros(COUNT, 1, 28, 28)
    noise = rand(COUNT, 1, 20, 20)
    x[:, :, 4:24, 4:24] = torch.nn.functional.avg_pool2d(noise, 5, 1, 2)
    return x


@pytest.mark.parametrize('kind', KINDS)
def test_shape_range_and_dtype(digits, kind):
    size = DISTORTIONS[kind].size
    assert size == {'R': 28, 'RTS': 42, 'P': 28, 'E': 28, 'T': 60, 'TC': 60}[kind]
    for dtype in (torch.float32, torch.float64):
        out = distort(digits.to(dtype), kind, generator())
        assert out.shape == (COUNT, 1, size, size) and out.dtype == dtype
        assert out.min() >= 0 and out.max() <= 1 and out.flatten(1).amax(dim=1).min() > 0
    assert distort(digits[:0], kind, generator()).shape == (0, 1, size, size)


@pytest.mark.parametrize('kind', KINDS)
def test_uint8_is_divided_by_255(digits, kind):
    levels = (digits * 255).round()
    expected = distort(levels / 255, kind, generator())
    torch.testing.assert_close(distort(levels.byte(), kind, generator()), expected)


@pytest.mark.parametrize('kind', KINDS)
def test_seeded_and_independent_of_batches(digits, kind):
    whole = distort(digits, kind, generator(), clutter=digits)
    assert torch.equal(whole, distort(digits, kind, generator(), clutter=digits))
    assert not torch.equal(whole, distort(digits, kind, generator(1), clutter=digits))
    random = generator()
    parts = [distort(part, kind, random, clutter=digits) for part in digits.split([1, 2, 17, 20])]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-6)
    torch.manual_seed(3)
    first = distort(digits, kind)
    torch.manual_seed(3)
    assert torch.equal(distort(digits, kind), first)


def test_wrong_arguments(digits):
    with pytest.raises(ValueError, match="kind must be one of R, RTS, P, E, T, TC; got 'S'"):
        distort(digits, 'S')
    with pytest.raises(ValueError, match='images must have shape'):
        distort(digits[:, 0], 'R')
    with pytest.raises(ValueError, match='clutter must have shape'):
        distort(digits, 'TC', clutter=digits[..., :27])


def place(digit, angle, scale, center, size):
    """The reference: scipy maps output (row, column) to input, angles turn x towards y."""
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    matrix = np.array([[cos, -sin], [sin, cos]])  # of (row, column)
    middle = np.array([(size - 1) / 2 + center[1], (size - 1) / 2 + center[0]])
    offset = 13.5 - matrix @ middle
    return scipy.ndimage.affine_transform(
        digit, matrix, offset, output_shape=(size, size), order=1, mode='grid-constant')


@pytest.mark.parametrize('kind', ['R', 'RTS'])
def test_placed_as_scipy_places(digits, kind):
    out = distort(digits, kind, generator())
    u = torch.rand(COUNT, DISTORTIONS[kind].draws, generator=generator()).double().numpy()
    size = DISTORTIONS[kind].size
    for i in range(COUNT):
        if kind == 'R':
            angle, scale, center = np.pi * (u[i, 0] - 0.5), 1., np.zeros(2)
        else:
            angle, scale = np.pi / 2 * (u[i, 0] - 0.5), 0.7 + 0.5 * u[i, 1]
            center = (2 * u[i, 2:] - 1) * (size - 28 * scale) / 2
        expected = place(digits[i, 0].double().numpy(), angle, scale, center, size)
        np.testing.assert_allclose(out[i, 0].numpy(), expected, atol=1e-4)


def test_rotation_is_within_its_range():
    """A bar that points right: the angle of its ink's centre is the rotation."""
    bar = torch.zeros(400, 1, 28, 28)
    bar[:, :, 13:15, 14:26] = 1
    out = distort(bar, 'R', generator())[:, 0]
    y, x = torch.meshgrid(torch.arange(28) - 13.5, torch.arange(28) - 13.5, indexing='ij')
    angles = torch.rad2deg(torch.atan2((out * y).sum((1, 2)), (out * x).sum((1, 2))))
    assert angles.abs().max() <= 91 and angles.min() < -80 and angles.max() > 80
    assert abs(angles.mean()) < 10 and 45 < angles.std() < 59  # uniform: 180 / sqrt(12) = 52


def test_similarity_keeps_the_ink_and_fills_the_canvas(digits):
    many = digits.repeat(10, 1, 1, 1)
    out = distort(many, 'RTS', generator())
    scale = 0.7 + 0.5 * torch.rand(len(many), 4, generator=generator())[:, 1]
    assert ((out.sum((1, 2, 3)) / many.sum((1, 2, 3)) / scale ** 2 - 1).abs() < 0.05).all()
    assert (out.amax(dim=0)[0] > 0).float().mean() > 0.8


def test_translation_conserves_each_digit(digits):
    out = distort(digits, 'T', generator())
    for canvas, digit in zip(out[:, 0], digits[:, 0], strict=True):
        rows, columns = (canvas.sum(dim).nonzero().flatten() for dim in (1, 0))
        top, left = rows[0] - digit.sum(1).nonzero()[0, 0], columns[0] - digit.sum(0).nonzero()[0, 0]
        assert 0 <= top <= 32 and 0 <= left <= 32
        assert torch.equal(canvas[top:top + 28, left:left + 28], digit)
        assert canvas.count_nonzero() == digit.count_nonzero()


def test_clutter_is_six_patches_at_most(digits):
    black = torch.zeros_like(digits)
    out = distort(black, 'TC', generator(), clutter=torch.ones(5, 1, 28, 28))
    counts = out.sum((1, 2, 3))
    assert set(out.unique().tolist()) == {0., 1.}  # overlaps are clamped
    assert (counts <= 6 * 36).all() and (counts > 36).all() and (counts == 6 * 36).any()
    out = distort(digits, 'TC', generator(), clutter=black)
    torch.testing.assert_close(out.sum((1, 2, 3)), digits.sum((1, 2, 3)))


def test_clutter_is_cut_from_digits():
    """Patches of a ramp: each holds 6 x 6 consecutive values of it."""
    ramp = torch.linspace(0.1, 0.2, 784).reshape(1, 1, 28, 28)
    out = distort(torch.zeros(1, 1, 28, 28), 'TC', generator(), clutter=ramp)[0, 0]
    patches = ramp[0, 0].unfold(0, 6, 1).unfold(1, 6, 1).reshape(-1, 6, 6)
    found = out.unfold(0, 6, 1).unfold(1, 6, 1).reshape(-1, 1, 36)
    exact = (found == patches.reshape(1, -1, 36)).all(dim=2).any(dim=1)
    assert 1 <= exact.sum() <= 6


def test_homography_takes_the_corners_along(monkeypatch):
    u = torch.rand(5000, 9, generator=generator())
    u[0, 1:], u[1, 1:] = 0., torch.tensor([0., 0., 1., 1.] * 2) * (1 - 2 ** -24)  # the largest moves
    seen = []

    def spy(source, target):
        seen.append(source)
        return homography(source, target)

    homography = d._homography
    monkeypatch.setattr(d, '_homography', spy)
    out = d._project(torch.ones(5000, 1, 28, 28), u, 28, torch.empty(0))
    quad, corners = seen[0].double(), torch.tensor(d.CORNERS).double()
    theta = homography(quad, corners)
    mapped = torch.cat((quad, torch.ones_like(quad[..., :1])), dim=2) @ theta.mT
    assert mapped[..., 2].min() > 0
    torch.testing.assert_close(mapped[..., :2] / mapped[..., 2:], corners.expand_as(quad), rtol=0, atol=1e-6)
    moves = 14 * (quad - (0.75 + 0.25 * u[:, :1, None]) * corners)
    assert abs(moves.std() - 5) < 0.2 and moves.mean().abs() < 0.1
    assert out.isfinite().all() and (out.sum((1, 2, 3)) > 0).float().mean() > 0.999


def test_elastic_moves_control_points_by_their_deviation(digits):
    still = torch.full((COUNT, 33), 0.5)  # scale 0.875, no offsets
    out = d._warp_elastically(digits, still, 28, digits)
    for i in range(3):
        expected = place(digits[i, 0].double().numpy(), 0., 0.875, (0., 0.), 28)
        np.testing.assert_allclose(out[i, 0].numpy(), expected, atol=1e-4)
    assert not torch.equal(distort(digits, 'E', generator()), out)
    offsets = d._normal(torch.rand(100_000, generator=generator()), 1.5)
    assert abs(offsets.std() - 1.5) < 0.02 and offsets.mean().abs() < 0.02
    assert d._normal(torch.tensor([0., 1 - 2 ** -24]), 1.).isfinite().all()


def test_evaluation_set(tmp_path):
    arrays = write_mnist(tmp_path)
    for kind in ('RTS', 'TC'):
        images, labels = mnist_data.test_set(kind, tmp_path)
        assert images.shape == (20, 1, DISTORTIONS[kind].size, DISTORTIONS[kind].size)
        assert np.array_equal(labels.numpy(), arrays['t10k'][1])
        small, _ = mnist_data.test_set(kind, tmp_path, batch_size=3)
        torch.testing.assert_close(small, images, rtol=0, atol=1e-6)
        assert not torch.equal(mnist_data.test_set(kind, tmp_path, seed=1)[0], images)
