"""What weights must be before they are used."""
import pytest
import timm
import torch

from timm_stn.names import weights

NAME = 'stn_mnist_cnn_rts'


@pytest.mark.parametrize('dtype', weights.FLOATS)
@pytest.mark.parametrize('bad', [torch.nan, torch.inf, -torch.inf])
def test_one_bad_number_is_found_wherever_it_is(dtype, bad):
    for place in (0, 5000, 9999):
        value = torch.ones(10_000, dtype=dtype)
        assert weights._is_finite(value)
        value[place] = bad
        assert not weights._is_finite(value)
    assert weights._is_finite(torch.tensor(torch.inf, dtype=dtype)), 'bounds are single numbers'
    assert not weights._is_finite(torch.tensor(torch.nan, dtype=dtype))


def test_a_hub_file_must_be_safetensors():
    overlay = dict(file=None, hf_hub_id='someone/theirs', hf_hub_filename='pytorch_model.bin')
    with pytest.raises(ValueError, match="hf_hub_filename must name a .safetensors file, got 'pytorch_model.bin'"):
        timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=overlay)


@pytest.mark.parametrize('content,words', [
    ({}, 'holds no tensors'), (dict(x=1), "'x' is no tensor with a name, but a int"),
    ({1: torch.ones(1)}, 'cannot be read as a checkpoint'), ([1], 'cannot be read as a checkpoint'),
    (dict(x=torch.eye(2).to_sparse()), "'x' is no tensor with a name"),
])
def test_files_that_hold_something_else(tmp_path, content, words):
    file = tmp_path / 'x.pth'
    torch.save(content, file)
    with pytest.raises(RuntimeError, match=f'{file}.*{words}'):
        timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=dict(file=str(file)))
    with pytest.raises(FileNotFoundError, match='there is no file'):
        timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=dict(file=str(tmp_path / 'y.pth')))
