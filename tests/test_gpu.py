"""On a GPU what other files check on a CPU, and what only a GPU has: graphs, synchronisation, memory, determinism.

On a machine with one: `pytest -m gpu tests/test_gpu.py`, about a minute. References are float64 on the CPU, by torch
where torch has the function. Without a GPU the same checks run on the CPU, but for those that say they need one.
"""
import copy
import io
import math

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.utils import ModelEmaV3
from torch import nn

from timm_stn.geometry.functional import map_points, unwarp, warp
from timm_stn.geometry.kernels.fused import why_not
from timm_stn.geometry.sampler import sample
from timm_stn.geometry.transforms import get_transform, transform_names
from timm_stn.modules.spatial_transformer import SpatialTransformer
from timm_stn.view.diagnosis import diagnose

CUDA = torch.cuda.is_available()
FAMILIES = ['2 x 3', '3 x 3', *transform_names(), 'rotation+tps']
PADDING_MODES = ['border', 'zeros', 'reflection', 'fill']
FILL = [0.5, -2.0, 3.0]
WHAT = ('values', 'gradient to the image', 'gradient to theta')
GIB = 2 ** 30

pytestmark = pytest.mark.gpu
needs_cuda = pytest.mark.skipif(not CUDA, reason='needs a CUDA device')


@pytest.fixture
def device():
    return 'cuda' if CUDA else 'cpu'


@pytest.fixture(autouse=True)
def full_float32():
    """No TF32 in convolutions and products, and the same convolution algorithm every time."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = before


def randn(*shape, seed=0):
    """On the CPU, the same whatever ran before."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def smooth(*shape):
    """Waves of no symmetry, float32: at a kink of a kernel, where precisions may disagree, slopes change little."""
    axes = torch.meshgrid(*[torch.linspace(-1, 1, n) for n in shape[2:]], indexing='ij')
    points = torch.stack(axes, -1).flatten(0, -2)
    waves = torch.linspace(0.7, 2.9, shape[0] * shape[1] * len(axes)).reshape(-1, len(axes))
    return torch.sin(points @ waves.T + torch.arange(len(waves))).T.reshape(shape)


def theta_of(family, n=2, seed=1):
    """Generic: away from the identity, which puts every sample on a kink."""
    if family in ('2 x 3', '3 x 3'):
        rows = int(family[0])
        return torch.eye(rows, 3) * torch.tensor([0.83, 0.87, 1.0])[:rows, None] + 0.07 * randn(n, rows, 3, seed=seed)
    return 0.08 * randn(n, get_transform(family).num_params, seed=seed) + 0.013


def by_torch(image, theta, family, size, mode='bilinear', padding_mode='border', fill=None, antialias=False):
    """What `warp` must give; of what torch does not have, its own word in the same dtype on the same device."""
    if family not in ('2 x 3', 'affine', 'affine3d') or mode == 'nearest' or antialias:
        return of_family(image, theta, family, size, mode, padding_mode, fill, antialias)
    matrix = theta
    if theta.ndim == 2:
        ndim = image.ndim - 2
        matrix = theta.reshape(-1, ndim, ndim + 1) + torch.eye(ndim, ndim + 1).to(theta)
    grid = F.affine_grid(matrix.expand(len(image), -1, -1), [*image.shape[:2], *size], align_corners=False)
    if padding_mode == 'fill':
        color = torch.tensor(fill).to(image).reshape(-1, *[1] * (image.ndim - 2))
        return F.grid_sample(image - color, grid, mode, 'zeros', align_corners=False) + color
    return F.grid_sample(image, grid, mode, padding_mode, align_corners=False)


def of_family(image, theta, family, size, *sampling):
    return warp(image, theta, 'affine' if ' x ' in family else family, size, *sampling)


def evaluate(function, image, theta):
    """Values and gradients to image and theta, for a gradient to the values that every dtype can hold."""
    image, theta = image.detach().requires_grad_(), theta.detach().requires_grad_()
    values = function(image, theta)
    upstream = randn(*values.shape, seed=9).bfloat16().to(values)
    return values.detach(), *torch.autograd.grad(values, (image, theta), upstream)


def error_of(found, expected):
    """Largest difference, in parts of the largest value that is expected; NaN where there is one."""
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    assert found.shape == expected.shape, f'shape {tuple(found.shape)}, expected {tuple(expected.shape)}'
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


def check(found, expected, tolerances, what=WHAT):
    errors = {name: (error_of(a, b), t) for name, a, b, t in zip(what, found, expected, tolerances, strict=True)}
    wrong = {name: f'{e:.1e} of the largest, at most {t:.0e}' for name, (e, t) in errors.items() if not e <= t}
    assert not wrong, f'{wrong}; all: {({name: f"{e:.1e}" for name, (e, _) in errors.items()})}'


def check_warp(device, family, size, out, dtype=torch.float32, channels=3, layout=lambda x: x, noise=0.0, **sampling):
    image = smooth(2, channels, *size) + noise * randn(2, channels, *size, seed=5)
    image, theta = layout(image.to(dtype)), theta_of(family)
    found = evaluate(lambda x, t: of_family(x, t, family, out, *sampling.values()), image.to(device), theta.to(device))
    expected = evaluate(lambda x, t: by_torch(x, t, family, out, **sampling), image.double(), theta.double())
    assert found[0].dtype == found[1].dtype == dtype and found[2].dtype == torch.float32
    assert all(tensor.device.type == device for tensor in found)
    rounding = 0.6 * torch.finfo(dtype).eps if dtype != torch.float32 else 0
    check(found, expected, (3e-5 + rounding, 1e-4 + rounding, 3e-4))
    return found


