"""``timm:<arch>``: any timm model as the body of a localization network."""
import pytest
import torch
from makers import randn
from torch import nn

from timm_stn.modules.localization import Localization


class TestLocalization:
    @pytest.mark.parametrize('size', [(1, 1), (9, 60), (64, 48)])
    def test_timm(self, size):
        net = Localization('timm:test_resnet', 2, size, 6)
        assert net.size == size and next(net.body.parameters()).shape[1] == 2
        assert net.eval()(randn(2, 2, *size)).params.shape == (2, 6)
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
        assert net(randn(2, 3, 64, 64)).params.shape == (2, 6)
        assert net.regression.in_features == net.body.head_hidden_size

    def test_timm_of_a_fixed_size(self):
        assert Localization('timm:test_vit', 3, (32, 32), 6).size == (160, 160)
        net = Localization('timm:test_vit', 3, (32, 32), 6, size=(32, 48))
        assert net.eval()(randn(1, 3, 20, 20)).params.shape == (1, 6)

    def test_timm_probe_leaves_no_trace(self):
        torch.manual_seed(0)
        plain = Localization('timm:test_resnet', 3, (32, 32), 6)
        assert plain.training and all(m.training for m in plain.modules())
        assert all(m.num_batches_tracked == 0 for m in plain.modules() if isinstance(m, nn.BatchNorm2d))
