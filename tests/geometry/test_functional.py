"""timm_stn.warp, unwarp and map_points, against torch, OpenCV and finite differences."""
import math
import warnings
from functools import partial

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from timm_stn.geometry.functional import map_points, unwarp, warp
from timm_stn.geometry.grid import lattice, to_pixels
from timm_stn.geometry.sampler import sample
from timm_stn.geometry.transforms import get_transform

pytestmark = pytest.mark.usefixtures('seeded')


HOMOGRAPHY = [[0.8, 0.25, 0.1], [-0.15, 0.9, -0.07], [0.12, -0.2, 1.1]]
FAMILIES = ['affine', 'translation', 'similarity', 'projective', 'tps', 'diffeomorphic', 'rotation+translation']


def smooth(n, channels, size, dtype=torch.float32):
    """Waves too long for any interpolation to matter, and of no symmetry: (n, channels, *size) in [-1, 1]."""
    points = lattice(size, dtype=dtype).flatten(0, -2)
    waves = torch.linspace(0.7, 2.9, n * channels * len(size), dtype=dtype).reshape(-1, len(size))
    return torch.sin(points @ waves.T + torch.arange(n * channels, dtype=dtype)).T.reshape(n, channels, *size)


def random_theta(n, spread=0.1, dtype=torch.float32):
    return torch.eye(2, 3, dtype=dtype) + spread * torch.randn(n, 2, 3, dtype=dtype)


def pixel_matrix(theta, size, out):
    """The 3 x 3 matrix from output to source *pixels*, as OpenCV counts them, of one theta."""
    theta = np.vstack([theta, [0, 0, 1]]) if len(theta) == 2 else theta

    def to_pixel(height, width):  # x in [-1, 1] -> ((x + 1) * width - 1) / 2
        return np.array([[width / 2, 0, (width - 1) / 2], [0, height / 2, (height - 1) / 2], [0, 0, 1]])

    return to_pixel(*size) @ theta @ np.linalg.inv(to_pixel(*out))


@pytest.mark.parametrize('size, out', [((40, 64), (40, 64)), ((64, 40), (30, 51)), ((33, 70), (64, 20))])
def test_opencv_affine(size, out):
    image, theta = smooth(1, 1, size), random_theta(1, 0.2)
    matrix = pixel_matrix(theta[0].double().numpy(), size, out)
    expected = cv2.warpAffine(
        image[0, 0].numpy(), matrix[:2], out[::-1], flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE)
    np.testing.assert_allclose(warp(image, theta, size=out)[0, 0].numpy(), expected, atol=5e-3)


@pytest.mark.parametrize('size, out', [((40, 64), (40, 64)), ((64, 40), (30, 51))])
def test_opencv_homography(size, out):
    image, theta = smooth(1, 1, size), torch.tensor([HOMOGRAPHY])
    matrix = pixel_matrix(theta[0].double().numpy(), size, out)
    expected = cv2.warpPerspective(
        image[0, 0].numpy(), matrix, out[::-1], flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE)
    np.testing.assert_allclose(warp(image, theta, size=out)[0, 0].numpy(), expected, atol=5e-3)


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 12), st.integers(1, 12)),
    out=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    mode=st.sampled_from(['bilinear', 'bicubic']),
    padding_mode=st.sampled_from(['border', 'zeros', 'reflection']),
    shared=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_torch(shape, out, mode, padding_mode, shared, seed):
    """An absolute theta means what it means to F.affine_grid, and one theta may serve all images."""
    torch.manual_seed(seed)
    image, theta = torch.randn(shape, dtype=torch.float64), random_theta(1 if shared else shape[0], 0.5, torch.float64)
    grid = F.affine_grid(theta.expand(shape[0], -1, -1), [*shape[:2], *out], align_corners=False)
    expected = F.grid_sample(image, grid, mode, padding_mode, align_corners=False)
    values = warp(image, theta, size=out, mode=mode, padding_mode=padding_mode)
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-9)


