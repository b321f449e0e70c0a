"""MNIST from idx files, and the distorted sets."""
import gzip
import hashlib
import os
import shutil
import struct

import numpy as np
import pytest
import scipy.ndimage
import torch

from timm_stn import data as mnist_data
from timm_stn.data import DISTORTIONS, distort, load_mnist, mnist
from timm_stn.data import distortions as d
from timm_stn.data.mnist import read_idx

KINDS = list(DISTORTIONS)
COUNT = 40


def idx(array, magic=0x800):
    return struct.pack(f'>{array.ndim + 1}I', magic + array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_mnist(folder, train=30, test=20, compress=True):
    """Random files in MNIST's format; returns the arrays."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    arrays = {}
    for prefix, count in (('train', train), ('t10k', test)):
        arrays[prefix] = rng.integers(0, 256, (count, 28, 28)), rng.integers(0, 10, count)
        for name, array in zip(('images-idx3', 'labels-idx1'), arrays[prefix], strict=True):
            content = gzip.compress(idx(array)) if compress else idx(array)
            (folder / f'{prefix}-{name}-ubyte{".gz" if compress else ""}').write_bytes(content)
    return arrays


@pytest.fixture(scope='module')
def digits():
    """Blobs of ink within the middle 20 x 20 pixels."""
    x = torch.zeros(COUNT, 1, 28, 28)
    noise = torch.rand(COUNT, 1, 20, 20, generator=torch.Generator().manual_seed(0))
    x[:, :, 4:24, 4:24] = torch.nn.functional.avg_pool2d(noise, 5, 1, 2)
    return x


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# --- idx files ---

@pytest.mark.parametrize('layout', ['', 'mnist', 'MNIST/raw', 'raw'])
@pytest.mark.parametrize('compress', [True, False])
def test_load_mnist(tmp_path, layout, compress):
    arrays = write_mnist(tmp_path / layout, compress=compress)
    for split, prefix in (('train', 'train'), ('test', 't10k')):
        images, labels = load_mnist(tmp_path, split)
        assert images.dtype == torch.uint8 and labels.dtype == torch.int64
        assert np.array_equal(images[:, 0].numpy(), arrays[prefix][0])
        assert np.array_equal(labels.numpy(), arrays[prefix][1])


def test_data_folder_from_the_environment(tmp_path, monkeypatch):
    write_mnist(tmp_path)
    monkeypatch.setenv('TIMM_STN_DATA', str(tmp_path))
    assert len(load_mnist()[0]) == 30
    monkeypatch.delenv('TIMM_STN_DATA')
    with pytest.raises(FileNotFoundError, match='TIMM_STN_DATA'):
        load_mnist()


def test_missing_files_say_what_to_download(tmp_path):
    with pytest.raises(FileNotFoundError, match=r't10k-images-idx3-ubyte\.gz.*https://'):
        load_mnist(tmp_path, 'test')
    with pytest.raises(ValueError, match="split must be 'train' or 'test', got 'val'"):
        load_mnist(tmp_path, 'val')


@pytest.mark.parametrize(('damage', 'message'), [
    (lambda raw: gzip.compress(raw)[:-20], 'corrupt or truncated gzip'),
    (lambda raw: b'<html>no such file</html>', 'corrupt or truncated gzip'),
    (lambda raw: gzip.compress(raw[:-1]), 'its header declares 23536'),
    (lambda raw: gzip.compress(raw + b'\0'), 'its header declares 23536'),
    (lambda raw: gzip.compress(raw[:9]), 'truncated within its header'),
    (lambda raw: gzip.compress(b''), 'not an idx file'),
    (lambda raw: gzip.compress(b'\0\0\x0d' + raw[3:]), 'not an idx file of unsigned bytes'),
    (lambda raw: gzip.compress(idx(np.zeros((30, 27, 28)))), 'expected images of 28 x 28'),
    (lambda raw: gzip.compress(idx(np.zeros((29, 28, 28)))), '29 images, but .* 30 labels'),
])
def test_damaged_images(tmp_path, damage, message):
    write_mnist(tmp_path)
    path = tmp_path / 'train-images-idx3-ubyte.gz'
    path.write_bytes(damage(gzip.decompress(path.read_bytes())))
    with pytest.raises(ValueError, match=message) as error:
        load_mnist(tmp_path)
    assert str(path) in str(error.value)


def test_damaged_labels(tmp_path):
    write_mnist(tmp_path)
    (tmp_path / 'train-labels-idx1-ubyte.gz').write_bytes(gzip.compress(idx(np.full(30, 10))))
    with pytest.raises(ValueError, match='one label from 0 to 9'):
        load_mnist(tmp_path)


def test_read_idx_of_a_huge_declaration_allocates_nothing(tmp_path):
    path = tmp_path / 'images'
    path.write_bytes(struct.pack('>4I', 0x803, 2 ** 31, 2 ** 31, 2 ** 31))
    with pytest.raises(ValueError, match='its header declares'):
        read_idx(path)


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A folder that stands for the server."""
    folder = tmp_path / 'published'
    write_mnist(folder)
    monkeypatch.setattr(mnist, 'SOURCE', f'{folder.as_uri()}/')
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in mnist.FILES}
    monkeypatch.setattr(mnist, 'FILES', digests)
    return folder


