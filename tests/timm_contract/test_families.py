"""What must hold for every architecture, on the smallest architecture of every model family of timm.

`families.json` has for each module of timm its smallest architecture and the smallest image side it takes; `FAST` runs
in `make test`, all of them in `make test-all`.
"""
import json
from pathlib import Path

import contract
import pytest
import timm
import torch
from contract import (
    check_gradients,
    check_keys,
    check_loads,
    first,
    identity_error,
    images,
    input_size,
    make,
    survey,
    wake,
)

import timm_stn  # noqa: F401

FAMILIES = json.loads(Path(contract.__file__).with_name('families.json').read_text())
OURS = ('mnist', 'signs', 'svhn', 'registry', 'zoo')
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


@pytest.mark.parametrize('arch,side', cases())
def test_family(arch, side):
    size = input_size(arch, side)
    plain = make(arch, size)
    stages, refused = survey(plain, size)
    assert all("use 'input' or another stage" in reason or 'name it once' in reason for reason in refused.values())
    twin = make('stn_' + arch, size, stn_stages=('input', *stages))
    x = images(size)
    wake(plain, x)
    check_loads(plain, twin)
    check_keys(plain.state_dict(), twin)
    with torch.no_grad():
        expected = first(plain(x))
    identity_error(expected, twin, x)
    check_gradients(twin, x)
