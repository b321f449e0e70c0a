"""timm_stn.geometry.symbolic: graphs of torch.fx compute what was traced, at any batch size and in any mode."""
import copy
import pickle

import pytest
import timm
import torch
from makers import rand
from torch import fx, nn

import timm_stn
from timm_stn import SpatialTransformer

pytestmark = [pytest.mark.usefixtures('seeded'), pytest.mark.filterwarnings('ignore')]


def moved(model):
    """Transformers that are not at the identity."""
    for module in model.modules():
        if isinstance(module, SpatialTransformer):
            nn.init.normal_(module.localization.regression.weight, std=0.3)
            nn.init.normal_(module.localization.regression.bias, std=0.1)
    return model.eval()


class ChildrenLast(fx.Tracer):
    """Of one's own: modules without children are leaves, whoever made them."""

    def is_leaf_module(self, m, module_qualified_name):
        return not list(m.children())


class Looks(nn.Module):
    def __init__(self, **settings):
        super().__init__()
        self.stn = SpatialTransformer(3, (32, 32), **settings)
        self.head = nn.Conv2d(3, 2, 3)


class Calls(Looks):
    def forward(self, x):
        return self.head(self.stn(x))


class Asks(Looks):
    def forward(self, x):
        seen, theta = self.stn.look(x)
        points = self.stn.map_points(theta, theta[:, :, 2])
        back = self.stn.unwarp(self.head(seen), theta, (20, 20))
        return seen, theta, self.stn.regress(x), points, back, self.stn.placement_penalty(theta)


class Warps(Looks):
    def forward(self, x):
        theta = self.stn.regress(x)
        warped = timm_stn.warp(x, theta, size=(9, 8), padding_mode='zeros')
        points = timm_stn.map_points(theta, points=theta[:, :, 2])
        return warped, timm_stn.unwarp(warped, theta, size=(7, 7)), points, timm_stn.sample(x, points[:, None])


def assert_same(graph, model, x):
    torch.testing.assert_close(graph(x), model(x))
    batch = torch.cat([x, x.flip(3), x])
    torch.testing.assert_close(graph(batch), model(batch))


@pytest.mark.parametrize('tracer', [fx.Tracer, ChildrenLast])
@pytest.mark.parametrize('make', [Calls, Asks, Warps])
def test_a_network_of_ones_own(make, tracer):
    model, x = moved(make()), rand(2, 3, 32, 32)
    graph = fx.GraphModule(model, tracer().trace(model))
    graph.graph.lint()
    assert_same(graph, model, x)
    assert_same(copy.deepcopy(graph), model, x)
    assert_same(pickle.loads(pickle.dumps(graph)), model, x)
    assert {name for name, _ in graph.named_parameters()} <= {name for name, _ in model.named_parameters()}


def test_a_transformer_itself():
    stn, x = moved(SpatialTransformer(3, (32, 32), 'tps', iterations=2)), rand(2, 3, 32, 32)
    assert_same(fx.symbolic_trace(stn), stn, x)
    assert_same(fx.symbolic_trace(nn.Sequential(stn)), stn, x)


NETWORKS = [
    ('stn_test_resnet', dict()),
    ('stn_test_efficientnet', dict()),
    ('stn_test_resnet', dict(stn_stages=('input', 1, 'layer3'))),
    ('stn_test_convnext', dict(stn_stages=(0, 2))),
    ('stn_test_resnet', dict(stn_glimpses=2, stn_scale=0.5)),
    ('stn_test_resnet', dict(stn_glimpses=2, stn_scale=0.5, stn_towers='separate', stn_join='concat')),
    ('stn_test_resnet', dict(stn_glimpses=2, stn_scale=0.5, stn_localization='moments', stn_whole=True)),
    ('stn_test_resnet', dict(stn_glimpses=2, stn_localization='moments', stn_whole=True, stn_join='channels')),
    ('stn_test_resnet', dict(stn_glimpses=2, stn_scale=0.5, stn_localization='shared:1', stn_whole=True, stn_size=64)),
    ('stn_test_resnet', dict(stn_localization='shared:2')),
    ('stn_test_resnet', dict(stn_target='input', stn_stages=(2,))),
]


@pytest.mark.parametrize('name, arguments', NETWORKS)
def test_networks(name, arguments):
    model, x = moved(timm.create_model(name, **arguments)), rand(2, 3, 96, 96)
    graph = fx.symbolic_trace(model)
    assert_same(graph, model, x)
    before = model.spatial_transformers()
    graph.train()
    assert all(transformer.training for transformer in before.values())
    graph(rand(4, 3, 96, 96)).sum().backward()
    assert all(stn.localization.regression.weight.grad is not None for stn in before.values())


def test_a_network_in_a_network():
    model = moved(nn.Sequential(SpatialTransformer(3, (96, 96)), timm.create_model('stn_test_resnet')))
    assert_same(fx.symbolic_trace(model), model, rand(2, 3, 96, 96))


def test_a_twin_is_traced_where_the_plain_model_is():
    for name in ('test_resnet', 'test_vit'):
        outcomes = []
        for model in (timm.create_model(name), timm.create_model(f'stn_{name}')):
            try:
                outcomes.append(bool(fx.symbolic_trace(model)))
            except fx.proxy.TraceError as error:
                outcomes.append(str(error))
        assert outcomes[0] == outcomes[1]


def test_extraction_by_torchvision():
    extraction = pytest.importorskip('torchvision.models.feature_extraction')
    model, x = moved(timm.create_model('stn_test_resnet')), rand(2, 3, 96, 96)
    nodes = extraction.get_graph_node_names(model)[1]
    assert 'stn' in nodes
    graph = extraction.create_feature_extractor(model, ['stn', nodes[-1]]).eval()
    torch.testing.assert_close(graph(x), {'stn': model.look(x)[0], nodes[-1]: model(x)})


def test_quantization_in_graph_mode():
    quantization = pytest.importorskip('torch.ao.quantization')
    prepare = pytest.importorskip('torch.ao.quantization.quantize_fx')
    model, x = moved(timm.create_model('stn_test_resnet')), rand(2, 3, 96, 96)
    prepared = prepare.prepare_fx(model, quantization.get_default_qconfig_mapping(), (x,))
    expected = model(x)
    torch.testing.assert_close(prepared(x), expected)
    assert (prepare.convert_fx(prepared)(x) - expected).abs().max() < 0.2 * expected.abs().max()


def test_passes_of_torch():
    from torch.fx.experimental.optimization import fuse
    from torch.fx.passes.shape_prop import ShapeProp
    from torch.fx.passes.split_module import split_module

    model, x = moved(timm.create_model('stn_test_resnet')), rand(2, 3, 96, 96)
    fused = fuse(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    torch.testing.assert_close(fused(x), model(x), rtol=1e-3, atol=1e-3)
    graph = fx.symbolic_trace(model)
    ShapeProp(graph).propagate(x)
    assert next(node for node in graph.graph.nodes if node.target == 'stn').meta['tensor_meta'].shape == x.shape
    split = split_module(graph, graph, lambda node: int(node.target not in ('x', 'stn')))
    assert_same(split, model, x)
    assert_same(fx.Transformer(graph).transform(), model, x)


def test_operators_by_make_fx():
    from torch.fx.experimental.proxy_tensor import make_fx

    model, x = moved(timm.create_model('stn_test_resnet', stn_antialias=True)), rand(2, 3, 96, 96)
    torch.testing.assert_close(make_fx(model)(x)(x), model(x))
    assert model.stn.last_theta.isfinite().all(), 'remembers no symbols'
