"""One lattice tells the outline, the grid and where each pixel came from: compared with the transformer itself."""
import pytest
import torch
from makers import generator

from timm_stn import SpatialTransformer
from timm_stn.view.lattice import SIDE, border, corners, lattice_through, lines, map_seen, outline, sources


def looked(transform, **settings):
    stn = SpatialTransformer(3, (24, 32), transform, **settings)
    bias = stn.localization.regression.bias
    bias.data = 0.01 * torch.randn(bias.shape, generator=generator())
    return stn, stn.look(torch.rand(2, 3, 24, 32, generator=generator()))[1]


@pytest.mark.parametrize('transform', ['affine', 'projective', 'tps', 'diffeomorphic', 'zoom'])
def test_the_border_of_the_lattice_is_the_outline(transform):
    stn, theta = looked(transform)
    lattice = lattice_through(stn, theta)
    assert lattice.shape == (2, 1, SIDE * SIDE, 2)
    torch.testing.assert_close(border(lattice), outline(stn, theta, SIDE - 1))
    ends = map_seen(stn, theta, torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]]))
    torch.testing.assert_close(corners(lattice), ends)


@pytest.mark.parametrize('transform', ['affine', 'tps', 'zoom'])
def test_lines_of_the_grid_are_evenly_spaced_in_what_was_seen(transform):
    stn, theta = looked(transform)
    drawn = lines(lattice_through(stn, theta)[0])
    assert drawn.shape == (1, 14, SIDE, 2)
    along = torch.linspace(-1, 1, SIDE)
    rows = torch.stack([along, torch.full_like(along, -0.75)], -1)  # the first and the last of the rows, of the columns
    for k, points in ((0, rows), (6, -rows.flip(0)), (7, rows.flip(-1)), (13, (-rows).flip(0, -1))):
        expected = map_seen(stn, theta[:1], points.contiguous())[0, 0]
        torch.testing.assert_close(drawn[0, k], expected, msg=f'line {k}')


def test_glimpses_have_a_lattice_each():
    stn, theta = looked('translation', glimpses=2, scale=0.5)
    lattice = lattice_through(stn, theta)
    assert lattice.shape == (2, 2, SIDE * SIDE, 2)
    torch.testing.assert_close(border(lattice), outline(stn, theta, SIDE - 1))


@pytest.mark.parametrize(('transform', 'tolerance'), [('affine', 1e-5), ('tps', 4e-3), ('diffeomorphic', 4e-3)])
def test_pixels_come_from_where_the_transformer_maps_them(transform, tolerance):
    stn, theta = looked(transform)
    height, width = 11, 15
    y, x = ((2 * torch.arange(length) + 1) / length - 1 for length in (height, width))
    points = torch.cartesian_prod(y, x).flip(-1)
    expected = map_seen(stn, theta[:1], points).reshape(height, width, 2)
    found = sources(lattice_through(stn, theta)[0, 0], (height, width))
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


def test_volumes_have_no_outline():
    stn = SpatialTransformer(1, (8, 8, 8), 'affine3d')
    with pytest.raises(ValueError, match='must be for images'):
        lattice_through(stn, torch.eye(3, 4)[None])