def sampling_of(mode='bilinear', padding_mode='border', antialias=False):
    fill = FILL if padding_mode == 'fill' else None
    return dict(mode=mode, padding_mode=padding_mode, fill=fill, antialias=antialias)


# the warp


@pytest.mark.parametrize('out', [(21, 26), (9, 7), (40, 33)], ids=['same', 'down', 'up'])
@pytest.mark.parametrize('family', FAMILIES)
def test_families(device, family, out):
    volume = family == 'affine3d'
    check_warp(device, family, (*(7,) * volume, 21, 26), (*(6,) * volume, *out), **sampling_of())


@pytest.mark.parametrize('antialias', [False, True], ids=['plain', 'antialias'])
@pytest.mark.parametrize('padding_mode', PADDING_MODES)
@pytest.mark.parametrize('mode', ['bilinear', 'bicubic', 'trilinear'])
def test_modes(device, mode, padding_mode, antialias):
    family, size, out = '2 x 3', (45, 52), (9, 7)
    if mode == 'trilinear':
        family, mode, size, out = 'affine3d', 'bilinear', (13, 12, 15), (4, 5, 6)
    check_warp(device, family, size, out, noise=0.5, **sampling_of(mode, padding_mode, antialias))


@pytest.mark.parametrize('padding_mode', PADDING_MODES)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16, torch.uint8], ids=str)
def test_nearest(device, dtype, padding_mode):
    """The pixel that float64 reads, but for one in a thousand beside a tie; the paper's kernel has no slope."""
    image, theta = (smooth(2, 3, 31, 26) * 50 + 100).to(dtype), theta_of('2 x 3')
    fill = 7.0 if padding_mode == 'fill' else None
    x, t = image.to(device), theta.to(device, copy=True).requires_grad_()
    x.requires_grad_(dtype.is_floating_point)
    values = warp(x, t, size=(40, 44), mode='nearest', padding_mode=padding_mode, fill=fill)
    expected = warp(image.double(), theta.double(), size=(40, 44), mode='nearest', padding_mode=padding_mode, fill=fill)
    share = float((values.detach().double().cpu() != expected).double().mean())
    assert values.dtype == dtype and share <= 1e-3, f'{share:.1e} of the pixels are others'
    if dtype.is_floating_point:
        values.backward(torch.ones_like(values))
        ones = torch.ones(2, 3, 31, 26)
        fill = 0.0 if fill else None
        read = float(warp(ones, theta, size=(40, 44), mode='nearest', padding_mode=padding_mode, fill=fill).sum())
        total = float(x.grad.detach().double().sum())
        assert abs(total - read) <= 0.01 * read and not t.grad.any(), (total, read, t.grad)


@pytest.mark.parametrize('antialias', [False, True], ids=['plain', 'antialias'])
@pytest.mark.parametrize('mode', ['bilinear', 'bicubic'])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(device, dtype, mode, antialias):
    """Float32 inside, so that one rounding is all the error; 200 x 180 is more than half precision can count."""
    check_warp(device, '2 x 3', (200, 180), (60, 71), dtype, **sampling_of(mode, antialias=antialias))


@pytest.mark.parametrize('family', ['2 x 3', 'tps', 'diffeomorphic'])
def test_theta_in_half_precision(device, family):
    """Coordinates are as good as those of the same theta in float32."""
    image, theta = smooth(2, 3, 120, 90), theta_of(family).bfloat16()
    values = of_family(image.to(device), theta.to(device), family, (80, 70))
    expected = of_family(image.double(), theta.double(), family, (80, 70))
    check([values], [expected], [3e-5], WHAT[:1])


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize('family', ['2 x 3', '3 x 3', 'tps', 'diffeomorphic'])
def test_autocast_leaves_coordinates_alone(device, family, dtype):
    image, theta = smooth(2, 3, 120, 90), theta_of(family)
    with torch.autocast(device, dtype):
        values = of_family(image.to(device), theta.to(device), family, (80, 70))
    assert values.dtype == torch.float32
    check([values], [of_family(image.double(), theta.double(), family, (80, 70))], [3e-5], WHAT[:1])


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
def test_autocast_leaves_theta_alone(device, dtype):
    """What is regressed from the same features, with a localization network of no other layers."""
    torch.manual_seed(0)
    stn = SpatialTransformer(2, (24, 20), localization='linear', glimpses=2, scale=0.5).to(device)
    nn.init.normal_(stn.localization.regression.weight, std=0.5)
    x = smooth(3, 2, 24, 20).to(device)
    with torch.no_grad():
        expected = stn.look(x)
        with torch.autocast(device, dtype):
            found = stn.look(x)
    check(found, expected, (1e-5, 1e-5), ('seen', 'theta'))


