"""theta together with its transform: poses compose as numpy's matrices and as nested functions, and undo themselves."""
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from makers import rand, randn

from timm_stn.geometry.grid import lattice
from timm_stn.geometry.pose import pose_at, pose_of
from timm_stn.geometry.transforms import get_transform


def square(theta):
    """A matrix (d, d + 1) as one (d + 1, d + 1), by numpy."""
    theta = theta.double().numpy()
    return np.vstack([theta, [0.0] * len(theta) + [1.0]]) if len(theta) < theta.shape[1] else theta


@pytest.mark.parametrize('name', ['affine', 'similarity', 'projective'])
def test_matrices_multiply(name):
    family, base = get_transform(name), torch.tensor([[0.6, 0.0, 0.2], [0.0, 0.5, -0.1]], dtype=torch.float64)
    params = [0.1 * randn(3, family.num_params, seed=seed, dtype=torch.float64) for seed in (1, 2)]
    pose = pose_at(base.expand(3, -1, -1), family)
    for p in params:
        pose = pose.then(family, p)
    points = 2 * rand(3, 7, 2, seed=3, dtype=torch.float64) - 1
    for n in range(3):
        product = square(base) @ square(family.matrix(params[0])[n]) @ square(family.matrix(params[1])[n])
        x = np.concatenate([points[n].numpy(), np.ones((7, 1))], 1) @ product.T
        np.testing.assert_allclose(pose.map_points(points)[n], x[:, :2] / x[:, 2:], rtol=1e-9, atol=1e-9)


def test_grids_of_an_affine_pose_are_torchs():
    theta = torch.eye(2, 3) + 0.2 * randn(2, 2, 3)
    torch.testing.assert_close(pose_of(theta).grid((5, 7)), F.affine_grid(theta, [2, 1, 5, 7], align_corners=False))
    inverse = torch.from_numpy(np.stack([np.linalg.inv(square(t))[:2] for t in theta])).float()
    expected = F.affine_grid(inverse, [2, 1, 5, 7], align_corners=False)
    torch.testing.assert_close(pose_of(theta).inverse_grid((5, 7)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('names', [('tps',), ('diffeomorphic', 'diffeomorphic'), ('tps', 'rotation')])
def test_parameters_nest(names):
    """Where a family has no matrix: the base, of what the first gives, of what the second gives."""
    families = [get_transform(name) for name in names]
    params = [0.05 * randn(2, f.num_params, seed=i, dtype=torch.float64) for i, f in enumerate(families)]
    base = torch.tensor([[0.6, 0.0, 0.2], [0.0, 0.5, -0.1]], dtype=torch.float64).expand(2, -1, -1)
    pose = pose_at(base, families[0])
    for family, p in zip(families, params):
        pose = pose.then(family, p)
    points = lattice((4, 5), dtype=torch.float64).expand(2, -1, -1, -1)
    expected = points
    for family, p in reversed(list(zip(families, params))):
        expected = family.map_points(p, expected)
    expected = expected * torch.tensor([0.6, 0.5]) + torch.tensor([0.2, -0.1])
    torch.testing.assert_close(pose.map_points(points), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(pose.grid((4, 5)), expected, rtol=1e-6, atol=1e-6)
    back = pose.map_points(pose.inverse_grid((4, 5)))
    torch.testing.assert_close(back, points, rtol=0, atol=1e-3)


def test_a_base_that_is_the_identity_costs_no_transform():
    family, base = get_transform('tps'), torch.eye(2, 3).expand(2, -1, -1)
    params = 0.1 * randn(2, family.num_params)
    pose = pose_at(base, family, is_identity=True).then(family, params)
    assert torch.equal(pose.theta, params) and torch.equal(pose.grid((3, 4)), pose_of(params, 'tps').grid((3, 4)))
    away = pose.replace(params + 0.01)
    assert torch.equal(away.theta, params + 0.01) and not torch.allclose(away.grid((3, 4)), pose.grid((3, 4)))
