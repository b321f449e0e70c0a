"""Logs of trainings that know nothing of them: a small script's, those of several processes, and timm's own."""
import json
import os
import sys
import types
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_run import CHECKOUT, python
from torch.nn.modules import module as module_hooks
from torch.optim import optimizer as optimizer_hooks

from timm_stn import SpatialTransformer, run
from timm_stn.training_log import log as module
from timm_stn.training_log import targets
from timm_stn.view.history import LINES, append_line, pictures_of, read_lines

SCRIPT = '''
import sys, timm, torch
from timm import utils
steps, accumulate = int(sys.argv[1]), int(sys.argv[2])
folder = utils.get_outdir('.', 'run')
torch.manual_seed(0)
network = timm.create_model(ARCH, num_classes=3).train()
model = torch.compile(network, backend='eager') if 'compiled' in sys.argv else network
optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9)
for _ in range(steps):
    for _ in range(accumulate):
        (model(torch.rand(3, 3, 64, 64)).square().mean() / accumulate).backward()
    optimizer.step()
    optimizer.zero_grad()
    network.eval()
    network(torch.rand(2, 3, 64, 64))
    network.train()
torch.save([network.state_dict(), torch.rand(2), optimizer.state_dict()], f'{folder}/trained.pt')
'''


@pytest.fixture
def train(tmp_path, monkeypatch, capsys):
    """Runs the script with a log, and returns what was said on stderr of it."""
    def run_it(steps=5, every=None, accumulate=1, *more, arch='stn_test_resnet', script=SCRIPT):
        file = tmp_path / 'script.py'
        file.write_text(script.replace('ARCH', repr(arch)))
        run.run_script(file, [str(steps), str(accumulate), *more], every)
        return [line for line in capsys.readouterr().err.splitlines() if '--stn-log' in line]

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('RANK', raising=False)
    monkeypatch.setattr(sys, 'path', list(sys.path))
    monkeypatch.setattr(sys, 'argv', list(sys.argv))
    monkeypatch.setattr(module, 'targets_of', lambda *_: [targets.WandB()])
    (tmp_path / 'run').mkdir()
    return run_it


@pytest.fixture
def folder(tmp_path):
    return tmp_path / 'run'


def steps_of(folder):
    return [line['step'] for line in read_lines(folder)]


def drawn(folder):
    return [step for step, _ in pictures_of(folder)]


def nothing_is_installed():
    mine = [hook for table in (
        module_hooks._global_forward_pre_hooks, optimizer_hooks._global_optimizer_pre_hooks,
        optimizer_hooks._global_optimizer_post_hooks) for hook in table.values() if 'guarded' in hook.__qualname__]
    return not mine and SpatialTransformer.recorder is None


def test_lines_and_pictures(train, folder):
    said = train(5, 2)
    assert said == ['timm-stn: --stn-log: the pictures are of the first 3 images of the training, as there is no '
                    'folder of validation images']
    assert steps_of(folder) == [2, 4] and drawn(folder) == [0, 2, 4, 5]
    first = read_lines(folder)[0]['transformers']
    assert list(first) == ['input']
    assert 0.5 < first['input']['scale'] < 2 and 0 < first['input']['gradient_ratio'] < 100
    for _, path in pictures_of(folder):
        with Image.open(path) as image:
            image.verify()
    assert nothing_is_installed()


def test_the_training_is_the_same(train, folder):
    """Weights, statistics, state of the optimizer and random numbers, bit for bit; and nothing is installed without."""
    results = []
    for every in (None, 1):
        assert bool(train(4, every, 2, arch='stn_test_resnet')) == bool(every)
        results.append(torch.load(folder / 'trained.pt'))
        assert (folder / LINES).exists() == bool(every) and nothing_is_installed()
    (state, numbers, optimizer), (state2, numbers2, optimizer2) = results
    assert torch.equal(numbers, numbers2) and state.keys() == state2.keys()
    assert all(torch.equal(v, state2[k]) for k, v in state.items())
    for k, v in optimizer['state'].items():
        assert torch.equal(v['momentum_buffer'], optimizer2['state'][k]['momentum_buffer'])


