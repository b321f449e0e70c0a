"""Footprints: their extent, their level, and the points that are spread over them."""
import math

import pytest
import torch

from timm_stn.geometry.footprint import APART, BLEND, footprint, part
from timm_stn.geometry.grid import lattice
from timm_stn.geometry.transforms import matrix_grid

pytestmark = pytest.mark.usefixtures('seeded')


def affine(size, scale, angle=0.0, shift=0.0):
    c, s = scale * math.cos(angle), scale * math.sin(angle)
    return lattice(size)[None] @ torch.tensor([[c, s], [-s, c]]) + shift


PROJECTIVE = torch.tensor([[[0.9, 0.1, 0.05], [-0.1, 0.8, 0.0], [0.15, -0.2, 1.0]]], dtype=torch.float64)


def level_of(grid, size):
    seen = footprint(grid, size)
    return seen.level(seen.square)


def test_levels_follow_the_scale():
    """Of three points along each axis, APART pixels of a level are the most between two."""
    cases = ((-0.1, 0), (BLEND / 2, 0.5), (BLEND + 0.01, 1), (0.99, 1), (1 + BLEND / 2, 1.5), (1.5, 2))
    for octaves, expected in cases:
        level = level_of(affine((16, 16), 3 * APART * 2 ** octaves * 16 / 128, 0.3), (128, 128))
        torch.testing.assert_close(level, torch.full_like(level, expected), rtol=0, atol=1e-3)
    assert not level_of(affine((16, 16), 1.0), (16, 16)).any()


@pytest.mark.parametrize('size, out, expected', [
    ((64, 64), (64, 64), 1), ((64, 64), (44, 44), 1), ((64, 64), (40, 64), 2), ((64, 64), (32, 16), 3),
    ((64, 64), (8, 1), 3), ((64, 64), (256, 64), 1), ((16, 16, 16), (8, 8, 8), 2)])
def test_points_follow_the_sizes(size, out, expected):
    seen = footprint(lattice(out)[None], size)
    assert seen.per_axis == expected and seen.points == expected ** sum(m > 1 for m in out)


def test_points_are_spread_evenly_along_the_axes_of_the_grid():
    """Over a footprint less that of a pixel, around its centre."""
    grid = affine((10, 10), 0.9, 0.4).double()
    points = footprint(grid, (90, 90)).spread(0)
    step = affine((2, 2), 0.9, 0.4).double()[0] * 0.2
    share = math.sqrt(1 - 1 / (0.9 * 9) ** 2)
    expected = [[(i * (step[1, 0] - step[0, 0]) + j * (step[0, 1] - step[0, 0])) * share / 3
                 for j in (-1, 0, 1)] for i in (-1, 0, 1)]
    offsets = (points.reshape(3, 3, 10, 10, 2) - grid).flatten(2, 3)
    torch.testing.assert_close(offsets.mean(2), torch.stack([torch.stack(row) for row in expected]), rtol=0, atol=1e-6)


def test_footprints_end_where_one_glimpse_does():
    """Two grids one below the other are two glimpses: the step between them is no scale."""
    glimpses = torch.cat([affine((8, 8), 0.2, shift=-0.7), affine((8, 8), 0.2, shift=0.7)], 1)
    assert not level_of(glimpses, (32, 32)).any()


