"""A network has the methods that its backbone has."""
import inspect

import pytest
import timm
import torch
from makers import create, images
from torch import nn

import timm_stn
from timm_stn.network.model import SpatialTransformerNetwork

NAMES = (
    'set_input_size', 'group_matcher', 'no_weight_decay', 'reset_classifier', 'get_classifier',
    'set_grad_checkpointing', 'prune_intermediate_layers',
)


class Bare(nn.Module):
    """A backbone without any of timm's methods."""
    pretrained_cfg = dict(input_size=(3, 32, 32), architecture='bare')

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return self.conv(x)


@pytest.mark.parametrize('arch', ['test_resnet', 'test_vit', 'test_efficientnet', 'test_mambaout'])
def test_as_the_backbone(arch):
    plain, twin = timm.create_model(arch), timm.create_model('stn_' + arch)
    assert {n for n in NAMES if hasattr(twin, n)} == {n for n in NAMES if hasattr(plain, n)}


def test_a_backbone_without_any():
    net = timm_stn.wrap(Bare())
    assert not [n for n in NAMES if hasattr(net, n)]
    with pytest.raises(AttributeError, match='reset_classifier'):
        net.reset_classifier(3)
    assert net(torch.rand(2, 3, 32, 32)).shape == (2, 4, 30, 30)


def test_methods_keep_their_signature_and_documentation():
    assert 'None keeps the pooling' in timm_stn.SpatialTransformerNetwork.reset_classifier.__doc__


def test_reading_and_writing_go_through_to_the_backbone():
    model = create()
    model.fc = nn.Linear(model.num_features, 4)
    assert model.backbone.fc.out_features == 4 and 'fc' not in model._modules
    model.drop_rate = 0.25
    assert model.backbone.drop_rate == 0.25
    model.num_classes = 4
    assert model.backbone.num_classes == 4
    model.something_new = 1
    assert not hasattr(model.backbone, 'something_new')
    assert model.conv1 is model.backbone.conv1


def test_a_head_named_classifier_is_the_backbones():
    model = create('stn_test_efficientnet')
    model.classifier = nn.Linear(model.classifier.in_features, 7)
    assert model.backbone.classifier.out_features == 7 and model(images()).shape == (2, 7)


@pytest.mark.parametrize('name', ['fuse', 'reparameterize', '__getitem__'])
def test_nothing_gives_the_bare_backbone(name):
    model = create()
    setattr(type(model.backbone), name, lambda self: self)
    try:
        assert not hasattr(model, name)
    finally:
        delattr(type(model.backbone), name)


def test_signatures_are_those_of_timm():
    plain = create('test_vit')
    for name in ('forward_intermediates', 'prune_intermediate_layers', 'reset_classifier', 'forward_head'):
        theirs = list(inspect.signature(getattr(plain, name)).parameters)
        ours = list(inspect.signature(getattr(SpatialTransformerNetwork, name)).parameters)[1:]
        common = [p for p in theirs if p in ours]
        assert common == [p for p in ours if p in theirs] and len(common) >= 2, name


@pytest.mark.parametrize('arguments', [
    dict(stn_stages=['input', 1, 2]),
    dict(stn_stages=['input', 2], stn_glimpses=2, stn_towers='separate', stn_scale=0.5)])
def test_a_state_dict_of_its_backbone_alone_loads_with_the_transformers_at_stages(arguments):
    torch.manual_seed(0)
    trained, other = (timm.create_model('stn_test_resnet', stn_localization='conv', **arguments) for _ in range(2))
    for p in trained.backbone.parameters():
        torch.nn.init.normal_(p)
    other.load_state_dict(trained.backbone.state_dict())
    for backbone in other.backbones():
        assert all(torch.equal(p, q) for p, q in zip(backbone.parameters(), trained.backbone.parameters()))