@pytest.mark.parametrize('antialias', [False, True], ids=['plain', 'antialias'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
def test_channels_last(device, dtype, antialias):
    values, gradient, _ = check_warp(
        device, '2 x 3', (21, 26), (9, 7), dtype, layout=lambda x: x.contiguous(memory_format=torch.channels_last),
        **sampling_of(antialias=antialias))
    assert values.is_contiguous(memory_format=torch.channels_last) and gradient.shape == (2, 3, 21, 26)


@pytest.mark.parametrize('layout', [
    lambda x: x.transpose(2, 3), lambda x: x[:, :, ::2, 1::2], lambda x: x[:, :1].expand(-1, 3, -1, -1),
    lambda x: x.flip(3).movedim(3, 1)[:, 2:5].movedim(1, 3),
], ids=['transposed', 'strided', 'expanded', 'permuted'])
def test_not_contiguous(device, layout):
    image, theta = smooth(2, 3, 25, 28), theta_of('2 x 3')
    found = evaluate(lambda x, t: warp(layout(x), t, size=(9, 11)), image.to(device), theta.to(device))
    expected = evaluate(lambda x, t: by_torch(layout(x), t, '2 x 3', (9, 11)), image.double(), theta.double())
    check(found, expected, (3e-5, 1e-4, 3e-4))


@pytest.mark.parametrize('n', [1, 3])
def test_one_theta_for_all_images(device, n):
    image, theta = smooth(n, 2, 25, 28), theta_of('2 x 3', 1)
    found = evaluate(lambda x, t: warp(x, t, size=(9, 11)), image.to(device), theta.to(device))
    expected = evaluate(lambda x, t: by_torch(x, t, '2 x 3', (9, 11)), image.double(), theta.double())
    check(found, expected, (3e-5, 1e-4, 3e-4))


@pytest.mark.parametrize('mode,antialias', [('bilinear', False), ('bicubic', True), ('nearest', False)])
@pytest.mark.parametrize('family', ['2 x 3', 'projective', 'tps', 'diffeomorphic'])
def test_empty_batch(device, family, mode, antialias):
    image = torch.zeros(0, 3, 12, 10, device=device, requires_grad=True)
    theta = theta_of(family, 0).to(device).requires_grad_()
    values = of_family(image, theta, family, (5, 6), mode, 'border', None, antialias)
    values.sum().backward()
    assert values.shape == (0, 3, 5, 6) and image.grad.shape == image.shape and theta.grad.shape == theta.shape


@pytest.mark.parametrize('size,out', [((1, 1), (4, 3)), ((5, 1), (1, 1)), ((33, 70), (64, 20))])
def test_small_and_odd_sizes(device, size, out):
    check_warp(device, '2 x 3', size, out, channels=1, **sampling_of(padding_mode='zeros'))


@pytest.mark.parametrize('family', ['2 x 3', 'projective', 'tps', 'diffeomorphic'])
def test_unwarp_and_map_points(device, family):
    image, theta, points = smooth(2, 3, 30, 25), theta_of(family) * 0.5, randn(2, 7, 2, seed=3).clamp(-0.9, 0.9)
    if family == '2 x 3':
        theta = theta + 0.5 * torch.eye(2, 3)
    name = 'affine' if ' x ' in family else family
    found = (unwarp(image.to(device), theta.to(device), (28, 33), name, padding_mode='border'),
             map_points(theta.to(device), points.to(device), name))
    expected = (unwarp(image.double(), theta.double(), (28, 33), name, padding_mode='border'),
                map_points(theta.double(), points.double(), name))
    check(found, expected, (1e-4, 1e-5), ('unwarped', 'points'))


# what is not finite


@pytest.mark.parametrize('value', [math.nan, math.inf, 1e30])
@pytest.mark.parametrize('family', ['2 x 3', '3 x 3', 'similarity', 'projective', 'tps', 'diffeomorphic'])
def test_a_broken_theta_is_the_identity(device, family, value):
    image = torch.rand(2, 3, 11, 12, generator=torch.Generator().manual_seed(0)).to(device).requires_grad_()
    theta = theta_of(family).to(device)
    theta[1].view(-1)[-1] = value
    theta.requires_grad_()
    values = of_family(image, theta, family, (11, 12))
    values.square().sum().backward()
    check([values[1]], [image[1]], [1e-4], ['sample 1'])
    assert not theta.grad[1].any() and theta.grad[0].any(), theta.grad
    assert theta.grad.isfinite().all() and image.grad.isfinite().all()


@pytest.mark.parametrize('padding_mode', PADDING_MODES)
@pytest.mark.parametrize('mode', ['bilinear', 'bicubic', 'nearest', 'antialias', 'trilinear'])
def test_non_finite_coordinates(device, mode, padding_mode):
    """As on the CPU: nothing that is not finite comes out, and such a coordinate's gradient is exactly zero."""
    ndim = 3 if mode == 'trilinear' else 2
    antialias, mode = mode == 'antialias', mode if mode in ('bicubic', 'nearest') else 'bilinear'
    sampling = sampling_of(mode, padding_mode, antialias)
    image, grid = smooth(2, 3, *[9] * ndim), 0.6 * randn(2, *[6] * ndim, ndim, seed=2)
    bad = randn(*grid.shape, seed=3) > 0.6
    values = torch.tensor([math.nan, math.inf, -math.inf, 3e38, -3e38])
    grid[bad] = values[torch.arange(int(bad.sum())) % len(values)]
    found = evaluate(lambda x, g: sample(x, g, **sampling), image.to(device), grid.to(device))
    expected = evaluate(lambda x, g: sample(x, g, **sampling), image, grid)
    for name, tensor in zip(WHAT, found):
        assert tensor.isfinite().all(), name
    assert not found[2].cpu()[bad].any(), found[2].cpu()[bad]
    check(found, expected, (1e-4, 1e-4, 1e-3))


@pytest.mark.parametrize('theta', [
    [[1e6, 1e6, 1e6]] * 2, [[0, 0, 0]] * 2, [[1, 0, 0], [0, 1, 0], [1, 0, 0]],
    [[1e6, 1e6, 1e6], [-1e6, 0, 1e6], [0, 0, 0]],
])
@pytest.mark.parametrize('antialias', [False, True], ids=['plain', 'antialias'])
def test_extreme_matrices(device, theta, antialias):
    theta = torch.tensor([theta], dtype=torch.float32)
    for padding_mode in ('border', 'zeros', 'reflection'):
        found = evaluate(lambda x, t, p=padding_mode: warp(x, t, padding_mode=p, antialias=antialias),
                         smooth(1, 2, 60, 50).to(device), theta.to(device))
        assert found[0].isfinite().all() and found[1].isfinite().all(), padding_mode


@pytest.mark.parametrize('transform', ['affine', 'projective', 'tps'])
def test_a_bad_image_is_seen_untransformed(device, transform):
    torch.manual_seed(0)
    stn = SpatialTransformer(2, (24, 20), transform, glimpses=2, scale=0.5).to(device)
    nn.init.normal_(stn.localization.regression.weight, std=0.05)
    x = smooth(3, 2, 24, 20).to(device)
    fine = stn.look(x)[1]
    x[1, 0, 3, 4] = math.nan
    seen, theta = stn.look(x)
    untouched = stn.look(x, lambda x: torch.zeros(3, 2 * stn.transform.num_params, device=device))[1]
    assert theta.isfinite().all() and seen[[0, 2]].isfinite().all()
    check([theta[1], theta[[0, 2]]], [untouched[1], fine[[0, 2]]], [1e-6, 1e-4], ['the bad one', 'the others'])


# torch.func and torch.compile


@pytest.mark.parametrize('family', ['2 x 3', 'projective', 'tps', 'diffeomorphic'])
def test_func_of_warp(device, family):
    """Per-sample gradients by vmap and grad are those of a batch."""
    image, theta = smooth(3, 2, 14, 12).to(device), theta_of(family, 3).to(device)

    def loss(image, theta):
        return of_family(image[None], theta[None], family, (9, 8)).square().sum()

    found = torch.vmap(torch.func.grad(loss, (0, 1)))(image, theta)
    x, t = image.clone().requires_grad_(), theta.clone().requires_grad_()
    expected = torch.autograd.grad(of_family(x, t, family, (9, 8)).square().sum(), (x, t))
    check(found, expected, (1e-5, 1e-4), WHAT[1:])


def torch_has_gradients_of_grids(device):
    """Within vmap, of images that need none: torch 2.11 has not."""
    def loss(grid, image):
        return F.grid_sample(image, grid, align_corners=False).sum()

    image, grid = randn(2, 1, 1, 4, 4).to(device), randn(2, 1, 4, 4, 2).to(device)
    try:
        torch.vmap(torch.func.grad(loss))(grid, image)
    except RuntimeError:
        return False
    return True


def test_func_of_a_network(device):
    model = move(create('stages')).to(device).double().eval()  # with float32 one sample beside a kink tells
    weights = {k: v.detach() for k, v in model.named_parameters()}
    x, labels = images('stages', 3).to(device).double(), torch.arange(3, device=device)

    def loss(weights, image, label):
        return F.cross_entropy(torch.func.functional_call(model, weights, (image[None],)), label[None])

    if not torch_has_gradients_of_grids(device):
        pytest.xfail(f'torch {torch.__version__} itself fails')
    found = torch.vmap(torch.func.grad(loss), (None, 0, 0))(weights, x, labels)
    for i in range(3):
        expected = torch.autograd.grad(
            F.cross_entropy(model(x[i:i + 1]), labels[i:i + 1]), list(model.parameters()), allow_unused=True)
        check_gradients({k: g[i] for k, g in found.items()}, dict(zip(weights, expected)), 1e-6)


def test_compiled_warp(device):
    image, theta = smooth(2, 3, 40, 36).to(device), theta_of('2 x 3').to(device)

    def function(image, theta):
        return warp(image, theta, size=(15, 16)) + warp(
            image, theta.flatten(1) * 0.3, 'affine', (15, 16), 'bicubic', 'fill', 0.5)

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend='inductor' if CUDA else 'aot_eager')
    check(evaluate(compiled, image, theta), evaluate(function, image, theta), (1e-5, 1e-4, 3e-4))


# networks

NETWORKS = {
    'digits': ('stn_mnist_cnn', dict(in_chans=1, img_size=42, stn_size=28)),
    'stages': ('stn_test_resnet', dict(stn_stages=('input', 1), stn_transform='similarity', stn_antialias=True)),
    'glimpses': ('stn_test_efficientnet', dict(
        stn_glimpses=2, stn_scale=0.5, stn_transform='translation', stn_penalty=1.0)),
    'vit': ('stn_test_vit', dict(
        img_size=96, stn_stages=('input', 1), stn_transform='tps', stn_padding_mode='fill', stn_fill=0.5)),
    'shared': ('stn_test_convnext', dict(
        stn_localization='shared:1', stn_transform='attention', stn_iterations=2, stn_freeze_steps=1)),
}
SIDES = dict(digits=42, stages=64, glimpses=96, vit=96, shared=64)
PLAIN = ('test_byobnet', 'test_coatnet', 'test_convnext', 'test_efficientnet', 'test_maxvit', 'test_mambaout',
         'test_nfnet', 'test_resnet', 'test_vit', 'test_vit2')
FIXED = ('test_vit', 'test_vit2', 'test_coatnet', 'test_maxvit')  # in their image size


def create(case):
    """A network for ten classes on the CPU, always the same."""
    name, kwargs = NETWORKS[case]
    torch.manual_seed(0)
    size = dict(pretrained_cfg_overlay=dict(input_size=(3, SIDES[case], SIDES[case]))) if case != 'digits' else {}
    return timm.create_model(name, num_classes=10, **kwargs, **size)


def images(case, n=4, seed=1):
    channels = NETWORKS[case][1].get('in_chans', 3)
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, channels, SIDES[case], SIDES[case], generator=generator)