def test_accumulation_counts_steps(train, folder):
    train(4, 2, 3)
    assert steps_of(folder) == [2, 4]


def test_a_second_run_goes_on(train, folder):
    """Also after a line that was cut off, as a killed run leaves it."""
    train(4, 2)
    with (folder / LINES).open('a') as file:
        file.write('{"step": 6, "transf')
    before = {path: path.read_bytes() for _, path in pictures_of(folder)}
    train(4, 2)
    assert steps_of(folder) == [2, 4, 6, 8] and drawn(folder) == [0, 2, 4, 6, 8]
    assert all(path.read_bytes() == content for path, content in before.items())


@pytest.mark.parametrize('broken', [LINES, 'stn_log'])
def test_a_log_that_cannot_be_written_ends_alone(train, folder, broken):
    (folder / broken).mkdir() if broken == LINES else (folder / broken).write_text('a file')
    said = train(4, 1)
    assert len([line for line in said if line.startswith('timm-stn: --stn-log: no more is logged: ')]) == 1
    assert (folder / 'trained.pt').exists() and nothing_is_installed()


def test_errors_of_the_training_come_through(train, folder):
    with pytest.raises(ZeroDivisionError):
        train(2, 1, script=SCRIPT.replace("if 'compiled'", "if 1 / 0 and 'compiled'"))
    assert nothing_is_installed()


def test_compiled_code_is_drawn_alone(train, folder):
    said = train(3, 1, 1, 'compiled')
    assert said[1:] == [f'timm-stn: {module.COMPILED}']
    assert steps_of(folder) == [] and drawn(folder) == [0, 1, 2, 3]


def test_hooks_of_others_outlive_a_log_that_ends(train, folder):
    """Those that were registered after ours, while torch runs through all of them."""
    (folder / LINES).mkdir()
    others = SCRIPT.replace('for _ in range(steps)', '''
seen = []
from torch.optim.optimizer import register_optimizer_step_post_hook
handle = register_optimizer_step_post_hook(lambda *_: seen.append(1))
for _ in range(steps)''') + "handle.remove()\nassert len(seen) == steps, seen\n"
    train(4, 1, script=others)
    assert (folder / 'trained.pt').exists() and nothing_is_installed()
    train(4, 1, arch='test_resnet', script=others.replace('stn_', ''))


def test_a_script_that_exits_has_its_last_picture(train, folder):
    with pytest.raises(SystemExit):
        train(5, 3, script=SCRIPT + 'sys.exit(0)\n')
    assert drawn(folder) == [0, 3, 5] and nothing_is_installed()


def test_steps_of_other_networks_do_not_count(train, folder):
    other = SCRIPT.replace('for _ in range(steps)', '''
other = torch.nn.Linear(2, 2)
first = torch.optim.SGD(other.parameters(), 0.1)
for _ in range(3):
    other(torch.rand(1, 2)).sum().backward()
    first.step()
for _ in range(steps)''')
    train(4, 2, script=other)
    assert steps_of(folder) == [2, 4]


def test_a_module_of_ones_own(train, folder):
    own = SCRIPT.replace('timm.create_model(ARCH, num_classes=3).train()', '''torch.nn.Sequential(
    __import__('timm_stn').SpatialTransformer(3, (64, 64), 'similarity', 'conv'), torch.nn.Conv2d(3, 3, 8, 8),
    torch.nn.Flatten(), torch.nn.Linear(192, 3))''')
    said = train(4, 2, script=own)
    assert [list(line['transformers']) for line in read_lines(folder)] == [['0'], ['0']] and drawn(folder) == []
    assert len(said) == 1 and 'there are no pictures' in said[0]


def test_parameters_that_are_not_finite_are_told(train, folder):
    """Also that there are no pictures of it; and the log goes on."""
    broken = SCRIPT.replace('    optimizer.zero_grad()', '''    optimizer.zero_grad()
    if _ == 1:
        network.stn.localization.regression.bias.data.fill_(float('nan'))''').replace(
            'for _ in range(accumulate)', 'for __ in range(accumulate)')
    train(4, 1, script=broken)
    lines = [line['transformers']['input'] for line in read_lines(folder)]
    assert len(lines) == 4 and [line.get('infinite', 0) for line in lines] == [0, 0, 1, 1]
    assert 'scale' in lines[0] and not {'scale', 'x'} & set(lines[2])


