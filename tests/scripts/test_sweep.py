"""The sweep over architectures: its records, that it goes on where it stopped, crashes and time limits, the table."""
import importlib
import json
import sys

import pytest
import timm
import torch
from torch import nn

WORKER = '''
import json, os, signal, sys, time
for line in sys.stdin:
    arch = line.strip()
    if arch == 'test_resnet' and not os.path.exists('healed'):
        os.kill(os.getpid(), signal.SIGSEGV)
    if arch == 'test_vit' and not os.path.exists('healed'):
        time.sleep(60)
    record = dict(arch=arch, family='x', versions=VERSIONS, failures=[], device='cpu', pid=os.getpid())
    print(json.dumps(record), flush=True)
'''


@pytest.fixture(scope='module')
def script():
    return importlib.import_module('sweep')


@pytest.fixture
def fake(script, tmp_path, monkeypatch):
    """A worker that examines nothing, crashes at one architecture and is slow at another, until it is healed."""
    code = WORKER.replace('VERSIONS', repr(script.VERSIONS))
    monkeypatch.setattr(script, 'worker_command', lambda options: [sys.executable, '-c', code])
    monkeypatch.chdir(tmp_path)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(('arch', 'side', 'layout'), [('test_efficientnet', 96, 'NCHW'), ('test_vit', 48, 'NLC')])
def test_a_record(script, arch, side, layout):
    record = script.examine(arch)
    assert record['failures'] == [] and record['device'] == 'cpu' and record['input']
    assert record['params'] == sum(p.numel() for p in timm.create_model(arch).parameters())
    assert tuple(record['size']) == (side, side), 'the smallest that leaves 3 x 3'
    assert len(record['stages']) == len(timm.create_model(arch).feature_info)
    assert {s['layout'] for s in record['stages'].values()} == {layout}
    assert min(min(s['map']) for s in record['stages'].values()) == 3
    assert record['error'] < 1e-4 < 1e-3 < record['response']
    assert record['silent'] == ([5] if arch == 'test_vit' else [])


def test_stages_that_cannot_have_one(script):
    record = script.examine('hrnet_w18_small')
    assert record['failures'] == [] and record['input']
    assert all("use 'input' or another stage" in s['reason'] for s in record['stages'].values())
    assert record['instead'] == ['act1', *(f'incre_modules.{i}' for i in range(4))]


def test_networks_whose_bias_would_drown_the_image(script):
    """Untouched random weights of this one give the same logits for every image; the record's do not."""
    plain = timm.create_model('efficientnet_b1_pruned').eval()
    with torch.no_grad():
        one, other = plain(torch.rand(2, 3, 96, 96))
    assert (one - other).abs().max() < 1e-6 * one.std()
    record = script.examine('efficientnet_b1_pruned')
    assert record['failures'] == [] and record['response'] > 1e-2 > 100 * record['error']


def test_what_does_not_hold_is_recorded(script, monkeypatch):
    """A transformer that starts elsewhere, a gradient that is lost, a key too many."""
    def examine(change):
        wrap = script.timm_stn.wrap
        with monkeypatch.context() as patch:
            patch.setattr(script.timm_stn, 'wrap', lambda *args, **kwargs: change(wrap(*args, **kwargs)))
            return script.examine('test_resnet')['failures']

    def elsewhere(twin):
        nn.init.constant_(twin.stn.localization.regression.bias, 0.1)
        return twin

    def cut(twin):
        twin.stn.localization.standardize.register_forward_hook(lambda m, args, out: out * 0)
        return twin

    def more(twin):
        twin.add_module('extra', nn.Linear(1, 1))
        return twin

    assert ['identity logits differ' in f for f in examine(elsewhere)] == [True]
    assert ["no gradient for the transformers at ['input']" in f for f in examine(cut)] == [True]
    assert ['other keys' in f for f in examine(more)] == [True]


def test_a_worker_and_what_is_too_large_for_numbers(script, tmp_path, capsys):
    output = tmp_path / 'out.jsonl'
    script.main(['--output', str(output), '--filter', 'test_efficientnet', '--limit-params', '1e5'])
    record, = lines(output)
    assert record['arch'] == 'test_efficientnet' and record['input'] and not record['failures']
    assert record['device'] == 'meta' and 'error' not in record
    assert 'test_efficientnet   ' in capsys.readouterr().out


def test_resumes(script, fake, tmp_path, capsys):
    output = tmp_path / 'out.jsonl'
    archs = ['test_convnext', 'test_vit2', 'test_nfnet']
    script.main(['--output', str(output), '--filter', archs[0]])
    old = {**lines(output)[0], 'arch': archs[1], 'versions': {'timm': '0.1'}}
    output.write_text(output.read_text() + json.dumps(old) + '\n' + '{"arch": "test_nf')  # the last line cut short
    script.main(['--output', str(output), '--filter', *archs])
    whole = [json.loads(line)['arch'] for line in output.read_text().splitlines() if line.endswith('}')]
    assert whole == [*archs[:2], 'test_nfnet', 'test_vit2'], 'smallest first; those of other versions again'
    script.main(['--output', str(output), '--filter', *archs])
    told = [line for line in capsys.readouterr().out.splitlines() if 'to do' in line]
    assert told == ['1 architectures, 1 to do', '3 architectures, 2 to do', '3 architectures, 0 to do']


