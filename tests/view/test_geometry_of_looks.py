"""How large, turned, sheared and where a look is: known maps give the numbers they were made of."""
import numpy as np
import pytest
import torch
from makers import PLANAR, move_theta, rand, randn, transformer

from timm_stn.geometry.grid import lattice
from timm_stn.view.geometry_of_looks import looks, looks_of, wrapped

SIZES = [(12, 12), (10, 30), (31, 8)]


def matrix(size, scale=1.0, stretch=1.0, angle=0.0, shear=0.0, x=0.0, y=0.0):
    """Theta (2, 3) of a view that is turned in pixels, with numpy, for an image of (H, W)."""
    height, width = size
    a, b = np.deg2rad([angle, angle + shear + 90])
    axes = np.array([[np.cos(a), np.cos(b)], [np.sin(a), np.sin(b)]]) * [stretch, 1]
    pixels = axes * scale / np.sqrt(abs(np.linalg.det(axes)))
    sides = np.diag([width, height])
    return np.hstack([np.linalg.inv(sides) @ pixels @ sides, [[x], [y]]])


def of(size, family='affine', **made):
    theta = torch.from_numpy(matrix(size, **made))[None]
    return looks(transformer(family, size), theta)


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('made', [
    dict(), dict(scale=0.5, x=0.25, y=-0.5), dict(angle=30), dict(angle=-170, scale=0.3), dict(stretch=2.0, angle=90),
    dict(shear=20, angle=100, scale=1.7, stretch=0.6, x=-0.3, y=0.9)])
def test_an_affine_map_is_what_it_was_made_of(size, made):
    found = of(size, **made)
    want = dict(scale=1.0, stretch=1.0, angle=0.0, shear=0.0, x=0.0, y=0.0) | made
    got = {key: getattr(found, key) for key in ('scale', 'stretch', 'angle', 'shear')}
    got.update(zip('xy', found.center.unbind(-1)))
    assert {key: value.item() for key, value in got.items()} == pytest.approx(want, abs=1e-9)
    assert found.scale.shape == (1, 1) and found.bend.item() == pytest.approx(0, abs=1e-9)


def test_an_angle_is_that_of_pixels():
    """In an image thrice as wide as high, a matrix that looks like a turn by 45 degrees is none."""
    a = np.sqrt(0.5)
    theta = torch.tensor([[[a, -a, 0], [a, a, 0]]])
    found = looks(transformer(input_size=(10, 30)), theta)
    assert found.angle.item() == pytest.approx(np.rad2deg(np.arctan2(10, 30)))
    assert abs(found.shear.item()) > 20
    assert looks(transformer(input_size=(10, 30)), theta, size=(20, 20)).angle.item() == pytest.approx(45)


def test_a_mirrored_view_is_sheared_by_half_a_turn():
    found = looks(transformer(), torch.tensor([[[1.0, 0, 0], [0, -1, 0]]]))
    assert abs(found.shear.item()) == pytest.approx(180) and found.scale.item() == pytest.approx(1)


@pytest.mark.parametrize(('made', 'share'), [
    (dict(), 0), (dict(x=1.0), 0.5), (dict(x=1.0, y=-1.0), 0.75), (dict(scale=0.5, x=0.5), 0), (dict(x=5.0), 1),
    (dict(scale=2.0), 0.75)])
def test_share_of_the_view_outside_the_image(made, share):
    assert of((12, 30), **made).outside.item() == pytest.approx(share)


def test_share_outside_is_that_of_many_random_points():
    size, made = (10, 30), dict(scale=0.9, angle=25, shear=10, x=0.3, y=0.2)
    points = np.random.default_rng(0).uniform(-1, 1, (100_000, 2))
    theta = matrix(size, **made)
    share = (np.abs(points @ theta[:, :2].T + theta[:, 2]) > 1).any(1).mean()
    assert of(size, **made).outside.item() == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize('family', PLANAR)
def test_a_new_transformer_of_any_family_looks_at_the_whole_image(family):
    stn = transformer(family)
    found = looks(stn, stn.regress(rand(3, 2, 12, 10)))
    for value, want in zip(found, (1, 0, 0, 0, 1, 0, 0)):
        assert torch.allclose(value, torch.full_like(value, want), atol=1e-6), found


@pytest.mark.parametrize('family', ['projective', 'tps', 'diffeomorphic', 'zoom'])
def test_other_maps_are_those_of_the_nearest_affine_one(family):
    """Found by numpy's least squares, from the places of the points that the transformer itself maps."""
    stn = move_theta(transformer(family, (8, 24)))
    theta = stn.regress(rand(3, 2, 8, 24)).detach()
    points = lattice((16, 16), dtype=torch.float64).reshape(-1, 2)
    mapped = stn.map_points(theta.double(), points)
    ones = np.hstack([points.numpy(), np.ones((256, 1))])
    fits = [np.linalg.lstsq(ones, m.numpy(), rcond=None)[0].T for m in mapped]
    found = looks(stn, theta)
    again = looks(transformer('affine', (8, 24)), torch.from_numpy(np.stack(fits)))
    for key in ('scale', 'center', 'stretch', 'angle', 'shear'):
        assert torch.allclose(getattr(found, key), getattr(again, key), atol=1e-6)
    bend = [np.sqrt(np.square(m.numpy() - ones @ f.T).sum(1).mean()) for m, f in zip(mapped, fits)]
    assert found.bend.flatten().tolist() == pytest.approx(bend) and min(bend) > 1e-3


def test_glimpses_are_apart():
    stn = transformer('similarity', glimpses=2, scale=0.5)
    found = looks(stn, stn.regress(rand(3, 2, 12, 10)))
    assert found.angle.shape == (3, 2) and found.center.shape == (3, 2, 2)
    assert torch.allclose(found.scale, torch.full((3, 2), 0.5, dtype=torch.float64))
    assert torch.allclose(found.center[0], stn.tiles.double())
    one = transformer()
    theta = one.regress(rand(3, 2, 12, 10))
    assert torch.equal(looks(one, theta[:, None]).scale, looks(one, theta).scale)  # as `observe` gives it


def test_volumes_have_no_angle():
    stn = transformer('affine3d', (4, 6, 8))
    theta = torch.eye(3, 4)[None] * torch.tensor([0.5, 0.25, 1.0])[:, None]
    theta[0, :, 3] = torch.tensor([0.5, -0.25, 0.5])
    found = looks(stn, theta)
    assert found.angle is found.shear is found.stretch is None
    assert found.scale.item() == pytest.approx(0.5) and found.outside.item() == pytest.approx(0.25)
    assert found.center.flatten().tolist() == [0.5, -0.25, 0.5]


def test_any_leading_shape():
    points = lattice((4, 4)).reshape(-1, 2)
    mapped = randn(2, 3, 5, 16, 2)
    found = looks_of(mapped, points, (7, 9))
    assert {tuple(v.shape) for v in found} == {(2, 3, 5), (2, 3, 5, 2)}
    assert torch.allclose(found.angle[1, 2, 3], looks_of(mapped[1, 2, 3], points, (7, 9)).angle)


def test_angles_wrap():
    assert wrapped(torch.tensor([190.0, -190.0, 0.0, 540.0, -90.0])).tolist() == pytest.approx(
        [-170, 170, 0, -180, -90], abs=1e-4)
