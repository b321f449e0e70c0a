"""The last layer: theta starts at the identity, and all optimizers move it alike."""
import copy
import importlib
import re

import numpy as np
import pytest
import torch
from makers import randn
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import nn

from timm_stn.modules.regression import ThetaRegression

OPTIMIZERS = {
    'sgd': {'momentum': 0.9},
    'adamw': {},
    'lion': {},
    'lamb': {},
    'muon': {},
}


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


@pytest.fixture(scope='module')
def script():
    return importlib.import_module('measure_lr_scale')


@pytest.fixture(scope='module')
def measured(script):
    return script.measure()


class TestLrScale:
    """Steps of real optimizers on a real network, as measure_lr_scale.py measures them for docs/training.md."""

    @pytest.mark.parametrize('scale', [0.1, 10.0])
    @pytest.mark.parametrize('opt', ['sgd', 'adamw', 'lion', 'muon', 'lamb'])
    def test_steps_are_in_proportion(self, measured, opt, scale):
        one, other = measured[opt][1.0], measured[opt][scale]
        assert one[1] > 1e-6 and one[10] > 3 * one[1]
        assert other[1] / one[1] == pytest.approx(scale, rel=1e-3)
        assert other[10] / one[10] == pytest.approx(scale, rel=0.15), 'the rest of the localization network learns, too'

    def test_the_page_has_what_is_measured(self, script, measured):
        page = script.PAGE.read_text()
        begin, end = script.MARKS
        written, now = ([re.split(r'\s*\|\s*', row) for row in text.splitlines()]
                        for text in (page[page.index(begin) + len(begin):page.index(end)], script.table(measured)))
        assert [row[:3] for row in written] == [row[:3] for row in now] and len(written) == 7
        for row, expected in zip(written[2:], now[2:]):
            np.testing.assert_allclose([float(v) for v in row[3:-1]], [float(v) for v in expected[3:-1]], rtol=0.03)


def test_the_scale_of_a_regression_is_checked():
    layer = ThetaRegression(3, 2)
    for value in map(torch.tensor, ([1, 2], 1.5, 0, 2 ** 62)):
        with pytest.raises(ValueError, match='lr_scale_nano must be one integer'):
            layer.load_state_dict({**layer.state_dict(), 'lr_scale_nano': value})