def move(model):
    """Give every transformer something else than the identity to do, by what it sees."""
    for i, (name, p) in enumerate(model.named_parameters()):
        if 'regression' in name:
            p.data = (0.02 if p.ndim > 1 else 0.005) * randn(*p.shape, seed=i).to(p)
    return model


def backward(model, x, net=None):
    """Logits and the gradients of all parameters in training, of which the model keeps none."""
    model.train().zero_grad(set_to_none=True)
    logits = model(x) if net is None else net(x)
    logits.backward(randn(*logits.shape, seed=4).to(logits))
    gradients = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return logits.detach(), gradients


def check_gradients(found, expected, tolerance):
    """The distance of each tensor's gradient, in parts of its length; what is next to nothing may be noise."""
    most = max(float(g.norm()) for g in expected.values() if g is not None)
    errors = {}
    for name, g in expected.items():
        assert (g is None) <= (found[name] is None or not found[name].any()), f'{name}: a gradient where there is none'
        if g is not None:
            assert found[name] is not None, f'{name}: no gradient'
            distance = float((found[name].double().cpu() - g.double().cpu()).norm())
            errors[name] = distance / (float(g.norm()) + 1e-3 * most)
    wrong = {name: f'{e:.1e}' for name, e in errors.items() if not e <= tolerance}
    assert not wrong, f'gradients off by more than {tolerance:.0e}: {wrong}'