def test_volumes():
    image, size = torch.randn(2, 3, 4, 6, 5, dtype=torch.float64), (3, 4, 7)
    theta = torch.eye(3, 4, dtype=torch.float64) + 0.3 * torch.randn(2, 3, 4, dtype=torch.float64)
    grid = F.affine_grid(theta, [2, 3, *size], align_corners=False)
    expected = F.grid_sample(image, grid, padding_mode='border', align_corners=False)
    torch.testing.assert_close(warp(image, theta, size=size), expected, rtol=0, atol=1e-9)
    increments = (theta - torch.eye(3, 4, dtype=torch.float64)).flatten(1)
    torch.testing.assert_close(warp(image, increments, 'affine3d', size), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize('family', FAMILIES)
def test_zero_parameters_are_the_identity(family):
    image = torch.randn(2, 3, 23, 31)
    theta = torch.zeros(2, get_transform(family).num_params)
    torch.testing.assert_close(warp(image, theta, family), image, rtol=0, atol=1e-4)


def test_parameters_are_increments():
    image, theta = torch.randn(2, 3, 9, 8), random_theta(2)
    increments = (theta - torch.eye(2, 3)).flatten(1)
    torch.testing.assert_close(warp(image, increments), warp(image, theta))
    shift = torch.tensor([[0.5, 0.0], [0.0, 0.25]])
    expected = torch.stack([image[0].roll(-2, 2), image[1].roll(-1, 1)])[:, :, :8, :6]
    torch.testing.assert_close(warp(image[:, :, :8], shift, 'translation')[:, :, :7, :6], expected[:, :, :7])


def test_composition_is_two_warps():
    """'a+b': the image is warped by a, then the result by b."""
    image = smooth(1, 2, (64, 80))
    angle, shift = torch.tensor([[0.5]]), torch.tensor([[0.2, -0.1]])
    once = warp(image, torch.cat([angle, shift], 1), 'rotation+translation')
    twice = warp(warp(image, angle, 'rotation'), shift, 'translation')
    torch.testing.assert_close(once[..., 16:-16, 16:-16], twice[..., 16:-16, 16:-16], rtol=0, atol=5e-3)


# gradients


@pytest.mark.parametrize('shape, mode', [((2, 2, 5, 6), 'bilinear'), ((2, 1, 5, 6), 'bicubic')])
@pytest.mark.parametrize('padding_mode', ['border', 'zeros'])
def test_gradient_to_theta_is_central_differences(shape, mode, padding_mode):
    image = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    theta = (random_theta(2, 0.15, torch.float64) * 0.83 + 0.0123).requires_grad_()
    assert gradcheck(lambda i, t: warp(i, t, size=(3, 4), mode=mode, padding_mode=padding_mode), (image, theta))


@pytest.mark.parametrize('shape', [(3, 3), (3, 4)])
def test_gradient_to_other_matrices_is_central_differences(shape):
    image = torch.randn(2, 2, *[5, 4, 6][:3 if shape == (3, 4) else 2], dtype=torch.float64)
    theta = torch.eye(*shape, dtype=torch.float64) * 0.83 + 0.05 * torch.randn(2, *shape, dtype=torch.float64)
    assert gradcheck(lambda theta: warp(image, theta), theta.requires_grad_())


def test_gradient_to_theta_is_torchs_in_float32():
    """Sums over 50,176 pixels, by rows and columns; autocast does not make them bfloat16."""
    image, grad = smooth(4, 3, (224, 224)), torch.randn(4, 3, 224, 224)
    theta = random_theta(4).requires_grad_()
    exact = theta.detach().double().requires_grad_()
    grid = F.affine_grid(exact, [4, 3, 224, 224], align_corners=False)
    F.grid_sample(image.double(), grid, padding_mode='border', align_corners=False).backward(grad.double())
    with torch.autocast('cpu', torch.bfloat16):
        warp(image, theta).backward(grad)
    torch.testing.assert_close(theta.grad.double(), exact.grad, rtol=1e-3, atol=1e-3 * exact.grad.abs().max())


def test_double_backward_is_right_or_refused():
    image = torch.randn(1, 2, 5, 6, dtype=torch.float64)
    theta = (random_theta(1, 0.1, torch.float64) * 0.81).requires_grad_()
    try:
        assert gradgradcheck(lambda theta: warp(image, theta, size=(2, 3)), theta)
    except RuntimeError as error:
        assert 'grid_sampler' in str(error) and 'not implemented' in str(error)


# precision and safety


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_coordinates_are_float32_for_any_theta(dtype):
    """The ramp shows where each pixel looks: exact for a theta that the dtype holds."""
    ramp = torch.arange(448.0).expand(1, 1, 448, 448)
    theta = torch.tensor([[[0.75, 0.125, 0.0625], [0.0, 0.5, -0.25]]], dtype=dtype)
    with torch.autocast('cpu', torch.bfloat16):
        values = warp(ramp, theta)
    expected = to_pixels(lattice((448, 448), dtype=torch.float64) @ theta[0, 0, :2].double() + 0.0625, 448)
    assert values.dtype == torch.float32
    assert (values[0, 0] - expected.clamp(0, 447)).abs().max() < 0.01


def test_pixels_keep_dtype_and_layout():
    image = torch.rand(2, 3, 8, 9, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    values = warp(image, random_theta(2), size=(4, 5))
    assert values.dtype == torch.bfloat16 and values.is_contiguous(memory_format=torch.channels_last)


def test_float64_images_get_float64_coordinates():
    image, theta = torch.randn(1, 2, 90, 80, dtype=torch.float64), random_theta(1)
    expected = warp(image, theta.double())
    assert warp(image, theta).dtype == torch.float64
    torch.testing.assert_close(warp(image, theta), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize('family', [None, *FAMILIES])
def test_a_broken_theta_is_the_identity(family, value):
    image = torch.rand(2, 3, 11, 12, requires_grad=True)
    theta = random_theta(2) if family is None else 0.05 * torch.randn(2, get_transform(family).num_params)
    theta[1].view(-1)[-1] = value
    theta.requires_grad_()
    values = warp(image, theta, family or 'affine')
    values.square().sum().backward()
    torch.testing.assert_close(values[1], image[1], rtol=0, atol=1e-4)
    assert not theta.grad[1].any() and theta.grad[0].any()
    assert torch.isfinite(theta.grad).all() and torch.isfinite(image.grad).all()


@pytest.mark.parametrize('padding_mode', ['border', 'zeros', 'reflection'])
@pytest.mark.parametrize('theta', [
    [[1e6, 1e6, 1e6]] * 2,
    [[0, 0, 0]] * 2,
    [[1, 0, 0], [0, 1, 0], [1, 0, 0]],
    [[1e6, 1e6, 1e6], [-1e6, 0, 1e6], [0, 0, 0]],
])
def test_extreme_matrices_are_safe(theta, padding_mode):
    theta = torch.tensor([theta], dtype=torch.float32, requires_grad=True)
    for mode in ('bilinear', 'bicubic'):
        for antialias in (False, True):
            image = torch.rand(1, 2, 300, 200, requires_grad=True)
            values = warp(image, theta, mode=mode, padding_mode=padding_mode, antialias=antialias)
            values.sum().backward()
            assert torch.isfinite(values).all() and torch.isfinite(image.grad).all()


def test_empty_batches():
    theta = torch.zeros(0, 2, 3, requires_grad=True)
    values = warp(torch.zeros(0, 3, 4, 4), theta, size=(2, 2))
    assert values.shape == (0, 3, 2, 2)
    values.sum().backward()
    assert theta.grad.shape == (0, 2, 3)


# unwarp and map_points


@pytest.mark.parametrize('family', [None, 'affine', 'similarity', 'projective', 'tps', 'diffeomorphic'])
def test_unwarp_brings_back(family):
    """Warped, the parts of an image that are seen come back to where they were; the others are zeros."""
    image = smooth(2, 2, (96, 80)) + 3
    torch.manual_seed(0)
    theta = random_theta(2, 0.05) if family is None else 0.04 * torch.randn(2, get_transform(family).num_params)
    seen = warp(image, theta, family or 'affine', size=(100, 120))
    back = unwarp(seen, theta, (96, 80), family or 'affine')
    mask = unwarp(torch.ones_like(seen), theta, (96, 80), family or 'affine') > 0.999
    assert mask.float().mean() > 0.5
    torch.testing.assert_close(back[mask], image[mask], rtol=0, atol=0.03)  # the seen edge repeats half a pixel
    torch.testing.assert_close(back[..., 20:-20, 20:-20], image[..., 20:-20, 20:-20], rtol=0, atol=0.01)


def test_unwarp_of_a_crop():
    """The right half was seen: its mask lands on the right half, the left half is the fill."""
    theta = torch.tensor([[[0.5, 0.0, 0.5], [0.0, 1.0, 0.0]]])
    labels = torch.tensor([[[[1, 2], [3, 4]]]])
    expected = torch.tensor([[[[9, 9, 1, 2], [9, 9, 3, 4]]]])
    assert torch.equal(unwarp(labels, theta, (2, 4), mode='nearest', padding_mode='fill', fill=9), expected)
    assert torch.equal(unwarp(labels, theta, (2, 4), mode='nearest'), expected % 9)


@pytest.mark.parametrize('family', [None, 'affine', 'projective', 'tps'])
def test_mapped_points_are_where_warp_looks(family):
    """A point of the output, mapped, is the place of the source whose colour is seen there."""
    size, out = (64, 48), (9, 11)
    coordinates = lattice(size).permute(2, 0, 1)[None]  # an image whose colour is its own x, y
    theta = random_theta(1, 0.05) * 0.8 if family is None else 0.05 * torch.randn(1, get_transform(family).num_params)
    seen = warp(coordinates, theta, family or 'affine', out)
    points = map_points(theta, lattice(out).reshape(1, -1, 2), family or 'affine').reshape(1, *out, 2)
    inside = (points.abs() < 0.95).all(-1)
    assert inside.float().mean() > 0.3
    torch.testing.assert_close(seen.permute(0, 2, 3, 1)[inside], points[inside], rtol=0, atol=1e-4)


# compilation


def test_compiled_is_eager():
    image = torch.randn(2, 3, 9, 8)

    def function(theta):
        return warp(image, theta, size=(5, 6)) + warp(image, theta.flatten(1) * 0.1, size=(5, 6), padding_mode='zeros')

    compiled = torch.compile(function, backend='aot_eager', fullgraph=True)
    for seed in range(2):
        torch.manual_seed(seed)
        theta = random_theta(2).requires_grad_()
        expected, = torch.autograd.grad(function(theta).square().sum(), theta)
        found, = torch.autograd.grad(compiled(theta).square().sum(), theta)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_exported_is_eager():
    class Warp(torch.nn.Module):
        def forward(self, image, theta):
            return warp(image, theta, size=(5, 6)) + warp(image, theta.flatten(1), 'affine', (5, 6), antialias=True)

    args = torch.randn(2, 3, 9, 8), random_theta(2)
    program = torch.export.export(Warp(), args)
    torch.testing.assert_close(program.module()(*args), Warp()(*args), rtol=1e-5, atol=1e-5)


# wrong arguments


IMAGE, THETA = torch.zeros(2, 3, 4, 4), torch.zeros(2, 2, 3)


@pytest.mark.parametrize('image, theta, arguments, error, words', [
    (IMAGE, THETA[:, 0, 0], {}, ValueError, ['theta', '(2,)', '(N, 2, 3)', '(N, P)']),
    (IMAGE, torch.zeros(3, 2, 3), {}, ValueError, ['theta', '(3, 2, 3)', 'N = 2']),
    (IMAGE, torch.zeros(2, 2, 2), {}, ValueError, ['theta', '(2, 2, 2)', '(N, 2, 3)']),
    (IMAGE, torch.zeros(2, 3, 4), {}, ValueError, ['size', 'theta', '(2, 3, 4)']),
    (IMAGE, THETA.long(), {}, TypeError, ['theta', 'int64', 'float']),
    (IMAGE, torch.zeros(2, 5), {}, ValueError, ['affine', '(N, 6)', '(2, 5)']),
    (IMAGE, torch.zeros(2, 6), {'transform': 'afine'}, ValueError, ['afine', 'affine']),
    (IMAGE, THETA, {'size': (4,)}, ValueError, ['size', '(4,)', '2']),
    (IMAGE, THETA, {'size': (4, 0)}, ValueError, ['size', '(4, 0)', 'positive']),
    (IMAGE, THETA, {'mode': 'linear'}, ValueError, ['mode', 'linear', 'bilinear']),
    (IMAGE, THETA, {'padding_mode': 'fill', 'fill': (1, 2)}, ValueError, ['fill', '(1, 2)', '3']),
    (IMAGE.int(), THETA, {}, TypeError, ['image', 'int32', 'nearest']),
    (IMAGE[0], THETA, {}, ValueError, ['image', '(3, 4, 4)']),
])
def test_errors_name_argument_value_and_what_is_accepted(image, theta, arguments, error, words):
    with pytest.raises(error) as caught:
        warp(image, theta, **arguments)
    for word in words:
        assert word in str(caught.value)
    if 'size' not in arguments:
        with pytest.raises(error):
            unwarp(image, theta, (4, 4), **arguments)


def test_one_side_is_of_all_axes():
    image, theta = torch.rand(1, 2, 6, 8), torch.eye(2, 3)[None]
    assert torch.equal(warp(image, theta, size=5), warp(image, theta, size=(5, 5)))
    assert torch.equal(unwarp(image, theta, 5), unwarp(image, theta, (5, 5)))
    with pytest.raises(ValueError, match="size must be 2 positive integers for an image of shape .*, got '5'"):
        warp(image, theta, size='5')


ABSOLUTE = {
    'affine': [1, 0, 0, 0, 1, 0], 'projective': [1, 0, 0, 0, 1, 0, 0, 0],
    'affine3d': [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0]}


class TestDoubt:
    """Parameters that would be the identity if they were absolute."""

    @pytest.mark.parametrize('family', ABSOLUTE)
    def test_the_identity_as_a_matrix_has_it_gives_a_warning(self, family):
        ndim = 3 if family == 'affine3d' else 2
        image, theta = torch.rand(2, 1, *[5] * ndim), torch.tensor([ABSOLUTE[family]] * 2, dtype=torch.float32)
        for call in (warp, partial(unwarp, size=5)):
            with pytest.warns(UserWarning, match=r'theta begins with \[.*increments on the identity.*zoom out by two'):
                call(image, theta, transform=family)
        with pytest.warns(UserWarning, match='zoom out by two') as found:
            map_points(theta, torch.zeros(1, ndim), family)
        assert found[0].filename == __file__

    @pytest.mark.parametrize(('theta', 'family'), [
        (torch.zeros(2, 6), 'affine'), (torch.eye(2, 3).repeat(2, 1, 1), 'affine'), (torch.ones(2, 6), 'affine'),
        (torch.tensor([[1.0, 0, 0, 0, 0, 0]]), 'affine'), (torch.tensor([[1.0, 0, 0, 0, 1, 0.1]]), 'affine'),
        (torch.tensor([[1.0, 0.0]]), 'translation'), (torch.tensor([[1.0]]), 'rotation'),
        (torch.tensor([[1.0, 0.0, 0.0]]), 'attention'),
        (torch.eye(32)[:1], 'tps'), (torch.tensor([[0.9, 0, 0, 0, 0.9, 0]]), 'affine')])
    def test_all_else_does_not(self, theta, family):
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            warp(torch.rand(2, 1, 5, 5), theta, family)

    def test_it_leaves_no_trace_in_graphs(self):
        image, theta = torch.rand(1, 1, 5, 5), torch.tensor([ABSOLUTE['affine']], dtype=torch.float32)
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            warnings.filterwarnings('ignore', category=torch.jit.TracerWarning)
            warnings.filterwarnings('ignore', message='.*is deprecated')
            compiled = torch.compile(warp, fullgraph=True, backend='eager')(image, theta)
            traced = torch.jit.trace(warp, (image, theta), check_trace=False)(image, theta)
            mapped = torch.func.vmap(lambda i, t: warp(i[None], t[None])[0])(image, theta)
            slope = torch.func.grad(lambda t: warp(image, t).sum())(theta)
        with pytest.warns(UserWarning, match='zoom out'):
            expected = warp(image, theta)
        assert slope.any()
        for seen in (compiled, traced, mapped):
            torch.testing.assert_close(seen, expected)


@pytest.mark.parametrize('size', [np.array([3, 4]), torch.tensor([3, 4]), [np.int64(3), 4]], ids=repr)
def test_sizes_and_colours_of_numpy_and_torch(size):
    image, theta = torch.rand(2, 3, 5, 6), random_theta(2)
    expected = warp(image, theta, size=(3, 4), padding_mode='fill', fill=[0.5, 1.0, 2.0])
    for fill in (np.array([0.5, 1.0, 2.0]), torch.tensor([0.5, 1.0, 2.0])):
        assert torch.equal(warp(image, theta, size=size, padding_mode='fill', fill=fill), expected)
    assert torch.equal(unwarp(image, theta, size), unwarp(image, theta, (3, 4)))


@pytest.mark.parametrize('size', [0, 2.5, (2.5, 3), '34', (True, 3), (3, 4, 5), np.array([3.0, 4.0])], ids=repr)
def test_what_is_no_size_is_refused(size):
    with pytest.raises(ValueError, match='size must be 2 positive integers for an image of shape'):
        warp(torch.rand(1, 1, 5, 6), torch.zeros(1, 6), size=size)


@pytest.mark.parametrize('wrong, message', [
    ('afine', "'afine'.*did you mean 'affine'"), (None, 'transform must be a name, .*got None'),
    ((32, 32), r'transform must be a name, .*got \(32, 32\); sizes go into size='), (5, 'sizes go into size='),
    (np.array([8, 8]), 'transform must be a name, .*array'), (b'affine', "transform must be a name, .*b'affine'"),
])
@pytest.mark.parametrize('theta', [torch.eye(2, 3)[None], torch.zeros(1, 6)])
def test_what_is_no_transform_is_told_also_where_theta_needs_none(theta, wrong, message):
    image = torch.rand(1, 2, 8, 8)
    for call in (lambda: warp(image, theta, wrong), lambda: unwarp(image, theta, 8, wrong),
                 lambda: map_points(theta, torch.rand(3, 2), wrong)):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize('call', [
    lambda image, theta: warp(image.numpy(), theta), lambda image, theta: warp(image, theta.numpy()),
    lambda image, theta: unwarp(image, [[1, 0, 0], [0, 1, 0]], 8), lambda image, theta: map_points(theta, [[0, 0]]),
    lambda image, theta: map_points(theta.numpy(), image[0, 0, :, :2]),
    lambda image, theta: sample(image.numpy(), theta),
])
def test_what_is_no_tensor_is_told(call):
    with pytest.raises(TypeError, match='must be (a tensor|tensors), got .*(ndarray|list)'):
        call(torch.rand(1, 2, 8, 8), torch.eye(2, 3)[None])


@pytest.mark.parametrize('transform', ['affine', 'tps', get_transform('affine'), get_transform('affine+tps')])
@pytest.mark.parametrize('theta', [torch.eye(2, 3)[None], torch.eye(3)[None]])
def test_matrices_compile_with_any_transform(theta, transform):
    def warped(image):
        seen = warp(image, theta, transform)
        return unwarp(seen, theta, 8, transform), map_points(theta, image[:, 0, :, :2], transform)

    image = torch.rand(1, 2, 8, 8)
    for a, b in zip(torch.compile(warped, fullgraph=True, backend='eager')(image), warped(image)):
        torch.testing.assert_close(a, b)
