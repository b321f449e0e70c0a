"""timm_stn.geometry.sampler, against equation 3 of the paper written out, scipy, and finite differences."""
import math
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import FILL, PADDING_MODES, fill_of, random_grid
from scipy import ndimage
from torch.autograd import gradcheck, gradgradcheck

from timm_stn.geometry.grid import from_pixels, lattice, to_pixels
from timm_stn.geometry.sampler import sample

pytestmark = pytest.mark.usefixtures('seeded')

PADDING = {'border': 'edge', 'zeros': 'constant', 'reflection': 'symmetric', 'fill': 'constant'}
SCIPY = {'border': 'nearest', 'zeros': 'grid-constant', 'reflection': 'reflect', 'fill': 'grid-constant'}
NON_FINITE = [math.nan, math.inf, -math.inf, 3e38, -3e38]


def keys(t):
    """Keys' cubic kernel, a = -0.75."""
    t, a = np.abs(t), -0.75
    near, far = ((a + 2) * t - (a + 3)) * t * t + 1, ((t - 5) * t + 8) * t * a - 4 * a
    return np.where(t <= 1, near, np.where(t < 2, far, 0))


KERNELS = {
    'bilinear': lambda t: np.maximum(0, 1 - np.abs(t)),
    'bicubic': keys,
    'nearest': lambda t: ((t + 0.5 >= 0) & (t + 0.5 < 1)).astype(float),  # delta(floor(x + 0.5) - m)
}


def equation3(image, pixels, mode, padding_mode, pad=12):
    """Sum over all pixels of the padded image, for one image (C, *size) and points (M, ndim), z y x, in pixels."""
    channels = []
    for c, channel in enumerate(image):
        constant = {'zeros': {'constant_values': 0}, 'fill': {'constant_values': FILL[c]}}.get(padding_mode, {})
        values = np.pad(channel, pad, PADDING[padding_mode], **constant)
        weights = [KERNELS[mode](p[:, None] - (np.arange(n) - pad)) for p, n in zip(pixels.T, values.shape)]
        formula = 'hw,mh,mw->m' if values.ndim == 2 else 'dhw,md,mh,mw->m'
        channels.append(np.einsum(formula, values, *weights, optimize=True))
    return np.stack(channels)


def points_away_from_kinks(size, count, seed, reach=6):
    """Random points in pixels, z y x, up to `reach` pixels outside, not near a multiple of one half."""
    rng = np.random.default_rng(seed)
    whole = np.stack([rng.integers(-reach, n + reach - 1, count) for n in size], -1)
    return whole + rng.uniform(0.1, 0.4, whole.shape) + 0.5 * rng.integers(0, 2, whole.shape)


def as_grid(pixels, size, shape=(-1, 1)):
    """A grid (1, *shape, ndim) of points in pixels, z y x."""
    points = torch.from_numpy(np.ascontiguousarray(pixels))
    coords = torch.stack([from_pixels(points[:, i], size[i]) for i in reversed(range(len(size)))], -1)
    return coords.reshape(1, *shape, len(size))


# values


