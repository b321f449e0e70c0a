"""What a network did with images: where it looked, back to the input."""
import pytest
import timm
import torch
from makers import create, move_theta, rand

from timm_stn.view.draw import outline
from timm_stn.view.observe import observe

SIZE = 64


def network(**kwargs):
    """A small network whose transformers look elsewhere than at everything."""
    model = timm.create_model('stn_test_resnet', num_classes=4, **kwargs).eval()
    for stn in model.spatial_transformers().values():
        stn.localization.regression.bias.data.uniform_(-0.2, 0.2)
    return model


@pytest.fixture
def images():
    return rand(2, 3, SIZE, SIZE)


@pytest.mark.parametrize('glimpses', [1, 2])
def test_look_at_the_input(images, glimpses):
    model = network(stn_glimpses=glimpses, stn_size=32)
    look = observe(model, images)
    assert look.stage == 'input' and look.before is None
    assert look.seen.shape == (2, glimpses, 3, 32, 32) and look.theta.shape == (2, glimpses, 2, 3)
    assert look.outlines.shape[:2] == (2, glimpses) and look.logits.shape == (2, 4)
    torch.testing.assert_close(look.outlines[:, -1:], outline(model.stn, look.theta[:, -1]))


def test_look_at_stages_goes_back_through_what_ran_before(images):
    """Moves by translations add up: of the input, of stage 1, of stage 3 (which is listed first)."""
    model = network(stn_stages=(3, 'input', 1), stn_transform='translation')
    look = observe(model, images, 3)
    assert look.stage == 3 and look.seen.shape == look.before.shape and look.seen.shape[:2] == (2, 1)
    thetas = [stn.last_theta for stn in model.spatial_transformers().values()]
    border = outline(model.stn, torch.eye(2, 3).repeat(2, 1, 1))
    expected = border + sum(theta[:, :, 2] for theta in thetas)[:, None, None]
    torch.testing.assert_close(look.outlines, expected)
    assert observe(model, images).stage == 'input' or next(iter(model.spatial_transformers())) == 3


@pytest.mark.parametrize('more', [{}, {'stn_localization': 'conv'}, {'stn_size': 64, 'stn_whole': True}])
def test_look_at_a_stage_through_glimpses(images, more):
    model = network(stn_stages=('input', 2), stn_glimpses=2, stn_scale=0.5, stn_transform='translation', **more)
    look = observe(model, images, 2)
    assert look.outlines.shape[:2] == look.theta.shape[:2] == look.seen.shape[:2] == (2, 2)
    width = look.outlines.amax(2) - look.outlines.amin(2)
    torch.testing.assert_close(width, torch.ones_like(width))  # all of a glimpse of half the image's width


@pytest.mark.parametrize('arch', ['stn_test_vit', 'stn_test_mambaout'])
def test_look_at_tokens_and_channels_last(arch):
    model = timm.create_model(arch, stn_stages=(1,)).eval()
    look = observe(model, torch.rand(1, 3, 160, 160))
    assert look.seen.ndim == 5 and look.before.shape == look.seen.shape
    assert not model.spatial_transformers()[1]._forward_hooks


def test_look_refuses_other_stages(images):
    with pytest.raises(ValueError, match="one of 'input', got 7"):
        observe(network(), images, 7)


def test_a_transformer_of_the_input_that_looks_at_features():
    """With ``stn_target='input'`` the stage's transformer warps the input."""
    model = move_theta(create(stn_stages=(1,), stn_target='input', num_classes=3, img_size=64), 0.05)
    x = rand(2, 3, 64, 64)
    look = observe(model, x)
    seen, theta = model.look(x)
    assert look.stage == 1 and look.before is None
    torch.testing.assert_close(look.seen[:, 0], seen)
    torch.testing.assert_close(look.theta[:, 0], theta)
    corner = theta @ torch.tensor([-1.0, -1.0, 1.0])
    torch.testing.assert_close(look.outlines[:, 0, 0], corner, atol=1e-5, rtol=1e-5)