def check_buffers(found, expected, tolerance=1e-4, of=''):
    expected = dict(expected.named_buffers())
    for name, buffer in [(name, buffer) for name, buffer in found.named_buffers() if of in name]:
        error = float((buffer.double().cpu() - expected[name].double().cpu()).abs().max())
        allowed = tolerance * max(1.0, float(expected[name].abs().max()))
        assert error <= allowed, f'{name}: off by {error:.1e}, at most {allowed:.0e}'


@pytest.mark.parametrize('dtype', [
    pytest.param(torch.float32, id='float32'),
    pytest.param(torch.float64, id='float64', marks=[] if CUDA else pytest.mark.skip('is its own reference on a CPU')),
])
@pytest.mark.parametrize('case', NETWORKS)
def test_a_training_pass_is_that_of_float64_on_the_cpu(device, case, dtype):
    """With float32 a few samples lie on the other side of a kink: gradients are loose there, exact in float64."""
    model = move(create(case))
    exact, x = copy.deepcopy(model).double(), images(case)
    model.to(device).to(dtype)
    logits, gradients = backward(model, x.to(device).to(dtype))
    expected, exact_gradients = backward(exact, x.double())
    single = dtype == torch.float32
    check([logits], [expected], [1e-3 if single else 1e-6], ['logits'])
    check_gradients(gradients, exact_gradients, 0.1 if single else 1e-4)
    check_buffers(model, exact, 1e-3 if single else 1e-5)
    moves = any(g is not None and bool(g.any()) for k, g in gradients.items() if 'regression' in k)
    assert moves == ('stn_freeze_steps' not in NETWORKS[case][1])


@pytest.mark.parametrize('arch', [arch for arch in PLAIN if timm.is_model(arch)])  # older versions of timm lack some
def test_untouched_transformers_leave_logits_as_they_are(device, arch):
    """As contract.py: to 1e-4 of the logits' range, in float64 where float32 itself is not that exact."""
    sized = dict(img_size=160) if arch in FIXED else dict(pretrained_cfg_overlay=dict(input_size=(3, 64, 64)))
    side = 160 if arch in FIXED else 64
    torch.manual_seed(0)
    plain = timm.create_model(arch, num_classes=20, **sized).to(device).eval()
    twin = timm.create_model('stn_' + arch, num_classes=20, stn_stages=('input', 1), **sized).to(device).eval()
    twin.load_state_dict(plain.state_dict())
    x = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1)).to(device)
    with torch.no_grad():
        expected = plain(x)
        span = float(expected.max() - expected.min())
        error = float((twin(x) - expected).abs().max()) / span
        if not error <= 1e-4:
            exact = float((twin.double()(x.double()) - plain.double()(x.double())).abs().max()) / span
            assert exact <= 1e-4, f'{error:.1e} of the range in float32, {exact:.1e} in float64'
            twin.float()
        for transformer in twin.spatial_transformers().values():
            transformer.localization.regression.bias.fill_(0.02)
        moved = float((twin(x) - expected).abs().max()) / span
    assert span > 0 and moved > 1e-3, f'logits hardly tell of the image: {moved:.1e} of their range, {span:.1e}'


