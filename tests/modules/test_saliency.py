"""Glimpses that start where the backbone's features respond."""
import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import GLIMPSES, save_for_hf
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import timm_stn  # noqa: F401
from timm_stn import SpatialTransformer
from timm_stn.modules.localization import Regressed
from timm_stn.modules.saliency import APART, POWER, WIDE, WINDOW, energy_of, left_by_others, places


def spots(n=4, side=128):
    """Images, each with a pattern somewhere, of one size or another."""
    x, rng = torch.zeros(n, 3, side, side), np.random.default_rng(0)
    for image in x:
        wide = int(rng.integers(side // 6, side // 3))
        top, left = rng.integers(0, side - wide, 2)
        image[:, top:top + wide, left:left + wide] = torch.from_numpy(3 * rng.standard_normal((3, wide, wide)))
    return x


def reference_energy(maps):
    energy = np.maximum(maps, 0).mean(1)
    energy = np.maximum(energy - energy.mean((1, 2), keepdims=True), 0)
    most = energy.max((1, 2), keepdims=True)
    return np.where(most > 0, energy / np.where(most > 0, most, 1), 0)


def reference(energies, tiles, least, most):
    """Centres and scales in numpy, pixel by pixel, as the docstring says it."""
    out = np.zeros((len(energies), len(tiles), 3))
    height, width = energies.shape[1:]
    y, x = np.mgrid[:height, :width]
    points = np.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], 2).reshape(-1, 2)

    def near(center, deviation):
        return np.exp(-((points - center) ** 2).sum(1) / (2 * deviation ** 2))

    for n, sample in enumerate(energies):
        left = sample.flatten() ** POWER
        for g, tile in enumerate(tiles):
            seen = np.array([(left * near(point, WINDOW * most)).sum() for point in points])
            mass = left * near(points[np.isclose(seen, seen.max(), rtol=1e-12).argmax()], WINDOW * most)
            center, scale = np.array(tile), most
            if mass.any():
                center = np.average(points, 0, mass)
                variance = np.average((points - center) ** 2, 0, mass).max()
                rest = max(1 - variance / (WINDOW * most) ** 2, 0.05)  # of a Gaussian times the window
                scale = np.clip(WIDE * np.sqrt(3 * variance / rest), least, most)
            out[n, g] = *center, scale
            left = left * (1 - near(center, APART * scale))
    return out


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2 ** 20), height=st.integers(1, 7), width=st.integers(1, 7), least=st.floats(0.1, 0.9),
    more=st.just(0.0) | st.floats(0, 0.6))
def test_centres_and_scales_are_those_of_a_plain_loop(seed, height, width, least, more):
    rng = np.random.default_rng(seed)
    maps, tiles = rng.standard_normal((2, 3, height, width)), rng.uniform(-0.4, 0.4, (2, 2))
    most = min(least + more, 1.0)
    energy = energy_of(torch.from_numpy(maps))
    np.testing.assert_allclose(energy.numpy(), reference_energy(maps), atol=1e-12)
    found = torch.cat(places(energy, torch.from_numpy(tiles), (least, most)), 2)
    np.testing.assert_allclose(found.numpy(), reference(energy.numpy(), tiles, least, most), atol=1e-6)


@pytest.mark.parametrize('half', [0.15, 0.3, 0.5])
def test_a_glimpse_covers_a_square_that_responds_evenly(half):
    pixels = (torch.arange(200) + 0.5) / 100 - 1
    inside = [((pixels - c).abs() < half).float() for c in (-0.3, 0.1)]
    energy = (inside[1][:, None] * inside[0])[None]
    center, scale = places(energy, torch.zeros(1, 2), (0.1, 1.0))
    torch.testing.assert_close(center[0, 0], torch.tensor([-0.3, 0.1]), atol=0.02, rtol=0)
    torch.testing.assert_close(scale[0, 0], torch.tensor([WIDE * half]).clamp(max=1), rtol=0.12, atol=0)


@pytest.mark.parametrize('most', [0.5, 0.8])
def test_a_map_that_responds_nowhere_leaves_the_tiles(most):
    tiles = torch.tensor([[-0.1, 0.0], [0.1, 0.0]])
    for x in (torch.zeros(2, 3, 5, 5), torch.full((2, 3, 5, 5), 7.0), torch.full((2, 3, 5, 5), -1.0)):
        center, scale = places(energy_of(x), tiles, (0.5, most))
        torch.testing.assert_close(center, tiles.expand(2, 2, 2))
        assert (scale == most).all()


