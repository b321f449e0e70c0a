"""Pose search: the network itself says in which pose it is most certain."""
import math

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from makers import create, images, save_for_hf
from scipy import ndimage
from torch import nn

import timm_stn
from timm_stn.modules.orbit import PRIOR
from timm_stn.view.cost import multiply_adds
from timm_stn.view.dependence import witnessing

FLIPS = [[[1, 0, 0], [0, 1, 0]], [[-1, 0, 0], [0, 1, 0]]]


class Compass(nn.Module):
    """Certain of images that are brighter at the top: the first logit is ten times the top's excess."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def forward(self, x):
        self.sizes.append(tuple(x.shape))
        half = x.shape[2] // 2
        excess = x[:, :, :half].mean((1, 2, 3)) - x[:, :, half:].mean((1, 2, 3))
        return torch.stack([10 * excess, torch.zeros_like(excess)], 1)


def bright_on_top(n=4, side=16):
    x = torch.zeros(n, 1, side, side)
    x[:, :, :side // 4] = 1.0
    return x + 0.01 * torch.rand(x.shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize('turns', range(4))
def test_images_come_back_from_right_angles(turns):
    x = bright_on_top()
    turned = torch.from_numpy(ndimage.rotate(x.numpy(), 90 * turns, axes=(2, 3)).copy())
    seen, theta = timm_stn.canonicalize(Compass(), turned, 4)
    torch.testing.assert_close(seen, x, atol=1e-5, rtol=0)
    torch.testing.assert_close(timm_stn.warp(turned, theta, padding_mode='reflection'), seen)


def test_images_come_back_from_any_angle_to_the_nearest_pose():
    side, angle = 64, 0.3
    y, x = np.mgrid[:side, :side] / side - 0.5
    turned = -(math.cos(angle) * y + math.sin(angle) * x)  # bright towards the top, turned
    _, theta = timm_stn.canonicalize(Compass(), torch.tensor(turned, dtype=torch.float32)[None, None], 16, prior=0)
    found = math.atan2(float(theta[0, 1, 0]), float(theta[0, 0, 0]))
    assert abs(abs(found) - angle) < math.pi / 16
    seen = timm_stn.warp(torch.tensor(turned, dtype=torch.float32)[None, None], theta)[0, 0]
    assert abs(float(seen[:, :16].mean() - seen[:, -16:].mean())) < 0.2, 'hardly a slope along x is left'


def test_the_identity_wins_unless_another_pose_is_clearly_more_certain():
    x = torch.flip(bright_on_top(), [2])  # brighter below
    model = Compass()
    for factor, stays in ((0.1, True), (1.0, False)):
        gain = model(torch.flip(factor * x, [2])).amax(1) - model(factor * x).amax(1)
        assert ((gain > PRIOR) != stays).all()
        _, theta = timm_stn.canonicalize(model, factor * x, 2)
        assert torch.equal(theta[:, 0, 0], torch.full((4,), 1.0 if stays else -1.0))
    _, theta = timm_stn.canonicalize(model, 0.1 * x, 2, prior=0)
    assert (theta[:, 0, 0] == -1).all()


def test_matrices_and_smaller_pictures():
    model, x = Compass(), torch.flip(bright_on_top(), [2])
    seen, theta = timm_stn.canonicalize(model, x, [FLIPS[0], [[1, 0, 0], [0, -1, 0]]], size=8)
    assert model.sizes == 2 * [(4, 1, 8, 8)]
    torch.testing.assert_close(seen, torch.flip(x, [2]))
    assert torch.equal(theta, torch.tensor([[1.0, 0, 0], [0, -1, 0]]).expand(4, 2, 3))


@pytest.mark.parametrize('arguments, words', [
    (dict(thetas=0), 'thetas must be a number of rotations'), (dict(size=0), 'size must be'),
    (dict(padding_mode='fill'), "padding_mode must be one of .* got 'fill'"),
    (dict(prior='a'), "prior must be a number, got 'a'"), (dict(prior=math.nan), 'prior must be a number, got nan')])
def test_wrong_arguments(arguments, words):
    with pytest.raises(ValueError, match=words):
        timm_stn.canonicalize(Compass(), bright_on_top(), **arguments)
    with pytest.raises(ValueError, match=r'images must be \(N, C, H, W\)'):
        timm_stn.canonicalize(Compass(), torch.zeros(1, 1, 2, 2, 2))


def test_what_is_no_classifier_is_refused():
    with pytest.raises(ValueError, match='model must be a classifier, .* got a list'):
        timm_stn.canonicalize(timm.create_model('test_resnet', features_only=True), images(), 2)
    with pytest.raises(ValueError, match=r'model must be a classifier, .* got shape \(2, 3, 64, 64\)'):
        timm_stn.canonicalize(nn.Identity(), images(), 2)


def test_a_model_in_training_is_asked_as_in_evaluation():
    model = timm.create_model('test_resnet').train()
    before = model.bn1.running_mean.clone()
    seen, _ = timm_stn.canonicalize(model, images(), 4)
    assert model.training and torch.equal(model.bn1.running_mean, before) and not seen.requires_grad


# in a network

def reference(model, x, n, size):
    """The most certain pose, by a loop over images and poses with other functions."""
    found = []
    for image in x:
        best = None
        for k in range(n):
            angle = 2 * math.pi * k / n
            theta = torch.tensor([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0]])
            grid = F.affine_grid(theta[None], (1, *image.shape), align_corners=False)
            seen = F.grid_sample(image[None], grid, padding_mode='border', align_corners=False)
            small = F.interpolate(seen, size, mode='bilinear', antialias=True)
            with torch.no_grad():
                certainty = model.backbone(small).max().item() + PRIOR * (k == 0)
            if best is None or certainty > best[0]:
                best = certainty, theta
        found.append(best[1])
    return torch.stack(found)


def decisive(**kwargs):
    """A network whose answers differ from pose to pose."""
    torch.manual_seed(0)
    model = create(num_classes=7, **kwargs)
    nn.init.normal_(model.backbone.fc.weight, std=1000.0)
    return model


@pytest.mark.parametrize('size', [None, 32])
def test_a_network_looks_through_the_pose_that_it_is_most_certain_of(size):
    model, x = decisive(stn_localization='orbit:8', stn_localization_size=size), images(6)
    seen, theta = model.look(x)
    torch.testing.assert_close(theta, reference(model, x, 8, (size or 64,) * 2), atol=1e-6, rtol=0)
    assert len({tuple(t.flatten().tolist()) for t in theta}) > 1, 'the poses differ, or nothing is tested'
    torch.testing.assert_close(model(x), model.backbone(seen))
    torch.testing.assert_close(model.stn.last_theta, theta)
    torch.testing.assert_close(model.forward_head(model.forward_features(x)), model(x))


def test_it_has_no_parameters_and_is_the_backbone_in_training():
    model, x = decisive(stn_localization='orbit:4'), images()
    assert not list(model.stn.parameters()) and not model.stn.localization.state_dict()
    model.train()
    seen, theta = model.look(x)
    torch.testing.assert_close(seen, x, atol=1e-5, rtol=1e-5)
    assert torch.equal(theta, torch.eye(2, 3).expand(2, 2, 3))
    model(x).sum().backward()
    assert model.backbone.fc.weight.grad.abs().sum() > 0


def test_it_is_saved_and_takes_plain_weights(tmp_path):
    for given in (dict(stn_localization='orbit:4'), dict(stn_localization=FLIPS),
                  dict(stn_stages=[['input', dict(localization=FLIPS)], [1, {}]])):
        model = decisive(stn_localization_size=32, stn_padding_mode='reflection', **given)
        x = images()
        save_for_hf(model, tmp_path)
        again = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
        assert torch.equal(again(x), model(x)) and torch.equal(again.look(x)[1], model.look(x)[1])
        plain = timm.create_model('test_resnet', num_classes=7)
        model.load_state_dict(plain.state_dict())
        assert torch.equal(model.backbone.fc.weight, plain.fc.weight)


def test_without_a_classifier_it_looks_as_it_is():
    model, x = decisive(stn_localization='orbit:4'), images()
    model.reset_classifier(0)
    assert torch.equal(model.look(x)[1], torch.eye(2, 3).expand(2, 2, 3))
    torch.testing.assert_close(model(x), model.backbone(x), rtol=1e-4, atol=1e-5)


def test_with_the_whole_image_as_a_stream():
    model, x = decisive(stn_localization='orbit:4', stn_whole=True), images()
    seen, _ = model.look(x)
    torch.testing.assert_close(model(x), (model.backbone(x) + model.backbone(seen)) / 2, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('poses', ['orbit:4', FLIPS[::-1]])
def test_what_is_not_finite_is_seen_as_it_is(poses):
    model, x = decisive(stn_localization=poses), images(3)
    alone = model.look(x)[1]
    x[1, :, 5, 5] = float('nan')
    theta = model.look(x)[1]
    assert torch.equal(theta[1], torch.eye(2, 3)) and torch.equal(theta[[0, 2]], alone[[0, 2]])


def test_an_empty_batch():
    model = decisive(stn_localization='orbit:4')
    assert model(torch.zeros(0, 3, 64, 64)).shape == (0, 7)
    seen, theta = timm_stn.canonicalize(Compass(), torch.zeros(0, 1, 8, 8), 4)
    assert seen.shape == (0, 1, 8, 8) and theta.shape == (0, 2, 3)


def test_images_of_another_shape_are_turned_in_pixels():
    model = decisive(stn_localization='orbit:8')
    theta = model.look(images(6, 96)[..., :64])[1].double()
    half = torch.tensor([32.0, 48.0], dtype=torch.float64)  # of 96 x 64 pixels, xy
    turns = theta[:, :, :2] * half[:, None] / half
    torch.testing.assert_close(turns @ turns.transpose(1, 2), torch.eye(2, dtype=torch.float64).expand(6, 2, 2))


def test_one_pose_is_asked_after_the_other_and_leaves_no_trace():
    model, x = decisive(stn_localization='orbit:8', stn_stages=('input', )), images(3).requires_grad_()
    sizes = []
    model.backbone.conv1[0].register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    model(x)
    assert sizes == [3] * 9
    inner = create(stn_stages=(1,))
    before = inner(images()).detach(), inner.spatial_transformers()[1].last_theta
    with inner.record_thetas() as thetas:
        timm_stn.canonicalize(inner, images(), 4)
    assert not thetas and inner.spatial_transformers()[1].last_theta is before[1]


def test_the_pictures_size_is_one_that_the_backbone_takes():
    with pytest.raises(ValueError, match=r'stn_localization_size=112: .* takes no pictures of this size: Input height'):
        create('stn_vit_tiny_patch16_224', stn_localization='orbit:2', stn_localization_size=112)


def test_it_is_not_scripted_and_its_cost_is_counted():
    model = decisive(stn_localization='orbit:4')
    with pytest.raises(ValueError, match="cannot compile theta from the backbone's own features or answers"):
        torch.jit.script(model)
    plain = multiply_adds(timm.create_model('test_resnet', num_classes=7), (3, 64, 64))
    sampled = 8 * 5 * 3 * 64 * 64 / 1e9  # what is seen, and four pictures; these are shrunk, too
    assert multiply_adds(model, (3, 64, 64)) == pytest.approx(5 * plain + sampled + 4 * sampled / 5, rel=0.05)


def test_nobody_is_told_that_it_does_nothing():
    with witnessing() as witness:
        create(stn_localization='orbit:4')(images(4))
    assert not witness.found()


@pytest.mark.parametrize('arguments, words', [
    (dict(stn_localization='orbit:0'), "'orbit:0'.* must be a number of rotations.* got 0"),
    (dict(stn_localization='orbit:many'), "'orbit:many'.* must be a number of rotations.* got 'many'"),
    (dict(stn_localization=[[1, 2]]), r'localization must be .* or a list of matrices \(2, 3\); got \[\[1, 2\]\]'),
    (dict(stn_bound=True), 'needs stn_bound not to be True'),
    (dict(stn_scale=0.5), 'needs stn_scale=1'), (dict(stn_iterations=2), 'needs stn_iterations=1'),
    (dict(stn_glimpses=2), 'needs stn_glimpses=1'), (dict(stn_transform='tps'), 'needs stn_transform with a matrix'),
    (dict(stn_whole=True, stn_join='concat'), "needs stn_join='mean'"),
    (dict(stn_whole=True, stn_towers='separate'), "needs stn_towers='shared'"),
    (dict(stn_stages=(1,)), 'is for the input, not for stage 1'),
    (dict(features_only=True), 'asks a classifier, which FeatureListNet is not')])
def test_what_a_search_does_not_go_with(arguments, words):
    with pytest.raises(ValueError, match=words):
        create(**{'stn_localization': 'orbit:8', **arguments})


def test_a_transformer_alone_has_nobody_to_ask():
    with pytest.raises(ValueError, match="'orbit:8' needs the backbone of a network around it"):
        timm_stn.SpatialTransformer(3, (16, 16), localization='orbit:8')
