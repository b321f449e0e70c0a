"""What the tests of this folder push, and how they look at what came of it."""
import pytest
import timm
import torch
from makers import rand

from timm_stn import cli

WRITE, READ, WRONG = 'hf_WritesToAcme', 'hf_ReadsOnly', 'hf_NobodyKnowsThis'
REPO = 'acme/net'


def network(seed=0, **kwargs):
    """A small network whose transformer moves things."""
    torch.manual_seed(seed)
    model = timm.create_model('stn_mnist_cnn_tc', **kwargs)
    model.stn.localization.regression.bias.data += 0.1 * torch.randn(6)
    return model.eval()


def digits(model):
    return rand(2, *model.pretrained_cfg['input_size'], seed=1)


def logits(model):
    with torch.inference_mode():
        return model.eval()(digits(model))


def load(repo, **kwargs):
    return timm.create_model(f'hf-hub:{repo}', pretrained=True, **kwargs)


def refused(capsys, *argv):
    with pytest.raises(SystemExit) as stop:
        cli.main(['push', *map(str, argv)])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and 'Traceback' not in error
    last = error.splitlines()[-1]  # after what the client says of its retries
    assert last.startswith('timm-stn push: error: ')
    return last
