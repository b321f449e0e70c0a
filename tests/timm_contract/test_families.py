"""What must hold for every architecture, on the smallest architecture of every model family of timm.

`families.json` has for each module of timm its smallest architecture and the smallest image side it takes; `FAST` runs
in `make test`, all of them in `make test-all`.
"""
import json
from pathlib import Path

import pytest
import timm
import torch
from timm.models import get_pretrained_cfg
from torch import nn

from timm_stn.attach import feature_infos, stage_layouts

FAMILIES = json.loads((Path(__file__).parent / 'families.json').read_text())
OURS = ('nets', 'registry', 'zoo')
FAST = (
    'convnext', 'densenet', 'efficientnet', 'efficientformer', 'levit', 'mambaout', 'metaformer', 'mlp_mixer', 'regnet',
    'repvit', 'resnet', 'vision_transformer', 'xcit',
)


def cases():
    return [pytest.param(*case, id=f'{family}-{case[0]}', marks=[] if family in FAST else [pytest.mark.slow])
            for family, case in FAMILIES.items() if timm.is_model(case[0])]


def test_every_family_of_timm_is_here():
    modules = {m for m in timm.list_modules() if m not in OURS and not m.startswith('test')}
    assert modules <= set(FAMILIES), 'a family of timm is new: add its smallest architecture to families.json'
    if tuple(map(int, timm.__version__.split('.')[:3])) >= (1, 0, 31):  # earlier ones do not have them all
        assert modules == set(FAMILIES), 'a family of timm is gone: take it out of families.json'
    assert set(FAST) <= set(FAMILIES)


def make(arch, size, **kwargs):
    torch.manual_seed(0)
    sized = dict(img_size=size) if get_pretrained_cfg(arch).fixed_input_size else {}
    return timm.create_model(arch, **sized, **kwargs).eval()


def possible_stages(plain, input_size):
    """Stages that yield one map; for the others the error says why and what to use instead.

    On maps of 2 x 2 every sample of the identity lies on the border, where clamping leaves theta no gradient.
    """
    everything = range(len(feature_infos(plain)))
    try:
        layouts = stage_layouts(plain, everything, input_size)
        return [stage for stage, (_, layout) in layouts.items() if min(layout.size) > 2]
    except ValueError:
        stages = []
    for stage in everything:
        try:
            layout = stage_layouts(plain, [stage], input_size)[stage][1]
            stages += [stage] if min(layout.size) > 2 else []
        except ValueError as error:
            assert "use 'input' or another stage" in str(error)
    return stages


def tolerance(plain, x, expected):
    """1e-4 of the logits' range, or what 1e-6 of input noise does to the plain model, if that is more."""
    noise = 1e-6 * torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    return max(1e-4 * float(expected.max() - expected.min()), float((plain(x + noise) - expected).abs().max()))


@pytest.mark.parametrize('arch,size', cases())
def test_family(arch, size):
    plain = make(arch, size)
    channels = get_pretrained_cfg(arch).input_size[0]
    x = torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(1))
    stages = possible_stages(plain, (channels, size, size))
    twin = make('stn_' + arch, size, stn_stages=('input', *stages))
    result = twin.load_state_dict(plain.state_dict())  # a plain checkpoint, strict
    assert not result.missing_keys and not result.unexpected_keys
    assert {k for k in twin.state_dict() if 'stn.' not in k} == {'backbone.' + k for k in plain.state_dict()}
    check_identity(plain, twin, x)
    check_gradients(twin, x)


@torch.no_grad()
def check_identity(plain, twin, x):
    expected, actual = plain(x), twin(x)
    if not isinstance(expected, torch.Tensor):
        expected, actual = expected[0], actual[0]
    assert (actual - expected).abs().max() <= tolerance(lambda i: _first(plain(i)), x, expected)


def _first(out):
    return out if isinstance(out, torch.Tensor) else out[0]


def check_gradients(twin, x):
    classifier = getattr(twin, 'get_classifier', nn.Identity)()
    for p in classifier.parameters() if isinstance(classifier, nn.Module) else ():
        if p.abs().max() == 0:  # some networks start with zero logits, and so without any gradient
            nn.init.normal_(p, std=0.02)
    _first(twin.train()(x)).square().mean().backward()
    silent = []
    for name, p in twin.named_parameters():
        if 'stn.' in name:
            assert p.grad is not None and p.grad.isfinite().all(), name
            if 'regression.weight' in name and p.grad.abs().max() == 0:
                silent.append(name)
    last = max((s for s in twin.spatial_transformers() if s != 'input'), default=None)
    allowed = [n for n in silent if last is not None and n.startswith(_module_name(twin, last))]
    assert silent == allowed, 'only the last block of a class-token network may leave its transformer without gradient'
    assert not silent or getattr(twin.backbone, 'num_prefix_tokens', 0) or hasattr(twin.backbone, 'cls_token')


def _module_name(twin, stage):
    return {id(m): n for n, m in twin.named_modules()}[id(twin.spatial_transformers()[stage])]