@pytest.mark.parametrize('case', ['stages', 'vit'])
@pytest.mark.parametrize('way', ['channels_last', 'checkpointing'])
def test_other_ways_to_the_same_step(device, way, case):
    model, x = move(create(case)).to(device), images(case).to(device)
    other, seen = copy.deepcopy(model), x
    if way == 'channels_last':
        other, seen = other.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    else:
        other.set_grad_checkpointing()
    expected, expected_gradients = backward(model, x)
    logits, gradients = backward(other, seen)
    check([logits], [expected], [1e-3], ['logits'])
    check_gradients(gradients, expected_gradients, 0.1 if way == 'channels_last' else 1e-2)
    check_buffers(other, model, 1e-3, of='stn')  # batch norms take in what is computed twice twice, as in timm


def test_a_compiled_training_pass(device):
    model, x = move(create('digits')).to(device), images('digits', 16).to(device)
    other = copy.deepcopy(model)
    torch._dynamo.reset()
    compiled = torch.compile(other, fullgraph=True, backend='inductor' if CUDA else 'aot_eager')
    expected, expected_gradients = backward(model, x)
    logits, gradients = backward(other, x, net=compiled)
    check([logits], [expected], [1e-4], ['logits'])
    check_gradients(gradients, expected_gradients, 0.05)
    check_buffers(other, model)


# training


def train(model, optimizer, x, labels, amp=None, scaler=None):
    """A step; the loss as a tensor."""
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(x.device.type, amp, enabled=amp is not None):
        loss = F.cross_entropy(model(x), labels)
    if scaler is None:
        loss.backward()
        optimizer.step()
    else:
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    return loss.detach()


@pytest.mark.parametrize('case', ['digits', 'glimpses', 'vit'])
@pytest.mark.parametrize('amp', [torch.bfloat16, torch.float16], ids=str)
def test_training_under_autocast(device, amp, case):
    """Theta is nearly that of float32, everything is trained, and nothing becomes infinite."""
    if amp == torch.float16 and case != 'digits' and not CUDA:
        pytest.skip('float16 is slow on a CPU')
    model, x, labels = move(create(case)).to(device), images(case).to(device), torch.arange(4, device=device)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        model.eval()(x)
        exact = model.stn.last_theta
        with torch.autocast(device, amp):
            model(x)
    model.train()
    assert model.stn.last_theta.dtype == torch.float32
    check([model.stn.last_theta], [exact], [0.02], ['theta'])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler(device, init_scale=2.0 ** 8) if amp == torch.float16 else None
    losses = [float(train(model, optimizer, x, labels, amp, scaler)) for _ in range(3)]
    assert all(map(math.isfinite, losses)), losses
    still = [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
    broken = [name for name, p in model.named_parameters() if not p.isfinite().all()]
    assert not broken and not still, f'not finite: {broken}; did not move: {still}'


@pytest.mark.parametrize('fused', [False, True])
def test_a_step_moves_weights_as_on_the_cpu(device, fused):
    """Bounded steps, of SGD, whose update is the gradient: five of them on either device."""
    start = create('digits').train()
    here, there = copy.deepcopy(start).double(), copy.deepcopy(start).to(device)
    for model, kwargs in ((here, {}), (there, dict(fused=fused))):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, **kwargs)
        probe = next(model.parameters())
        for i in range(5):
            train(model, optimizer, images('digits', 16, seed=i).to(probe), torch.arange(16).to(probe.device) % 10)
    check_moves(there, here, start, 0.02)


def check_moves(found, expected, start, tolerance):
    """How far weights are from where they should be, in parts of how far they should have moved."""
    start, expected = (dict(m.named_parameters()) for m in (start, expected))
    errors, moves = {}, {}
    for name, p in found.named_parameters():
        a, b, s = (t.detach().double().cpu() for t in (p, expected[name], start[name]))
        moves[name] = float((b - s).norm())
        errors[name] = float((a - b).norm()) / (moves[name] + 1e-5 * float(s.norm()) + 1e-6)
    wrong = {name: f'{e:.1e} of {moves[name]:.1e}' for name, e in errors.items() if not e <= tolerance}
    assert max(moves.values()) > 0 and not wrong, f'off by more than {tolerance:.0e} of the way: {wrong}'


