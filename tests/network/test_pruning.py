"""Torch-Pruning, which walks the autograd graph, comes to an end, and what it leaves runs: docs/tools.md."""
import pytest
import timm
import torch

from timm_stn import SpatialTransformer
from timm_stn.geometry.transforms import transform_names

pruning = pytest.importorskip('torch_pruning', reason='needs torch-pruning')

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings('ignore')]


def pruned(model, ratio, *ignored):
    size = model.pretrained_cfg['input_size']
    ignored = [model.get_classifier(), *(m for m in model.modules() if isinstance(m, SpatialTransformer)), *ignored]
    pruning.pruner.MagnitudePruner(
        model, torch.rand(1, *size), pruning.importance.MagnitudeImportance(), pruning_ratio=ratio,
        ignored_layers=ignored).step()
    return model(torch.rand(2, *size))


@pytest.mark.parametrize('ratio', [0.1, 0.5])
@pytest.mark.parametrize('name, arguments', [
    ('stn_resnet18', {}),
    ('stn_test_convnext', {}),
    ('stn_test_efficientnet', {}),
    *(('stn_test_resnet', arguments) for arguments in (
        dict(stn_localization='fc'), dict(stn_localization='moments'), dict(stn_localization='timm:test_resnet'),
        dict(stn_transform='tps'), dict(stn_transform='projective'), dict(stn_iterations=2), dict(stn_stages=(1,)),
        dict(stn_stages=(1,), stn_localization='fc', stn_localization_size=8),
        *(dict(stn_stages=(1,), stn_transform=name) for name in transform_names() if name != 'affine3d'),
        dict(stn_stages=('input', 1), stn_transform='tps'),
        dict(stn_glimpses=2, stn_scale=0.5, stn_localization='conv'))),
])
def test_twins(name, arguments, ratio):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10, **arguments)
    before = [sum(p.numel() for p in module.parameters()) for module in (model, model.backbone)]
    assert pruned(model, ratio).shape == (2, 10)
    after = [sum(p.numel() for p in module.parameters()) for module in (model, model.backbone)]
    assert before[0] - after[0] == before[1] - after[1] > 0.3 * ratio * before[1]


@pytest.mark.parametrize('arguments, stage', [
    (dict(stn_localization='shared:2'), 'layer2'), (dict(stn_glimpses=2, stn_scale=0.5), 'layer3'),
    (dict(stn_stages=(2,), stn_target='input'), 'layer2')])
def test_a_backbone_that_is_asked_where_to_look(arguments, stage):
    model = timm.create_model('stn_test_resnet', num_classes=10, **arguments)
    assert pruned(model, 0.5, model.backbone.get_submodule(stage)).shape == (2, 10)
