"""Glimpses that start where the backbone's features respond."""
import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import GLIMPSES, save_for_hf
from torch import nn

import timm_stn  # noqa: F401
from timm_stn.geometry.transforms import get_transform
from timm_stn.modules.saliency import Saliency


def saliency(tiles, least=0.5, most=None, bound=True):
    scales = least, least if most is None else most
    tiles = torch.as_tensor(tiles, dtype=torch.float64)
    return Saliency(get_transform('affine'), tiles, scales, bound, 'moments', 3, (5, 5), 4).eval()


def reference(maps, tiles, least, most):
    """Centres and scales in numpy, pixel by pixel, as the docstring says it."""
    out = np.zeros((len(maps), len(tiles), 3))
    for n, sample in enumerate(maps):
        energy = np.maximum(sample, 0).mean(0)
        energy = np.maximum(energy - energy.mean(), 0)
        height, width = energy.shape
        for g, (tile_x, tile_y) in enumerate(tiles):
            points, masses = [], []
            for i in range(height):
                for j in range(width):
                    x, y = (2 * j + 1) / width - 1, (2 * i + 1) / height - 1
                    points.append([x, y])
                    masses.append(energy[i, j] * np.exp(-((x - tile_x) ** 2 + (y - tile_y) ** 2) / (2 * most ** 2)))
            center, scale = [tile_x, tile_y], most
            if any(masses):
                center = np.average(points, 0, masses)
                deviation = np.sqrt(np.average((points - center) ** 2, 0, masses))
                scale = np.clip(deviation.max() * np.sqrt(3), least, most)
            reach = 0.8 * (1 - scale)
            out[n, g] = *np.clip(center, -reach, reach), scale
    return out


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2 ** 20), height=st.integers(1, 7), width=st.integers(1, 7), least=st.floats(0.1, 0.9),
    more=st.just(0.0) | st.floats(0, 0.6))
def test_centres_and_scales_are_those_of_a_plain_loop(seed, height, width, least, more):
    rng = np.random.default_rng(seed)
    maps, tiles = rng.standard_normal((2, 3, height, width)), rng.uniform(-0.4, 0.4, (2, 2))
    most = min(least + more, 1.0)
    found = torch.cat(saliency(tiles, least, most).find(torch.from_numpy(maps)), 2)
    np.testing.assert_allclose(found.numpy(), reference(maps, tiles, least, most), atol=1e-7)


def test_a_glimpse_covers_a_square_that_responds_evenly():
    x = torch.zeros(1, 1, 200, 200)
    x[..., 80:140, 40:100] = 1.0  # 60 of 200 pixels, the middle at (-0.3, 0.1)
    center, scale = saliency([[0.0, 0.0]], 0.1, 100.0, bound=False).find(x)
    torch.testing.assert_close(center[0, 0], torch.tensor([-0.3, 0.1]), atol=1e-3, rtol=0)
    torch.testing.assert_close(scale[0, 0], torch.tensor([0.3]), atol=1e-3, rtol=0)


@pytest.mark.parametrize('most', [0.5, 0.8])
def test_a_map_that_responds_nowhere_leaves_the_tiles(most):
    tiles = [[-0.1, 0.0], [0.1, 0.0]]
    for x in (torch.zeros(2, 3, 5, 5), torch.full((2, 3, 5, 5), 7.0), torch.full((2, 3, 5, 5), -1.0)):
        center, scale = saliency(tiles, 0.5, most).find(x)
        torch.testing.assert_close(center, torch.tensor(tiles).expand(2, 2, 2))
        assert (scale == most).all()


def test_a_glimpse_goes_to_what_is_near_it():
    x = torch.zeros(1, 1, 20, 20)
    x[..., 4, 3] = x[..., 14, 15] = 1.0  # at (-0.65, -0.55) and (0.55, 0.45)
    left, right = saliency([[-0.4, 0.0], [0.4, 0.0]], bound=False).find(x)[0][0]
    assert left[0] < -0.35 and left[1] < -0.25 and right[0] > 0.25 and right[1] > 0.15


def test_no_gradient_takes_this_way():
    x = torch.randn(1, 2, 4, 5, requires_grad=True)
    assert not any(found.requires_grad for found in saliency([[0.0, 0.0]], 0.5, 1.0).find(x))


