"""Weights in half precision: what is rounded, what is not, and that a network of float32 comes of them."""
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file

from timm_stn.publish.half import halved, rounded
from timm_stn.publish.save import save_network


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = timm.create_model('stn_test_resnet', num_classes=5, stn_transform='tps').eval()
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    return model


def test_matrices_and_kernels_are_rounded_as_numpy_rounds_them(model):
    state = model.state_dict()
    for name, value in halved(state).items():
        if state[name].ndim < 2:
            assert value is state[name]
        else:
            assert value.dtype == torch.float16
            assert np.array_equal(value.numpy(), state[name].numpy().astype(np.float16)), name


@pytest.mark.parametrize(('value', 'expected'), [
    (torch.tensor([[1.0, 65000.0]]), torch.float16),
    (torch.tensor([[1.0, 70000.0]]), torch.float32),  # beyond what float16 holds
    (torch.full((3, 3), 1e-7), torch.float32),  # below what it holds well
    (torch.tensor([[1.0, 1e-7]]), torch.float16),  # beside which that is nothing
    (torch.zeros(2, 2), torch.float16),
    (torch.tensor([[1.0, torch.nan]]), torch.float32),
    (torch.tensor([1.0, 2.0]), torch.float32),
    (torch.ones(2, 2, dtype=torch.bfloat16), torch.float16),
    (torch.ones(2, 2, dtype=torch.int64), torch.int64),
])
def test_what_float16_cannot_hold_stays(value, expected):
    found = halved({'weight': value})['weight']
    assert found.dtype == expected
    assert torch.allclose(found.double(), value.double(), rtol=1e-3, atol=1e-3, equal_nan=True)


def test_a_file_of_half_the_size_gives_the_rounded_network(model, tmp_path):
    x = torch.rand(2, *model.pretrained_cfg['input_size'])
    before = model(x)
    for name, half in (('whole', False), ('half', True)):
        save_network(model, tmp_path / name, half)
    assert torch.equal(model(x), before), 'it is not changed'
    whole, half = ((tmp_path / name / 'model.safetensors') for name in ('whole', 'half'))
    assert half.stat().st_size < 0.6 * whole.stat().st_size
    assert (tmp_path / 'half' / 'config.json').read_text() == (tmp_path / 'whole' / 'config.json').read_text()
    loaded = timm.create_model(f'local-dir:{tmp_path / "half"}', pretrained=True).eval()
    by_file = timm.create_model('stn_test_resnet', num_classes=5, stn_transform='tps', checkpoint_path=str(half)).eval()
    assert {value.dtype for value in loaded.state_dict().values()} == {v.dtype for v in model.state_dict().values()}
    assert not torch.equal(loaded(x), before) and torch.allclose(loaded(x), before, atol=0.02)
    assert torch.equal(loaded(x), by_file(x)) and torch.equal(loaded(x), rounded(model)(x))
    assert load_file(half)['backbone.conv1.0.weight'].dtype == torch.float16
