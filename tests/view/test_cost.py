"""What a network computes for an image, counted by hand."""
import pytest
import timm
from torch import nn

from timm_stn.view.cost import glance, multiply_adds


def test_of_a_convolution_and_a_linear_layer():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    assert multiply_adds(model.train(), (3, 10, 12)) == pytest.approx((10 * 12 * 8 * 3 * 3 * 3 + 8 * 5) / 1e9)
    assert not model.training


def test_of_glimpses_and_a_glance_of_the_whole():
    """Two streams through the backbone, a part of a third, and 8 multiply-adds a value that is sampled or shrunk."""
    arguments = dict(stn_glimpses=2, stn_scale=0.5, stn_size=64, img_size=128, num_classes=3)
    model = timm.create_model('stn_test_resnet', stn_localization='saliency:2', **arguments)
    plain = timm.create_model('test_resnet', num_classes=0)
    one, found = multiply_adds(plain, (3, 64, 64)), multiply_adds(model, (3, 128, 128))
    sampled = 8 * (2 + 1) * 3 * 64 * 64 / 1e9
    assert glance(model) == 64 and 2 * one + sampled < found < 3.1 * one + sampled
    smaller = timm.create_model('stn_test_resnet', stn_localization='saliency:2', stn_localization_size=32, **arguments)
    assert glance(smaller) == 32 and 2 * one < multiply_adds(smaller, (3, 128, 128)) < found


@pytest.mark.parametrize(('size', 'side'), [(48, 48), ((40, 56), 40)])
def test_a_glance_is_as_large_as_asked_or_as_the_glimpses(size, side):
    arguments = dict(stn_glimpses=2, stn_scale=0.5, img_size=128, stn_localization='saliency:2')
    assert glance(timm.create_model('stn_test_resnet', stn_size=size, **arguments)) == side
