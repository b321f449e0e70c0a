"""Resizing with an anti-aliasing filter, against Pillow and boxes."""
import numpy as np
import pytest
import torch
from makers import randn
from PIL import Image

from timm_stn.geometry.shrink import _shrink_by_matrices, shrink


def checkerboard(height, width, cell):
    rows, columns = torch.arange(height)[:, None] // cell, torch.arange(width) // cell
    return ((rows + columns) % 2).float()


class TestShrink:
    @pytest.mark.parametrize('cell', [1, 3])
    @pytest.mark.parametrize('size', [(16, 16), (13, 9), (1, 1), (40, 5), (70, 70)])
    def test_agrees_with_pillow(self, size, cell):
        image = checkerboard(40, 53, cell) + randn(40, 53) / 10
        reference = Image.fromarray(image.numpy()).resize(size[::-1], Image.Resampling.BILINEAR)
        small = shrink(image[None, None], size)[0, 0]
        torch.testing.assert_close(small, torch.tensor(np.array(reference)), rtol=0, atol=1e-5)

    def test_does_not_alias(self):
        assert (shrink(checkerboard(64, 64, 1)[None, None], (16, 16)) - 0.5).abs().max() < 0.02

    def test_same_size_is_untouched(self):
        image = randn(1, 1, 8, 8)
        assert shrink(image, (8, 8)) is image

    def test_volumes_are_pooled_over_boxes(self):
        volume = randn(2, 3, 4, 6, 8)
        expected = volume.reshape(2, 3, 2, 2, 3, 2, 2, 4).mean((3, 5, 7))
        torch.testing.assert_close(shrink(volume, (2, 3, 2)), expected)

    @pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
    def test_dtype(self, dtype):
        image = randn(1, 1, 40, 53, dtype=torch.float64)
        assert shrink(image.to(dtype), (7, 9)).dtype == dtype
        if dtype == torch.float64:
            reference = shrink(image.float(), (7, 9)).double()
            difference = (shrink(image, (7, 9)) - reference).abs().max()
            assert 0 < difference < 1e-6, 'float64 is computed in float64'

    def test_autocast_keeps_precision(self):
        image = randn(1, 1, 40, 53)
        exact = shrink(image, (7, 9))
        with torch.autocast('cpu', torch.bfloat16):
            assert torch.equal(shrink(image, (7, 9)), exact)


@pytest.mark.parametrize('size,out', [
    ((20, 24), (14, 14)), ((10, 9), (14, 30)), ((7, 5), (1, 2)), ((13, 64), (13, 32)),
    ((6, 18, 17), (6, 16, 16)), ((5, 7, 9), (3, 3, 2)), ((3, 4, 5), (7, 4, 5)),
])
def test_shrink_by_matrices_is_shrink(size, out):
    """What exported programs do."""
    x = randn(2, 3, *size, dtype=torch.float64)
    torch.testing.assert_close(_shrink_by_matrices(x, out), shrink(x, out), rtol=0, atol=1e-12)