@pytest.mark.parametrize('at', [[(3, 4), (15, 14)], [(3, 4), (4, 14)], [(15, 2), (3, 2)]])
def test_glimpses_find_several_places_the_strongest_first(at):
    energy = torch.zeros(1, 20, 20)
    for strength, (row, column) in zip((1.0, 0.7), at):
        energy[0, row:row + 2, column:column + 2] = strength
    center, scale = places(energy, torch.zeros(2, 2), (0.1, 0.4))
    expected = torch.tensor([[(column + 1) / 10 - 1, (row + 1) / 10 - 1] for row, column in at])
    torch.testing.assert_close(center[0], expected, atol=0.05, rtol=0)
    assert (scale < 0.4).all()


def test_no_gradient_takes_this_way():
    x = torch.randn(1, 2, 4, 5, requires_grad=True)
    assert not energy_of(x).requires_grad


@pytest.mark.parametrize('scale', [0.5, [0.4, 0.9]])
def test_a_network_starts_there_inside_the_image(scale):
    torch.manual_seed(0)
    arguments = {**GLIMPSES, 'stn_scale': scale}
    model = timm.create_model('stn_test_resnet', stn_localization='saliency:2', stn_whole=True, **arguments).eval()
    images = spots()
    theta = model.look(images)[1]
    small = nn.functional.interpolate(images, (64, 64), mode='bilinear', antialias=True)
    maps = model.backbone.forward_intermediates(small, indices=[2], intermediates_only=True)[0]
    scales = scale if isinstance(scale, list) else (scale, scale)
    expected = reference(reference_energy(maps.detach().double().numpy()), model.stn.tiles.tolist(), *scales)
    reach = 0.8 * (1 - expected[..., 2:])
    np.testing.assert_allclose(theta[..., 2].detach().numpy(), expected[..., :2].clip(-reach, reach), atol=1e-3)
    np.testing.assert_allclose(theta[..., [0, 1], [0, 1]].detach().numpy(), expected[..., [2, 2]], atol=1e-3)
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
    scales = scale if isinstance(scale, list) else (scale, scale)
    center, half = places(model._localize(images).energy, model.stn.tiles, scales, training=True)
    reach = 0.8 * (1 - half) if model.stn.bound else torch.ones_like(half)
    center = torch.maximum(torch.minimum(center, reach), -reach)
    starts = (center[..., None, :] + half[..., None] * corners).flatten(0, 1)
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
    with pytest.raises(ValueError, match="'saliency:2' is for glimpses, .* must be below 1 with .*'affine'; got"):
        timm.create_model('stn_test_resnet', stn_localization='saliency:2')
    for other in (dict(stn_scale=0.5), dict(stn_scale=2.0), dict(stn_scale=[1.0, 2.0]), dict(stn_glimpses=2)):
        with pytest.raises(ValueError, match="stn_scale must be 1, stn_glimpses 1, with stn_transform='zoom'; got"):
            timm.create_model('stn_test_resnet', stn_localization='saliency:2', stn_transform='zoom', **other)
    with pytest.raises(ValueError, match='saliency:<stage>.* is for the input, not for stage 1'):
        timm.create_model('stn_test_resnet', stn_stages=(1,), stn_localization='saliency:2')


@pytest.mark.parametrize('scale,kind', [([0.5, 0.8], 'conv'), ([0.5, 0.8], 'shared:2'), ([1.0, 1.5], 'auto')])
def test_two_scales_need_a_response(scale, kind):
    with pytest.raises(ValueError, match=r"stn_scale=.*: two numbers need stn_localization='saliency:<stage>', got"):
        timm.create_model('stn_test_resnet', **{**GLIMPSES, 'stn_scale': scale, 'stn_localization': kind})


def test_in_training_glimpses_are_of_the_largest_scale():
    torch.manual_seed(0)
    images = spots()
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


# several looks

