"""The plugin for timm's tests, on a small suite of the same kind, and the report."""
import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm_tests as script

ROOT = Path(__file__).resolve().parents[2]
CHECK = ROOT / 'scripts' / 'check'
SUITE = '''
import importlib
import pytest
import timm
from timm import create_model, get_pretrained_cfg_value, list_models
from timm.models import ResNet

HEADS = (ResNet,)


def build(name):
    return create_model(name)


@pytest.mark.parametrize('model_name', list_models())
def test_many(model_name):
    model = create_model(model_name, num_classes=3)
    print('made', type(model).__name__, get_pretrained_cfg_value(model_name, 'first_conv'))
    assert isinstance(model, HEADS) == (model_name == 'test_resnet')
    assert isinstance(model, int) is False


@pytest.mark.parametrize('n', [1, 2])
def test_by_helper(n):
    assert 'stn' not in build('test_vit').pretrained_cfg['architecture'] or n == 1


def test_by_attribute():
    assert timm.create_model('test_resnet').conv1 is not None


def test_filter():
    model = create_model('test_vit')
    filter_fn = importlib.import_module(type(model).__module__).checkpoint_filter_fn
    model.load_state_dict(filter_fn(model.state_dict(), model))


def test_without_models():
    raise AssertionError('not to be run')


def test_slow():
    import signal, time
    create_model('test_resnet')
    signal.alarm(1)  # as if the rest of the time had passed
    time.sleep(100)
'''


@pytest.fixture(scope='module')
def outcomes(tmp_path_factory):
    folder = tmp_path_factory.mktemp('suite')
    (folder / 'test_suite.py').write_text(SUITE)
    (folder / 'results').write_text('["test_suite.py::test_by_helper[1]", "plain", "passed", "before"]\n')
    env = dict(os.environ, PYTHONPATH=os.pathsep.join([str(ROOT), str(CHECK)]))
    run = subprocess.run(
        [sys.executable, '-m', 'pytest', '-q', '-p', 'twins', '--twin-models', 'test_resnet,test_vit',
         '--twin-timeout', '60', '--twin-results', 'results', '-rA', 'test_suite.py'],
        cwd=folder, env=env, capture_output=True, text=True)
    return script.read_results(folder / 'results'), run.stdout


def test_names_stand_for_twins(outcomes):
    results, output = outcomes
    assert output.count('made SpatialTransformerNetwork backbone.') == 2
    assert 'made ResNet conv1' in output and 'made VisionTransformer patch_embed.proj' in output
    for arch in ('test_resnet', 'test_vit'):
        assert {k: v[0] for k, v in results[f'test_suite.py::test_many[{arch}]'].items()} == dict(
            plain='passed', stn='passed')


def test_selection(outcomes):
    results, _ = outcomes
    assert set(results) == {f'test_suite.py::{name}' for name in (
        'test_many[test_resnet]', 'test_many[test_vit]', 'test_by_helper[1]', 'test_by_helper[2]', 'test_by_attribute',
        'test_filter', 'test_slow')}


def test_an_interrupted_run_goes_on(outcomes):
    results, _ = outcomes
    assert results['test_suite.py::test_by_helper[1]'] == dict(plain=['passed', 'before'], stn=['passed', ''])


def test_differences(outcomes):
    results, _ = outcomes
    assert results['test_suite.py::test_filter']['stn'][0] == 'passed'
    assert results['test_suite.py::test_by_attribute']['stn'][0] == 'passed'
    assert results['test_suite.py::test_slow']['plain'] == ['failed', 'Failed: not done after 60 seconds']
    (case, message), = script.differences(results)
    assert case == 'test_suite.py::test_by_helper[2]' and message.startswith('failed: ')


def test_report():
    results = {
        'tests/test_models.py::test_a[x]': dict(plain=['passed', ''], stn=['failed', 'KeyError: 1']),
        'tests/test_models.py::test_a[y]': dict(plain=['passed', ''], stn=['passed', '']),
        'tests/test_models.py::test_b': dict(plain=['failed', ''], stn=['failed', '']),
        'tests/test_models.py::test_c': dict(plain=['passed', ''], stn=['skipped', 'Skipped: no']),
    }
    args = argparse.Namespace(given=[], stages='', max_params=1e6)
    cases = ['test_models.py::test_a[x]', 'test_models.py::test_a[y]', 'test_models.py::test_z']
    exceptions = [dict(reason='known', cases=cases)]
    text = script.report(results, ['x', 'y'], exceptions, args)
    assert '| `test_models.py::test_a` | 2 | 0 | 0 | 1 | 1 | 0 |' in text
    assert '* known\n  * `test_models.py::test_a[x]`\n' in text
    assert '* NOT LISTED\n  * `test_models.py::test_c`: skipped: Skipped: no\n' in text
    assert script.reason('tests/test_models.py::test_c', '', exceptions) is None
    exceptions[0]['error'] = 'KeyError'
    assert script.reason('tests/test_models.py::test_a[x]', 'failed: KeyError: 1', exceptions) == 'known'
    assert script.reason('tests/test_models.py::test_a[x]', 'failed: ValueError', exceptions) is None
    assert script.unused(results, exceptions) == ['test_models.py::test_a[[]y]']


def test_every_exception_has_a_reason():
    for entry in json.loads((CHECK / 'exceptions.json').read_text()):
        assert set(entry) - {'error'} == {'reason', 'cases'} and len(entry['reason']) > 20 and entry['cases']