def test_networks_are_pickled_while_there_is_a_log(train, folder):
    saved = "    torch.save(network, f'{folder}/whole.pt')\n"
    train(2, 1, script=SCRIPT.replace('    network.eval()', f'{saved}    network.eval()'))
    found = torch.load(folder / 'whole.pt', weights_only=False)
    found(torch.rand(1, 3, 64, 64))
    assert steps_of(folder) == [1, 2]


def test_no_ratio_where_a_closure_is_called(train, folder):
    closure = SCRIPT.replace('torch.optim.SGD(network.parameters(), 0.01, momentum=0.9)',
                             'torch.optim.LBFGS(network.parameters(), 1e-3, max_iter=3)').replace(
        '    optimizer.step()', '''
    x = torch.rand(3, 3, 64, 64)
    def again():
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss
    optimizer.step(again)''')
    train(2, 1, script=closure)
    lines = [line['transformers']['input'] for line in read_lines(folder)]
    assert len(lines) == 2 and all('scale' in line and 'gradient_ratio' not in line for line in lines)


@pytest.mark.parametrize(('script', 'message'), [
    (SCRIPT.replace("utils.get_outdir('.', 'run')", "'run'"), module.NO_FOLDER),
    (SCRIPT.replace('stn_', ''), module.NO_NETWORK)])
def test_it_says_why_there_is_none(train, folder, script, message):
    assert train(2, 1, arch='test_resnet', script=script) == [f'timm-stn: {message}']
    assert not (folder / LINES).exists() and not (folder / 'stn_log').exists() and nothing_is_installed()


def test_steps_within_steps_count_once(train, folder):
    wrapped = SCRIPT.replace('for _ in range(steps)', '''
class Around(torch.optim.SGD):
    def step(self, closure=None):
        return super().step(closure)

    def zero_grad(self):
        inner.zero_grad()

inner = optimizer
optimizer = Around(network.parameters(), 0.01)
optimizer.register_step_pre_hook(lambda *_: inner.step() and None)
for _ in range(steps)''')
    train(4, 1, script=wrapped)
    assert steps_of(folder)[-1] == 4 == len(steps_of(folder))


def test_wandb_gets_it_if_it_runs(train, folder, monkeypatch):
    logged = []
    fake = types.SimpleNamespace(
        run=None, define_metric=lambda *a, **k: logged.append((a, k)), log=logged.append, Image=lambda p: p.size)
    monkeypatch.setitem(sys.modules, 'wandb', fake)
    train(1, 1)
    assert not logged
    fake.run = object()
    train(1, 1)
    assert logged[:2] == [(('stn/step',), {}), (('stn/*',), {'step_metric': 'stn/step'})]
    numbers, picture = logged[2:]
    assert numbers['stn/step'] == picture['stn/step'] == 2
    assert numbers['stn/input/scale'] == read_lines(folder)[-1]['transformers']['input']['scale']
    assert len(picture['stn/look']) == 2


PROCESSES = '''
import os, timm, torch, torch.distributed as dist
from timm import utils
from torch.nn.parallel import DistributedDataParallel
dist.init_process_group('gloo')
rank, world = dist.get_rank(), dist.get_world_size()
if rank == 0:
    utils.get_outdir('.', f'run{world}')
torch.manual_seed(0)
network = timm.create_model('stn_test_resnet', num_classes=3).train()
for m in network.modules():
    m.training = not isinstance(m, torch.nn.BatchNorm2d)
torch.nn.init.normal_(network.stn.localization.regression.weight, std=0.01)
model = DistributedDataParallel(network)
optimizer = torch.optim.SGD(network.parameters(), 0.01)
batch = torch.rand(3, 3, 64, 64).repeat(2 // world, 1, 1, 1)
(1000 * model(batch).square().mean()).backward()
optimizer.step()
dist.destroy_process_group()
'''


