"""Standardized features: their values, gradient and statistics, and that an image's features depend on no other."""
import copy
import math

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import randn
from timm.utils import ModelEmaV3
from torch import nn

from timm_stn import SpatialTransformer
from timm_stn.geometry.shrink import shrink
from timm_stn.modules.localization import Localization
from timm_stn.modules.standardize import FLOOR, MOMENTUM, MOST, Standardize, without_statistics

MNIST_CNN = dict(in_chans=1, img_size=28, num_classes=10)


def seen(layer, *batches):
    """The layer after forward and backward passes over the batches, in training mode."""
    for batch in batches:
        standardize(layer.train(), batch.clone().requires_grad_()).sum().backward()
    return layer


def standardize(layer, x):
    return layer.track(layer(x), x)


def by_numpy(x, mean, var, relu=False):
    x = (np.asarray(x, np.float64) - mean) / np.sqrt(var + FLOOR * var.mean())
    x = x.clip(-MOST, MOST)
    if relu:
        x = (np.maximum(x, 0) - 1 / math.sqrt(2 * math.pi)) / math.sqrt(0.5 - 0.5 / math.pi)
    return x * math.sqrt(x.shape[1])


class TestValues:
    @pytest.mark.parametrize('relu', [False, True])
    def test_running_statistics_in_training_and_evaluation(self, relu):
        layer = seen(Standardize(5, relu), 3 + 2 * randn(64, 5))
        x = 3 + 2 * randn(7, 5, seed=1)
        mean, var = (t.double().numpy() for t in (layer.running_mean, layer.running_var))
        for mode in (True, False):
            np.testing.assert_allclose(layer.train(mode)(x), by_numpy(x, mean, var, relu), rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize('relu', [False, True])
    def test_many_images_have_mean_0_and_variance_f(self, relu):
        x = 3 + randn(20_000, 6) * torch.logspace(-0.4, 0, 6)
        out = seen(Standardize(6, relu), x).eval()(x)
        torch.testing.assert_close(out.mean(0) / 6 ** 0.5, torch.zeros(6), rtol=0, atol=0.03)
        assert (out.var(0) / 6 > 0.9).all() and (out.var(0) / 6 < 1.03).all()

    def test_each_image_by_itself(self):
        """Bit for bit, in training: what is seen of an image does not depend on the rest of its batch."""
        layer, x = seen(Standardize(5, True), randn(8, 5)), randn(6, 5, seed=1).requires_grad_()
        alone = torch.cat([layer(x[i:i + 1]) for i in range(6)])
        assert torch.equal(layer(x), alone)

    def test_an_image_that_is_not_finite_stays_so_and_spoils_no_other(self):
        layer, x = seen(Standardize(4), randn(8, 4)), randn(3, 4, seed=1)
        x[1, 2], good = math.nan, [0, 2]
        before = copy.deepcopy(layer.state_dict())
        x.requires_grad_()
        out = standardize(layer, x)
        assert not out[1].isfinite().all() and out[good].isfinite().all()
        out[good].square().sum().backward()
        assert x.grad.isfinite().all() and layer.running_mean.isfinite().all() and layer.running_var.isfinite().all()
        seen(layer, torch.full((2, 4), math.inf))
        expected = seen(Standardize(4), randn(8, 4))
        expected.load_state_dict(before)
        seen(expected, x[good].detach())
        assert all(torch.equal(a, b) for a, b in zip(layer.state_dict().values(), expected.state_dict().values()))

    @pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
    def test_statistics_stay_float32_in_models_of_another_dtype(self, dtype):
        layer = seen(Standardize(3), 1e4 + 300 * randn(64, 3))
        cast = copy.deepcopy(layer).to(dtype)
        assert cast.running_var.dtype == torch.float32 and torch.equal(cast.running_var, layer.running_var)
        assert cast(randn(2, 3).to(dtype)).dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


class TestGradient:
    def test_is_that_of_batch_norm_on_the_scale_of_the_running_statistics(self):
        layer = seen(Standardize(4), randn(50, 4) * 3 + 1)
        x = (randn(6, 4, seed=1, dtype=torch.float64) / 4).requires_grad_()
        slope = randn(6, 4, seed=2, dtype=torch.float64)
        var = layer.running_var.double()
        (layer(x) * slope).sum().backward()
        z = ((x - x.mean(0)) / x.std(0, correction=0)).detach()
        expected = slope - slope.mean(0) - z * (slope * z).mean(0)
        expected = expected * 2 / (var + FLOOR * var.mean()).sqrt()
        torch.testing.assert_close(x.grad, expected, rtol=1e-6, atol=1e-8)

    def test_does_not_move_or_scale_a_feature_for_all_images(self):
        x = randn(9, 4, seed=1).requires_grad_()
        (seen(Standardize(4, True), randn(8, 4))(x) * randn(9, 4, seed=2)).sum().backward()
        for direction in (torch.ones_like(x), x.detach()):
            assert (x.grad * direction).sum(0).abs().max() < 1e-4 * x.grad.abs().max()

    @pytest.mark.parametrize('n', [1, 2])
    def test_of_one_or_two_images_is_zero(self, n):
        x = randn(n, 4, seed=1).requires_grad_()
        (seen(Standardize(4), randn(8, 4))(x) * randn(n, 4, seed=2)).sum().backward()
        assert x.grad.abs().max() < 1e-5

    def test_in_evaluation_is_the_true_one(self):
        layer = seen(Standardize(3, True), randn(8, 3)).eval()
        assert torch.autograd.gradcheck(layer, (randn(4, 3, seed=3, dtype=torch.float64).requires_grad_(),))


class TestStatistics:
    @settings(max_examples=50, deadline=None)
    @given(st.lists(st.integers(1, 9), min_size=1, max_size=14), st.integers(0, 1000))
    def test_by_numpy(self, sizes, seed):
        """An exponential average over batches of mean and variance about it; of the first ones, a plain average."""
        batches = [3 * randn(n, 2, seed=seed + i) + i for i, n in enumerate(sizes)]
        layer = seen(Standardize(2), *batches)
        mean = var = None
        for i, batch in enumerate(np.asarray(b, np.float64) for b in batches):
            if mean is None:
                mean, var = batch.mean(0), batch.var(0) + batch.mean(0) ** 2 / len(batch)
                continue
            w = max(MOMENTUM, 1 / (i + 1))
            new = (1 - w) * mean + w * batch.mean(0)
            var = (1 - w) * (var + (mean - new) ** 2) + w * (batch.var(0) + (batch.mean(0) - new) ** 2)
            mean = new
        np.testing.assert_allclose(layer.running_mean, mean, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(layer.running_var, var, rtol=1e-3, atol=1e-4)
        assert layer.num_batches_tracked == len(sizes)

    def test_forward_passes_alone_leave_them(self):
        layer = Standardize(3)
        before = copy.deepcopy(layer.state_dict())
        standardize(layer, randn(4, 3).requires_grad_())
        with torch.no_grad():
            standardize(layer, randn(4, 3))
        standardize(layer.eval(), randn(4, 3).requires_grad_()).sum().backward()
        torch.func.grad(lambda x: standardize(layer.train(), x).sum())(randn(4, 3))
        assert all(torch.equal(a, b) for a, b in zip(layer.state_dict().values(), before.values()))

    @pytest.mark.parametrize('x', [(40 * randn(512, 3)).half(), torch.full((2, 3), 1e30)], ids=['fp16', 'float32'])
    def test_large_features_do_not_overflow_them(self, x):
        layer = seen(Standardize(3), randn(8, 3), x, randn(8, 3, seed=1))
        assert layer.running_mean.isfinite().all() and layer.running_var.isfinite().all()

    def test_that_there_are_none_holds_whatever_wrote_it(self):
        layer = Standardize(3)
        layer.num_batches_tracked.fill_(-1)  # as DDP and EMA do, in place
        before = copy.deepcopy(layer.state_dict())
        seen(layer, randn(8, 3))
        assert all(torch.equal(a, b) for a, b in zip(layer.state_dict().values(), before.values()))
        assert torch.equal(layer.eval()(randn(8, 3)), randn(8, 3))

    def test_single_images_find_them(self):
        x = 5 + 0.1 * randn(4000, 3)
        layer = seen(Standardize(3), *x.split(1))
        torch.testing.assert_close(layer.running_mean, torch.full((3,), 5.0), rtol=0, atol=0.1)
        torch.testing.assert_close(layer.running_var.sqrt(), torch.full((3,), 0.1), rtol=0.5, atol=0)

    def test_gradient_checkpointing_counts_a_batch_once(self):
        x = randn(4, 3)
        plain = seen(Standardize(3), randn(4, 3, seed=1), x)
        layer, inputs = seen(Standardize(3), randn(4, 3, seed=1)), x.clone().requires_grad_()
        torch.utils.checkpoint.checkpoint(standardize, layer, inputs, use_reentrant=False).sum().backward()
        assert all(torch.equal(a, b) for a, b in zip(layer.state_dict().values(), plain.state_dict().values()))

    def test_compiled(self):
        def run(compiled):
            layer = Standardize(3, True)
            f = torch.compile(standardize, fullgraph=True, backend='aot_eager') if compiled else standardize
            gradients = []
            for i in range(3):
                x = randn(5, 3, seed=i).requires_grad_()
                (f(layer, x) * randn(5, 3, seed=9)).sum().backward()
                gradients.append(x.grad)
            return [*layer.state_dict().values(), *gradients]

        for a, b in zip(run(True), run(False)):
            torch.testing.assert_close(a, b)

    def test_of_an_average_of_the_weights(self):
        model = nn.Sequential(seen(Standardize(3), randn(8, 3)), nn.Linear(3, 3))
        ema = ModelEmaV3(model, decay=0.5)
        old = model[0].running_mean.clone()
        seen(model[0], 10 + randn(8, 3, seed=1))
        ema.update(model)
        torch.testing.assert_close(ema.module[0].running_mean, (old + model[0].running_mean) / 2)

    def test_from_the_meta_device(self):
        with torch.device('meta'):
            layer = Standardize(3)
        layer = layer.to_empty(device='cpu')
        layer.reset_parameters()
        assert all(torch.equal(a, b) for a, b in zip(layer.state_dict().values(), Standardize(3).state_dict().values()))


class TestOldWeights:
    def test_give_what_they_gave_bit_for_bit_and_go_on_to(self):
        net = Localization('conv', 1, (28, 28), 6)
        with torch.no_grad():
            net.regression.weight.copy_(randn(6, 20))
        old = {k: v for k, v in net.state_dict().items() if 'standardize' not in k}
        x, other = randn(4, 1, 28, 28), Localization('conv', 1, (28, 28), 6)
        other.load_state_dict(old)
        expected = net.regression(net.body(shrink(x, (14, 14))).relu())
        other.train()(x).params.sum().backward()
        assert torch.equal(other(x).params, expected), 'no statistics are taken'
        again = Localization('conv', 1, (28, 28), 6)
        again.load_state_dict(other.state_dict())
        assert torch.equal(again(x).params, expected) and not again.standardize.active
        net.load_state_dict(Localization('conv', 1, (28, 28), 6).state_dict())
        assert net.standardize.active

    def test_of_a_whole_network(self):
        model = timm.create_model('stn_mnist_cnn', **MNIST_CNN).eval()
        state = {k: v for k, v in model.state_dict().items() if 'standardize' not in k}
        assert len(without_statistics(state)) == 3 and not without_statistics(model.state_dict())
        model.load_state_dict(state)
        assert not model.stn.localization.standardize.active
        trained = timm.create_model('stn_mnist_cnn_rts', pretrained=True)
        assert not trained.stn.localization.standardize.active

    def test_parameters_alone_leave_the_statistics_and_are_missed(self):
        net = Localization('conv', 1, (28, 28), 6)
        net(randn(4, 1, 28, 28)).params.sum().backward()
        found = net.load_state_dict(dict(Localization('conv', 1, (28, 28), 6).named_parameters()), strict=False)
        assert net.standardize.active and net.standardize.num_batches_tracked == 1
        assert 'standardize.running_mean' in found.missing_keys and 'regression.lr_scale_nano' in found.missing_keys

    def test_a_plain_checkpoint_leaves_the_statistics(self):
        plain = timm.create_model('mnist_cnn', **MNIST_CNN)
        model = timm.create_model('stn_mnist_cnn', **MNIST_CNN)
        model.load_state_dict(plain.state_dict())
        assert model.stn.localization.standardize.active


@pytest.mark.parametrize('kind', ['conv', 'fc', 'linear', 'moments', 'timm:test_resnet'])
def test_every_localization_network_has_them(kind):
    stn = SpatialTransformer(3, (48, 48), localization=kind)
    stn(randn(6, 3, 48, 48)).square().sum().backward()
    assert stn.localization.standardize.num_batches_tracked == 1
    features = []
    stn.localization.regression.register_forward_pre_hook(lambda module, inputs: features.append(inputs[0]))
    x = randn(64, 3, 48, 48, seed=3)
    for _ in range(3):
        stn(x).square().sum().backward()
    f = features[-1]
    assert f.mean(0).abs().max() < 0.5 * f.shape[1] ** 0.5, 'what is common is gone'
    assert (f.std(0) > 0).float().mean() > 0.9, 'features are alive'


@pytest.mark.parametrize('stage', ['shared:2', 'saliency:2'])
def test_features_of_the_backbone_have_them(stage):
    model = timm.create_model('stn_test_resnet', stn_localization=stage, stn_scale=0.5, num_classes=10)
    model(randn(4, 3, 64, 64)).square().sum().backward()
    assert model.stn.localization.standardize.num_batches_tracked == 1
