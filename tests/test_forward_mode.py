"""Forward-mode differentiation (`torch.func.jvp`, `torch.autograd.forward_ad`) against differences in float64."""
import pytest
import torch
from makers import create, rand
from torch import nn
from torch.autograd import forward_ad

import timm_stn
from timm_stn.geometry.transforms import transform_names

FAMILIES = [name for name in transform_names() if not name.endswith('3d')]


def finite_difference(function, x, direction, step=1e-6):
    return (function(x + step * direction) - function(x - step * direction)) / (2 * step)


def transformer(*shape, family, **settings):
    torch.manual_seed(0)
    stn = timm_stn.SpatialTransformer(*shape, family, **settings).double().eval()
    nn.init.normal_(stn.localization.regression.weight, std=0.03)
    nn.init.normal_(stn.localization.regression.bias, std=0.01)
    return stn


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('settings', [
    dict(), dict(glimpses=2, scale=0.6, padding_mode='zeros', bound=False), dict(iterations=2, mode='bicubic')])
def test_a_transformer(family, settings):
    stn = transformer(3, (16, 16), family=family, **settings)
    x, direction = rand(2, 3, 16, 16, seed=1).double(), rand(2, 3, 16, 16, seed=2).double() - 0.5
    value, slope = torch.func.jvp(stn, (x,), (direction,))
    torch.testing.assert_close(value, stn(x))
    torch.testing.assert_close(slope, finite_difference(stn, x, direction), rtol=1e-4, atol=1e-5)


def test_volumes_and_dual_tensors():
    stn = transformer(1, (8, 8, 8), family='affine3d')
    x, direction = rand(1, 1, 8, 8, 8, seed=1).double(), rand(1, 1, 8, 8, 8, seed=2).double()
    expected = finite_difference(stn, x, direction)
    with forward_ad.dual_level():
        out = forward_ad.unpack_dual(stn(forward_ad.make_dual(x, direction)))
    torch.testing.assert_close(out.tangent, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out.primal, stn(x))


@pytest.mark.parametrize('kwargs', [
    dict(), dict(stn_glimpses=2, stn_scale=0.5), dict(stn_penalty=0.1, stn_freeze_steps=2)])
def test_a_network(kwargs):
    model, x = create(**kwargs), rand(2, 3, 64, 64, seed=1)
    value, slope = torch.func.jvp(model, (x,), (x,))
    torch.testing.assert_close(value, model(x), rtol=1e-4, atol=1e-5)
    assert slope.shape == value.shape and slope.isfinite().all() and slope.abs().max() > 0


def test_the_derivatives_of_all_outputs_are_those_of_the_backward_pass():
    stn = transformer(1, (8, 8), family='affine', size=(2, 2))
    x = rand(1, 1, 8, 8, seed=1).double()
    torch.testing.assert_close(torch.func.jacfwd(stn)(x), torch.func.jacrev(stn)(x))


@pytest.mark.parametrize('family', ['affine', 'projective'])
def test_bounded_glimpses_have_the_derivative_of_the_backward_pass(family):
    """Which takes the factor that shrinks a glimpse for a constant."""
    stn = transformer(1, (8, 8), family=family, size=(2, 2), glimpses=2, scale=0.6)
    x = rand(1, 1, 8, 8, seed=1).double()
    torch.testing.assert_close(torch.func.jacfwd(stn)(x), torch.func.jacrev(stn)(x))


def test_what_acts_in_backward_passes_does_not_in_forward_mode():
    stn = transformer(3, (16, 16), family='affine', penalty=0.1, freeze_steps=2).train()
    x, direction = rand(2, 3, 16, 16, seed=1).double(), rand(2, 3, 16, 16, seed=2).double()
    slope = torch.func.jvp(stn, (x,), (direction,))[1]
    torch.testing.assert_close(slope, finite_difference(stn, x, direction), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('kwargs', [
    dict(stn_scale=0.5, stn_localization='saliency:2'), dict(stn_glimpses=2, stn_scale=0.5, stn_whole=True),
    dict(stn_localization='shared:1'), dict(stn_target='input', stn_stages=(2,))])
def test_what_a_glance_tells_is_a_constant_in_both_modes(kwargs):
    model = create(**kwargs).double()
    for stn in model.spatial_transformers().values():
        nn.init.normal_(stn.localization.regression.weight, std=0.05)
    x, direction = rand(2, 3, 64, 64, seed=1).double(), rand(2, 3, 64, 64, seed=2).double()
    slope = torch.func.jvp(model, (x,), (direction,))[1]
    weight = torch.ones_like(slope)
    x.requires_grad_()
    gradient, = torch.autograd.grad((model(x) * weight).sum(), x)
    torch.testing.assert_close((slope * weight).sum(), (gradient * direction).sum())
