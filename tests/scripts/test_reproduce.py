"""reproduce.py: its cells, their runs on tiny digits, recorded once, and its tables by hand."""
import importlib.util
import json
import re
import shlex
import subprocess
import sys
from collections import defaultdict

import pytest
import results_table
import torch
import train_task
from cells import SEEDS, Cell, cells, options, train
from gpu_pack import PARTS
from gpu_queue import job_of, queue
from makers import ROOT, write_mnist
from pays_cells import pays
from records import read
from results_table import results, runs_of, table

SCRIPT = ROOT / 'scripts' / 'reproduce.py'


@pytest.fixture(scope='module')
def script():
    spec = importlib.util.spec_from_file_location('reproduce_script', SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# the cells

def parameters(cell):
    args = train_task.parse_args([*cell.command[1:], '--device', 'meta'])
    with torch.device('meta'):
        return sum(p.numel() for p in train_task.create_model(args).parameters())


def test_networks_that_are_compared_are_of_one_size():
    counts = defaultdict(list)
    for cell in cells():
        if cell.experiment in ('distorted-mnist', 'addition', 'placement'):
            counts[cell.experiment, cell.recipe, cell.column].append(parameters(cell))
    assert len(counts) == 13
    known = {('distorted-mnist', 'modern', 'RTS'): 0.19, ('distorted-mnist', 'modern', 'TC'): 0.23}
    for group, found in counts.items():
        assert min(found) >= 300_000 and max(found) <= 500_000, group
        assert max(found) / min(found) - 1 <= known.get(group, 0.15), group


def test_names_are_unique():
    assert len({(cell.name, cell.column, cell.row) for cell in cells()}) == len(cells())
    commands = {cell.name: cell.command for cell in cells()}
    assert all(commands[cell.name] == cell.command for cell in cells()), 'one run for one name'
    assert len(set(commands.values())) == len(commands)
    places = [(cell.experiment, cell.recipe, cell.row, cell.column) for cell in cells()]
    assert len(set(places)) == len(places)
    names = [job.name for job in queue()]
    assert len(set(names)) == len(names)
    packed = [cell for cell in cells() if {*cell.parts} <= {*PARTS}]
    assert {cell.experiment for cell in cells() if cell not in packed} == {'svhn'}
    assert {f'{cell.name}-{seed}' for cell in packed for seed in range(SEEDS)} <= set(names)


def test_the_options_of_a_cell_select_it():
    by_options = defaultdict(set)
    for cell in cells():
        by_options[(cell.experiment, cell.recipe, *cell.choice.items())].add(cell.name)
    assert all(len(names) == 1 for names in by_options.values())


def test_every_experiment_is_told():
    assert {cell.experiment for cell in cells()} <= set(results_table.TEXTS)


# the tables

def cell(row, column, paper=None, **more):
    return Cell('e', f'{row}-{column}', row, column, (), 1, paper, {'model': row, 'set': column}, **more)


def line(name, seconds=(1.5, 2.0), count=1000, device='NVIDIA H100 80GB HBM3', **figures):
    return dict(name=name, parameters=count, seconds=list(seconds), device=device, **figures)


def test_a_table_by_hand():
    """The means of 1, 2, 6 and of 1.25, 1.75 are 3 and 1.5; their standard errors sqrt(7 / 3) and 0.25."""
    found = [cell('A', 'R', 3.0), cell('A', 'E', 2.0), cell('B', 'R', 1.49), cell('B', 'E')]
    lines = [line(f'A-R-{seed}', test_error=value) for seed, value in enumerate((1.0, 2.0, 6.0))]
    lines += [line('A-E-1', test_error=2.25, seconds=[80.4]), line('B-R-0', test_error=1.25, count=2000, device='cpu'),
              line('B-R-2', test_error=1.75, count=2000, seconds=[9]), line('C-R-0', test_error=9.0)]
    recorded = {each['name']: each for each in lines}
    assert table([(each, runs_of(each, recorded)) for each in found]).splitlines() == [
        '| | R | E | parameters | seconds a run |', '| --- | --- | --- | --- | --- |',
        '| A | **3.00 ± 1.53** (3) | 2.25, 1 seed (2) | 1,000 | 4 to 80 (H100) |',
        '| B | 1.50 ± 0.25, 2 seeds (1.49) | not run | 2,000 | 4 (CPU), 9 (H100) |',
        '| parameters | 1,000 to 2,000 | 1,000 | | |']


def test_more_is_better_where_the_cell_says_so():
    found = [cell('T', digit, paper, result=('accuracy', int(digit)), higher=True)
             for digit, paper in (('0', 80), ('1', 90), ('2', None))]
    recorded = {f'T-{d}-{s}': line(f'T-{d}-{s}', accuracy=[80, 88 + s, 5]) for d in '012' for s in range(3)}
    shown = table([(each, runs_of(each, recorded)) for each in found]).splitlines()[2]
    assert shown == '| T | **80.00 ± 0.00** (80) | 89.00 ± 0.58 (90) | 5.00 ± 0.00 | 1,000 | 4 (H100) |'


def test_a_figure_from_memory_is_not_beaten():
    recorded = {'A-R-0': line('A-R-0', test_error=1.0)}
    shown = table([(each := cell('A', 'R', 3.0, sure=False), runs_of(each, recorded))]).splitlines()[2]
    assert shown == '| A | 1.00, 1 seed (~3) | 1,000 | 4 (H100) |'


def test_recorded_runs_are_those_of_their_cells():
    recorded = {line['name']: line for line in read(ROOT / 'model_cards' / 'results.jsonl')}
    count = 0
    for each in [*cells(), *pays()]:
        for seed in range(SEEDS):
            run = recorded.get(f'{each.name}-{seed}')
            if run is None or 'train_task' not in each.command[0]:
                continue
            args = vars(train_task.parse_args([*each.command[1:], '--seed', str(seed)]))
            assert 'weights' not in run['args'], 'a path'
            later = {'schedule', 'amp', 'also', 'img_size', 'normalize', 'layer_decay', 'smoothing', 'val_interval'}
            left_out = {*train_task.MAY_DIFFER, *(later - run['args'].keys())}
            expected = json.loads(json.dumps({k: v for k, v in args.items() if k not in left_out}))
            assert {k: v for k, v in run['args'].items() if k not in left_out} == expected, run['name']
            assert len(run['seconds']) == args['epochs'], run['name']
            assert len(run['test_errors']) == -(-args['epochs'] // args['val_interval']), run['name']
            count += 1
    assert count >= 90


def test_the_page_has_every_cell():
    page = results([])
    assert page.count('| not run') == len(cells()) and '**Bold**' in page and page.count('**') == 2
    commands = re.findall(r'^    python scripts/reproduce.py (\S+)(?: --recipe (\S+))? ', page, re.MULTILINE)
    assert [(a, b or 'modern') for a, b in commands] == list(dict.fromkeys(
        (c.experiment, c.recipe) for title in results_table.TEXTS for c in cells() if c.experiment == title))


def test_the_page_is_what_the_record_gives():
    cards = ROOT / 'model_cards'
    assert (cards / 'RESULTS.md').read_text() == results(read(cards / 'results.jsonl')), (
        'run python scripts/reproduce.py table')
    for link in re.findall(r'\]\(([^)#]+)', (cards / 'RESULTS.md').read_text()):
        assert (cards / link).exists(), link


def test_table(script, tmp_path, capsys):
    (tmp_path / 'model_cards').mkdir()
    name = 'addition-cnn-0'
    (tmp_path / 'model_cards' / 'results.jsonl').write_text(json.dumps(line(name, test_error=12.5)) + '\n{"name": "br')
    assert script.main(['table', '--root', str(tmp_path)]) == 0
    page = (tmp_path / 'model_cards' / 'RESULTS.md').read_text()
    assert '| CNN | **12.50**, 1 seed (14.7) | 1,000 | 4 (H100) |' in page
    assert str(tmp_path) in capsys.readouterr().out


# running

def tiny(kind, **more):
    command = train('mnist', '--model', 'mnist_cnn', '--model-kwargs', 'channels=(2,2)', '--set', kind,
                    *options(epochs=1, batch_size=16))
    return Cell('distorted-mnist', f'tiny-{kind}', 'CNN', kind, command, 1, 50.0, dict(distortion=kind), **more)


@pytest.fixture
def folder(script, tmp_path, monkeypatch):
    write_mnist(tmp_path / 'data', train=20, test=8)
    for module in (script, results_table):
        monkeypatch.setattr(module, 'cells', lambda: [tiny('R'), tiny('E')])
    monkeypatch.setattr(script, 'environment', lambda args, env: dict(device='cpu', smoke=args.smoke))
    return tmp_path


def places(folder):
    return ['--data', str(folder / 'data'), '--runs', str(folder / 'runs'), '--root', str(folder / 'root')]


def test_runs_are_recorded_once(script, folder, capfd):
    started = re.compile(r'^(\S+) started', re.MULTILINE)
    arguments = ['distorted-mnist', '--distortion', 'E', *places(folder)]
    assert script.main([*arguments, '--seeds', '1']) == 0
    said = capfd.readouterr().out
    assert started.findall(said) == ['tiny-E-0'] and re.search(r'\| CNN \| \S+, 1 seed \(50\) \|', said)
    first, = read(folder / 'root' / 'model_cards' / 'results.jsonl')
    assert first['name'] == 'tiny-E-0' and first['args']['seed'] == 0 and 'data' not in first['args']
    assert first['test_error'] == first['test_errors'][-1] and first['device'] == 'cpu'
    assert first['environment']['smoke'] is False

    assert script.main([*arguments, '--seeds', '3', '--jobs', '2']) == 0
    said = capfd.readouterr().out
    assert sorted(started.findall(said)) == ['tiny-E-1', 'tiny-E-2']
    lines = read(folder / 'root' / 'model_cards' / 'results.jsonl')
    assert [each['name'] for each in lines] == ['tiny-E-0', 'tiny-E-1', 'tiny-E-2'] and lines[0] == first
    shown = f'{sum(each["test_error"] for each in lines) / 3:.2f}'
    assert re.search(rf'\| CNN \| \**{shown} ', said)
    assert script.main(arguments) == 0 and 'started' not in capfd.readouterr().out


def test_a_run_that_fails_is_told_and_not_recorded(script, folder, capfd, monkeypatch):
    bad = tiny('R')._replace(command=('check/nothing.py',))
    monkeypatch.setattr(script, 'cells', lambda: [bad])
    assert script.main(['distorted-mnist', '--seeds', '1', *places(folder)]) == 1
    said = capfd.readouterr().out
    assert said.count('tiny-R-0 failed') == 2 and "can't open file" in said and 'not run' in said
    assert not read(folder / 'root' / 'model_cards' / 'results.jsonl')


def interrupt(*args):
    raise KeyboardInterrupt


def test_an_interrupted_run_goes_on(script, folder, monkeypatch):
    """At its last epoch, of which the checkpoint is there."""
    longer = tiny('R')._replace(command=tuple('2' if word == '1' else word for word in tiny('R').command))
    run = folder / 'runs' / 'runs' / 'tiny-R-0'
    words = dict(mnist=folder / 'data', run=run, device='cpu')
    command = [word.format(**words) if '{' in word else word for word in job_of(longer, 0).command]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train_task, 'write_result', interrupt)
        train_task.main(command[1:])
    before = (run / 'summary.csv').read_text()
    assert before.count('\n') == 3 and not (run / 'result.json').exists()
    monkeypatch.setattr(script, 'cells', lambda: [longer])
    assert script.main(['distorted-mnist', '--seeds', '1', *places(folder)]) == 0
    finished = folder / 'runs' / 'finished' / 'tiny-R-0'
    assert (finished / 'summary.csv').read_text() == before, 'no epoch was trained again'
    line, = read(folder / 'root' / 'model_cards' / 'results.jsonl')
    assert line['test_errors'] == [float(row.split(',')[3]) for row in before.splitlines()[1:]]


def reproduce(*args):
    done = subprocess.run([sys.executable, SCRIPT, *map(str, args)], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_a_rehearsal_of_cells(tmp_path):
    write_mnist(tmp_path / 'data', train=20, test=8)
    code, said = reproduce('distorted-mnist', '--distortion', 'R', '--model', 'cnn', 'fcn', '--transform', 'none',
                           '--seeds', 1, '--smoke', *places(tmp_path))
    assert code == 0 and 'table1-R-cnn-0 ended' in said and 'table1-R-fcn-0 ended' in said, said
    assert not (tmp_path / 'root').exists() and 'RTS' not in said


def test_help():
    code, said = reproduce('--help')
    assert code == 0 and all(each in said for each in {cell.experiment for cell in cells()}) and 'table' in said
    code, said = reproduce('addition', '--help')
    assert code == 0 and '2-st-fcn' in said and 'TIMM_STN_DATA' in said


@pytest.mark.parametrize('args, words', [
    (['birds'], "invalid choice: 'birds'"),
    (['addition', '--data', 'no/such'], 'TIMM_STN_DATA): takes a folder with the data of addition, got no/such'),
    (['addition', '--data', '.', '--jobs', '0'], 'argument --jobs: takes a positive integer, got 0'),
    (['addition', '--data', '.', '--model', 'resnet'], "argument --model: invalid choice: 'resnet'"),
    (['addition', '--data', '.', '--seeds', '4'], 'argument --seeds: invalid choice: 4'),
    (['addition', '--data', '.', '--model', 'cnn', '--transform', 'tps'],
     'No cell of addition has all of these options: plain networks have the transform none'),
])
def test_wrong_options(script, args, words, capsys):
    with pytest.raises(SystemExit) as raised:
        script.main(args)
    assert raised.value.code not in (0, None)
    assert words in capsys.readouterr().err + str(raised.value.code)


@pytest.mark.parametrize(('experiment', 'words'), [
    ('addition', 'there is no train-images-idx3-ubyte.* in .*, nor in mnist, raw'),
    ('svhn', r'there is no extra/digitStruct.mat in .*, nor in svhn below it.*timm-stn\[svhn\]')])
def test_without_data_nothing_begins(script, tmp_path, experiment, words):
    with pytest.raises(SystemExit, match=words):
        script.main([experiment, '--data', str(tmp_path), '--root', str(tmp_path), '--runs', str(tmp_path / 'runs')])
    assert not (tmp_path / 'runs').exists()


def test_a_dry_run_prints_commands_that_train(script, tmp_path, capsys):
    write_mnist(tmp_path)
    common = ['--data', str(tmp_path), '--root', str(tmp_path), '--runs', str(tmp_path / 'runs'), '--dry-run']
    assert script.main(['addition', '--model', 'fcn', '--seeds', '2', *common]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all(line.startswith(sys.executable) for line in lines)
    args = train_task.parse_args(shlex.split(lines[1])[2:])
    assert (args.set, args.seed, args.data, args.output) == (
        'ADD', 1, str(tmp_path), str(tmp_path / 'runs' / 'addition-fcn-1'))
    assert not (tmp_path / 'model_cards').exists()


def test_the_table_of_no_record_is_refused(script, tmp_path):
    with pytest.raises(SystemExit, match='argument --root: there is no .*results.jsonl'):
        script.main(['table', '--root', str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_data_may_be_named_by_the_environment(script, monkeypatch, tmp_path):
    monkeypatch.setenv('TIMM_STN_DATA', str(tmp_path))
    assert script.parse_args(['volumes']).data == tmp_path
    monkeypatch.delenv('TIMM_STN_DATA')
    with pytest.raises(SystemExit):
        script.parse_args(['volumes'])
