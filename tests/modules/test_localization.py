"""Localization networks: the paper's layers, sizes, anti-aliasing, and a regression all optimisers move alike."""
import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import nn

from timm_stn.geometry.shrink import _shrink_by_matrices, shrink
from timm_stn.modules.localization import Localization, localization_names
from timm_stn.modules.moments import Moments
from timm_stn.modules.regression import ThetaRegression

OPTIMIZERS = {
    'sgd': {'momentum': 0.9},
    'adamw': {},
    'lion': {},
    'lamb': {},
    'muon': {},
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=generator(seed), dtype=dtype)


def regression(lr_scale=1.0, features=32, params=3, dtype=None, seed=0):
    """One whose parameters theta are not those of the start."""
    layer = ThetaRegression(features, params, lr_scale, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(randn(params, features, seed=seed))
        layer.bias.copy_(randn(params, seed=seed + 1))
    return layer


def train(layer, opt, steps=4, lr=1e-2, features=None):
    """Steps on a loss that is linear in theta, so that its gradient is the same wherever theta is."""
    features = randn(4, layer.in_features, seed=7) if features is None else features
    slope = torch.arange(1.0, layer.out_features + 1) / layer.out_features
    optimizer = create_optimizer_v2(layer, opt, lr=lr, weight_decay=0.0, **OPTIMIZERS[opt])
    for _ in range(steps):
        optimizer.zero_grad()
        (layer(features) * slope).sum(1).mean().backward()
        optimizer.step()
    return layer(features).detach()


class TestThetaRegression:
    def test_starts_at_zero(self):
        assert torch.equal(ThetaRegression(5, 3)(randn(2, 5)), torch.zeros(2, 3))

    def test_is_the_mean_form(self):
        layer, x = regression(0.3), randn(4, 32, seed=3)
        weight, bias = layer.weight.detach().double(), layer.bias.detach().double()
        expected = 0.3 * (x.double() @ weight.T / 32 + bias)
        torch.testing.assert_close(layer(x).double(), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(layer.effective_weight().double(), 0.3 * weight / 32, rtol=1e-6, atol=0)

    @pytest.mark.parametrize('lr_scale', [1e-4, 1e-6, 1e-9])
    def test_small_scales_lose_no_precision(self, lr_scale):
        layer, x = regression(lr_scale, features=2048), randn(4, 2048, seed=3)
        weight, bias = layer.weight.detach().double(), layer.bias.detach().double()
        expected = lr_scale * (x.double() @ weight.T / 2048 + bias)
        torch.testing.assert_close(layer(x).double(), expected, rtol=1e-4, atol=1e-5 * lr_scale)

    @pytest.mark.parametrize('lr_scale', [1.0, 0.1, 1e-4])
    def test_gradient_is_that_of_a_plain_layer(self, lr_scale):
        layer, x, slope = regression(lr_scale), randn(4, 32, seed=3), randn(4, 3, seed=4)
        (layer(x) * slope).sum().backward()
        torch.testing.assert_close(layer.weight.grad, slope.T @ x)
        torch.testing.assert_close(layer.bias.grad, slope.sum(0))

    @pytest.mark.parametrize('lr_scale', [10.0, 0.1, 1e-4])
    @pytest.mark.parametrize('opt', OPTIMIZERS)
    def test_theta_moves_in_proportion_under_any_optimizer(self, opt, lr_scale):
        plain = train(ThetaRegression(32, 3), opt)
        assert plain.abs().min() > 1e-5
        torch.testing.assert_close(train(ThetaRegression(32, 3, lr_scale), opt), lr_scale * plain, rtol=1e-4, atol=0)

    @pytest.mark.parametrize('opt', ['sgd', 'adamw'])
    def test_a_step_does_not_depend_on_the_width(self, opt):
        moved = [train(ThetaRegression(n, 3), opt, steps=1, features=torch.ones(2, n)) for n in (8, 256, 4096)]
        assert moved[0].abs().min() > 1e-4
        torch.testing.assert_close(moved[1], moved[0], rtol=1e-3, atol=0)
        torch.testing.assert_close(moved[2], moved[0], rtol=1e-3, atol=0)

    @pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
    @pytest.mark.parametrize('new', [1.0, 0.1, 1 / 3, 1e-7])
    def test_lr_scale_may_change_when_loading(self, new, dtype):
        old, x = regression(0.25, dtype=dtype), randn(4, 32, seed=3, dtype=dtype)
        state = old.state_dict()
        before = copy.deepcopy(state)
        layer = ThetaRegression(32, 3, new, dtype=dtype)
        layer.load_state_dict(state)
        tolerance = 1e-12 if dtype == torch.float64 else 1e-5
        torch.testing.assert_close(layer(x), old(x), rtol=tolerance, atol=tolerance)
        assert layer.lr_scale_nano == round(new * 1e9)
        assert all(torch.equal(before[k], state[k]) for k in before), 'the caller\'s state dict is not touched'
        back = ThetaRegression(32, 3, 0.25, dtype=dtype)
        back.load_state_dict(layer.state_dict())
        torch.testing.assert_close(back.weight, old.weight, rtol=tolerance, atol=tolerance)

    def test_same_lr_scale_loads_bit_equal(self):
        old = regression(1e-4)
        layer = ThetaRegression(32, 3, 1e-4)
        layer.load_state_dict(old.state_dict())
        assert torch.equal(layer.weight, old.weight) and torch.equal(layer.bias, old.bias)

    @pytest.mark.parametrize('cast', [nn.Module.bfloat16, nn.Module.half])
    def test_lr_scale_survives_half_precision(self, cast):
        old, x = cast(regression(0.123456789)), randn(4, 32, seed=3)
        assert old.lr_scale_nano == 123456789
        layer = ThetaRegression(32, 3, 0.7)
        layer.load_state_dict(old.state_dict())
        torch.testing.assert_close(layer(x), old(x), rtol=1e-5, atol=1e-6)

    def test_a_bfloat16_model_loads_to_its_own_precision(self):
        old, x = regression(0.5), randn(4, 32, seed=3)
        layer = ThetaRegression(32, 3, 0.3).bfloat16()
        layer.load_state_dict(old.state_dict())
        assert layer.weight.dtype == torch.bfloat16
        torch.testing.assert_close(layer(x), old(x), rtol=0.02, atol=0.02)

    def test_ema_follows(self):
        layer, x = ThetaRegression(32, 3, 0.2), randn(4, 32, seed=3)
        ema = ModelEmaV3(layer, decay=0.75)
        layer.load_state_dict(regression(1.0).state_dict())
        ema.update(layer)
        torch.testing.assert_close(ema.module(x), 0.25 * layer(x))
        assert ema.module.lr_scale_nano == 200_000_000
        other = ThetaRegression(32, 3, 5.0)
        other.load_state_dict(ema.module.state_dict())
        torch.testing.assert_close(other(x), ema.module(x), rtol=1e-5, atol=1e-6)

    def test_is_float32_in_bfloat16(self):
        layer, x = regression(), randn(4, 32, seed=3)
        exact = layer(x)
        with torch.autocast('cpu', torch.bfloat16):
            assert torch.equal(layer(x), exact)
            assert layer(x.bfloat16()).dtype == torch.float32
        assert layer.bfloat16()(x.bfloat16()).dtype == torch.float32
        assert layer.double()(x.double()).dtype == torch.float64

    @pytest.mark.parametrize('lr_scale', [0, -1.0, 1e-10, float('nan'), float('inf'), 1e10, '1', None])
    def test_wrong_lr_scale(self, lr_scale):
        with pytest.raises(ValueError, match='lr_scale must be a number from 1e-9 to 1e9, got'):
            ThetaRegression(4, 3, lr_scale)

    def test_leaves_the_meta_device(self):
        layer = ThetaRegression(4, 3, 0.5, device='meta').to_empty(device='cpu')
        layer.reset_parameters()
        assert not layer.weight.any() and not layer.bias.any() and layer.lr_scale_nano == 500_000_000


def counts(net):
    return sum(p.numel() for p in net.parameters())


class TestPaper:
    """Appendix A.4; parameters of an affine theta on one channel."""

    @pytest.mark.parametrize(('side', 'expected'), [(28, 11_086), (42, 17_086), (60, 43_086)])
    def test_conv(self, side, expected):
        net = Localization('conv', 1, (side, side), 6)
        convs = [m for m in net.body if isinstance(m, nn.Conv2d)]
        pool, = (m for m in net.body if isinstance(m, nn.MaxPool2d))
        hidden, = (m for m in net.body if isinstance(m, nn.Linear))
        kinds = [type(m).__name__ for m in net.body]
        assert net.size == (side // 2, side // 2)
        assert kinds == ['Conv2d', 'ReLU', 'MaxPool2d', 'Conv2d', 'ReLU', 'Flatten', 'Linear'] and net.standardize.relu
        layers = [(c.kernel_size, c.stride, c.padding, c.out_channels) for c in convs]
        assert layers == [((5, 5), (1, 1), (0, 0), 20)] * 2
        assert (pool.kernel_size, pool.stride, hidden.out_features) == (2, 2, 20)
        assert counts(net) == expected

    @pytest.mark.parametrize(('side', 'expected'), [(28, 27_430), (42, 58_790), (60, 117_542)])
    def test_fc(self, side, expected):
        net = Localization('fc', 1, (side, side), 6)
        assert net.size == (side, side)
        assert [m.out_features for m in net.body if isinstance(m, nn.Linear)] == [32, 32, 32]
        assert sum(isinstance(m, nn.ReLU) for m in net.body) == 2 and net.standardize.relu
        assert counts(net) == expected


SIDES = st.integers(1, 60)


class TestLocalization:
    @settings(max_examples=20, deadline=None)
    @given(kind=st.sampled_from(localization_names()), made=st.tuples(SIDES, SIDES), seen=st.tuples(SIDES, SIDES))
    def test_any_size(self, kind, made, seen):
        net = Localization(kind, 2, made, 6)
        theta = net(randn(3, 2, *seen))
        assert torch.equal(theta, torch.zeros(3, 6)) and theta.dtype == torch.float32
        theta.sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())

    @pytest.mark.parametrize('size', [(1, 1), (9, 60), (64, 48)])
    def test_timm(self, size):
        net = Localization('timm:test_resnet', 2, size, 6)
        assert net.size == size and next(net.body.parameters()).shape[1] == 2
        assert net.eval()(randn(2, 2, *size)).shape == (2, 6)
        assert net.regression.in_features == 3 * net.body[0].net.num_features

    @pytest.mark.parametrize('arch', ['test_resnet', 'test_vit', 'swin_s3_tiny_224'])
    def test_timm_tells_where_things_are(self, arch):
        net = Localization(f'timm:{arch}', 3, (160, 160), 2, size=224 if 'swin' in arch else 160).eval()
        features, grid = net.body[0](randn(1, 3, *net.size)), net.body[0].layout.size
        assert features.shape[2:] == grid and min(grid) > 1
        mean, moments = net.body(randn(1, 3, *net.size)).unflatten(1, (3, -1)).split([1, 2], 1)
        x, y = torch.meshgrid(*[(2 * torch.arange(n) + 1) / n - 1 for n in reversed(grid)], indexing='xy')
        rms = features.square().mean().sqrt()
        torch.testing.assert_close(mean[0, 0], features.mean((2, 3))[0] / rms)
        torch.testing.assert_close(moments[0, 0], (features * y).mean((2, 3))[0] / rms)
        torch.testing.assert_close(moments[0, 1], (features * x).mean((2, 3))[0] / rms)

    @pytest.mark.parametrize(('arch', 'settings'), [('efficientvit_b0', {}), ('test_resnet', dict(global_pool='max'))])
    def test_timm_with_pooled_features(self, arch, settings):
        net = Localization(f'timm:{arch}', 3, (64, 64), 6, **settings).eval()
        assert net(randn(2, 3, 64, 64)).shape == (2, 6)
        assert net.regression.in_features == net.body.head_hidden_size

    def test_timm_of_a_fixed_size(self):
        assert Localization('timm:test_vit', 3, (32, 32), 6).size == (160, 160)
        net = Localization('timm:test_vit', 3, (32, 32), 6, size=(32, 48))
        assert net.eval()(randn(1, 3, 20, 20)).shape == (1, 6)

    def test_timm_probe_leaves_no_trace(self):
        torch.manual_seed(0)
        plain = Localization('timm:test_resnet', 3, (32, 32), 6)
        assert plain.training and all(m.training for m in plain.modules())
        assert all(m.num_batches_tracked == 0 for m in plain.modules() if isinstance(m, nn.BatchNorm2d))

    @pytest.mark.parametrize(('kind', 'made', 'size'), [
        ('conv', (1, 1), (1, 1)),
        ('conv', (10, 20), (10, 14)),
        ('conv', (42, 60), (21, 30)),
        ('conv', (224, 300), (64, 64)),
        ('fc', (7, 60), (7, 60)),
        ('fc', (224, 100), (64, 64)),
        ('linear', (7, 60), (7, 16)),
        ('timm:test_resnet', (40, 224), (40, 160)),
        ('conv', (10, 42, 60), (10, 21, 30)),
    ])
    def test_default_size(self, kind, made, size):
        assert Localization(kind, 1, made, 6).size == size

    @pytest.mark.parametrize('size', [(1, 1, 1), (5, 7, 9), (28, 20, 30)])
    @pytest.mark.parametrize('kind', localization_names())
    def test_volumes(self, kind, size):
        net = Localization(kind, 2, size, 12)
        assert net(randn(2, 2, 6, 11, 8)).shape == (2, 12)
        assert any(isinstance(m, nn.Conv3d) for m in net.modules()) == (kind == 'conv')

    def test_settings(self):
        net = Localization('fc', 1, (8, 8), 6, hidden=5, depth=2, size=4)
        assert [(m.in_features, m.out_features) for m in net.body if isinstance(m, nn.Linear)] == [(16, 5), (5, 5)]
        net = Localization('conv', 1, (28, 28), 6, channels=3, hidden=4)
        assert net.body[0].out_channels == 3 and net.regression.in_features == 4

    @pytest.mark.parametrize('kind', [*localization_names(), 'timm:test_resnet'])
    def test_dtypes(self, kind):
        for dtype in (torch.bfloat16, torch.float64):
            net = Localization(kind, 3, (20, 20), 6, dtype=dtype).eval()
            theta = net(randn(2, 3, 20, 20, dtype=torch.float64).to(dtype))
            assert theta.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        net = Localization(kind, 3, (20, 20), 6)
        with torch.autocast('cpu', torch.bfloat16):
            assert net(randn(2, 3, 20, 20)).dtype == torch.float32

    @pytest.mark.parametrize(('arguments', 'error', 'message'), [
        ({'kind': 'convv'}, ValueError,
         "one of conv, fc, linear, moments, timm:<arch>, .*got 'convv'. Did you mean 'conv'"),
        ({'kind': 3}, ValueError, 'localization must be one of .*got 3'),
        ({'kind': 'timm:resnet9999'}, ValueError, "timm knows no model 'resnet9999'"),
        ({'kind': 'timm:test_resnet', 'input_size': (8, 8, 8)}, ValueError, 'test_resnet.*volumes take one of conv'),
        ({'kind': 'shared:2'}, ValueError, "'shared:2' needs the backbone.*conv, fc, linear"),
        ({'size': 0}, ValueError, 'localization_size must be 2 positive integers, or one, got 0'),
        ({'size': (4, -1)}, ValueError, r'localization_size must be 2 .*got \(4, -1\)'),
        ({'size': (4, 4, 4)}, ValueError, r'localization_size must be 2 .*got \(4, 4, 4\)'),
        ({'size': (4.5, 4)}, ValueError, r'localization_size must be 2 .*got \(4.5, 4\)'),
        ({'size': 4.0}, ValueError, 'localization_size must be 2 .*got 4.0'),
        ({'size': True}, ValueError, 'localization_size must be 2 .*got True'),
        ({'hiden': 3}, TypeError, "'conv' takes channels and hidden, got hiden=3"),
        ({'kind': 'linear', 'hidden': 3}, TypeError, "'linear' takes no settings, got hidden=3"),
        ({'hidden': 0}, ValueError, "hidden of localization 'conv' must be a positive integer, got 0"),
        ({'lr_scale': 0}, ValueError, 'lr_scale must be .*got 0'),
    ])
    def test_wrong_arguments(self, arguments, error, message):
        with pytest.raises(error, match=message):
            Localization(**{'kind': 'conv', 'in_chans': 1, 'input_size': (28, 28), 'num_params': 6, **arguments})


def checkerboard(height, width, cell):
    rows, columns = torch.arange(height)[:, None] // cell, torch.arange(width) // cell
    return ((rows + columns) % 2).float()


class TestShrink:
    @pytest.mark.parametrize('cell', [1, 3])
    @pytest.mark.parametrize('size', [(16, 16), (13, 9), (1, 1), (40, 5), (70, 70)])
    def test_agrees_with_pillow(self, size, cell):
        image = checkerboard(40, 53, cell) + randn(40, 53) / 10
        reference = Image.fromarray(image.numpy()).resize(size[::-1], Image.Resampling.BILINEAR)
        small = shrink(image[None, None], size)[0, 0]
        torch.testing.assert_close(small, torch.tensor(np.array(reference)), rtol=0, atol=1e-5)

    def test_does_not_alias(self):
        assert (shrink(checkerboard(64, 64, 1)[None, None], (16, 16)) - 0.5).abs().max() < 0.02

    def test_same_size_is_untouched(self):
        image = randn(1, 1, 8, 8)
        assert shrink(image, (8, 8)) is image

    def test_volumes_are_pooled_over_boxes(self):
        volume = randn(2, 3, 4, 6, 8)
        expected = volume.reshape(2, 3, 2, 2, 3, 2, 2, 4).mean((3, 5, 7))
        torch.testing.assert_close(shrink(volume, (2, 3, 2)), expected)

    @pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
    def test_dtype(self, dtype):
        image = randn(1, 1, 40, 53, dtype=torch.float64)
        assert shrink(image.to(dtype), (7, 9)).dtype == dtype
        if dtype == torch.float64:
            reference = shrink(image.float(), (7, 9)).double()
            difference = (shrink(image, (7, 9)) - reference).abs().max()
            assert 0 < difference < 1e-6, 'float64 is computed in float64'

    def test_autocast_keeps_precision(self):
        image = randn(1, 1, 40, 53)
        exact = shrink(image, (7, 9))
        with torch.autocast('cpu', torch.bfloat16):
            assert torch.equal(shrink(image, (7, 9)), exact)


@pytest.mark.parametrize('size,out', [
    ((20, 24), (14, 14)), ((10, 9), (14, 30)), ((7, 5), (1, 2)), ((13, 64), (13, 32)),
    ((6, 18, 17), (6, 16, 16)), ((5, 7, 9), (3, 3, 2)), ((3, 4, 5), (7, 4, 5)),
])
def test_shrink_by_matrices_is_shrink(size, out):
    """What programs in ONNX do where it lacks torch's own operators."""
    x = randn(2, 3, *size, dtype=torch.float64)
    torch.testing.assert_close(_shrink_by_matrices(x, out), shrink(x, out), rtol=0, atol=1e-12)


def test_moments_are_means_and_first_moments_of_every_channel():
    x = randn(3, 4, 5, 6)
    a = x.double().numpy()
    ys, xs = (2 * np.arange(n) + 1 - n for n in (5, 6))
    rms = np.sqrt((a ** 2).mean((1, 2, 3)))[:, None]
    moments = [a.mean((2, 3)), (a * ys[:, None] / 5).mean((2, 3)), (a * xs / 6).mean((2, 3))]
    expected = torch.from_numpy(np.concatenate(moments, 1) / rms).float()
    torch.testing.assert_close(Moments()(x), expected)
    torch.testing.assert_close(Moments()(1e-3 * x), expected)  # whatever the size of the features
    assert Moments()(torch.zeros(2, 4, 5, 6)).eq(0).all()


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_moments_of_empty_maps_have_the_gradient_of_a_constant_divisor(dtype):
    x = randn(3, 4, 5, 6, dtype=dtype)
    x[1], x[2] = 0, 1e-9 * x[2]
    x.requires_grad_()
    gradient, = torch.autograd.grad(Moments()(x).sum(), x)
    ys, xs = ((2 * torch.arange(n, dtype=dtype) + 1 - n) / n for n in (5, 6))
    expected = (1 + ys[:, None] + xs) / 30 / 1e-6
    torch.testing.assert_close(gradient[1:], expected.expand(2, 4, 5, 6))
    torch.testing.assert_close(gradient[0], torch.autograd.grad(Moments()(x[:1]).sum(), x)[0][0])


def test_a_regression_from_moments_follows_a_thing_to_places_where_it_never_was():
    """A blob on the left teaches enough to find it on the right; weights for every position would know nothing."""
    maps = torch.zeros(9, 3, 9, 9)
    maps[torch.arange(9), 0, 4, torch.arange(9)] = 1
    features = Moments()(maps)
    target = (2 * torch.arange(9.) - 8) / 9
    weights = torch.linalg.pinv(features[:4]) @ target[:4, None]
    torch.testing.assert_close((features @ weights)[:, 0], target)