def test_crashes_and_time_limits(script, fake, tmp_path):
    output = tmp_path / 'out.jsonl'
    archs = ['test_convnext', 'test_convnext2', 'test_resnet', 'test_vit', 'test_vit2']
    arguments = ['--output', str(output), '--filter', *archs, '--order', 'name', '--timeout', '5']
    script.main(arguments)
    found = {r['arch']: r for r in lines(output)}
    assert list(found) == archs
    assert found['test_resnet']['failures'] == ['the process ended: SIGSEGV']
    assert found['test_vit']['failures'] == ['took more than 5 s: SIGKILL']
    pids = [found[a].get('pid') for a in archs]
    assert pids[0] == pids[1] != pids[4], 'a process is used again, and replaced after a crash'
    (tmp_path / 'healed').touch()
    script.main(arguments)
    assert len(lines(output)) == 5, 'what failed is not examined again'
    script.main([*arguments, '--retry', 'failed'])
    assert [r['arch'] for r in lines(output)] == [*archs, 'test_resnet', 'test_vit']
    assert not any(r['failures'] for r in script.read(output).values())


def test_table(script, tmp_path):
    def record(arch, family, stages, **more):
        return {'arch': arch, 'family': family, 'versions': script.VERSIONS, 'failures': [], 'input': True,
                'device': 'cpu', 'stages': stages, 'error': 1e-6, 'response': 0.5, 'silent': [], **more}

    held = {'module': 'a', 'layout': 'NCHW', 'map': [3, 3], 'prefix': 0}
    reason = ("stn_stages: stage 1 (b) of test_vit yields several things ((1, 2), a dict), not one map; "
              "use 'input' or another stage, for example 'c'.")
    text = script.table([
        record('test_vit', 'vision_transformer', {'0': held, '1': {'module': 'b', 'reason': reason}}),
        record('test_vit2', 'vision_transformer', {'0': {**held, 'layout': 'NLC'}}, silent=[0], response=5e-6),
        record('test_resnet', 'resnet', {'0': held}, failures=['identity: it | differs'], response=1e-2),
    ], 5)
    assert '3 of 5 architectures checked, 2 of them without a failure' in text
    assert '| vision_transformer | 2 | 2 | 2 of 3 | NCHW, NLC |' in text
    assert '| resnet | 1 | 0 | 1 of 1 | NCHW |' in text
    assert '| vision_transformer | 1 | yields several things, not one map | 1 |' in text
    assert '| test_resnet | identity: it \\| differs |' in text
    assert 'in 1 networks: test_vit2.' in text and 'In 1 networks the transformer at the last block' in text
    output, page = tmp_path / 'out.jsonl', tmp_path / 'page.md'
    output.write_text(json.dumps(record('test_vit', 'vision_transformer', {'0': held})) + '\n')
    script.main(['--output', str(output), '--filter', 'test_vit', 'test_vit?', 'test_resnet', '--table', str(page)])
    assert '1 of 5 architectures checked' in page.read_text()


def test_only_timms_own(script):
    names = script.architectures(['*'])
    assert len(names) == len(set(names)) and not any(n.startswith('stn_') for n in names)
    assert 'resnet18' in names and 'stn_resnet18' in timm.list_models() and 'mnist_cnn' not in names


class TestPooledInit:
    def test_mean_and_spread(self, script):
        with script.PooledInit():
            normal = nn.init.normal_(torch.empty(1200, 1000), 1.0, 2.0)
            uniform = nn.init.uniform_(torch.empty(1500, 1000), -1.0, 3.0)
            truncated = nn.init.trunc_normal_(torch.empty(1000, 1000), std=0.02)
        for drawn, mean, std in ((normal, 1.0, 2.0), (uniform, 1.0, 4 / 12 ** 0.5), (truncated, 0.0, 0.02)):
            assert abs(float(drawn.mean()) - mean) < 0.01 * std and abs(float(drawn.std()) / std - 1) < 0.25
        assert uniform.min() >= -1 and uniform.max() <= 3 and float(normal.std()) == pytest.approx(2, rel=0.01)

    def test_rows_differ(self, script):
        with script.PooledInit():
            weight = nn.Linear(512, 4096).weight
        rows = nn.functional.normalize(weight.detach()) @ nn.functional.normalize(weight.detach()).T
        assert (rows - torch.eye(4096)).abs().max() < 0.3

    def test_layers_differ(self, script):
        with script.PooledInit():
            a, b = nn.Linear(64, 64), nn.Linear(64, 64)
        assert not torch.equal(a.weight, b.weight)
        assert float(a.weight.detach().std()) == pytest.approx(0.125 / 3 ** 0.5, rel=0.1)
