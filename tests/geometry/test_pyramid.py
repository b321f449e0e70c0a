"""Anti-aliased sampling: the levels of the pyramid, and what is read of them, against supersampling."""
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import PADDING_MODES, fill_of
from scipy import ndimage
from torch.autograd import gradcheck

import timm_stn
from timm_stn.geometry import pyramid
from timm_stn.geometry.footprint import APART, BLEND, footprint
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


def theta_of(scale, degrees):
    c, s = scale * math.cos(math.radians(degrees)), scale * math.sin(math.radians(degrees))
    return torch.tensor([[[c, -s, 0], [s, c, 0]]])


def psnr(a, b):
    return -10 * math.log10((a - b).square().mean())


def pattern(name, n=448):
    """(n, n) in [0, 1], float64: a chirp up to Nyquist, single pixels, noise of an amplitude of 1 / f."""
    x = np.arange(n)
    if name == 'zone plate':  # at r pixels from the centre, r / n periods for each pixel
        return 0.5 + 0.5 * np.cos(math.pi * np.add.outer((x - (n - 1) / 2) ** 2, (x - (n - 1) / 2) ** 2) / n)
    if name == 'checkerboard':
        return np.add.outer(x, x) % 2.0
    radius = np.hypot(*np.meshgrid(np.fft.fftfreq(n), np.fft.fftfreq(n))).clip(1 / n)
    noise = np.fft.ifft2(np.fft.fft2(np.random.default_rng(0).standard_normal((n, n))) / radius).real
    return (noise - noise.min()) / np.ptp(noise)


def supersampled(image, scale, angle, out, times=16):
    """(out, out) by scipy: the means of `times` x `times` samples of each footprint; the edge goes on outside."""
    x, y = np.meshgrid(*[(2 * np.arange(out * times) + 1) / (out * times) - 1] * 2)
    c, s = scale * math.cos(angle), scale * math.sin(angle)
    places = [((z + 1) * n - 1) / 2 for z, n in zip((s * x + c * y, c * x - s * y), image.shape)]
    return ndimage.map_coordinates(image, places, order=1, mode='nearest').reshape(out, times, out, times).mean((1, 3))


@pytest.mark.parametrize('degrees', [0, 10, 30, 45])
@pytest.mark.parametrize('name', ['zone plate', 'checkerboard', 'pink noise'])
def test_antialias_against_supersampling(name, degrees):
    """448 -> 64, whole and turned, so that the corners lie outside: at least 35 dB."""
    image = pattern(name)
    reference = torch.from_numpy(supersampled(image, 1, math.radians(degrees), 64))
    found = timm_stn.warp(torch.from_numpy(image).float()[None, None], theta_of(1, degrees), size=64, antialias=True)
    assert psnr(found[0, 0], reference) > 35


@pytest.mark.parametrize('mode, padding_mode, goal', [
    ('bilinear', 'zeros', 35), ('bilinear', 'reflection', 35), ('bilinear', 'fill', 35), ('bicubic', 'border', 33)])
def test_other_modes_against_supersampling(mode, padding_mode, goal):
    image = torch.from_numpy(pattern('zone plate'))[None, None]
    fill = 0.3 if padding_mode == 'fill' else None
    reference = F.avg_pool2d(sample(image, affine((1024, 1024), 1, 0.5).double(), mode, padding_mode, fill), 16)
    found = sample(image.float(), affine((64, 64), 1, 0.5), mode, padding_mode, fill, antialias=True)
    assert psnr(found, reference) > goal


@pytest.mark.parametrize('out, scale, goal', [
    (64, 0.8, 33), (64, 0.5, 33), (64, 0.3, 33), (100, 1.0, 33), (224, 1.0, 27), (300, 1.0, 21), (448, 3.0, 24)])
def test_other_scales_against_supersampling(out, scale, goal):
    """Turned zone plates: fewer points where fewer pixels come on an output pixel."""
    image = pattern('zone plate')
    reference = torch.from_numpy(supersampled(image, scale, 0.3, out, times=8))
    pixels, grid = torch.from_numpy(image).float()[None, None], affine((out, out), scale, 0.3)
    found = psnr(sample(pixels, grid, antialias=True)[0, 0], reference)
    assert found > goal and found > psnr(sample(pixels, grid)[0, 0], reference) + 1