def test_download(tmp_path, published):
    assert len(load_mnist(tmp_path / 'new', 'test', download=True)[0]) == 20
    assert [p.name for p in (tmp_path / 'new').iterdir()] == ['MNIST']
    assert {p.name for p in (tmp_path / 'new' / 'MNIST' / 'raw').iterdir()} == set(mnist.FILES)
    shutil.rmtree(published)
    assert len(load_mnist(tmp_path / 'new', download=True)[0]) == 30  # is there: nothing is asked


@pytest.mark.parametrize('damage', [
    lambda path: path.unlink(),
    lambda path: path.write_bytes(path.read_bytes()[:-9]),
    lambda path: path.write_bytes(path.read_bytes().replace(b'\x1f\x8b', b'\x1f\x8c', 1)),
])
@pytest.mark.parametrize('number', range(4))
def test_a_download_that_fails_leaves_nothing(tmp_path, published, damage, number):
    name = list(mnist.FILES)[number]
    damage(published / name)
    with pytest.raises(RuntimeError, match=f'{name} cannot be downloaded: '):
        load_mnist(tmp_path / 'new', 'test', download=True)
    assert not list((tmp_path / 'new').iterdir())


# --- distortions ---

@pytest.mark.parametrize('kind', KINDS)
def test_shape_range_and_dtype(digits, kind):
    size = DISTORTIONS[kind].size
    assert size == {'R': 28, 'RTS': 42, 'P': 28, 'E': 28, 'T': 60, 'TC': 60}[kind]
    for dtype in (torch.float32, torch.float64):
        out = distort(digits.to(dtype), kind, seeded())
        assert out.shape == (COUNT, 1, size, size) and out.dtype == dtype
        assert out.min() >= 0 and out.max() <= 1 and out.flatten(1).amax(dim=1).min() > 0
    assert distort(digits[:0], kind, seeded()).shape == (0, 1, size, size)


@pytest.mark.parametrize('kind', KINDS)
def test_uint8_is_divided_by_255(digits, kind):
    levels = (digits * 255).round()
    expected = distort(levels / 255, kind, seeded())
    torch.testing.assert_close(distort(levels.byte(), kind, seeded()), expected)


@pytest.mark.parametrize('kind', KINDS)
def test_seeded_and_independent_of_batches(digits, kind):
    whole = distort(digits, kind, seeded(), clutter=digits)
    assert torch.equal(whole, distort(digits, kind, seeded(), clutter=digits))
    assert not torch.equal(whole, distort(digits, kind, seeded(1), clutter=digits))
    generator = seeded()
    parts = [distort(part, kind, generator, clutter=digits) for part in digits.split([1, 2, 17, 20])]
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
    out = distort(digits, kind, seeded())
    u = torch.rand(COUNT, DISTORTIONS[kind].draws, generator=seeded()).double().numpy()
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
    out = distort(bar, 'R', seeded())[:, 0]
    y, x = torch.meshgrid(torch.arange(28) - 13.5, torch.arange(28) - 13.5, indexing='ij')
    angles = torch.rad2deg(torch.atan2((out * y).sum((1, 2)), (out * x).sum((1, 2))))
    assert angles.abs().max() <= 91 and angles.min() < -80 and angles.max() > 80
    assert abs(angles.mean()) < 10 and 45 < angles.std() < 59  # uniform: 180 / sqrt(12) = 52


