"""Private names of timm and of torch are used in a file each, and this tells which is missing.

The package is read, not imported: where a name is gone, importing it fails before it could be said which.
"""
import ast
import importlib
import importlib.util
import pkgutil
from pathlib import Path

import pytest
import timm
import torch

PACKAGE = Path(importlib.util.find_spec('timm_stn').origin).parent
ONLY = [PACKAGE / '_timm.py', PACKAGE / '_torch.py']
FOREIGN = ('timm', 'torch', 'torchvision')
MODULE_NAMES = {n for n in dir(torch.nn.Module()) if n.startswith('_') and not n.startswith('__')}


def is_private(dotted):
    top, *parts = dotted.split('.')
    return top in FOREIGN and any(p.startswith('_') and not p.endswith('__') for p in parts)


def imports(tree):
    """Name in the file -> dotted name of what it stands for."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for a in node.names:
                found[a.asname or a.name.split('.')[0]] = a.name if a.asname else a.name.split('.')[0]
                found[a.name] = a.name
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.update({a.asname or a.name: f'{node.module}.{a.name}' for a in node.names})
    return found


def dotted_name(node, aliases):
    """The dotted name of an attribute of something imported, else an empty string."""
    attributes = []
    while isinstance(node, ast.Attribute):
        attributes.append(node.attr)
        node = node.value
    known = isinstance(node, ast.Name) and node.id in aliases
    return '.'.join([aliases[node.id], *reversed(attributes)]) if known else ''


def private_names(source):
    """Dotted private names of timm and torch in Python source: imported, reached by attributes, or in strings."""
    tree = ast.parse(source)
    aliases = imports(tree)
    names = set(aliases.values())
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            names.add(dotted_name(node, aliases))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and ' ' not in node.value:
            names.add(node.value)
    return {n for n in names if is_private(n)}


def module_names(source):
    """Private attributes of torch.nn.Module in Python source: overridden, reached by attributes, or in strings."""
    kinds = {ast.Attribute: 'attr', ast.FunctionDef: 'name', ast.Constant: 'value'}
    found = {getattr(node, kinds[type(node)]) for node in ast.walk(ast.parse(source)) if type(node) in kinds}
    return MODULE_NAMES & {name for name in found if isinstance(name, str)}


def listed(name):
    """The value of a constant of these files."""
    for node in [node for file in ONLY for node in ast.parse(file.read_text()).body]:
        if isinstance(node, ast.Assign) and node.targets[0].id == name:
            return ast.literal_eval(node.value)
    raise AssertionError(f'there is no {name}')


@pytest.mark.parametrize('source, name', [
    ('from timm.models._features import X', 'timm.models._features.X'),
    ('from timm.layers import _x as y', 'timm.layers._x'),
    ('import torch._dynamo', 'torch._dynamo'),
    ('import torch\ntorch._assert(1, "")', 'torch._assert'),
    ('import torch.nn.functional as F\nF._verify(1)', 'torch.nn.functional._verify'),
    ('from torch import nn\nnn.modules.conv._ConvNd', 'torch.nn.modules.conv._ConvNd'),
    ('import importlib\nimportlib.import_module("timm.models._features")', 'timm.models._features'),
])
def test_private_names_are_found(source, name):
    assert name in private_names(source)
    public = 'import torch\nfrom timm.models import list_models\nfrom ._timm import X\ntorch.__version__'
    assert not private_names(public)


def test_private_names_are_used_in_a_file_each():
    users = {p.relative_to(PACKAGE).as_posix(): private_names(p.read_text()) for p in PACKAGE.rglob('*.py')}
    for file in ONLY:
        names = users.pop(file.name)
        assert names and all(name.startswith(file.stem.lstrip('_') + '.') for name in names)
    strangers = {file: names for file, names in users.items() if names}
    assert not strangers, f'import these from _timm.py or _torch.py: {strangers}'


def test_private_names_are_there():
    for dotted in sorted(set().union(*(private_names(file.read_text()) for file in ONLY))):
        try:
            pkgutil.resolve_name(dotted)
        except (ImportError, AttributeError):
            pytest.fail(f'timm {timm.__version__} and torch {torch.__version__} have no {dotted}')


def test_private_attributes_of_modules_are_listed_and_there():
    used = set().union(*(module_names(p.read_text()) for p in PACKAGE.rglob('*.py') if p not in ONLY))
    assert used == set(listed('MODULE_NAMES')), 'keep MODULE_NAMES of _torch.py as what the package uses'
    assert not set(listed('MODULE_NAMES')) - MODULE_NAMES, f'torch {torch.__version__} has not all of MODULE_NAMES'
    assert module_names('class A:\n def _apply(self): self._buffers["_modules"]') == {'_apply', '_buffers', '_modules'}


def test_what_timm_notes_on_models_is_written():
    timm_stn = importlib.import_module('timm_stn')
    model = timm_stn.wrap(timm.create_model('test_resnet'))
    assert all(isinstance(getattr(model, name), dict) for name in listed('MODEL_NAMES'))


def test_the_engine_calls_back_when_a_backward_pass_is_complete():
    after_backward = importlib.import_module('timm_stn._torch').after_backward
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