def test_several_processes(tmp_path):
    """Two that see the same images are as one that sees them twice; the first alone writes."""
    (tmp_path / 'script.py').write_text(PROCESSES)
    for world in (1, 2):
        done = python('-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', world, '-m', 'timm_stn.run',
                      'script.py', '--stn-log', 1, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count('the pictures are of the first') == 1
    (one,), (two,) = (read_lines(tmp_path / f'run{world}') for world in (1, 2))
    one, two = (line['transformers']['input'] for line in (one, two))
    assert one == pytest.approx(two, rel=1e-3) and 'gradient_ratio' in one


# --- timm's train.py ---

DRIVER = '''
import json, sys
from pathlib import Path
from timm_stn import run
runs, script = sys.argv[1:]
for every, args in json.loads(runs):
    run.run_script(Path(script), args, every)
'''


def make_images(folder, each):
    for k, name in enumerate(('apple', 'pear')):
        (folder / name).mkdir(parents=True)
        for i in range(each):
            Image.new('RGB', (40, 32), (200 * k, 20 * i, 255 - 200 * k)).save(folder / name / f'{i}.png')


@pytest.mark.skipif(not CHECKOUT, reason="TIMM_SCRIPTS names no checkout of timm's scripts")
def test_timms_own_script(tmp_path):
    """Lines, pictures of the validation images, events; the same weights as without; going on where it is resumed."""
    make_images(tmp_path / 'data' / 'train', 8)
    make_images(tmp_path / 'data' / 'val', 5)
    common = [
        '--data-dir', 'data', '--model', 'stn_test_resnet', '--num-classes', '2', '--img-size', '48', '-b', '4',
        '--opt', 'adamw', '--lr', '1e-3', '--sched', 'step', '--warmup-epochs', '0', '--workers', '0', '--seed', '3',
        '--device', 'cpu', '--no-prefetcher', '--amp', '--amp-dtype', 'bfloat16', '--model-ema', '--output', 'out',
        '--grad-accum-steps', '2', '--drop', '0.1', '--clip-grad', '1']
    resumed = ['--resume', 'out/logged/last.pth.tar', '--epochs', '3']
    plan = [(2, ['--experiment', 'logged', '--epochs', '2']), (None, ['--experiment', 'plain', '--epochs', '2']),
            (2, ['--experiment', 'logged', *resumed])]
    runs = [(every, [*common, *args]) for every, args in plan]
    done = python('-c', DRIVER, json.dumps(runs[:2]), Path(CHECKOUT) / 'train.py', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if '--stn-log' in line and 'TensorBoard' not in line]
    assert not said
    logged, plain = tmp_path / 'out' / 'logged', tmp_path / 'out' / 'plain'
    assert steps_of(logged) == [2, 4] and drawn(logged) == [0, 2, 4]
    assert not (plain / LINES).exists() and not (plain / 'stn_log').exists()
    weights = [torch.load(path / 'last.pth.tar', weights_only=False) for path in (logged, plain)]
    for key in ('state_dict', 'state_dict_ema'):
        assert all(torch.equal(v, weights[1][key][k]) for k, v in weights[0][key].items())
    assert (logged / 'summary.csv').read_text() == (plain / 'summary.csv').read_text()
    done = python('-m', 'timm_stn.run', Path(CHECKOUT) / 'train.py', '--stn-log=2', *runs[2][1], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert steps_of(logged) == [2, 4, 6] and drawn(logged) == [0, 2, 4, 6]


def test_events_of_tensorboard(tmp_path):
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    board = targets.TensorBoard(tmp_path)
    board.numbers(7, {'input/scale': 0.5})
    board.picture(7, Image.new('RGB', (6, 4), 'red'))
    board.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    (scalar,), (picture,) = events.Scalars('stn/input/scale'), events.Images('stn/look')
    assert (scalar.step, scalar.value) == (7, 0.5) and (picture.step, picture.width, picture.height) == (7, 3, 2)


def test_append_line_is_what_a_log_is_made_of(tmp_path):
    append_line(tmp_path, {'step': 1, 'transformers': {}})
    assert (tmp_path / LINES).read_text() == '{"step": 1, "transformers": {}}\n'
    assert os.listdir(tmp_path) == [LINES]
