"""A network has the methods that its backbone has."""
import pytest
import timm
import torch
from torch import nn

import timm_stn

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
