"""What feature maps hold and where, against numpy."""
import numpy as np
import pytest
import torch
from makers import randn

from timm_stn.modules.moments import Moments


def test_moments_are_means_and_first_moments_of_every_channel():
    x = randn(3, 4, 5, 6)
    a = x.double().numpy()
    ys, xs = (2 * np.arange(n) + 1 - n for n in (5, 6))
    rms = np.sqrt((a ** 2).mean((1, 2, 3)))[:, None]
    moments = [a.mean((2, 3)), (a * ys[:, None] / 5).mean((2, 3)), (a * xs / 6).mean((2, 3))]
    expected = torch.from_numpy(np.concatenate(moments, 1) / rms).float()
    torch.testing.assert_close(Moments()(x), expected)
    torch.testing.assert_close(Moments()(1e-3 * x), expected)  # whatever the size of the features
    assert Moments()(torch.zeros(2, 4, 5, 6)).eq(0).all()


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_moments_of_empty_maps_have_the_gradient_of_a_constant_divisor(dtype):
    x = randn(3, 4, 5, 6, dtype=dtype)
    x[1], x[2] = 0, 1e-9 * x[2]
    x.requires_grad_()
    gradient, = torch.autograd.grad(Moments()(x).sum(), x)
    ys, xs = ((2 * torch.arange(n, dtype=dtype) + 1 - n) / n for n in (5, 6))
    expected = (1 + ys[:, None] + xs) / 30 / 1e-6
    torch.testing.assert_close(gradient[1:], expected.expand(2, 4, 5, 6))
    torch.testing.assert_close(gradient[0], torch.autograd.grad(Moments()(x[:1]).sum(), x)[0][0])


def test_a_regression_from_moments_follows_a_thing_to_places_where_it_never_was():
    """A blob on the left teaches enough to find it on the right; weights for every position would know nothing."""
    maps = torch.zeros(9, 3, 9, 9)
    maps[torch.arange(9), 0, 4, torch.arange(9)] = 1
    features = Moments()(maps)
    target = (2 * torch.arange(9.) - 8) / 9
    weights = torch.linalg.pinv(features[:4]) @ target[:4, None]
    torch.testing.assert_close((features @ weights)[:, 0], target)
