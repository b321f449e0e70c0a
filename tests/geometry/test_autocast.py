"""What autocast must not do: round coordinates and parameters, or keep what was cast without a graph."""
import numpy as np
import pytest
import torch
from makers import randn
from torch import nn

from timm_stn.geometry.autocast import full_precision, uncached


def test_products_are_those_of_float32_and_not_of_bfloat16():
    a, b = randn(7, 300), randn(300, 5, seed=1)
    exact = a.double().numpy() @ b.double().numpy()
    with torch.autocast('cpu', torch.bfloat16):
        rounded = a @ b
        with full_precision(a):
            found = a @ b
        again = a @ b
    assert rounded.dtype == again.dtype == torch.bfloat16 and found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), exact, rtol=0, atol=1e-4)
    assert np.abs(rounded.double().numpy() - exact).max() > 1e-2, 'or there is nothing to protect'


@pytest.mark.parametrize('context', [full_precision, uncached])
def test_without_autocast_and_without_a_device_nothing_changes(context):
    a = randn(3, 3)
    with context(a):
        assert not torch.is_autocast_enabled('cpu') and (a @ a).dtype == torch.float32
    with torch.autocast('cpu', torch.bfloat16), context(a.to('meta')):
        assert torch.is_autocast_enabled('cpu') and (a @ a).dtype == torch.bfloat16


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_uncached_casts_alike_and_keeps_nothing(dtype):
    """A glance without gradients comes before the pass that is trained: its casts of the weights must not stay."""
    layer, x = nn.Linear(4, 3), randn(2, 4)
    with torch.autocast('cpu', dtype):
        with uncached(x), torch.no_grad():
            assert torch.is_autocast_cache_enabled() is False
            glance = layer(x)
        assert torch.is_autocast_cache_enabled()
        out = layer(x)
        out.float().sum().backward()
    assert glance.dtype == dtype and torch.equal(glance, out)
    torch.testing.assert_close(layer.weight.grad, x.sum(0).expand(3, 4), rtol=0.02, atol=0.02)
