"""Lists of poses: rotations in pixels, or matrices as they are."""
import math

import numpy as np
import pytest
import torch

from timm_stn.modules.poses import check_poses, matrices_of

IDENTITY = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]


@pytest.mark.parametrize('height, width', [(10, 10), (20, 30)])
@pytest.mark.parametrize('n', [1, 4, 7])
def test_rotations_turn_pixels_evenly(n, height, width):
    thetas = matrices_of(n, torch.zeros(1, 3, height, width, dtype=torch.float64)).numpy()
    assert thetas.shape == (n, 2, 3) and np.allclose(thetas[0], IDENTITY)
    half = np.diag([width / 2, height / 2])
    for k, theta in enumerate(thetas):
        in_pixels = half @ theta[:, :2] @ np.linalg.inv(half)
        angle = 2 * math.pi * k / n
        turn = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
        np.testing.assert_allclose(in_pixels, turn, atol=1e-12)
        assert not theta[:, 2].any()


def test_matrices_stay_as_they_are():
    flipped = [[-1.0, 0.0, 0.0], [0.0, 1.0, 0.2]]
    for given in ([IDENTITY, flipped], np.array([IDENTITY, flipped]), torch.tensor([IDENTITY, flipped]).double()):
        poses = check_poses(given, 'thetas')
        np.testing.assert_allclose(matrices_of(poses, torch.zeros(1, 3, 4, 8)), [IDENTITY, flipped])
    assert check_poses(np.int64(8), 'thetas') == 8


@pytest.mark.parametrize('poses', [
    0, 65, -1, 2.5, True, None, 'x', [], [IDENTITY] * 65, [[1, 2]], [[[1, 0], [0, 1]]],
    [[[1, 0, 0], [0, 1, math.nan]]]])
def test_what_is_no_list_of_poses(poses):
    with pytest.raises(ValueError, match=r'^thetas must be a number of rotations, or a list of matrices \(2, 3\)'):
        check_poses(poses, 'thetas')
