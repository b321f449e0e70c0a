"""timm_stn.geometry.grid: half-pixel centres, against torch's own conventions and by hand."""
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from timm_stn.geometry.grid import centers, coordinate_dtype, from_pixels, lattice, to_pixels


def test_centers_by_hand():
    assert centers(1).tolist() == [0.0]
    assert centers(2).tolist() == [-0.5, 0.5]
    assert centers(4, dtype=torch.float64).tolist() == [-0.75, -0.25, 0.25, 0.75]


@pytest.mark.parametrize('n', [3, 7, 224, 1023])
def test_centers_are_symmetric_and_float32(n):
    values = centers(n)
    assert values.dtype == torch.float32
    assert torch.equal(values, -values.flip(0))


@pytest.mark.parametrize('size', [(1, 1), (3, 5), (5, 3), (2, 3, 4)])
def test_lattice_is_torchs_identity_grid(size):
    theta = torch.eye(len(size), len(size) + 1, dtype=torch.float64)[None]
    expected = F.affine_grid(theta, [1, 1, *size], align_corners=False)[0]
    torch.testing.assert_close(lattice(size, dtype=torch.float64), expected, rtol=0, atol=1e-14)


def test_lattice_order_is_x_first():
    points = lattice((2, 4))
    assert points.shape == (2, 4, 2)
    assert points[0, 3].tolist() == [0.75, -0.5]
    assert lattice((2, 1, 4))[1, 0, 0].tolist() == [-0.75, 0.0, 0.5]


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 5000), pixel=st.floats(-1e4, 1e4))
def test_pixels_and_coordinates_are_inverse(n, pixel):
    pixel = torch.tensor(pixel, dtype=torch.float64)
    torch.testing.assert_close(to_pixels(from_pixels(pixel, n), n), pixel, rtol=1e-9, atol=1e-8)


@pytest.mark.parametrize('n', [1, 4, 9])
def test_edges_and_centres_of_pixels(n):
    edges = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    assert to_pixels(edges, n).tolist() == [-0.5, n - 0.5]
    torch.testing.assert_close(to_pixels(centers(n, dtype=torch.float64), n), torch.arange(n).double())


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.uint8, torch.bool])
def test_coordinates_are_float32(dtype):
    assert coordinate_dtype(dtype) == torch.float32


def test_coordinates_are_float64_for_float64():
    assert coordinate_dtype(torch.float64) == torch.float64
