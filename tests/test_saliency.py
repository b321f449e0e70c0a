"""Glimpses that start where the backbone's features respond."""
import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_model import save_for_hf
from torch import nn

import timm_stn  # noqa: F401
from timm_stn.saliency import Saliency

GLIMPSES = dict(stn_glimpses=2, stn_scale=0.5, stn_size=64, img_size=128, stn_transform='translation', num_classes=3)


def saliency(tiles, scale=0.5, reach=0.4):
    return Saliency(torch.as_tensor(tiles, dtype=torch.float64), scale, reach, 'moments', 3, (5, 5), 4)


def reference(maps, tiles, scale, reach):
    """In numpy, pixel by pixel, as the docstring says it."""
    out = np.zeros((len(maps), len(tiles), 2))
    for n, sample in enumerate(maps):
        energy = np.maximum(sample, 0).mean(0)
        energy = np.maximum(energy - energy.mean(), 0)
        height, width = energy.shape
        for g, (tile_x, tile_y) in enumerate(tiles):
            total, center = 0.0, np.zeros(2)
            for i in range(height):
                for j in range(width):
                    x, y = (2 * j + 1) / width - 1, (2 * i + 1) / height - 1
                    mass = energy[i, j] * np.exp(-((x - tile_x) ** 2 + (y - tile_y) ** 2) / (2 * scale ** 2))
                    total, center = total + mass, center + mass * np.array([x, y])
            out[n, g] = np.clip(center / total if total else [tile_x, tile_y], -reach, reach)
    return out


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2 ** 20), height=st.integers(1, 7), width=st.integers(1, 7), scale=st.floats(0.1, 0.9))
def test_centres_are_those_of_a_plain_loop(seed, height, width, scale):
    rng = np.random.default_rng(seed)
    maps, tiles = rng.standard_normal((2, 3, height, width)), rng.uniform(-0.4, 0.4, (2, 2))
    found = saliency(tiles, scale).find(torch.from_numpy(maps))
    np.testing.assert_allclose(found.numpy(), reference(maps, tiles, scale, 0.4), atol=1e-9)


def test_a_map_that_responds_nowhere_leaves_the_tiles():
    tiles = [[-0.4, 0.0], [0.4, 0.0]]
    for x in (torch.zeros(2, 3, 5, 5), torch.full((2, 3, 5, 5), 7.0), torch.full((2, 3, 5, 5), -1.0)):
        torch.testing.assert_close(saliency(tiles).find(x), torch.tensor(tiles).expand(2, 2, 2))


def test_a_glimpse_goes_to_what_is_near_it():
    x = torch.zeros(1, 1, 20, 20)
    x[..., 4, 3] = x[..., 14, 15] = 1.0  # at (-0.65, -0.55) and (0.55, 0.45)
    left, right = saliency([[-0.4, 0.0], [0.4, 0.0]], reach=1.0).find(x)[0]
    assert left[0] < -0.35 and left[1] < -0.25 and right[0] > 0.25 and right[1] > 0.15


def test_no_gradient_takes_this_way():
    x = torch.randn(1, 2, 4, 5, requires_grad=True)
    assert not saliency([[0.0, 0.0]]).find(x).requires_grad


def test_a_network_starts_there_inside_the_image():
    torch.manual_seed(0)
    model = timm.create_model('stn_test_resnet', stn_localization='saliency:2', stn_whole=True, **GLIMPSES).eval()
    images = torch.randn(4, 3, 128, 128)
    theta = model.look(images)[1]
    small = nn.functional.interpolate(images, (64, 64), mode='bilinear', antialias=True)
    maps = model.backbone.forward_intermediates(small, indices=[2], intermediates_only=True)[0]
    expected = reference(maps.detach().numpy(), model.stn.tiles.tolist(), 0.5, 0.4)
    np.testing.assert_allclose(theta[..., 2].detach().numpy(), expected, atol=1e-4)
    assert theta[..., 2].std(0).max() > 1e-3


@pytest.mark.parametrize('transform', ['translation', 'rotation', 'affine', 'projective', 'tps'])
def test_every_family_starts_there_and_learns(transform):
    torch.manual_seed(0)
    arguments = {**GLIMPSES, 'stn_transform': transform, 'stn_localization': 'saliency:1'}
    model = timm.create_model('stn_test_resnet', **arguments)
    images = torch.randn(2, 3, 128, 128)
    points = model.stn.map_points(model.stn.regress(images, model._localize).flatten(0, 1), torch.zeros(1, 2))
    starts = model._localize(images)[1]
    torch.testing.assert_close(points.reshape(2, 2, 2), starts, atol=1e-4, rtol=0)
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


def test_a_glance_of_its_own_size(tmp_path):
    arguments = dict(stn_localization='saliency:2', stn_localization_size=32, **GLIMPSES)
    model = timm.create_model('stn_test_resnet', **arguments).eval()
    sizes = []
    next(model.backbone.children()).register_forward_pre_hook(lambda _, args: sizes.append(tuple(args[0].shape[2:])))
    images = torch.randn(2, 3, 128, 128)
    logits = model(images)
    assert sizes == [(32, 32), (64, 64)]
    save_for_hf(model, tmp_path, safe_serialization=True)
    assert torch.equal(logits, timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()(images))
    sizes.clear()
    model(torch.randn(2, 3, 96, 96))
    assert sizes == [(32, 32), (64, 64)]
    with pytest.raises(ValueError, match=r'stn_localization_size=32: with stn_whole, .* of \(64, 64\)'):
        timm.create_model('stn_test_resnet', stn_whole=True, **arguments)
    with pytest.raises(ValueError, match='stn_localization_size must be 2 positive integers, or one, got -3'):
        timm.create_model('stn_test_resnet', **{**arguments, 'stn_localization_size': -3})


@pytest.mark.parametrize('more', [{}, {'stn_whole': True}])
def test_to_ask_where_to_look_leaves_the_batch_norms_alone(more):
    torch.manual_seed(0)
    model = timm.create_model('stn_test_resnet', stn_localization='saliency:2', **more, **GLIMPSES).train()
    images = torch.randn(4, 3, 128, 128)
    seen = model.look(images)[0]
    if more:
        small = nn.functional.interpolate(images, (64, 64), mode='bilinear', antialias=True)
        seen = torch.cat([small[:, None], seen], 1)
    plain = timm.create_model('test_resnet', num_classes=3).train()
    plain.load_state_dict({**model.backbone.state_dict(), 'fc.weight': plain.fc.weight, 'fc.bias': plain.fc.bias})
    model(images)
    plain(seen.flatten(0, 1))  # all that is to be classified, in one batch
    for (name, own), theirs in zip(model.backbone.named_buffers(), plain.buffers()):
        torch.testing.assert_close(own, theirs, msg=name)
    assert all(m.training for m in model.modules())
