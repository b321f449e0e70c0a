"""The GPU benchmark, rehearsed on the CPU: all of its cases run, its file, failures and a budget that is too small."""
import importlib
import json

import pytest


@pytest.fixture
def script():
    return importlib.import_module('benchmark_gpu')


@pytest.fixture
def run(script, tmp_path, capsys):
    def run(*arguments):
        assert script.main(['--device', 'cpu', '--output', str(tmp_path / 'gpu.json'), *arguments]) == 0
        assert [path.name for path in tmp_path.iterdir()] == ['gpu.json']
        report = json.loads((tmp_path / 'gpu.json').read_text())
        return report, {result['case']: result for result in report['results']}, capsys.readouterr().out
    return run


def test_all_cases_run(run):
    report, results, printed = run()
    assert {'device', 'driver', 'revision', 'versions', 'arguments', 'timer', 'seconds'} < set(report)
    assert {'python', 'torch', 'cuda', 'timm', 'timm_stn'} == set(report['versions'])
    assert [result['kind'] for result in report['results'][:5]] == ['copy', *['warp'] * 3, 'training']
    assert {result['kind'] for result in results.values()} == {'copy', 'warp', 'training', 'compiled'}
    for name, result in results.items():
        assert 'error' not in result and 'skipped' not in result and not result.get('errors') and name in printed
        assert all(ms > 0 for ms in result['ms'].values())
        assert result['kind'] == 'copy' or set(result['ratio']) == set(result['ms']) - {'plain'}
        assert ('share_of_copy' in result) == name.endswith('forward')
        assert result.get('difference', {'ours': 0})['ours'] < 1e-3
    assert set(results['compiled 2x3x24x24 -> 24x24 float32 to theta']['ms']) == {
        'plain', 'ours', 'plain_compiled', 'ours_compiled'}
    half = results['warp 2x3x48x48 -> 24x24 bfloat16 channels last forward']
    assert set(half['ms']) == {'plain', 'ours', 'plain_float32'} and 'times as fast as in float32' in half['goals']


def test_a_failure_does_not_stop_the_others(script, run, monkeypatch):
    def broken(*args):
        raise RuntimeError('out of order')

    monkeypatch.setattr(script, 'ours', broken)
    monkeypatch.setattr(script, 'Training', broken)
    _, results, printed = run('--only', 'copy', 'training test_resnet', 'warp 2x3x24x24*float32*')
    assert results['training test_resnet']['error'].startswith('RuntimeError: out of order\n(')
    warp = results['warp 2x3x24x24 -> 24x24 float32 to theta']
    assert warp['errors']['ours'].startswith('RuntimeError: out of order') and list(warp['ms']) == ['plain']
    assert 'ours failed' in printed and results['copy']['gigabytes_per_second'] > 0


def test_what_the_budget_does_not_reach_is_listed(run):
    _, results, _ = run('--budget', '0')
    assert len(results) == 18 and all(result['skipped'] == 'not reached' for result in results.values())


def test_what_a_record_has_comes_last(run, tmp_path):
    record = tmp_path / 'gpu.json'
    names = ['copy', 'training test_resnet', 'training test_vit']
    record.write_text(json.dumps({'results': [{'case': 'training test_resnet', 'ms': {}}, {'case': names[2]}]}))
    _, results, _ = run('--budget', '0', '--only', *names, '--after', str(record))
    assert list(results) == ['copy', 'training test_vit', 'training test_resnet']


def test_goals(script):
    warp = script.Warp((2, 3, 24, 24), (24, 24), (1.6, 1.7))
    result = {'ms': {'plain': 3.4, 'ours': 2.0, 'plain_float32': 4.0}, 'share_of_copy': {'ours': 0.5}}
    single, half = script.torch.float32, script.torch.bfloat16
    assert script.goals_of(warp, single, 0, result, 0) == {'times as fast': [1.6, 1.7]}
    assert script.goals_of(warp, single, 1, result, 2 ** 30)['of the copy'] == [0.6, 0.5]
    assert script.goals_of(warp, half, 0, result, 0) == {'times as fast as in float32': [1.8, 2.0]}
    assert not script.goals_of(warp, single, 2, result, 0) and not script.goals_of(warp, half, 1, result, 0)
    printed = script.summary({'ms': {}, 'goals': {'times as fast': [1.6, 1.7], 'of the step, at most': [1.02, 1.03]}})
    assert printed == 'goal 1.6 times as fast: met, 1.70, goal 1.02 of the step, at most: MISSED, 1.03'