def test_each_look_starts_at_a_place_of_its_own():
    torch.manual_seed(0)
    arguments = {**GLIMPSES, 'stn_scale': [0.2, 0.9], 'stn_localization': 'saliency:2'}
    model = timm.create_model('stn_test_resnet', stn_iterations=2, **arguments).eval()
    images = spots()
    once = timm.create_model('stn_test_resnet', **arguments).eval()
    once.load_state_dict(model.state_dict())
    seen, first = once.look(images)  # (N, G, 3, 64, 64)
    maps = model.backbone.forward_intermediates(seen.flatten(0, 1), indices=[2], intermediates_only=True)[0]
    energy = left_by_others(energy_of(maps), first[..., 2], first[..., 0, :1])
    center, half = places(energy, torch.zeros(1, 2), (0.2 / 0.9, 1.0))  # within each glimpse
    first = first.flatten(0, 1)
    half = torch.maximum(half, (0.2 / first[:, 0, 0]).clamp(max=1)[:, None, None])
    expected = first[:, [0, 1], [0, 1]] * half[:, 0], first[:, :, 2] + first[:, [0, 1], [0, 1]] * center[:, 0]
    theta = model.look(images)[1].flatten(0, 1)
    torch.testing.assert_close(theta[:, [0, 1], [0, 1]], expected[0], atol=1e-4, rtol=0)
    assert (expected[0] >= 0.2 - 1e-6).all()
    inside = expected[1].abs() <= 0.95 * (1 - expected[0])
    assert inside.any()
    torch.testing.assert_close(theta[:, :, 2][inside], expected[1][inside], atol=1e-4, rtol=0)
    assert (theta[:, :, 2].abs() + expected[0] <= 1 + 1e-3).all() and not torch.allclose(theta, first, atol=1e-2)


def test_many_looks_stay_within_the_scales():
    arguments = {**GLIMPSES, 'stn_scale': [0.3, 0.9], 'stn_localization': 'saliency:2', 'stn_iterations': 6}
    model = timm.create_model('stn_test_resnet', **arguments).eval()
    sides = model.look(spots())[1][..., 0, 0]
    assert sides.min() > 0.3 - 1e-5 and sides.max() <= 0.9
    train = model.train().look(spots())[1][..., 0, 0]
    torch.testing.assert_close(train, torch.full_like(train, 0.9))


def test_what_is_seen_through_several_looks_comes_back():
    arguments = {**GLIMPSES, 'stn_scale': [0.2, 0.9], 'stn_transform': 'tps'}
    model = timm.create_model('stn_test_resnet', stn_iterations=2, stn_localization='saliency:2', **arguments).eval()
    theta = model.look(torch.randn(2, 3, 128, 128))[1].flatten(0, 1)
    assert model.stn.theta_transform.name == 'scale_translation+tps+scale_translation+tps'
    points = 0.5 * torch.rand(4, 7, 2)
    there = model.stn.map_points(theta, points)
    torch.testing.assert_close(model.stn.theta_transform.inverse_points(theta, there), points, atol=1e-4, rtol=0)


@pytest.mark.parametrize('apart', [0.3, 0.5])
def test_glimpses_of_two_things_stay_apart_in_every_look(apart):
    def localize(x):  # the brightness, as energy
        return Regressed(torch.zeros(len(x), 4), x[:, 0].relu())

    stn = SpatialTransformer(1, (200, 200), 'translation', nn.Identity(), glimpses=2, scale=0.15, iterations=1)
    stn.scales, stn.localization.finds = (0.15, 0.5), True
    image = torch.zeros(1, 1, 200, 200)
    for strength, x in ((1.0, -apart / 2), (0.8, apart / 2)):
        column = round((x + 1) * 100)
        image[..., 96:104, column - 4:column + 4] = strength
    for looks in (1, 2, 3):
        stn.iterations = looks
        centers = stn.eval().look(image, localize)[1][0, :, 0, 2]
        assert centers[0] < 0 < centers[1] and centers.diff() > apart / 4, f'{looks} looks'


def test_of_two_equal_things_one_is_found_and_not_the_middle():
    energy = torch.zeros(1, 20, 20)
    energy[:, 9:11, 3:5] = energy[:, 9:11, 15:17] = 1.0
    center, half = places(energy, torch.zeros(2, 2), (0.2, 0.4))
    assert sorted(center[0, :, 0].sign().tolist()) == [-1, 1]
    assert (center[0, :, 0].abs() - 0.6).abs().max() < 0.1 and not torch.allclose(half, torch.tensor(0.4))