@pytest.mark.parametrize('padding_mode', PADDING_MODES)
@pytest.mark.parametrize('mode', ['bilinear', 'bicubic', 'nearest'])
@pytest.mark.parametrize('size', [(7, 11), (5, 1)])
def test_equation_3(mode, padding_mode, size):
    image = torch.randn(1, 3, *size, dtype=torch.float64)
    reach = 4 if min(size) > 4 else 1
    pixels = points_away_from_kinks(size, 200, seed=1, reach=reach)
    values = sample(image, as_grid(pixels, size), mode, padding_mode, fill_of(padding_mode))
    expected = equation3(image[0].numpy(), pixels, mode, padding_mode)
    np.testing.assert_allclose(values[0, :, :, 0].numpy(), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize('padding_mode', PADDING_MODES)
@pytest.mark.parametrize('mode', ['bilinear', 'nearest'])
def test_equation_3_of_volumes(mode, padding_mode):
    size = (4, 6, 5)
    image = torch.randn(1, 3, *size, dtype=torch.float64)
    pixels = points_away_from_kinks(size, 100, seed=2, reach=3)
    values = sample(image, as_grid(pixels, size, (-1, 1, 1)), mode, padding_mode, fill_of(padding_mode))
    expected = equation3(image[0].numpy(), pixels, mode, padding_mode, pad=6)
    np.testing.assert_allclose(values[0, :, :, 0, 0].numpy(), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize('padding_mode', PADDING_MODES)
@pytest.mark.parametrize('mode, order', [('nearest', 0), ('bilinear', 1)])
@pytest.mark.parametrize('size', [(9, 6), (5, 4, 6)])
def test_scipy(mode, order, padding_mode, size):
    image = torch.randn(1, 3, *size, dtype=torch.float64)
    pixels = points_away_from_kinks(size, 300, seed=3, reach=30)
    shape = (-1, 1) if len(size) == 2 else (-1, 1, 1)
    values = sample(image, as_grid(pixels, size, shape), mode, padding_mode, fill_of(padding_mode)).flatten(2)[0]
    for c, channel in enumerate(image[0].numpy()):
        cval = FILL[c] if padding_mode == 'fill' else 0
        expected = ndimage.map_coordinates(channel, pixels.T, order=order, mode=SCIPY[padding_mode], cval=cval)
        np.testing.assert_allclose(values[c].numpy(), expected, rtol=0, atol=1e-10)


def test_nearest_takes_the_upper_pixel_at_ties():
    """floor(x + 0.5), where rounding half to even would take pixels 0, 2, 2 and 4."""
    image = torch.arange(8.0).reshape(1, 1, 1, 8)
    grid = as_grid(np.array([[0, 0.5], [0, 1.5], [0, 2.5], [0, 3.5]]), (1, 8), (1, 4)).float()
    assert sample(image, grid, 'nearest').flatten().tolist() == [1, 2, 3, 4]


def test_identity_is_the_image():
    image = torch.randn(2, 3, 37, 53)
    grid = lattice((37, 53)).expand(2, -1, -1, -1)
    for mode in ('bilinear', 'bicubic'):
        torch.testing.assert_close(sample(image, grid, mode), image, rtol=0, atol=1e-4)
    assert torch.equal(sample(image, grid, 'nearest'), image)


def test_fill_by_number_sequence_and_tensor():
    image, outside = torch.randn(1, 3, 4, 4), torch.full((1, 2, 2, 2), 7.0)
    assert torch.equal(sample(image, outside, padding_mode='fill', fill=0.25), torch.full((1, 3, 2, 2), 0.25))
    for fill in (FILL, tuple(FILL), torch.tensor(FILL)):
        values = sample(image, outside, padding_mode='fill', fill=fill)
        torch.testing.assert_close(values, torch.tensor(FILL).reshape(1, 3, 1, 1).expand(1, 3, 2, 2), rtol=0, atol=0)


@pytest.mark.parametrize('dtype', [torch.uint8, torch.int16, torch.int64, torch.bool])
def test_integers_are_read_exactly(dtype):
    image = torch.randint(0, 2 if dtype == torch.bool else 200, (2, 1, 5, 6)).to(dtype)
    if dtype == torch.int64:
        image = image + 2 ** 60
    upside_down = lattice((5, 6)).flip(0).expand(2, -1, -1, -1)
    values = sample(image, upside_down, 'nearest')
    assert values.dtype == dtype
    assert torch.equal(values, image.flip(2))


# gradients


@pytest.mark.parametrize('padding_mode', PADDING_MODES)
@pytest.mark.parametrize('mode', ['bilinear', 'bicubic'])
def test_gradients_are_central_differences(mode, padding_mode):
    size = (5, 6)
    image = torch.randn(1, 3, *size, dtype=torch.float64, requires_grad=True)
    grid = as_grid(points_away_from_kinks(size, 12, seed=4, reach=3), size, (3, 4)).requires_grad_()
    assert gradcheck(lambda image, grid: sample(image, grid, mode, padding_mode, fill_of(padding_mode)), (image, grid))


@pytest.mark.parametrize('padding_mode', PADDING_MODES)
def test_gradients_of_volumes(padding_mode):
    size = (3, 4, 3)
    image = torch.randn(1, 3, *size, dtype=torch.float64, requires_grad=True)
    grid = as_grid(points_away_from_kinks(size, 8, seed=5, reach=2), size, (2, 2, 2)).requires_grad_()
    fill = fill_of(padding_mode)
    assert gradcheck(lambda image, grid: sample(image, grid, 'bilinear', padding_mode, fill), (image, grid))


def test_gradient_of_nearest():
    """Equation 4: all of it to the pixel that is read, none to the coordinates."""
    image = torch.randn(1, 2, 4, 4, requires_grad=True)
    grid = torch.tensor([[[[-0.7, -0.8], [0.3, 0.9], [0.2, 0.9]]]], requires_grad=True)
    sample(image, grid, 'nearest').sum().backward()
    expected = torch.zeros(1, 2, 4, 4)
    expected[:, :, 0, 0], expected[:, :, 3, 2] = 1, 2
    assert torch.equal(image.grad, expected)
    assert torch.equal(grid.grad, torch.zeros_like(grid))


def test_only_the_gradient_that_is_asked_for():
    image, grid = torch.randn(2, 3, 8, 8), random_grid(2, (5, 5)).requires_grad_()
    sample(image, grid).square().sum().backward()
    assert image.grad is None and grid.grad.abs().sum() > 0
    image.requires_grad_()
    sample(image, grid.detach()).square().sum().backward()
    assert image.grad.abs().sum() > 0


def test_double_backward_is_right_or_refused():
    size = (5, 6)
    image = torch.randn(1, 1, *size, dtype=torch.float64, requires_grad=True)
    grid = as_grid(points_away_from_kinks(size, 6, seed=6, reach=0), size, (2, 3)).requires_grad_()
    try:
        assert gradgradcheck(lambda image, grid: sample(image, grid, 'bilinear', 'zeros'), (image, grid))
    except RuntimeError as error:  # torch before 2.10 or so
        assert 'grid_sampler' in str(error) and 'not implemented' in str(error)


# dtypes and layouts


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('mode', ['bilinear', 'bicubic', 'nearest'])
def test_half_precision_at_a_size_that_breaks_torch(dtype, mode):
    """Coordinates and sums in float32, so that one rounding of the result is all the error."""
    image = torch.rand(1, 2, 256, 256, dtype=dtype, requires_grad=True)
    grid = random_grid(1, (64, 64), reach=1.1).requires_grad_()
    values = sample(image, grid, mode)
    wide = torch.float32 if mode == 'nearest' else torch.float64  # float64 may see another pixel beside a tie
    expected = sample(image.detach().to(wide), grid.to(wide), mode).double()
    assert values.dtype == dtype
    tolerance = {'rtol': torch.finfo(dtype).eps, 'atol': 0 if mode == 'nearest' else 1e-4}
    torch.testing.assert_close(values.double(), expected, **tolerance)
    values.float().sum().backward()
    assert image.grad.dtype == dtype and torch.isfinite(image.grad).all() and torch.isfinite(grid.grad).all()


def test_autocast_leaves_coordinates_alone():
    """A ramp shows the coordinates themselves: less than 0.01 pixels of error at 448."""
    size = (448, 448)
    ramp = torch.arange(448.0).expand(1, 1, *size)
    grid = lattice(size)[None] * 0.37 + 0.123
    with torch.autocast('cpu', torch.bfloat16):
        values = sample(ramp, grid)
    assert values.dtype == torch.float32
    assert (values[0, 0].double() - to_pixels(grid[0, ..., 0].double(), 448)).abs().max() < 0.01


def test_float64_images_get_float64_coordinates():
    image, grid = torch.randn(1, 1, 9, 9, dtype=torch.float64), random_grid(1, (4, 4), dtype=torch.float64)
    expected = F.grid_sample(image, grid, padding_mode='border', align_corners=False)
    assert torch.equal(sample(image, grid), expected)
    assert sample(image, grid.float()).dtype == torch.float64


SHAPES = st.tuples(st.integers(0, 3), st.integers(1, 4), st.integers(1, 9), st.integers(1, 9))


@settings(max_examples=25, deadline=None)
@given(
    shape=SHAPES,
    out=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    depth=st.integers(0, 3),
    mode=st.sampled_from(['bilinear', 'bicubic', 'nearest']),
    padding_mode=st.sampled_from(PADDING_MODES),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.uint8]),
    channels_last=st.booleans(),
    antialias=st.booleans(),
)
def test_any_shape_dtype_and_layout(shape, out, depth, mode, padding_mode, dtype, channels_last, antialias):
    """What torch would give in float64, in the dtype and the memory format of the image; depth 0 is an image."""
    mode = 'nearest' if dtype == torch.uint8 else 'bilinear' if depth and mode == 'bicubic' else mode
    shape, out = ((*shape[:2], depth, *shape[2:]), (2, *out)) if depth else (shape, out)
    format = (torch.channels_last_3d if depth else torch.channels_last) if channels_last else torch.contiguous_format
    image = (torch.rand(shape) * 200).to(dtype).contiguous(memory_format=format)
    grid = random_grid(shape[0], out, len(out))
    antialias = antialias and mode != 'nearest'
    fill = 3.0 if padding_mode == 'fill' else None
    values = sample(image, grid, mode, padding_mode, fill, antialias)
    assert values.shape == (*shape[:2], *out) and values.dtype == dtype
    assert values.is_contiguous(memory_format=format) or image.is_contiguous()
    if mode != 'nearest' and not antialias and padding_mode != 'fill':
        expected = F.grid_sample(image.double(), grid.double(), mode, padding_mode, align_corners=False)
        torch.testing.assert_close(values.double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=2e-3)


