"""The walls of the house: what may import what, how long importing takes, and the names that modules had before."""
import ast
import importlib
import pkgutil
import re
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import timm_stn
from timm_stn._renamed import RENAMED

PACKAGE = Path(timm_stn.__file__).parent
LEAVES = {'_ending', '_progress', '_timm', '_torch', 'version', 'whole_file'}  # which import nothing of ours
BELOW = {  # each folder or file, and what it may import beside itself and the leaves
    'geometry': set(),
    'modules': {'geometry'},
    'data': {'geometry'},
    'nets': set(),
    'network': {'modules', 'geometry'},
    'view': {'modules', 'geometry'},  # of a network it asks `spatial_transformers()`, and no class
    'names': {'network', 'modules', 'geometry'},
    'publish': {'names', 'view', 'network', 'geometry'},
    'app': {'names', 'view', 'data', 'geometry'},
    'training_log': {'view', 'modules'},
    'run': {'names', 'view', 'training_log'},
    'cli': {'publish', 'names', 'view', 'network', 'modules', 'geometry', 'data', 'app', 'training_log', 'run'},
}
FOREIGN = {  # what else the lower ones may import, beside the standard library
    'geometry': {'torch'},
    **{f'geometry/kernels/fused/{name}.py': {'torch', 'triton'} for name in (
        'coordinates', 'forward', 'image', 'launch', 'theta')},
    'modules': {'torch'},
    'modules/timm_body.py': {'torch', 'timm'},
    'data': {'torch'},
    'data/svhn.py': {'torch', 'PIL', 'h5py'},
    'data/signs.py': {'torch', 'PIL'},
    **{f'data/archives/{name}.py': {'PIL'} for name in ('gtsrb', 'pictures')},
    'data/birds.py': {'torch', 'PIL', 'timm'},  # whose readers know folders and tars
}


def imports(file):
    """Dotted names of all imports of a file, also within functions, relative ones resolved."""
    place = ['timm_stn', *file.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = '.'.join([*place[:len(place) - node.level + 1], *filter(None, [node.module])]) if node.level else ''
            yield from (f'{base or node.module}.{alias.name}' for alias in node.names)


def room(file):
    return file.relative_to(PACKAGE).parts[0].removesuffix('.py')


@pytest.mark.parametrize('name', BELOW)
def test_arrows_only_run_down(name):
    files = [file for file in PACKAGE.rglob('*.py') if room(file) == name]
    assert files
    for file in files:
        ours = {dotted.split('.')[1] for dotted in imports(file) if dotted.startswith('timm_stn.')}
        up = ours - BELOW[name] - LEAVES - {name}
        assert not up, f'{file.relative_to(PACKAGE)} imports {up}'
        foreign = {dotted.split('.')[0] for dotted in imports(file)} - sys.stdlib_module_names - {'timm_stn'}
        allowed = FOREIGN.get(file.relative_to(PACKAGE).as_posix(), FOREIGN.get(name, foreign))
        assert foreign <= allowed, f'{file.relative_to(PACKAGE)} imports {foreign - allowed}'


def test_every_room_is_known_and_none_is_in_a_circle():
    found = {room(file) for file in PACKAGE.rglob('*.py')} - {'__init__', '__main__', '_renamed'}
    assert found - LEAVES == set(BELOW)
    order = list(BELOW)
    assert all(order.index(low) < order.index(name) for name, below in BELOW.items() for low in below)
    for leaf in LEAVES & found:
        assert not any(dotted.startswith('timm_stn') for dotted in imports(PACKAGE / f'{leaf}.py'))


def test_an_arrow_that_runs_up_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], 'PACKAGE', tmp_path)
    (tmp_path / 'geometry').mkdir()
    (tmp_path / 'geometry' / 'grid.py').write_text('def f():\n    from ..modules.trial import trial_forward\n')
    assert list(imports(tmp_path / 'geometry' / 'grid.py')) == ['timm_stn.modules.trial.trial_forward']
    with pytest.raises(AssertionError, match="imports {'modules'}"):
        test_arrows_only_run_down('geometry')


def test_importing_the_plugin_is_quick_and_loads_no_drawing_or_pushing():
    code = '''import time, sys, timm
before = set(sys.modules)
start = time.perf_counter()
import timm_stn
print(time.perf_counter() - start, *sorted(set(sys.modules) - before))'''
    runs = [subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.split()
            for _ in range(3)]
    loaded = runs[0][1:]
    assert not [name for name in loaded if name.startswith(('timm_stn.view', 'timm_stn.publish', 'timm_stn.cli'))]
    assert 'timm_stn.network.model' not in loaded and 'timm_stn.names.registry' in loaded
    assert not [name for name in loaded if name.startswith('timm_stn.modules.')], 'whose hooks stand around optimizers'
    assert min(float(run[0]) for run in runs) < 0.25