@pytest.mark.parametrize('where', ['the model', 'the CPU'])
def test_ema(device, where):
    model = create('glimpses').to(device).train()
    ema = ModelEmaV3(model, decay=0.75, device=None if where == 'the model' else 'cpu')
    start = {k: v.detach().clone() for k, v in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    x, labels = images('glimpses').to(device), torch.arange(4, device=device)
    train(model, optimizer, x, labels)
    ema.update(model)
    place = device if where == 'the model' else 'cpu'
    now, averaged = model.state_dict(), ema.module.state_dict()
    assert averaged.keys() == now.keys()
    for key, value in averaged.items():
        assert value.device.type == place, key
        expected = torch.lerp(start[key], now[key], 0.25) if value.is_floating_point() else now[key]
        error = float((value.cpu() - expected.cpu()).abs().max())
        assert error <= 1e-5, f'{key}: {error:.1e}'
    assert ema.module(x.to(place)).isfinite().all()


# places


def tensors_of(model):
    kept = {f'{name}.{key}': getattr(module, key) for name, module in model.named_modules()
            for key in ('last_theta', 'last_features') if isinstance(getattr(module, key, None), torch.Tensor)}
    return {**dict(model.named_parameters()), **dict(model.named_buffers()), **kept}


@pytest.mark.parametrize('case', ['stages', 'glimpses'])
def test_statistics_are_where_the_model_is(device, case):
    model = create(case).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    train(model, optimizer, images(case).to(device), torch.arange(4, device=device))
    elsewhere = {name: str(t.device) for name, t in tensors_of(model).items() if t.device.type != device}
    assert not elsewhere
    statistics = {k: b for k, b in model.named_buffers() if '.standardize.' in k}
    assert statistics and all(b.any() for b in statistics.values()), statistics
    for name, buffer in model.bfloat16().named_buffers():
        kept = '.standardize.running' in name or name.endswith('.base')
        assert not kept or buffer.dtype == torch.float32, f'{name}: {buffer.dtype}'


@pytest.mark.parametrize('case', ['digits', 'glimpses'])
def test_state_dict_to_the_cpu_and_back(device, case):
    model, x, labels = create(case).to(device).train(), images(case), torch.arange(4, device=device)
    train(model, torch.optim.AdamW(model.parameters(), lr=1e-3), x.to(device), labels)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    there = move(create(case)).eval()
    there.load_state_dict(torch.load(file, map_location='cpu', weights_only=True))
    different = [k for k, v in there.state_dict().items() if not torch.equal(v, model.state_dict()[k].cpu())]
    assert not different
    back = move(create(case)).to(device).eval()
    back.load_state_dict(there.state_dict())
    with torch.no_grad():
        logits = model.eval()(x.to(device))
        check([there(x), back(x.to(device))], [logits, logits], [1e-3, 1e-5], ['on the CPU', 'back'])


@needs_cuda
def test_training_goes_on_after_a_move():
    """From the GPU to the CPU and back, with the optimizer's state; what steps remember comes along."""
    model = create('digits').train()
    x, labels, moves = images('digits', 16), torch.arange(16) % 10, []
    state = None
    for place in ('cuda', 'cpu', 'cuda'):
        model.to(place)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        if state:
            optimizer.load_state_dict(state)
        before = model.stn.localization.regression.bias.detach().clone()
        for _ in range(2):
            train(model, optimizer, x.to(place), labels.to(place))
        state = optimizer.state_dict()
        moves.append(float((model.stn.localization.regression.bias.detach() - before).norm()))
        assert all(p.isfinite().all() for p in model.parameters())
    assert all(0 < move < 0.01 for move in moves), moves


# what only a GPU has


@needs_cuda
def test_a_captured_training_step_is_the_eager_one():
    """Forward, loss, backward and step as one CUDA graph, replayed with other digits, and the same steps eagerly."""
    batches = [(images('digits', 16, seed=i).cuda(), (torch.arange(16) * (i + 1) % 10).cuda()) for i in range(12)]
    start = create('digits').cuda().train()
    eager, captured = copy.deepcopy(start), copy.deepcopy(start)
    optimizer = torch.optim.AdamW(eager.parameters(), lr=1e-3, eps=1e-6, capturable=True)
    expected = [float(train(eager, optimizer, x, labels)) for x, labels in batches]

    optimizer = torch.optim.AdamW(captured.parameters(), lr=1e-3, eps=1e-6, capturable=True)
    x, labels = (t.clone() for t in batches[0])
    losses = []
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for new_x, new_labels in batches[:3]:
            x.copy_(new_x)
            labels.copy_(new_labels)
            losses.append(train(captured, optimizer, x, labels))
    torch.cuda.current_stream().wait_stream(side)
    optimizer.zero_grad(set_to_none=True)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = F.cross_entropy(captured(x), labels)
        loss.backward()
        optimizer.step()
    for new_x, new_labels in batches[3:]:
        x.copy_(new_x)
        labels.copy_(new_labels)
        graph.replay()
        losses.append(loss.detach().clone())
    torch.cuda.synchronize()
    check([torch.stack(losses)], [torch.tensor(expected)], [1e-3], ['losses'])
    check_moves(captured, eager, start, 0.05)
    check_buffers(captured, eager, 1e-3)
    assert captured.stn.localization.standardize.num_batches_tracked == len(batches)


def from_the_host(**kwargs):
    """Not without waiting: constants, or whether there is anything to do, pass between the host and the device."""
    return pytest.param(kwargs, id=next(f'{k}={v}' for k, v in kwargs.items()), marks=pytest.mark.xfail(
        strict=True, raises=RuntimeError, reason='copies constants to the device, or numbers from it'))


@needs_cuda
@pytest.mark.parametrize('opt', [torch.optim.AdamW, torch.optim.SGD])
@pytest.mark.parametrize('kwargs', [
    *(pytest.param(dict(stn_transform=t), id=t) for t in ('affine', 'projective', 'tps', 'diffeomorphic', 'zoom')),
    dict(stn_glimpses=2, stn_scale=0.5, stn_transform='translation', stn_localization='conv'),
    dict(stn_scale=[0.3, 0.9], stn_localization='saliency:0', stn_iterations=2),
    dict(stn_transform='zoom', stn_localization='saliency:0'),
    from_the_host(stn_antialias=True),
])
def test_a_training_step_does_not_wait_for_the_device(kwargs, opt):
    torch.manual_seed(0)
    model = timm.create_model('stn_mnist_cnn', in_chans=1, img_size=42, stn_size=28, num_classes=10, **kwargs)
    model = model.cuda().train()
    optimizer = opt(model.parameters(), lr=1e-3)
    x, labels = images('digits', 16).cuda(), (torch.arange(16) % 10).cuda()
    for _ in range(2):
        train(model, optimizer, x, labels)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode('error')
    try:
        loss = train(model, optimizer, x, labels)
    finally:
        torch.cuda.set_sync_debug_mode('default')
    assert loss.isfinite()


@pytest.mark.parametrize('wanted', ['image', 'theta'])
def test_deterministic_algorithms(device, wanted):
    if CUDA and why_not(torch.device('cuda', torch.cuda.current_device())):
        pytest.xfail("torch's CUDA grid_sampler has no such backward")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        runs = []
        for _ in range(2):
            image, theta = smooth(2, 3, 40, 36).to(device), theta_of('2 x 3').to(device)
            leaf = (image if wanted == 'image' else theta).requires_grad_()
            runs.append(torch.autograd.grad(warp(image, theta).square().sum(), leaf)[0])
    finally:
        torch.use_deterministic_algorithms(before)
    assert torch.equal(*runs), float((runs[0] - runs[1]).abs().max())


@pytest.mark.parametrize('kwargs', [dict(), dict(stn_stages=('input', 1), stn_glimpses=2, stn_scale=0.5)], ids=str)
def test_a_diagnosis_is_that_of_the_cpu(device, kwargs):
    torch.manual_seed(0)
    model = timm.create_model('stn_test_resnet', img_size=64, num_classes=3, **kwargs).eval()
    for name, p in model.named_parameters():
        if 'regression' in name:
            p.data = 0.1 * randn(*p.shape)
    data = [(smooth(6, 3, 64, 64) * randn(6, 1, 1, 1), torch.tensor([0, 1, 2, 0, 1, -1]))]
    expected = [finding.json for finding in diagnose(model, data).findings]
    found = [finding.json for finding in diagnose(model.to(device), data).findings]
    for one, other in zip(found, expected, strict=True):
        for name in ('images', 'scale', 'center_x', 'between', 'moved', 'outside', 'gradient'):
            assert one[name] == pytest.approx(other[name], rel=1e-2, abs=1e-3), name


@pytest.fixture
def much_memory():
    """50 GiB, or the test is skipped; given back in the end."""
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    if free < 50 * GIB:
        pytest.skip(f'needs 50 GiB of free device memory, has {free / GIB:.0f}')
    yield
    torch.cuda.empty_cache()


LARGE = {'image': ((33, 1, 8192, 8192), (64, 64)), 'output': ((3, 64, 64, 64), (3584, 3584))}


def large(shape):
    """Noise that grows from left to right and from image to image: wherever it is read from tells."""
    torch.manual_seed(0)
    image = torch.rand(shape, dtype=torch.float16, device='cuda')
    image *= torch.linspace(0.2, 1, shape[3], dtype=torch.float16, device='cuda')
    image *= torch.linspace(0.5, 1, shape[0], dtype=torch.float16, device='cuda').view(-1, 1, 1, 1)
    return image


@needs_cuda
@pytest.mark.parametrize('mode,antialias', [('bilinear', False), ('bilinear', True), ('nearest', False)])
@pytest.mark.parametrize('which', LARGE)
def test_more_than_2_to_the_31_elements(much_memory, which, mode, antialias):
    """A few images of many are seen as they are alone."""
    shape, size = LARGE[which]
    assert max(math.prod(shape), math.prod((*shape[:2], *size))) > 2 ** 31
    image, theta = large(shape), theta_of('2 x 3', shape[0]).cuda()
    with torch.no_grad():
        values = warp(image, theta, size=size, mode=mode, antialias=antialias)
        for i in (0, shape[0] // 2, shape[0] - 1):
            alone = warp(image[i:i + 1], theta[i:i + 1], size=size, mode=mode, antialias=antialias)[0]
            difference = float((values[i] - alone).abs().max())
            assert difference <= 2e-3 and alone.std() > 0.01, f'image {i}: off by {difference:.1e}'


@needs_cuda
@pytest.mark.parametrize('which', LARGE)
def test_gradients_of_more_than_2_to_the_31_elements(much_memory, which):
    shape, size = LARGE[which]
    image, theta = large(shape).requires_grad_(), theta_of('2 x 3', shape[0]).cuda().requires_grad_()
    upstream = torch.rand((*shape[:2], *size), dtype=torch.float16, device='cuda')
    found = torch.autograd.grad(warp(image, theta, size=size), (image, theta), upstream)
    for i in (0, shape[0] - 1):
        x, t = (leaf[i:i + 1].detach().requires_grad_() for leaf in (image, theta))
        expected = torch.autograd.grad(warp(x, t, size=size), (x, t), upstream[i:i + 1])
        for name, tolerance, a, b in zip(WHAT[1:], (2e-3, 2e-2), found, expected):
            off, largest = float((a[i] - b[0]).abs().max()), float(b.abs().max())
            assert off <= tolerance * largest and largest > 0, f'image {i}, {name}: {off:.1e} of {largest:.1e}'