def test_deterministic():
    image, grid = torch.randn(2, 3, 32, 32, requires_grad=True), random_grid(2, (16, 16)).requires_grad_()
    runs = [(out := sample(image, grid), *torch.autograd.grad(out.square().sum(), (image, grid))) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs))


# safety


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('antialias', [False, True])
@pytest.mark.parametrize('padding_mode', PADDING_MODES)
@pytest.mark.parametrize('mode', ['bilinear', 'bicubic', 'nearest', 'trilinear'])
def test_non_finite_coordinates_are_safe(mode, padding_mode, antialias, dtype):
    ndim = 3 if mode == 'trilinear' else 2
    mode = 'bilinear' if ndim == 3 else mode
    image = torch.rand(2, 3, *[9] * ndim, dtype=dtype, requires_grad=True)
    grid = random_grid(2, [6] * ndim, ndim, reach=1)
    bad = torch.rand_like(grid) < 0.3
    grid[bad] = torch.tensor(NON_FINITE)[torch.randint(len(NON_FINITE), (int(bad.sum()),))]
    grid.requires_grad_()
    values = sample(image, grid, mode, padding_mode, fill_of(padding_mode), antialias and mode != 'nearest')
    values.float().square().sum().backward()
    for tensor in (values, image.grad, grid.grad):
        assert torch.isfinite(tensor).all()
    assert torch.equal(grid.grad[bad], torch.zeros_like(grid.grad[bad]))


