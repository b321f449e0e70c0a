"""Checkpoints all of whose tensors somebody cast load where plain ones do, and mean the same."""
import warnings

import pytest
import timm
import torch
from makers import create, transformer

import timm_stn  # noqa: F401
from timm_stn.modules.casts import as_count, is_lost, widened
from timm_stn.modules.record import RECORD
from timm_stn.modules.standardize import AS_THEY_COME

FLOAT8 = [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz]
TYPES = [torch.float16, torch.bfloat16, torch.float64, *FLOAT8]


def cast(state_dict, dtype, back=False):
    return {k: v.to(dtype).float() if back else v.to(dtype) for k, v in state_dict.items()}


def load(net, state_dict):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        net.load_state_dict(state_dict)
    return net


@pytest.mark.parametrize('back', [False, True], ids=['', 'and back'])
@pytest.mark.parametrize('dtype', TYPES, ids=str)
@pytest.mark.parametrize('lr_scale', [10.0, 0.3, 1e-5])
def test_a_cast_of_all_tensors_loads_and_keeps_the_scale(dtype, back, lr_scale):
    arguments = dict(localization='fc', glimpses=2, scale=0.5, freeze_steps=3, lr_scale=lr_scale)
    stn, x = transformer(std=0.1 / lr_scale, **arguments), torch.rand(3, 2, 12, 10)
    stn.backward_passes.fill_(2)
    other = load(transformer(**{**arguments, 'lr_scale': 2.0}), cast(stn.state_dict(), dtype, back))
    rounded = load(transformer(**arguments), {
        k: v if v.dtype == torch.int64 else v.to(dtype).float() for k, v in stn.state_dict().items()})
    torch.testing.assert_close(other.regress(x), rounded.regress(x), rtol=1e-4, atol=1e-5)
    assert other.backward_passes == 2 and other.localization.regression.lr_scale == 2.0
    assert other.localization.standardize.num_batches_tracked == 0


@pytest.mark.parametrize('dtype', [torch.float16, *FLOAT8], ids=str)
def test_a_scale_that_is_lost_is_taken_to_be_the_same_and_said(dtype):
    """Of older checkpoints, which have no record of it."""
    stn = transformer(std=0.1)
    state_dict = {k: v for k, v in cast(stn.state_dict(), dtype).items() if k != RECORD}
    other = transformer()
    with pytest.warns(UserWarning, match=r'regression\.lr_scale_nano: .*taken to be of lr_scale=10\.0'):
        other.load_state_dict(state_dict)
    expected = state_dict['localization.regression.weight'].float()
    assert torch.equal(other.localization.regression.weight, expected)


def test_counts_that_are_lost_stay_large():
    stn = transformer(localization='fc', freeze_steps=70_000)
    stn.backward_passes.fill_(70_001)
    stn.localization.standardize.num_batches_tracked.fill_(200_000)
    other = load(transformer(localization='fc', freeze_steps=70_000), cast(stn.state_dict(), torch.float16))
    assert other.backward_passes >= 70_000 and other.localization.standardize.num_batches_tracked > 10_000
    assert other.train().localization.standardize.active
    stn.localization.standardize.num_batches_tracked.fill_(AS_THEY_COME)
    other.load_state_dict(cast(stn.state_dict(), torch.float16))
    assert not other.train().localization.standardize.active


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize('name', ['stn_mnist_cnn_tc', 'stn_mnist_cnn_rts'])
def test_trained_networks_answer_the_same(name, dtype):
    trained = timm.create_model(name, pretrained=True).eval()
    x = torch.rand(16, *trained.pretrained_cfg['input_size'])
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        again = create(name)
        again.load_state_dict(cast(trained.state_dict(), dtype))
    assert (again(x).softmax(1) - trained(x).softmax(1)).abs().max() < 0.02


def test_single_numbers():
    for lost in (torch.tensor(1e10).half(), torch.tensor(1e10).half().float(), torch.tensor(float('nan'))):
        assert is_lost(lost) and as_count(lost, 7) == 7 and as_count(lost, 7).dtype == torch.int64
    for kept in (torch.tensor(10 ** 10), torch.tensor(1e10), torch.tensor(1e10).bfloat16(), torch.tensor(5).half()):
        assert not is_lost(kept)
    assert as_count(torch.tensor(5).half(), 7) == 5 and as_count(torch.tensor(-1.0), 7) == -1
    assert as_count(torch.tensor(5), 7) == 5 and as_count(None, 7) is None
    assert widened(torch.ones(2).to(torch.float8_e4m3fn), torch.float32).dtype == torch.float32
    assert widened(torch.ones(2).half(), torch.float32).dtype == torch.float32
    assert widened(torch.ones(2).double(), torch.float32).dtype == torch.float64
