"""Private names of timm and torch are used in one file only, and this tells which is missing."""
import importlib
import re
from pathlib import Path

import pytest
import torch

import timm_stn
from timm_stn._timm import after_backward

PACKAGE = Path(timm_stn.__file__).parent
PRIVATE = re.compile(r'^\s*(?:from|import)\s+(timm(?:\.\w+)*\._\w+[\w.]*)', re.MULTILINE)


def test_private_modules_are_imported_in_one_file():
    users = {p.name for p in PACKAGE.rglob('*.py') if PRIVATE.search(p.read_text())}
    assert users == {'_timm.py'}


def test_private_names_are_there():
    text = (PACKAGE / '_timm.py').read_text()
    names = re.findall(r'^from (timm\S+) import (.+)$', text, re.MULTILINE)
    assert names
    for module, imported in names:
        for name in imported.split(','):
            assert hasattr(importlib.import_module(module), name.strip()), f'{module} has no {name} any more'


def test_the_engine_calls_back_when_a_backward_pass_is_complete():
    users = {p.name for p in PACKAGE.rglob('*.py') if '_execution_engine' in p.read_text()}
    assert users == {'_timm.py'}
    assert callable(torch.autograd.Variable._execution_engine.queue_callback)
    called = []

    class Calls(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            after_backward(lambda: called.append(x.grad is not None))
            return grad

    x = torch.ones(2, requires_grad=True)
    Calls.apply(x).sum().backward()
    assert called == [True]
    with pytest.raises(RuntimeError, match='backward pass'):
        after_backward(lambda: None)