def test_where_non_finite_coordinates_lie():
    """Infinite: far outside on its side. NaN: far outside to the left, or the top."""
    image = torch.arange(12.0).reshape(1, 1, 3, 4) + 1
    centre = -0.25  # of column 1; row 1 has its centre at 0
    grid = torch.tensor([[[[math.nan, 0], [math.inf, 0], [-math.inf, 0], [centre, math.nan], [centre, math.inf]]]])
    assert sample(image, grid, padding_mode='border').flatten().tolist() == [5, 8, 5, 2, 10]
    assert sample(image, grid, padding_mode='zeros').flatten().tolist() == [0] * 5
    assert sample(image, grid, padding_mode='fill', fill=9.0).flatten().tolist() == [9] * 5
    assert sample(image, grid[:, :, :1], padding_mode='reflection').item() == 5
    assert sample(image, grid, 'nearest', 'border').flatten().tolist() == [5, 8, 5, 2, 10]


def test_wholly_outside():
    image, grid = torch.rand(1, 2, 8, 8), random_grid(1, (5, 5)) + 40
    assert not sample(image, grid, padding_mode='zeros').any()
    assert torch.equal(sample(image, grid)[0], image[0, :, -1:, -1:].expand(2, 5, 5))


@pytest.mark.parametrize('antialias', [False, True])
def test_empty_batches_and_single_pixels(antialias):
    grid = torch.empty(0, 4, 5, 2, requires_grad=True)
    values = sample(torch.empty(0, 3, 6, 6), grid, antialias=antialias)
    assert values.shape == (0, 3, 4, 5)
    values.sum().backward()
    pixel = torch.tensor([[[[3.0]]]])
    assert sample(pixel, torch.zeros(1, 1, 1, 2), antialias=antialias).item() == 3
    assert sample(pixel, random_grid(1, (4, 4)), antialias=antialias).unique().tolist() == [3]