def test_public_names():
    assert set(timm_stn.__all__) | {'data'} == set(dir(timm_stn))
    for name in dir(timm_stn):
        assert getattr(timm_stn, name) is not None
        assert name == '__version__' or re.search(rf'\b{name}\b', timm_stn.__doc__), 'help(timm_stn) starts with them'
    with pytest.raises(AttributeError, match="module 'timm_stn' has no attribute 'nothing'"):
        timm_stn.nothing  # noqa: B018


OLD_NAMES = (  # of classes and functions that a pickle of a whole network, made before modules moved, may hold
    'arguments.StnArguments', 'attach.StageTransformer', 'attach._transform', 'features.StnFeatures', 'layout.Layout',
    'localization.Localization', 'localization.Moments', 'localization.ThetaRegression', 'localization._Unpooled',
    'model.SpatialTransformerNetwork', 'model._load_plain', 'registry.stn_resnet50', 'saliency.Saliency',
    'spatial_transformer.SpatialTransformer', 'standardize.Standardize', 'transforms.affine.Affine',
    'transforms.compose.Chain', 'transforms.tps.ThinPlateSpline', 'zoo.stn_mnist_cnn_rts')


OLD = 'ignore:.* the old name goes in version:DeprecationWarning'


@pytest.mark.filterwarnings(OLD)
@pytest.mark.parametrize('name', OLD_NAMES)
def test_old_names_lead_to_what_they_named(name):
    found = pkgutil.resolve_name(f'timm_stn.{name}')
    assert found.__name__ == name.rpartition('.')[2]


@pytest.mark.filterwarnings(OLD)
def test_old_modules_lead_to_modules():
    for old, places in RENAMED.items():
        importlib.import_module(f'timm_stn.{old}')
        assert getattr(timm_stn, old)
        for place in places:
            importlib.import_module(f'timm_stn.{place}')
    scope = {}
    exec('from timm_stn.functional import *\nfrom timm_stn.dry import dry_forward', scope)
    assert scope['warp'] is timm_stn.warp and callable(scope['dry_forward'])
    with pytest.raises(AttributeError, match='what was in it is now in timm_stn.geometry.sampler'):
        timm_stn.sampler.check_options  # noqa: B018
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module('timm_stn.nothing')


@pytest.mark.parametrize('line', [
    'import timm_stn.functional', 'from timm_stn import functional', 'from timm_stn.functional import warp',
    'import timm_stn; timm_stn.functional', 'import importlib; importlib.import_module("timm_stn.functional")',
    'import pkgutil; pkgutil.resolve_name("timm_stn.functional.warp")', 'import timm_stn.transforms.affine',
    'import pickle; pickle.loads(b"ctimm_stn.functional\\nwarp\\n.")', 'import timm_stn.localization',
])
def test_old_modules_warn_where_they_are_imported(tmp_path, monkeypatch, line):
    """The line is named, and the new name, and when the old one goes; new names warn of nothing."""
    (tmp_path / 'old.py').write_text(f'import timm_stn\n\n{line}\n')
    for name in [n for n in sys.modules if n.split('.')[:1] == ['timm_stn'] and n.split('.')[1:2] and
                 n.split('.')[1] in RENAMED]:
        monkeypatch.delitem(sys.modules, name)
    if 'functional' in vars(timm_stn):
        monkeypatch.delattr(timm_stn, 'functional')
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        runpy.run_path(str(tmp_path / 'old.py'))
    assert caught and all(w.category is DeprecationWarning for w in caught)
    for w in caught:
        assert (w.filename, w.lineno) == (str(tmp_path / 'old.py'), 3), w
        found = re.match(r'timm_stn\.(\S+) is now (.+); the old name goes in version 0\.3 of timm_stn', str(w.message))
        old, new = found.groups()
        assert line.count(old.split('.')[0]) and all(importlib.import_module(place) for place in new.split(', '))


def test_all_of_it_imports_without_a_warning():
    """Also of timm and torch, as under PYTHONWARNINGS=error; no new module asks for an old name."""
    names = sorted('.'.join(['timm_stn', *file.relative_to(PACKAGE).with_suffix('').parts]).removesuffix('.__init__')
                   for file in PACKAGE.rglob('*.py') if file.name != '__main__.py')
    code = f'import importlib\nfor name in {names}: importlib.import_module(name)'
    done = subprocess.run([sys.executable, '-W', 'error', '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
