"""Private names of timm and torch are used in one file only, and this tells which is missing."""
import importlib
import re
from pathlib import Path

import timm_stn

PACKAGE = Path(timm_stn.__file__).parent
PRIVATE = re.compile(r'^\s*(?:from|import)\s+((?:timm|torch)(?:\.\w+)*\._\w+[\w.]*)', re.MULTILINE)


def test_private_modules_are_imported_in_one_file():
    users = {p.name for p in PACKAGE.rglob('*.py') if PRIVATE.search(p.read_text())}
    assert users == {'_timm.py'}


def test_private_names_are_there():
    text = (PACKAGE / '_timm.py').read_text()
    names = re.findall(r'^from ((?:timm|torch)\S+) import (.+)$', text, re.MULTILINE)
    assert {module.split('.')[0] for module, _ in names} == {'timm', 'torch'}
    for module, imported in names:
        for name in imported.split(','):
            assert hasattr(importlib.import_module(module), name.strip()), f'{module} has no {name} any more'
