"""pays.py: its page by hand and as it is committed, times and pictures of tiny networks."""
import argparse
import importlib.util
import json
import os
import re
import sys
from types import SimpleNamespace

import pays_cost
import pays_page
import pays_picture
import pytest
import torch
import train_task
from birds_cells import birds
from cells import SEEDS, Cell, options, train
from makers import ROOT, write_mnist
from pays_page import (
    Book,
    Gain,
    advice,
    all_cells,
    expected,
    fields,
    helps,
    page,
    reached,
    table,
    tables_of,
    told,
    verdict,
)
from pays_texts import TEXTS, Goal, Told, Use
from PIL import Image
from records import read

from timm_stn import data
from timm_stn.data import TASKS
from timm_stn.data.tasks import boxes_of

SCRIPT = ROOT / 'scripts' / 'pays.py'
CARDS = ROOT / 'model_cards'


@pytest.fixture(scope='module')
def script():
    spec = importlib.util.spec_from_file_location('pays_script', SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# the page

def cell(name, model='mnist_cnn', part='mnist'):
    command = train(part, '--model', model, '--set', 'R')
    return Cell('turned-digits', name, f'row {name}', 'error', command, 1, choice={'model': name}, parts=(part,))


def line(name, error, cost=None, **more):
    return dict(name=name, parameters=1000, seconds=[1.0], device='cpu', test_error=error,
                **({'multiply_adds': cost} if cost else {}), **more)


def runs(name, errors, cost=None, **more):
    return [line(f'{name}-{seed}', error, cost, **more) for seed, error in enumerate(errors)]


def times(name, step, image, device='cpu', at='now', **more):
    return dict(name=name, step=step, image=image, device=device, threads=1, time=at, batch_size=32, repeats=7, **more)


def book_of(cells, lines, costs=()):
    return Book(tables_of(cells), lines, costs)


CELLS = [cell('plain'), cell('ours', 'stn_mnist_cnn'), cell('large'), cell('later', 'stn_mnist_cnn')]
LINES = [*runs('plain', (40, 42, 44), 1.0), *runs('large', (30, 30, 30), 4.0),
         *runs('ours', (29, 32, 35), 1.5, looks={'iou': 50.0, 'found': 60.0, 'inside': 70.0})]
COSTS = [times('plain', 0.5, 0.002), times('ours', 1.25, 0.003), times('large', 4.0, 0.016),
         times('plain', 0.01, 0.001, 'NVIDIA H100 80GB HBM3'),
         times('ours', 0.02, 0.001, 'NVIDIA H100 80GB HBM3', at='later')]


def test_a_table_by_hand():
    """Means of accuracy 58, 68, 70; their standard errors 2 / sqrt(3) = 1.15, 3 / sqrt(3) = 1.73, 0.

    The gain over `plain` is 10 with sqrt(1.33 + 3) = 2.08; over `large` -2 with 1.73, which is not clear.
    """
    told = Told('T', '', ('large',), (Goal('ours', 'plain', 2.5), Goal('ours', 'large', 0.0, 1 / 3, clear=False)))
    assert table(told, CELLS, book_of(CELLS, LINES, COSTS)).splitlines() == [
        '| | accuracy, % | overlap, % | centre inside, % | parameters | multiply-adds | of row large | '
        'a training step, CPU, 1 thread | an image, CPU, 1 thread | a training step, H100 | an image, H100 | '
        'beside others |',
        '| --- ' * 12 + '|',
        '| row plain | 58.00 ± 1.15 |  |  | 1,000 | 1.000 G | 25 % | 500 ms (0.12 x) | 2 ms (0.12 x) | 10 ms | 1 ms | '
        ' |',
        '| row ours | 68.00 ± 1.73 | 50.00 ± 0.00 | 70.00 ± 0.00 | 1,000 | 1.500 G | 38 % | 1.25 s (0.31 x) | '
        '3 ms (0.19 x) | 20 ms | 1 ms | +10.00 ± 2.08 beside row plain: goal (+2.5) met; no clear difference '
        '(-2.00 ± 1.73) beside row large, for 38 % of its multiply-adds: goal (no lower, for at most 33 %) not met |',
        '| row large | 70.00 ± 0.00 |  |  | 1,000 | 4.000 G | 100 % | 4 s (1.00 x) | 16 ms (1.00 x) | not measured | '
        'not measured |  |',
        '| row later | not run |  |  |  |  |  | not measured | not measured | not measured | not measured | '
        'not run beside row large |']


def test_fewer_seeds_and_no_times():
    found = [cell('plain'), cell('ours', 'stn_mnist_cnn')]
    book = book_of(found, [*runs('plain', (40, 42)), *runs('ours', (30,))])
    assert table(Told('T', ''), found, book).splitlines()[2:] == [
        '| row plain | 59.00 ± 1.00, 2 seeds | 1,000 |  |  | not measured |  |',
        '| row ours | 70.00, 1 seed | 1,000 |  |  | not measured | +11.00 ± 0.67, one seed beside row plain |']


def test_several_sets_of_test_images_are_columns():
    """And data of another kind are a table of their own."""
    both = [each._replace(column=column, result=result) for each in (cell('plain'), cell('ours', 'stn_mnist_cnn'))
            for column, result in (('upright', ('test_error',)), ('turned', ('errors_on', 'RTS')))]
    lines = [*runs('plain', (1, 1, 1), 1.0, errors_on={'RTS': 60.0}),
             *runs('ours', (2, 2, 2), 1.0, errors_on={'RTS': 9.0})]
    tables = tables_of([*both, cell('photos', part='birds')])
    assert [[each.name for each in mine] for mine in tables['turned-digits']] == [
        ['plain', 'plain', 'ours', 'ours'], ['photos']]
    shown = table(Told('T', ''), tables['turned-digits'][0], Book(tables, lines, [])).splitlines()
    assert shown[0].startswith('| | accuracy, upright, % | accuracy, turned, % | parameters |')
    assert shown[2].startswith('| row plain | 99.00 ± 0.00 | 40.00 ± 0.00 | 1,000 |')
    assert shown[3].endswith('| -1.00 ± 0.00 beside row plain, upright; +51.00 ± 0.00 beside row plain, turned |')
    book = Book(tables, lines, [])
    assert helps(Goal('ours', 'plain', column='turned'), book)
    assert helps(Goal('ours', 'plain', column='upright'), book) is False


def test_more_is_better_for_birds():
    name = birds()[0].name
    lines = [dict(name=name.replace('*', str(seed)), top1=50.0 + seed, parameters=7, device='cpu', multiply_adds=0.1,
                  args={'model': 'plain'}) for seed in range(SEEDS)]
    assert book_of(birds(), lines).accuracies(name) == [50.0, 51.0, 52.0]


@pytest.mark.parametrize('gain, text', [
    (None, ''), (Gain(1.6, 0.5), '+1.60 ± 0.50, one seed'), (Gain(-3.0, 1.0, 4), '-3.00 ± 1.00'),
    (Gain(1.4, 0.5), 'no clear difference (+1.40 ± 0.50, one seed)'),
    (Gain(-4.2, 1.0, 2), 'no clear difference (-4.20 ± 1.00)'), (Gain(-3.2, 1.0, 3), '-3.20 ± 1.00'),
    (Gain(2.7, 1.0, 4), 'no clear difference (+2.70 ± 1.00)'),
    (Gain(0.0, 0.0, 4), 'no clear difference (+0.00 ± 0.00)')])
def test_a_gain_in_words(gain, text):
    assert told(gain) == text


@pytest.mark.parametrize('goal, ours, expected', [
    (Goal('ours', 'plain', 2.5), (35, 36, 37), True),  # 5 more, of 0.82
    (Goal('ours', 'plain', 5.5), (35, 36, 37), False),
    (Goal('ours', 'plain', 0.0), (39, 40, 41), False),  # 1 more is not clear
    (Goal('ours', 'plain', 0.0, clear=False), (39, 40, 41), True),
    (Goal('ours', 'plain', 0.0, clear=False), (41, 42, 43), False),
    (Goal('ours', 'plain', 0.0, 2.0), (35, 36, 37), True),
    (Goal('ours', 'plain', 0.0, 1.4), (35, 36, 37), False),  # costs 1.5 times as much
    (Goal('ours', 'plain', 2.5), (35,), True),  # of one seed: 6 more, of 0.69, by the draw of 10,000 images
    (Goal('ours', 'plain', 2.5), (40,), False),
    (Goal('ours', 'plain', 0.0, least=64.0), (35, 36, 37), True),
    (Goal('ours', 'plain', 0.0, least=64.1), (35, 36, 37), False),
    (Goal('ours', 'plain', 2.5), (), None),
    (Goal('ours', 'plain'), (35, 36, 37), True),
    (Goal('ours', 'plain'), (41, 42, 43), False)])
def test_goals(goal, ours, expected):
    found = [cell('plain'), cell('ours', 'stn_mnist_cnn')]
    book = book_of(found, [*runs('plain', (40, 41, 42), 1.0), *runs('ours', ours, 1.5)])
    assert reached(goal, book) is expected
    word = {True: 'met', False: 'not met', None: 'open'}[expected]
    assert goal.gain is None or verdict(goal, book).endswith(f') {word}')


def test_a_plain_network_that_costs_no_more_is_named():
    cells = [cell('plain'), cell('ours', 'stn_mnist_cnn'), cell('middle'), cell('large')]
    lines = [*runs('plain', (50, 50, 50), 1.0), *runs('middle', (30, 30, 30), 1.5), *runs('large', (1, 1, 1), 9.0),
             *runs('ours', (40, 41, 42), 1.5)]
    book, goal = book_of(cells, lines), Goal('ours', 'plain', 0.0)
    assert book.rival('ours') == 'middle' and book.rival('plain') is None
    assert reached(goal, book) and helps(goal, book) is False
    high = goal._replace(least=99.0)
    assert not reached(high, book_of(cells[:2], lines)) and helps(high, book_of(cells[:2], lines))
    use = Use('small', 'it', 'ours', 'plain')
    assert advice(use, Told('T', ''), book) == 'row middle; not it'
    assert expected(use, book) == (
        '59.00 % in place of the 50.00 % of row plain (+9.00 ± 0.58), for 150 % of the multiply-adds, and row '
        'middle, which costs no more, is no worse: -11.00 ± 0.58; row large has 99.00 %, for 600 % of its '
        'multiply-adds')
    other = [each._replace(command=('train', '--model', 'mnist_cnn', '--set', 'RTS')) if each.name == 'middle' else each
             for each in cells]
    assert book_of(other, lines).rival('ours') == 'plain', 'one that is trained on other images is no rival'
    better = book_of(cells, [*lines[:-3], *runs('ours', (20, 21, 22), 1.5)])
    assert helps(goal, better) and advice(use, Told('T', ''), better) == 'it'
    worse = book_of(cells, [*lines[:-3], *runs('ours', (60, 61, 62), 1.5)])
    assert advice(use, Told('T', ''), worse) == 'row plain; not it'
    assert advice(use, Told('T', ''), book_of(cells, [])) == 'perhaps it; this is open'


def test_fields_of_texts():
    text = ('{accuracy[ours]}, {cost[ours]}, {gain[ours beside plain]}, {share[ours of large]}, {step[ours of plain]}, '
            '{overlap[ours]}, {inside[ours]}')
    assert text.format(**fields(book_of(CELLS, LINES, COSTS))) == (
        '68.00 %, 1.500 G, +10.00 ± 2.08, 38 %, 2.50 times (CPU, 1 thread), 50.00 %, 70.00 %')
    assert text.format(**fields(book_of(CELLS, []))) == ', '.join(
        ['not run'] * 4 + ['not measured'] + ['not run'] * 2)


def test_every_experiment_is_told_of_cells_that_exist(monkeypatch):
    """All names in fields, goals and uses of experiments that have cells."""
    tables = tables_of(all_cells())
    assert {*tables} <= {*TEXTS}
    named = set()
    monkeypatch.setattr(pays_page.Field, '__getitem__', lambda self, key: named.update(
        key.split(f' {self.word} ') if self.word else [key]))
    for experiment in tables:
        told = TEXTS[experiment]
        told.text.format(**fields(book_of([], [])))
        named |= {name for pair in (*told.goals, *told.uses) for name in (pair.ours, pair.than)} | {*told.references}
    named -= {'whole', 'surest', 'pointed_at', 'any'}  # of measure_bound.py
    assert named <= {each.name for each in all_cells()} and len(named) > 8


def test_the_page_has_every_cell_and_its_command():
    every = all_cells()
    text = page([])
    assert text.count(' | not run') >= len({(each.experiment, each.row) for each in every})
    assert 'goal (+2.5) open' in text and 'None is known yet.' in text and 'Times were not measured yet.' in text
    commands = set(re.findall(r'^    python scripts/reproduce.py (\S+) ', text, re.MULTILINE))
    assert commands == {each.experiment for each in every} - {'birds'} and 'scripts/train/train_birds.sh' in text
    assert max(map(len, (row for row in text.splitlines() if not row.startswith(('|', '-', ' ', 'All'))))) <= 120


def test_pictures_are_shown_where_they_are():
    assert 'pays/volumes.jpg' not in page([]) and '](pays/volumes.jpg)' in page([], pictures=['volumes'])


def test_the_page_is_what_the_records_give():
    docs = ROOT / 'docs'
    pictures = [path.stem for path in docs.glob('pays/*.jpg')]
    assert (docs / 'when_it_pays.md').read_text() == page(
        read(CARDS / 'results.jsonl'), read(CARDS / 'costs.jsonl'), pictures), 'run python scripts/pays.py page'


def test_committed_pictures_are_small_and_of_an_experiment():
    for path in (ROOT / 'docs').glob('pays/*'):
        assert path.stem in TEXTS and path.stat().st_size < pays_picture.MOST


def test_it_is_written_where_the_records_are(script, tmp_path, capsys):
    with pytest.raises(SystemExit, match='argument --root: there is no .*results.jsonl'):
        script.main(['page', '--root', str(tmp_path)])
    (tmp_path / 'model_cards').mkdir()
    (tmp_path / 'docs' / 'pays').mkdir(parents=True)
    (tmp_path / 'docs' / 'pays' / 'volumes.jpg').touch()
    lines = runs('volumes-cnn', (10, 11, 12))
    (tmp_path / 'model_cards' / 'results.jsonl').write_text(''.join(json.dumps(each) + '\n' for each in lines))
    script.main(['page', '--root', str(tmp_path)])
    text = (tmp_path / 'docs' / 'when_it_pays.md').read_text()
    assert '| CNN | 89.00 ± 0.58 | 1,000 |' in text and 'pays/volumes.jpg' in text
    assert str(tmp_path) in capsys.readouterr().out


# times

def tiny(name, model, *kwargs, **more):
    command = train('mnist', '--model', model, '--model-kwargs', 'channels=(2,2)', *kwargs, '--set', 'R',
                    '--weights', '{lite0}/none', *options(opt='sgd', lr=0.1, smoothing=0.1, clip_grad=0.01))
    return Cell('turned-digits', name, name, 'error', command, 1, **more)


@pytest.fixture
def few(monkeypatch):
    cells = [tiny('plain', 'mnist_cnn'), tiny('ours', 'stn_mnist_cnn'), *birds()]
    monkeypatch.setattr(pays_cost, 'all_cells', lambda: cells)


def cost(script, folder, *more):
    script.main(['cost', '--root', str(folder), '--threads', str(torch.get_num_threads()), '--repeats', '2',
                 '--batch-size', '3', *more])
    return read(folder / 'model_cards' / 'costs.jsonl')


def test_times_are_recorded_once(script, few, tmp_path, capsys):
    lines = cost(script, tmp_path, '--only', 'turned-digits')
    assert [each['name'] for each in lines] == ['plain', 'ours'] and lines[0]['time'] == lines[1]['time']
    for each in lines:
        assert each['step'] > each['image'] > 0 and each['batch_size'] == 3 and each['experiment'] == 'turned-digits'
        assert each['device'] == 'cpu' and each['versions']['torch'] == torch.__version__ and each['repeats'] == 2
    other = dict(lines[0], experiment='signs', name='sign'), dict(lines[0], device='NVIDIA H100', name='plain')
    path = tmp_path / 'model_cards' / 'costs.jsonl'
    path.write_text(''.join(json.dumps(each) + '\n' for each in (*lines, *other)))
    again = cost(script, tmp_path)
    assert [each['name'] for each in again] == ['sign', 'plain', 'plain', 'ours'] and again[:2] == [*other]
    assert again[2]['step'] != lines[0]['step']
    assert 'birds: there is no network to be timed' in capsys.readouterr().out, 'no run has told of it'


def test_birds_are_made_as_they_were_recorded(script, few, tmp_path):
    args = dict(model='stn_test_resnet', num_classes=4, img_size=96, model_kwargs={'stn_size': 64}, opt='adamw', lr=0.1,
                weight_decay=0.05, layer_decay=0.85, smoothing=0.1, channels_last=True)
    (tmp_path / 'model_cards').mkdir()
    name = 'birds-1/plain112'
    (tmp_path / 'model_cards' / 'results.jsonl').write_text(json.dumps(dict(name=name, args=args)) + '\n')
    found, = cost(script, tmp_path, '--only', 'birds')
    assert found['name'] == 'birds-*/plain112' and found['step'] > 0
    timed = pays_cost.of_timm(args, 'cpu', 3)
    assert timed.images.shape == (3, 3, 96, 96) and len(timed.optimizer.param_groups) > 2
    assert timed.model(timed.images).shape == (3, 4) and timed.model.stn.size == (64, 64)


def test_medians_of_networks_in_turns(monkeypatch):
    """What is not counted is the first of each; seconds are 100, then 1, 2, 9 for a step, twice that for all images."""
    order, seconds = [], iter([100, 200] * 2 + [1, 2, 10, 20] + [2, 4, 20, 40] + [9, 18, 90, 180])

    def took(work, timed):
        order.append(timed.name)
        return next(seconds)

    monkeypatch.setattr(pays_cost, 'took', took)
    found = {name: SimpleNamespace(name=name, images=range(4)) for name in 'ab'}
    assert pays_cost.times(found, 3) == [
        {'name': 'a', 'step': 2, 'image': 1.0}, {'name': 'b', 'step': 20, 'image': 10.0}]
    assert order == [*'aabb'] * 4


def test_a_step_is_that_of_training():
    """It moves weights exactly as train_task.py moves them."""
    one = tiny('ours', 'stn_mnist_cnn')
    timed = pays_cost.of_task(one, 'cpu', 5)
    run = train_task.Run(timed.args, 1)
    run.model.load_state_dict(timed.model.state_dict())
    before = [p.detach().clone() for p in timed.model.parameters()]
    run.task = run.task._replace(make=lambda images, classes, index, u: (images, classes))
    train_task.train_step(run, (timed.images, timed.classes), torch.arange(5), torch.zeros(5, 0))
    pays_cost.step(timed)
    for ours, theirs in zip(timed.model.parameters(), run.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert any(not torch.equal(a, b) for a, b in zip(before, timed.model.parameters(), strict=True))


@pytest.mark.parametrize('each', [each for each in all_cells() if each.command], ids=lambda each: each.name)
def test_every_cell_has_a_network(each):
    """On no device: shapes alone. Images enter as the network takes them."""
    with torch.device('meta'):
        timed = pays_cost.of_task(each._replace(command=(*each.command, '--device', 'meta')), 'meta', 2)
    task = TASKS[timed.args.set]
    side = timed.args.img_size or task.size
    assert timed.images.shape == (2, task.channels, *[side] * task.dims) and timed.classes.shape == (2, task.answers)


def test_training_keeps_its_memory(script, monkeypatch):
    begun = []
    monkeypatch.setattr(os, 'execve', lambda *args: begun.append(args))
    for name in script.MALLOC:
        monkeypatch.delenv(name, raising=False)
    script.with_memory_kept()
    (program, words, env), = begun
    assert program == sys.executable and words[1:] == sys.argv and script.MALLOC.items() <= env.items()
    for name in script.MALLOC:
        monkeypatch.setenv(name, '1')
    script.with_memory_kept()
    assert len(begun) == 1


# pictures

@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp('pays')
    write_mnist(folder / 'data', train=20, test=30)
    for name, model, *kwargs in (('plain', 'mnist_cnn'), ('ours', 'stn_mnist_cnn', 'stn_glimpses=2', 'stn_scale=0.6')):
        train_task.main(['--data', str(folder / 'data'), '--output', str(folder / name), '--model', model, '--epochs',
                         '1', '--set', 'RTS', '--model-kwargs', 'channels=(2,2)', *kwargs])
    return folder


def picture(script, folder, *more):
    script.main(['picture', 'turned-digits', '--run', str(folder / 'ours'), '--data', str(folder / 'data'),
                 '--output', str(folder / 'new' / 'turned.jpg'), *more])
    return Image.open(folder / 'new' / 'turned.jpg')


def test_a_picture_of_a_run(script, finished, monkeypatch, capsys):
    drawn = []
    draw_look = pays_picture.draw_look

    def recorded(*args, **more):
        drawn.append((args, more))
        return draw_look(*args, **more)

    monkeypatch.setattr(pays_picture, 'draw_look', recorded)
    with picture(script, finished, '--count', '4') as shown:
        assert shown.format == 'JPEG' and shown.width > 1000
    (pixels, seen, outlines, answers, titles), more = drawn[0]
    digits, labels = data.test_set('RTS', finished / 'data')
    chosen = [0, 7, 15, 22]  # of 30
    torch.testing.assert_close(pixels, digits[chosen])
    assert seen.shape[:2] == outlines.shape[:2] == (4, 2)
    assert titles == ('where it looked', 'glimpse 1', 'glimpse 2', 'answer')
    for caption, truth in zip(answers, labels[chosen].tolist(), strict=True):
        assert caption.right == (caption.answers[0][0] == str(truth))
        assert caption.truth == ('' if caption.right else f'is {truth}')
    assert more['boxes'] is None and 'bytes' in capsys.readouterr().out


def test_another_set(script, finished, monkeypatch):
    seen = []
    held_out = pays_picture.held_out
    monkeypatch.setattr(pays_picture, 'held_out', lambda *args: seen.append(args[0]) or held_out(*args))
    picture(script, finished, '--set', 'RTS', '--count', '1').close()
    assert seen == ['RTS']


def test_true_boxes_are_those_of_the_images(monkeypatch):
    """Of photographs of noise, where the task knows boxes."""
    photos = torch.randint(256, (5, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(5)
    monkeypatch.setitem(TASKS, 'SCATTERED', TASKS['SCATTERED']._replace(load=lambda data, split: (photos, labels)))
    images, classes, boxes = pays_picture.held_out('SCATTERED', None, 2)
    every, _ = data.test_set('SCATTERED')
    torch.testing.assert_close(images, every[[0, 2]])
    torch.testing.assert_close(boxes, next(boxes_of('SCATTERED', labels))[[0, 2]])
    assert classes.tolist() == [0, 2]
    assert len(pays_picture.held_out('SCATTERED', None, 9)[0]) == 5, 'no more than there are'


def test_pixels_are_shown_as_they_are(finished, tmp_path, monkeypatch):
    """With --normalize, the network sees other numbers than the picture shows."""
    run = tmp_path / 'normal'
    train_task.main(['--data', str(finished / 'data'), '--output', str(run), '--model', 'stn_mnist_cnn', '--epochs',
                     '1', '--set', 'R', '--normalize', '--model-kwargs', 'channels=(2,2)'])
    drawn = []
    monkeypatch.setattr(pays_picture, 'draw_look', lambda *args, **more: drawn.append(args))
    pays_picture.of_task(run, finished / 'data', 3)
    torch.testing.assert_close(drawn[0][0], data.test_set('R', finished / 'data')[0][[0, 10, 20]])
    torch.testing.assert_close(drawn[0][1][:, 0], drawn[0][0], rtol=0, atol=1e-2)  # it has hardly learned to move


def test_a_picture_of_a_run_of_timm(script, tmp_path):
    for name in ('001.Robin_red', '002.Wren'):
        (tmp_path / 'data' / 'test' / name).mkdir(parents=True)
        Image.new('RGB', (70, 60), (200, 30, 30)).save(tmp_path / 'data' / 'test' / name / 'a.jpg')
    import timm
    model = timm.create_model('stn_test_resnet', num_classes=2, stn_size=64)
    (tmp_path / 'run').mkdir()
    torch.save(dict(epoch=1, arch='stn_test_resnet', state_dict=model.state_dict(), metric=1.0, version=2,
                    args=argparse.Namespace(model='stn_test_resnet', num_classes=2, model_kwargs={'stn_size': 64})),
               tmp_path / 'run' / 'last.pth.tar')
    arguments = ['picture', 'birds', '--run', str(tmp_path / 'run'), '--output', str(tmp_path / 'birds.jpg')]
    script.main([*arguments, '--data', str(tmp_path / 'data')])
    with Image.open(tmp_path / 'birds.jpg') as shown:
        assert shown.format == 'JPEG'
    with pytest.raises(SystemExit, match='argument --data: of a run of train_birds.sh takes a folder with'):
        script.main([*arguments, '--data', str(tmp_path)])


def test_a_picture_is_small_or_refused():
    noise = Image.frombytes('RGB', (400, 300), bytes(torch.randint(256, (360_000,), dtype=torch.uint8).tolist()))
    assert len(pays_picture.small(noise)) <= pays_picture.MOST
    with pytest.raises(SystemExit, match='argument --count: a picture of 2000 x 1500 has more than 120,000 bytes'):
        pays_picture.small(noise.resize((2000, 1500), Image.Resampling.NEAREST))


def test_runs_that_cannot_be_drawn(script, finished, tmp_path):
    with pytest.raises(SystemExit, match='argument --run: takes the folder of a finished run'):
        script.main(['picture', 'turned-digits', '--run', str(tmp_path)])
    with pytest.raises(SystemExit, match='a network with transformers, of images; .*plain is of mnist_cnn on RTS'):
        script.main(['picture', 'turned-digits', '--run', str(finished / 'plain'), '--data', str(finished / 'data')])
    with pytest.raises(SystemExit, match="argument --set: takes one of R, .*, got 'X'"):
        picture(script, finished, '--set', 'X')


@pytest.mark.parametrize('args, words', [
    (['cost', '--only', 'dogs'], "argument --only: invalid choice: 'dogs'"),
    (['cost', '--repeats', '0'], 'argument --repeats: takes a positive integer, got 0'),
    (['picture', 'turned-digits'], 'the following arguments are required: --run'),
    ([], 'COMMAND')])
def test_wrong_options(script, args, words, capsys):
    with pytest.raises(SystemExit):
        script.main(args)
    assert words in capsys.readouterr().err
