"""Any tracer of torch.fx records a network, or a net of one's own with a transformer in it, and gives what it gives."""
import copy
import pickle

import pytest
import timm
import torch
from makers import rand
from torch import fx, nn

import timm_stn
from timm_stn.geometry.shrink import shrink


def moved(model):
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, timm_stn.SpatialTransformer):
            nn.init.normal_(module.localization.regression.weight, std=0.3)
    return model.eval()


class LeavesNothing(fx.Tracer):
    """Traces into every module, those of torch too."""

    def is_leaf_module(self, module, name):
        return False


@pytest.mark.parametrize('kwargs', [
    dict(), dict(stn_stages=('input', 1)), dict(stn_glimpses=2, stn_scale=0.5), dict(stn_localization='shared:2'),
    dict(stn_glimpses=2, stn_scale=0.5, stn_whole=True, stn_join='concat'), dict(stn_antialias=True, stn_size=32)])
def test_a_network(kwargs):
    model = moved(timm.create_model('stn_test_resnet', **kwargs))
    graph = fx.symbolic_trace(model)
    for n, size in ((2, (64, 64)), (3, (48, 80))):
        x = rand(n, 3, *size, seed=1)
        torch.testing.assert_close(graph(x), model(x), rtol=1e-4, atol=1e-5)
    for again in (pickle.loads(pickle.dumps(graph)), copy.deepcopy(graph)):
        assert torch.equal(again(x), graph(x))


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.stn = timm_stn.SpatialTransformer(3, (32, 32), 'similarity', glimpses=2, scale=0.5)
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        seen, theta = self.stn.look(shrink(x, (32, 32)))
        corners = self.stn.map_points(theta.flatten(0, 1), torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))
        back = timm_stn.unwarp(seen[:, 0], theta[:, 0], (32, 32))
        return self.conv(self.stn(x).flatten(0, 1)), corners, timm_stn.warp(back, theta[:, 1])


@pytest.mark.parametrize('tracer', [fx.Tracer, LeavesNothing])
def test_a_net_of_ones_own(tracer):
    net, x = moved(Own()), rand(2, 3, 40, 40, seed=1)
    for found, expected in zip(fx.GraphModule(net, tracer().trace(net))(x), net(x), strict=True):
        torch.testing.assert_close(found, expected)


def test_a_transformer_alone():
    stn, x = moved(timm_stn.SpatialTransformer(3, (32, 32))), rand(2, 3, 32, 32, seed=1)
    torch.testing.assert_close(fx.symbolic_trace(stn)(x), stn(x))


@pytest.mark.filterwarnings('ignore')
def test_quantization_prepares_and_converts():
    quantize_fx = pytest.importorskip('torch.ao.quantization.quantize_fx')
    from torch.ao.quantization import get_default_qconfig_mapping
    model, x = moved(timm.create_model('stn_test_resnet')), rand(2, 3, 64, 64, seed=1)
    prepared = quantize_fx.prepare_fx(copy.deepcopy(model), get_default_qconfig_mapping('x86'), (x,))
    torch.testing.assert_close(prepared(x), model(x), rtol=1e-4, atol=1e-5)
    error = (quantize_fx.convert_fx(prepared)(x) - model(x)).abs().max()
    assert error < 0.1 * model(x).abs().max()