@pytest.mark.parametrize('size', [(48, 64), (20, 24, 32)])
def test_an_affine_footprint_is_what_the_columns_of_its_matrix_span(size):
    ndim, out = len(size), [n // 4 for n in size]
    matrix = torch.randn(2, ndim, ndim, dtype=torch.float64)
    seen = footprint(torch.einsum('...j,nij->n...i', lattice(out).double(), matrix), size)
    extent = torch.tensor(size[::-1], dtype=torch.float64)
    for axis, n in enumerate(out):
        step = matrix[..., ndim - 1 - axis] * 2 / n  # the matrix has x first, the axes of a grid end with it
        expected = step.T.reshape(ndim, 2, *[1] * ndim).expand(-1, -1, *out)
        torch.testing.assert_close(seen.steps[axis], expected, rtol=0, atol=1e-6)
        square = (step * extent / 2).square().sum(1)
        torch.testing.assert_close(seen.squares[axis], square.view(2, *[1] * ndim).expand(-1, *out), rtol=1e-5, atol=0)
    torch.testing.assert_close(seen.square, sum(seen.squares) / ndim)


def test_a_projective_footprint_follows_the_derivative():
    """Of the transform at each point, up to the difference between neighbours."""
    out = 64
    seen = footprint(matrix_grid(PROJECTIVE, (out, out)), (448, 448))
    y, x = torch.meshgrid(*[(2 * torch.arange(out).double() + 1) / out - 1] * 2, indexing='ij')
    at = PROJECTIVE[0] @ torch.stack([x, y, torch.ones_like(x)]).flatten(1)
    for axis, column in ((0, 1), (1, 0)):
        direction = PROJECTIVE[0, :, column:column + 1]
        derivative = (direction[:2] * at[2] - at[:2] * direction[2]) / at[2] ** 2 * 2 / out
        error = seen.steps[axis].flatten(1) - derivative
        assert (error.norm(dim=0) < 0.02 * derivative.norm(dim=0)).all()


def test_reach_bounds_all_points():
    """And no point is half a footprint nearer than it says, in coordinates of the grid, xy."""
    seen = footprint(matrix_grid(PROJECTIVE, (20, 30)), (200, 300))
    furthest = seen.spread(0).flatten(0, 2).abs().amax(0)
    assert (furthest <= seen.reach() + 1e-12).all()
    assert (furthest > seen.reach() - sum(step.flatten(1).abs().amax(1) for step in seen.steps) / 2).all()


def test_spread_in_a_frame_scales_coordinates_alone():
    """Along x and y by factors of their own, at every level; a footprint of less than a pixel of it is one point."""
    grid = affine((10, 10), 0.9, 0.4)
    seen = footprint(grid, (90, 90))
    for level in range(3):
        torch.testing.assert_close(seen.spread(level, [0.5, 0.25]), seen.spread(level) * torch.tensor([0.5, 0.25]))
    torch.testing.assert_close(seen.spread(4), grid.repeat(1, 9, 1, 1))


@pytest.mark.parametrize('size', [(36, 48), (12, 15, 18)])
def test_chosen_pixels_have_the_points_that_they_have_among_all(size):
    out = [n // 3 for n in size]
    seen = footprint(lattice(out).expand(2, *out, -1) * torch.rand(2, *out, 1), size)
    index = torch.tensor([0, 7, 11, len(lattice(out).flatten(0, -2)) - 1])
    chosen = seen.chosen(index)
    points = seen.spread(1).reshape(2, seen.points, -1, len(size))[:, :, index]
    torch.testing.assert_close(chosen.spread(1).reshape(points.shape), points, rtol=0, atol=0)
    torch.testing.assert_close(chosen.square.flatten(1), seen.square.flatten(1)[:, index], rtol=0, atol=0)


def test_the_mean_is_over_the_points_of_each_pixel():
    seen = footprint(affine((4, 5), 0.9).expand(2, -1, -1, -1), (40, 50))
    values = torch.randn(2, 3, 4 * 9, 5)
    expected = torch.stack([values[:, :, 4 * i:4 * i + 4] for i in range(9)]).mean(0) * 0.25
    torch.testing.assert_close(seen.mean(values, 0.25), expected)
    one = footprint(affine((4, 5), 0.9).expand(2, -1, -1, -1), (4, 5))
    torch.testing.assert_close(one.mean(values[:, :, :4], 0.5), values[:, :, :4] / 2)


def test_points_move_with_the_grid_and_footprints_are_constants():
    grid = affine((8, 8), 0.8, 0.2).requires_grad_()
    seen = footprint(grid, (64, 64))
    assert not any(x.requires_grad for x in (*seen.steps, *seen.squares))
    upstream = torch.randn(1, 9 * 8, 8, 2)
    found, = torch.autograd.grad(seen.spread(1), grid, upstream)
    torch.testing.assert_close(found, upstream.reshape(1, 9, 8, 8, 2).sum(1))


def test_a_single_row_has_no_extent_across():
    """A grid of one point has no footprint at all."""
    seen = footprint(affine((1, 8), 0.8), (64, 64))
    assert len(seen.steps) == 1 and seen.points == 3
    seen = footprint(affine((1, 1), 0.8), (64, 64))
    assert seen.steps == [] and seen.points == 1


def test_part():
    x = torch.arange(24).reshape(2, 3, 4)
    assert torch.equal(x[part(1, 1, None)], x[:, 1:]) and torch.equal(x[part(2, 0, 4, 2)], x[..., ::2])