@pytest.mark.parametrize('scale', [0.5, [0.4, 0.9]])
def test_a_network_starts_there_inside_the_image(scale):
    torch.manual_seed(0)
    arguments = {**GLIMPSES, 'stn_scale': scale}
    model = timm.create_model('stn_test_resnet', stn_localization='saliency:2', stn_whole=True, **arguments).eval()
    images = torch.randn(4, 3, 128, 128)
    theta = model.look(images)[1]
    small = nn.functional.interpolate(images, (64, 64), mode='bilinear', antialias=True)
    maps = model.backbone.forward_intermediates(small, indices=[2], intermediates_only=True)[0]
    scales = scale if isinstance(scale, list) else (scale, scale)
    expected = reference(maps.detach().numpy(), model.stn.tiles.tolist(), *scales)
    np.testing.assert_allclose(theta[..., 2].detach().numpy(), expected[..., :2], atol=1e-4)
    np.testing.assert_allclose(theta[..., [0, 1], [0, 1]].detach().numpy(), expected[..., [2, 2]], atol=1e-4)
    assert theta[..., 2].std(0).max() > 1e-3 and not theta[..., [0, 1], [1, 0]].any()
    assert (theta[..., 0, 0].std() > 1e-3) == isinstance(scale, list)


@pytest.mark.parametrize('scale', [0.5, [0.4, 0.9]])
@pytest.mark.parametrize('transform', ['translation', 'rotation', 'affine', 'projective', 'tps'])
def test_every_family_starts_there_and_learns(transform, scale):
    torch.manual_seed(0)
    arguments = {**GLIMPSES, 'stn_transform': transform, 'stn_localization': 'saliency:1', 'stn_scale': scale}
    model = timm.create_model('stn_test_resnet', **arguments)
    images = torch.randn(2, 3, 128, 128)
    corners = torch.tensor([[-1.0, -1.0], [0.0, 0.0], [1.0, 1.0]])
    points = model.stn.map_points(model.stn.regress(images, model._localize).flatten(0, 1), corners)
    starts = model._localize(images).start.map_points(corners)
    torch.testing.assert_close(points, starts, atol=1e-4, rtol=0)
    model(images).square().sum().backward()
    regression = model.stn.localization.regression
    assert regression.weight.grad.isfinite().all() and regression.weight.grad.abs().max() > 0


def test_a_saved_network_looks_at_the_same_places(tmp_path):
    model = timm.create_model('stn_test_resnet', stn_localization='saliency:2', **GLIMPSES).eval()
    save_for_hf(model, tmp_path, safe_serialization=True)
    again = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    images = torch.randn(2, 3, 128, 128)
    assert torch.equal(model(images), again(images)) and torch.equal(model.look(images)[1], again.look(images)[1])


def test_it_is_for_glimpses_of_the_image():
    with pytest.raises(ValueError, match="'saliency:2' is for glimpses: stn_scale must be below 1, got 1.0"):
        timm.create_model('stn_test_resnet', stn_localization='saliency:2')
    with pytest.raises(ValueError, match='saliency:<stage>.* is for the input, not for stage 1'):
        timm.create_model('stn_test_resnet', stn_stages=(1,), stn_localization='saliency:2')


@pytest.mark.parametrize('scale,kind', [([0.5, 0.8], 'conv'), ([0.5, 0.8], 'shared:2'), ([1.0, 1.5], 'auto')])
def test_two_scales_need_a_response(scale, kind):
    with pytest.raises(ValueError, match=r"stn_scale=.*: two numbers need stn_localization='saliency:<stage>', got"):
        timm.create_model('stn_test_resnet', **{**GLIMPSES, 'stn_scale': scale, 'stn_localization': kind})


def test_in_training_glimpses_are_of_the_largest_scale():
    torch.manual_seed(0)
    images = torch.randn(4, 3, 128, 128)
    for most in (0.8, 1.0):
        arguments = {**GLIMPSES, 'stn_scale': [0.4, most], 'stn_localization': 'saliency:2'}
        model = timm.create_model('stn_test_resnet', **arguments).train()
        theta = model.look(images)[1]
        assert (theta[..., [0, 1], [0, 1]] == most).all()
        model(images).square().sum().backward()
        learns = model.stn.localization.regression.bias.grad.abs().max() > 0
        assert learns == (most < 1), 'a glimpse of the whole image has no room to move: any step would be a blind one'
        assert model.eval().look(images)[1][..., 0, 0].min() < most


def test_what_is_not_finite_does_no_harm():
    arguments = {**GLIMPSES, 'stn_scale': [0.4, 0.9]}
    model = timm.create_model('stn_test_resnet', stn_localization='saliency:2', **arguments).eval()
    images = torch.randn(2, 3, 128, 128)
    alone = model.look(images)[1]
    images[1, :, 5, 5] = float('nan')
    theta = model.look(images)[1]
    torch.testing.assert_close(theta[0], alone[0])
    torch.testing.assert_close(theta[1], model.stn.base)