@pytest.mark.parametrize('out, goal', [(12, 38), (24, 28)])
def test_volumes_against_supersampling(out, goal):
    volume = torch.rand(1, 1, 48, 48, 48)
    turn = torch.tensor([[0.8, 0.6, 0], [-0.6, 0.8, 0], [0, 0, 1]]) * 0.9
    reference = F.avg_pool3d(sample(volume, lattice((96, 96, 96))[None] @ turn), 96 // out)
    assert psnr(sample(volume, lattice((out, out, out))[None] @ turn, antialias=True), reference) > goal


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
def test_halve_adds_up_equal_cells(size):
    """Four times the mean of each, of extent n / m: the difference quotient of the running integral of the image."""
    image = torch.rand(1, 1, *size, dtype=torch.float64)
    expected = image[0, 0].numpy()
    for axis, n in enumerate(size):
        integral = np.concatenate([np.zeros_like(expected.take([0], axis)), expected.cumsum(axis)], axis)
        edges = np.linspace(0, n, max(n // 2, 1) + 1)
        lines = np.moveaxis(integral, axis, -1)
        at = np.stack([np.interp(edges, np.arange(n + 1), line) for line in lines])
        expected = np.moveaxis(np.diff(at) / np.diff(edges)[0], -1, axis)
    np.testing.assert_allclose(pyramid.halve(image)[0, 0].numpy(), 4 * expected, atol=1e-12)


@pytest.mark.parametrize('size', [(8, 12), (16, 4), (4, 8, 8)])
def test_a_frame_is_the_border(size):
    """What two levels have there of an image that goes on outside."""
    image = torch.rand(1, 2, *size, dtype=torch.float64)
    beyond = torch.from_numpy(np.pad(image.numpy(), [(0, 0), (0, 0), *[(4, 4)] * len(size)], 'edge'))
    framed = pyramid.halve(pyramid.halve(image, False, True), True, True)
    torch.testing.assert_close(framed, pyramid.halve(pyramid.halve(beyond)))


@pytest.mark.parametrize('size', [(7, 9), (1, 4), (5, 3, 6)])
def test_a_frame_changes_nothing_inside(size):
    image = torch.rand(1, 2, *size, dtype=torch.float64)
    framed = pyramid.halve(pyramid.halve(image, False, True), True, True)
    inner = framed[(..., *[slice(1, -1)] * len(size))]
    torch.testing.assert_close(inner, pyramid.halve(pyramid.halve(image)))


def test_antialias_blends_two_levels():
    """Between two levels, and a constant for the gradient."""
    image = torch.randn(1, 2, 64, 64, dtype=torch.float64)
    grid = affine((16, 16), 3 * APART * 2 ** (1 + 0.6 * BLEND) * 16 / 64, 0.3).double().requires_grad_()
    seen, half = footprint(grid, (64, 64)), F.avg_pool2d(image, 2)
    found = [sample(x, seen.spread(i), padding_mode='zeros').reshape(1, 2, 9, 16, 16).mean(2)
             for i, x in enumerate((half, F.avg_pool2d(half, 2)), 1)]
    expected = 0.4 * found[0] + 0.6 * found[1]
    values = sample(image, grid, padding_mode='zeros', antialias=True)
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-5)
    upstream = torch.randn_like(values)
    found, wanted = (torch.autograd.grad(v, grid, upstream, retain_graph=True)[0] for v in (values, expected))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize('padding_mode', PADDING_MODES)
@pytest.mark.parametrize('scale', [0.1, 0.5, 0.9, 1.7])
def test_programs_read_the_same(scale, padding_mode, monkeypatch):
    """All levels, all framed, where the values of the grid are unknown."""
    image, grid = torch.rand(2, 3, 50, 61), torch.cat([affine((13, 12), scale, 0.3), affine((13, 12), 0.7, 1, 0.2)])
    found = sample(image, grid, 'bilinear', padding_mode, fill_of(padding_mode), antialias=True)
    monkeypatch.setattr(pyramid, 'has_values', lambda x: False)
    program = sample(image, grid, 'bilinear', padding_mode, fill_of(padding_mode), antialias=True)
    torch.testing.assert_close(program, found, rtol=0, atol=2e-6)


def test_glimpses_share_the_pyramid(monkeypatch):
    """Side by side, each has what it has alone, and levels are made once."""
    made = []
    halve = pyramid.halve
    monkeypatch.setattr(pyramid, 'halve', lambda *arguments: made.append(1) or halve(*arguments))
    image = torch.rand(2, 3, 128, 128)
    glimpses = [affine((16, 16), scale, angle, shift).repeat(2, 1, 1, 1)
                for scale, angle, shift in ((1.0, 0.0, 0.0), (0.7, 0.5, -0.3), (0.2, 1.0, 0.4), (1.5, 0.2, 0.1))]
    together = sample(image, torch.cat(glimpses, 1), antialias=True)
    count = len(made)
    alone = [sample(image, grid, antialias=True) for grid in glimpses]
    torch.testing.assert_close(together, torch.cat(alone, 2), rtol=0, atol=2e-6)
    assert 0 < count < len(made) - count


@pytest.mark.parametrize('padding_mode', PADDING_MODES)
def test_gradients_with_antialias(padding_mode):
    """The levels are constants: central differences see the same once the grid only moves as a whole."""
    size = (14, 15)
    image = torch.randn(1, 3, *size, dtype=torch.float64, requires_grad=True)
    grid = affine((3, 4), 0.93, 0.2).double()
    shift = torch.tensor([0.0123, -0.0217], dtype=torch.float64, requires_grad=True)
    fill = fill_of(padding_mode)
    assert gradcheck(lambda image, t: sample(image, grid + t, 'bilinear', padding_mode, fill, True), (image, shift))


def test_levels_are_read_only_where_they_are_needed(monkeypatch):
    """By two glimpses, one ten times as large as the other: 9 points for each pixel, on two levels of three."""
    read = []
    interpolate = pyramid.kernels.interpolate
    monkeypatch.setattr(pyramid.kernels, 'interpolate', lambda image, grid, *options: read.append(
        grid.shape[1:-1].numel()) or interpolate(image, grid, *options))
    image = torch.rand(2, 3, 128, 128)
    glimpses = [affine((16, 16), scale, 0.1).repeat(2, 1, 1, 1).requires_grad_() for scale in (0.2, 2.0)]
    together = sample(image, torch.cat(glimpses, 1), antialias=True)
    assert len(read) == 3 and sum(read) == 2 * 9 * 256
    torch.testing.assert_close(together, torch.cat([sample(image, grid, antialias=True) for grid in glimpses], 2),
                               rtol=0, atol=2e-6)
    assert all(x.isfinite().all() and x.any() for x in torch.autograd.grad(together.square().sum(), glimpses))