# compilation


def both(image, grid):
    return sample(image, grid) + sample(image, grid, 'bicubic', 'fill', 0.5) + sample(image, grid, antialias=True)


def gradients(function, image, grid):
    image, grid = image.clone().requires_grad_(), grid.clone().requires_grad_()
    values = function(image, grid)
    return values.detach(), *torch.autograd.grad(values.square().sum(), (image, grid))


@pytest.mark.parametrize('format', [torch.contiguous_format, torch.channels_last])
def test_compiled_is_eager(format):
    image, grid = torch.randn(2, 3, 12, 10).contiguous(memory_format=format), random_grid(2, (5, 6))
    compiled = torch.compile(both, backend='aot_eager', fullgraph=True)
    for a, b in zip(gradients(compiled, image, grid), gradients(both, image, grid)):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_compiled_volumes_and_nearest():
    image, grid = torch.randn(1, 2, 4, 5, 6), random_grid(1, (2, 3, 3), 3)

    def function(image, grid):
        return sample(image, grid) + sample(image, grid, 'nearest', 'zeros')

    compiled = torch.compile(function, backend='aot_eager', fullgraph=True)
    for a, b in zip(gradients(compiled, image, grid), gradients(function, image, grid)):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which('c++') and not shutil.which('g++'), reason='needs a C++ compiler')
def test_compiled_by_inductor_is_eager():
    image, grid = torch.randn(2, 3, 12, 10), random_grid(2, (5, 6))
    compiled = torch.compile(sample, fullgraph=True)
    for dtype, off in ((torch.float64, 1e-10), (torch.float32, 1e-3)):  # float32 is rounded otherwise
        found, expected = (gradients(f, image.to(dtype), grid.to(dtype)) for f in (compiled, sample))
        for a, b in zip(found, expected):
            torch.testing.assert_close(a, b, rtol=off, atol=off)


# wrong arguments


IMAGE, GRID = torch.zeros(1, 3, 4, 4), torch.zeros(1, 2, 2, 2)