def test_similarity_keeps_the_ink_and_fills_the_canvas(digits):
    many = digits.repeat(10, 1, 1, 1)
    out = distort(many, 'RTS', seeded())
    scale = 0.7 + 0.5 * torch.rand(len(many), 4, generator=seeded())[:, 1]
    assert ((out.sum((1, 2, 3)) / many.sum((1, 2, 3)) / scale ** 2 - 1).abs() < 0.05).all()
    assert (out.amax(dim=0)[0] > 0).float().mean() > 0.8


def test_translation_conserves_each_digit(digits):
    out = distort(digits, 'T', seeded())
    for canvas, digit in zip(out[:, 0], digits[:, 0], strict=True):
        rows, columns = (canvas.sum(dim).nonzero().flatten() for dim in (1, 0))
        top, left = rows[0] - digit.sum(1).nonzero()[0, 0], columns[0] - digit.sum(0).nonzero()[0, 0]
        assert 0 <= top <= 32 and 0 <= left <= 32
        assert torch.equal(canvas[top:top + 28, left:left + 28], digit)
        assert canvas.count_nonzero() == digit.count_nonzero()


def test_clutter_is_six_patches_at_most(digits):
    black = torch.zeros_like(digits)
    out = distort(black, 'TC', seeded(), clutter=torch.ones(5, 1, 28, 28))
    counts = out.sum((1, 2, 3))
    assert set(out.unique().tolist()) == {0., 1.}  # overlaps are clamped
    assert (counts <= 6 * 36).all() and (counts > 36).all() and (counts == 6 * 36).any()
    out = distort(digits, 'TC', seeded(), clutter=black)
    torch.testing.assert_close(out.sum((1, 2, 3)), digits.sum((1, 2, 3)))


def test_clutter_is_cut_from_digits():
    """Patches of a ramp: each holds 6 x 6 consecutive values of it."""
    ramp = torch.linspace(0.1, 0.2, 784).reshape(1, 1, 28, 28)
    out = distort(torch.zeros(1, 1, 28, 28), 'TC', seeded(), clutter=ramp)[0, 0]
    patches = ramp[0, 0].unfold(0, 6, 1).unfold(1, 6, 1).reshape(-1, 6, 6)
    found = out.unfold(0, 6, 1).unfold(1, 6, 1).reshape(-1, 1, 36)
    exact = (found == patches.reshape(1, -1, 36)).all(dim=2).any(dim=1)
    assert 1 <= exact.sum() <= 6


def test_homography_takes_the_corners_along(monkeypatch):
    u = torch.rand(5000, 9, generator=seeded())
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
    assert not torch.equal(distort(digits, 'E', seeded()), out)
    offsets = d._normal(torch.rand(100_000, generator=seeded()), 1.5)
    assert abs(offsets.std() - 1.5) < 0.02 and offsets.mean().abs() < 0.02
    assert d._normal(torch.tensor([0., 1 - 2 ** -24]), 1.).isfinite().all()


# --- the evaluation set ---

def test_evaluation_set(tmp_path):
    arrays = write_mnist(tmp_path)
    for kind in ('RTS', 'TC'):
        images, labels = mnist_data.test_set(kind, tmp_path)
        assert images.shape == (20, 1, DISTORTIONS[kind].size, DISTORTIONS[kind].size)
        assert np.array_equal(labels.numpy(), arrays['t10k'][1])
        small, _ = mnist_data.test_set(kind, tmp_path, batch_size=3)
        torch.testing.assert_close(small, images, rtol=0, atol=1e-6)
        assert not torch.equal(mnist_data.test_set(kind, tmp_path, seed=1)[0], images)


@pytest.mark.skipif(not os.environ.get('TIMM_STN_DATA'), reason='TIMM_STN_DATA names no folder with MNIST')
def test_real_mnist():
    images, labels = load_mnist(split='train')
    assert images.shape == (60000, 1, 28, 28) and labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert torch.bincount(labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    held_out, classes = mnist_data.test_set('RTS')
    assert held_out.shape == (10000, 1, 42, 42) and classes[:5].tolist() == [7, 2, 1, 0, 4]
    digits, _ = load_mnist(split='test')
    scale = 0.7 + 0.5 * torch.rand(10000, 4, generator=seeded())[:, 1]
    kept = held_out.sum((1, 2, 3)) / (digits.float().sum((1, 2, 3)) / 255 * scale ** 2)
    assert kept.min() > 0.93 and kept.quantile(0.01) > 0.98
