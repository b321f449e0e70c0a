"""Anti-aliased sampling: the levels of the pyramid, and what is read of them, against supersampling."""
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import PADDING_MODES, fill_of
from torch.autograd import gradcheck

from timm_stn.geometry import pyramid
from timm_stn.geometry.grid import lattice
from timm_stn.geometry.sampler import sample

pytestmark = pytest.mark.usefixtures('seeded')


def texture(n, seed=0):
    """Noise with the spectrum of a photograph's texture, in [0, 1]: (1, 3, n, n)."""
    generator = torch.Generator().manual_seed(seed)
    frequency = torch.fft.fftfreq(n)
    radius = (frequency[:, None] ** 2 + frequency ** 2).sqrt().clamp(min=1 / n)
    image = torch.fft.ifft2(torch.fft.fft2(torch.randn(1, 3, n, n, generator=generator)) / radius ** 0.1).real
    return (image - image.amin()) / (image.amax() - image.amin())


def affine(size, scale, angle=0.0, shift=0.0):
    c, s = scale * math.cos(angle), scale * math.sin(angle)
    return lattice(size)[None] @ torch.tensor([[c, s], [-s, c]]) + shift


def psnr(a, b):
    return -10 * math.log10((a - b).square().mean())


def contrast(image):
    return (image - image.mean()) / image.std() * 0.25 + 0.5


@pytest.mark.parametrize('scale, angle', [(1.0, 0.0), (0.8, 0.3)])
def test_antialias_against_supersampling(scale, angle):
    """448 -> 64: each output pixel is the mean of 16 x 16 samples of its footprint."""
    image = contrast(texture(448))
    reference = F.avg_pool2d(sample(image, affine((1024, 1024), scale, angle, 0.05)), 16)
    grid = affine((64, 64), scale, angle, 0.05)
    assert psnr(sample(image, grid), reference) < 20
    assert psnr(sample(image, grid, antialias=True), reference) > 30


@pytest.mark.parametrize('mode', ['bilinear', 'bicubic'])
@pytest.mark.parametrize('padding_mode', PADDING_MODES)
def test_antialias_is_plain_where_nothing_shrinks(mode, padding_mode):
    image = torch.rand(2, 3, 45, 31)
    grid = torch.cat([affine((45, 31), 1.0), affine((45, 31), 0.5, 0.4, 0.9)])
    plain = sample(image, grid, mode, padding_mode, fill_of(padding_mode))
    assert torch.equal(sample(image, grid, mode, padding_mode, fill_of(padding_mode), antialias=True), plain)


def test_antialias_follows_each_sample():
    """A batch of three scales gives what each one gives alone; the one that does not shrink stays plain."""
    image = texture(128).expand(3, -1, -1, -1)
    grid = torch.cat([affine((32, 32), scale) for scale in (0.2, 0.6, 1.0)])
    values = sample(image, grid, antialias=True)
    alone = torch.cat([sample(image[:1], grid[i:i + 1], antialias=True) for i in range(3)])
    torch.testing.assert_close(values, alone, rtol=0, atol=1e-6)
    torch.testing.assert_close(values[0], sample(image, grid)[0], rtol=0, atol=1e-6)
    assert (values[2] - sample(image, grid)[2]).abs().max() > 0.02


@pytest.mark.parametrize('size, out', [((63, 45), (9, 7)), ((20, 33), (3, 4)), ((45, 43, 61), (6, 6, 8))])
@pytest.mark.parametrize('padding_mode', PADDING_MODES)
def test_antialias_moves_nothing(size, out, padding_mode):
    """At odd sizes, too: inside, a ramp stays where it is; outside, the colour is the fill's."""
    ramp = (lattice(size)[..., 0] * 0.5).expand(1, 1, *size)
    grid = lattice(out)[None] * 0.6
    fill = 2.5 if padding_mode == 'fill' else None
    values = sample(ramp, grid, 'bilinear', padding_mode, fill, antialias=True)[0, 0]
    assert (values - 0.5 * grid[0, ..., 0]).abs().max() < 1e-3
    outside = sample(ramp, grid + 9, 'bilinear', padding_mode, fill, antialias=True)
    if padding_mode in ('zeros', 'fill'):
        assert torch.equal(outside, torch.full_like(outside, fill or 0))


@settings(max_examples=25, deadline=None)
@given(size=st.tuples(st.integers(1, 30), st.integers(1, 30)))
def test_halve_is_the_mean_over_equal_cells(size):
    """Cells of extent n / m, whole pixels or not: the difference quotient of the running integral of the image."""
    image = torch.rand(1, 1, *size, dtype=torch.float64)
    expected = image[0, 0].numpy()
    for axis, n in enumerate(size):
        integral = np.concatenate([np.zeros_like(expected.take([0], axis)), expected.cumsum(axis)], axis)
        edges = np.linspace(0, n, max(n // 2, 1) + 1)
        lines = np.moveaxis(integral, axis, -1)
        at = np.stack([np.interp(edges, np.arange(n + 1), line) for line in lines])
        expected = np.moveaxis(np.diff(at) / np.diff(edges)[0], -1, axis)
    np.testing.assert_allclose(pyramid.halve(image)[0, 0].numpy(), expected, atol=1e-12)


def test_levels_follow_the_scale():
    level = pyramid.levels(affine((16, 16), 1.0, 0.3), (128, 128))
    torch.testing.assert_close(level, torch.full_like(level, 3 - pyramid.SHARPEN), rtol=0, atol=1e-3)
    assert not pyramid.levels(affine((16, 16), 1.0), (16, 16)).any()
    assert pyramid.levels(affine((2, 2), 50.0), (6, 8)).max() == 3
    assert not pyramid.levels(torch.zeros(1, 1, 1, 2), (8, 8)).any()


def test_antialias_blends_the_two_nearest_levels():
    """Level 1.6 (after sharpening) is 0.4 of level 1 and 0.6 of level 2, and a constant for the gradient."""
    image = torch.randn(1, 2, 64, 64, dtype=torch.float64)
    grid = affine((16, 16), 2 ** (1.6 + pyramid.SHARPEN) * 16 / 64, 0.3).double().requires_grad_()
    half = F.avg_pool2d(image, 2)
    expected = 0.4 * sample(half, grid) + 0.6 * sample(F.avg_pool2d(half, 2), grid)
    values = sample(image, grid, antialias=True)
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-5)
    upstream = torch.randn_like(values)
    found, wanted = (torch.autograd.grad(v, grid, upstream)[0] for v in (values, expected))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


def test_levels_end_where_one_glimpse_does():
    """Two grids one below the other are two glimpses: the step between them is no scale."""
    glimpses = torch.cat([affine((8, 8), 0.2, shift=-0.7), affine((8, 8), 0.2, shift=0.7)], 1)
    assert not pyramid.levels(glimpses, (32, 32)).any()


@pytest.mark.parametrize('padding_mode', PADDING_MODES)
def test_gradients_with_antialias(padding_mode):
    """The levels are constants: central differences see the same once the grid only moves as a whole."""
    size = (14, 15)
    image = torch.randn(1, 3, *size, dtype=torch.float64, requires_grad=True)
    grid = affine((3, 4), 0.93, 0.2).double()
    shift = torch.tensor([0.0123, -0.0217], dtype=torch.float64, requires_grad=True)
    fill = fill_of(padding_mode)
    assert gradcheck(lambda image, t: sample(image, grid + t, 'bilinear', padding_mode, fill, True), (image, shift))