@pytest.mark.parametrize('image, grid, settings, error, words', [
    (IMAGE[0], GRID, {}, ValueError, ['image', '(3, 4, 4)', '(N, C, H, W)']),
    (IMAGE[..., :0], GRID, {}, ValueError, ['image', '(1, 3, 4, 0)']),
    (IMAGE, GRID[..., :1], {}, ValueError, ['grid', '(1, 2, 2, 1)', '(1, h, w, 2)']),
    (IMAGE, GRID.expand(2, -1, -1, -1), {}, ValueError, ['grid', '(2, 2, 2, 2)']),
    (IMAGE, GRID.long(), {}, TypeError, ['grid', 'int64']),
    (IMAGE, GRID, {'mode': 'cubic'}, ValueError, ['mode', 'cubic', 'bicubic']),
    (IMAGE, GRID, {'padding_mode': 'edge'}, ValueError, ['padding_mode', 'edge', 'border']),
    (IMAGE, GRID, {'padding_mode': 'fill'}, ValueError, ['fill', 'None']),
    (IMAGE, GRID, {'fill': 1.0}, ValueError, ['fill', '1.0', 'border']),
    (IMAGE, GRID, {'padding_mode': 'fill', 'fill': [1, 2]}, ValueError, ['fill', '[1, 2]', '3']),
    (IMAGE, GRID, {'mode': 'nearest', 'antialias': True}, ValueError, ['antialias', 'nearest', 'bilinear']),
    (IMAGE.byte(), GRID, {}, TypeError, ['image', 'uint8', 'nearest']),
    (IMAGE.bool(), GRID, {'mode': 'bicubic'}, TypeError, ['image', 'bool', 'nearest']),
    (IMAGE[:, :, None], torch.zeros(1, 1, 2, 2, 3), {'mode': 'bicubic'}, ValueError, ['bicubic', 'bilinear']),
])
def test_errors_name_argument_value_and_what_is_accepted(image, grid, settings, error, words):
    with pytest.raises(error) as caught:
        sample(image, grid, **settings)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize('fill', [
    0.5, np.float32(0.5), [0.1, 0.2, 0.3], (0.1, 0.2, 0.3), np.array([0.1, 0.2, 0.3]),
    torch.tensor([[0.1], [0.2], [0.3]]), [[0.1], [0.2], [0.3]], float('inf'), [math.inf] * 3])
def test_fill_by_all_kinds_of_numbers(fill):
    image, grid = torch.rand(2, 3, 5, 6), torch.full((2, 4, 4, 2), 3.0)
    expected = torch.as_tensor(fill).flatten().float().expand(3)[None, :, None, None].expand(2, 3, 4, 4)
    seen = sample(image, grid, padding_mode='fill', fill=fill, mode='nearest')
    torch.testing.assert_close(seen, expected)


@pytest.mark.parametrize('fills', [(0.1, 0.2), ([0.1, 0.2, 0.3], [0.3, 0.2, 0.1]), ((0.1, 0.2, 0.3),) * 2])
def test_fill_compiles(fills):
    def shown(image, grid, fill):
        return sample(image, grid, padding_mode='fill', fill=fill)

    image, grid = torch.rand(2, 3, 5, 6), torch.rand(2, 4, 4, 2) * 3
    compiled = torch.compile(shown, fullgraph=True, backend='eager')
    for fill in fills:
        torch.testing.assert_close(compiled(image, grid, fill), shown(image, grid, fill))


@pytest.mark.filterwarnings('ignore')  # torch.jit is deprecated
def test_nearest_traces_with_gradients_and_without():
    def shown(image, grid):
        return sample(image, grid, mode='nearest')

    image, grid = torch.rand(2, 3, 5, 6), (torch.rand(2, 4, 4, 2) * 2 - 1).requires_grad_()
    traced = torch.jit.trace(shown, (image, grid))  # which compares a second trace, without gradients
    torch.testing.assert_close(traced(image, grid), shown(image, grid))
    traced(image, grid).sum().backward()
    assert not grid.grad.any()