def test_what_starts_somewhere_needs_a_family_that_can():
    x = torch.zeros(2, 1, 16, 16)
    start, energy = torch.eye(2, 3).repeat(2, 1, 1), torch.ones(2, 4, 4)
    for family, found, words in (
            ('tps', dict(start=start), "start is for families with a matrix, got one for 'tps'"),
            ('tps', dict(energy=energy), "an energy is for .* got one for 'tps' of scale 1.0")):
        stn = SpatialTransformer(1, (16, 16), family)
        with pytest.raises(ValueError, match=words):
            stn.look(x, lambda x, f=found, n=stn.transform.num_params: Regressed(torch.zeros(2, n), **f))
    volumes = SpatialTransformer(1, (4, 4, 4), 'affine3d', 'linear', scale=0.5)
    with pytest.raises(ValueError, match='an energy is for images'):
        volumes.look(torch.zeros(2, 1, 4, 4, 4), lambda x: Regressed(torch.zeros(2, 12), energy))


# zooming

def test_a_zoom_starts_from_the_marginals_of_the_energy():
    torch.manual_seed(0)
    model = timm.create_model('stn_test_resnet', stn_transform='zoom:4x5', stn_size=64, img_size=128).eval()
    assert model.arguments.settings('input').localization == 'saliency:2', 'what auto comes to'
    images = torch.randn(2, 3, 128, 128)
    small = nn.functional.interpolate(images, (64, 64), mode='bilinear', antialias=True)
    maps = model.backbone.forward_intermediates(small, indices=[2], intermediates_only=True)[0]
    for mode in (True, False):
        theta = model.train(mode).look(images)[1]
        torch.testing.assert_close(theta, model.stn.transform.params_of(energy_of(maps)), atol=1e-4, rtol=0)
    model.train()(images).square().sum().backward()
    assert model.stn.localization.regression.weight.grad.abs().max() > 0


def test_a_zoom_of_several_looks_starts_from_the_marginals_once():
    torch.manual_seed(0)
    arguments = dict(stn_transform='zoom', stn_size=64, img_size=128, stn_localization='saliency:2')
    once, thrice = (
        timm.create_model('stn_test_resnet', stn_iterations=looks, **arguments).eval() for looks in (1, 3))
    thrice.load_state_dict(once.state_dict())
    images = spots()
    theta = thrice.look(images)[1]
    torch.testing.assert_close(theta[:, :14], once.look(images)[1])
    assert not theta[:, 14:].any()


def test_a_zoom_is_exact_under_autocast():
    model = timm.create_model('stn_test_resnet', stn_transform='zoom', stn_size=64, img_size=128).eval()
    energy = torch.rand(2, 7, 9)
    expected = model.stn.transform.params_of(energy)
    with torch.autocast('cpu', torch.bfloat16):
        torch.testing.assert_close(model.stn.transform.params_of(energy), expected)


class Copies(TorchDispatchMode):
    """Counts constants that pass from the host to the device."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if 'lift_fresh' in str(func):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize('arguments', [
    dict(stn_transform='zoom', stn_size=64), dict(stn_localization='orbit:4'),
    dict(stn_localization=[[[1, 0, 0], [0, 1, 0]], [[-1, 0, 0], [0, 1, 0]]]),
    dict(stn_scale=0.5, stn_size=64, stn_localization='conv'),
    dict(stn_scale=[0.3, 0.9], stn_glimpses=2, stn_size=64, stn_iterations=2),
    dict(stn_scale=0.5, stn_size=64, stn_transform='tps', stn_localization='saliency:2', stn_iterations=2)])
def test_nothing_is_copied_from_the_host(arguments):
    model = timm.create_model('stn_test_resnet', img_size=128, num_classes=3, **arguments)
    x = torch.randn(2, 3, 128, 128)
    for mode in (True, False):
        model.train(mode)(x)
        with Copies() as copies:
            torch.tensor(1.0)
            assert copies.found, 'a copy is seen'
            copies.found.clear()
            model(x)
        assert not copies.found


def test_a_zoom_of_an_image_with_a_nan_is_the_identity():
    model = timm.create_model('stn_test_resnet', stn_transform='zoom', stn_size=64, img_size=128).eval()
    images = torch.randn(2, 3, 128, 128)
    images[1, :, 5, 5] = float('nan')
    theta = model.look(images)[1]
    assert theta[0].abs().max() > 1e-3 and not theta[1].any()
