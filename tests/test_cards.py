"""What lies in model_cards/: the README's table and the wheel follow from it."""
import hashlib
import json
import subprocess
import sys

import make_card
import pytest
import torch
from check_dist import is_small
from huggingface_hub import ModelCard
from makers import ROOT, create, needs_weights, write_signs
from PIL import Image
from records import replace
from safetensors.torch import load_file, save_file
from train_task import parse_args

from timm_stn.publish.half import rounded

CARDS = sorted(p.name for p in (ROOT / 'model_cards').iterdir() if p.is_dir())


@needs_weights(*CARDS)
def test_the_tables_in_the_readme_are_up_to_date():
    subprocess.run([sys.executable, ROOT / 'scripts' / 'release' / 'readme_tables.py', '--check'], check=True)


def test_the_wheel_holds_the_small_ones():
    small = [n for n in CARDS if is_small(ROOT / 'model_cards' / n)]
    text = (ROOT / 'pyproject.toml').read_text()
    assert [n for n in CARDS if f'"model_cards/{n}" = "timm_stn/model_cards/{n}"' in text] == small


@needs_weights(*CARDS)
def test_the_sdist_leaves_out_the_others():
    large = [n for n in CARDS if not is_small(ROOT / 'model_cards' / n)]
    text = (ROOT / 'pyproject.toml').read_text().partition('\nexclude = [')[2].partition(']')[0]
    assert large and all(f'"model_cards/{n}/model.safetensors"' in text for n in large)
    assert all(n not in text for n in CARDS if n not in large)
    for n in large:
        kinds = {v.dtype for v in load_file(ROOT / 'model_cards' / n / 'model.safetensors').values() if v.ndim > 1}
        assert kinds == {torch.float16}, n


@pytest.mark.parametrize('name', [pytest.param(name, marks=needs_weights(name)) for name in CARDS])
def test_a_card_says_what_the_hub_asks(name):
    folder = ROOT / 'model_cards' / name
    card = ModelCard.load(folder / 'README.md')
    assert card.data.license and card.data.library_name == 'timm' and card.data.model_name == name
    assert 'import timm, timm_stn' in card.content and 0 < card.data.eval_results[0].metric_value < 1
    assert {p.name for p in folder.iterdir()} >= {'README.md', 'config.json', 'model.safetensors'}


@pytest.mark.parametrize('name', [pytest.param(name, marks=needs_weights(name)) for name in CARDS])
def test_a_file_lacks_nothing_that_answers_depend_on(name):
    """transformers draws at random what a file does not have."""
    held = load_file(ROOT / 'model_cards' / name / 'model.safetensors')
    assert create(name).state_dict().keys() - held.keys() <= {'stn.made_with'}


# the card of a cell

NAME, CELL, PLAIN = 'stn_mnist_cnn_r', 'table1-R-st-cnn-tps', 'table1-R-cnn'


def record_of(name, seed, error, device='NVIDIA H100 80GB HBM3'):
    """The record of a run that never was."""
    command = make_card.cell_of(name).command[1:]
    args = vars(parse_args([*('x' if word == '{run}' else word for word in command), '--seed', str(seed)]))
    environment = dict(device=device, torch='2.11.0', timm='1.0.31', revision='abc1234', processor='x86_64', cores=4)
    return dict(name=f'{name}-{seed}', args=args, parameters=423546, test_error=error, train_loss=0.5,
                seconds=[60.0, 40.0 + 2 * seed], environment=environment)


@pytest.fixture
def made(tmp_path):
    """Records of three runs and of two plain ones, and the folder of the run that gives the weights."""
    lines = [record_of(CELL, seed, error) for seed, error in enumerate((0.53, 0.56, 0.61))]
    lines += [record_of(PLAIN, seed, 1.2 - seed / 10, 'cpu') for seed in range(2)]
    replace(tmp_path / 'results.jsonl', lines)
    run = tmp_path / 'run'
    run.mkdir()
    (run / 'result.json').write_text(json.dumps(lines[2]))
    save_file(create('stn_mnist_cnn_r', seed=3).state_dict(), run / 'model.safetensors')
    return tmp_path


def card_of(made, name=NAME, cell=CELL, baseline=(PLAIN,)):
    make_card.main([
        name, '--cell', cell, '--run', str(made / 'run'), *(['--baseline', *baseline] if baseline else []),
        '--record', str(made / 'results.jsonl'), '--output', str(made / 'cards')])
    return made / 'cards' / name


def test_the_card_of_a_cell(made, capsys):
    folder = card_of(made)
    card = ModelCard.load(folder / 'README.md')
    assert card.data.model_name == NAME and card.data.eval_results[0].metric_value == 0.9939
    assert card.data.eval_results[0].dataset_name == 'MNIST, R'
    for text in (
            '| **stn_mnist_cnn_r** | 423,546 | 0.53, 0.56, 0.61 | **0.57** | 0.7 (ST-CNN tps) |',
            '| CNN | 423,546 | 1.20, 1.10 | **1.15** | 1.2 (CNN) |',
            'behind a thin-plate spline spatial transformer', 'warps the image to 28 x 28 pixels, in 2 looks',
            'rotated by up to 90 degrees', 'those of seed 2, whose error is 0.61.', 'not chosen by its error',
            'No epoch, seed or setting was chosen on test images',
            '    timm-stn eval stn_mnist_cnn_r --data MNIST_FOLDER\n',
            '    python scripts/reproduce.py distorted-mnist --distortion R --model st-cnn --transform tps --data',
            'NVIDIA H100 80GB HBM3, 4 cores of a CPU (x86_64); PyTorch 2.11.0, timm 1.0.31, timm_stn at abc1234.',
            'The published run took\n104 seconds', '## Recipe'):
        assert text in card.content, text
    digest = hashlib.sha256((folder / 'model.safetensors').read_bytes()).hexdigest()
    assert f'its SHA-256 is {digest}' in capsys.readouterr().out
    x = torch.rand(2, 1, 28, 28)
    assert torch.equal(create(f'local-dir:{folder}', pretrained=True)(x), create(NAME, seed=3)(x))


def test_the_command_on_a_card_trains_the_same_run(made):
    line = next(text for text in (card_of(made) / 'README.md').read_text().splitlines() if 'train_task.py' in text)
    words = line.replace('"', '').split()[2:]
    args, expected = vars(parse_args(words)), record_of(CELL, 2, 0.61)['args']
    assert '--seed 2' in line and '--momentum 0.9' in line and '--held-back 0' in line and '--amp' not in line
    assert {key for key in args if args[key] != expected[key]} <= {'output', 'data', 'device'}


def test_the_card_of_a_network_that_adds(made):
    cell = 'addition-2-st-fcn-tps'
    line = dict(record_of(cell, 0, 4.5), parameters=403223)
    replace(made / 'results.jsonl', [line])
    (made / 'run' / 'result.json').write_text(json.dumps(line))
    save_file(create('stn_mnist_add').state_dict(), made / 'run' / 'model.safetensors')
    text = (card_of(made, 'stn_mnist_add', cell, ()) / 'README.md').read_text()
    assert '| **stn_mnist_add** | 403,223 | 4.50 | **4.50** | 5.8 (2 x ST-FCN tps) |' in text
    assert 'reproduce.py addition --model 2-st-fcn --transform tps --data' in text and 'of seed 0, whose' in text
    assert 'fully connected MNIST network' in text and 'behind 2 thin-plate spline' in text and '0 to 18' in text
    assert "(`stn_join='channels'`)" in text and 'value: 0.9550' in text


def test_what_no_card_is_made_of(made):
    folder, result = made / 'run' / 'result.json', json.loads((made / 'run' / 'result.json').read_text())
    cases = [
        (dict(cell='table1-R-cnn-x'), {}, 'no cell table1-R-cnn-x'),
        (dict(baseline=['table1-R-fcn']), {}, 'no record of table1-R-fcn'),
        (dict(cell=PLAIN), {}, 'seed 2; cells.py has fixed the published seed of table1-R-cnn: none'),
        (dict(name='stn_mnist_cnn_e'), {}, 'stn_mnist_cnn_e is for E, table1-R-st-cnn-tps for R'),
        ({}, dict(test_error=0.5), 'is not the run that is recorded as table1-R-st-cnn-tps-2'),
        ({}, dict(args={**result['args'], 'lr': 1.0}), 'has other arguments than its like: lr'),
        ({}, dict(args={**result['args'], 'seed': 0}), 'seed 0; cells.py has fixed the published seed of .*: 2'),
    ]
    for given, changed, message in cases:
        folder.write_text(json.dumps({**result, **changed}))
        with pytest.raises(SystemExit, match=message):
            card_of(made, **given)
    lines = [record_of(CELL, seed, 0.5) for seed in range(3)]
    for line in lines:
        line['args']['model_kwargs'] = dict(line['args']['model_kwargs'], stn_iterations=1)
    replace(made / 'results.jsonl', lines)
    folder.write_text(json.dumps(lines[2]))
    with pytest.raises(SystemExit, match='not the network of table1-R-st-cnn-tps: stn_iterations differ'):
        card_of(made)
    assert not (made / 'cards').exists()


# the card of a network for signs

SIGNS_CELL, SIGNS_PLAIN = 'signs-input', 'signs-plain'


@pytest.fixture
def of_signs(tmp_path):
    """Records of a run with a transformer and of a plain one, the run's folder, and two signs to test on a class."""
    lines = [dict(record_of(name, 0, error), parameters=1_354_929)
             for name, error in ((SIGNS_CELL, 0.5), (SIGNS_PLAIN, 0.75))]
    replace(tmp_path / 'results.jsonl', lines)
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'result.json').write_text(json.dumps(lines[0]))
    save_file(create('stn_gtsrb', seed=3).state_dict(), tmp_path / 'run' / 'model.safetensors')
    write_signs(tmp_path / 'data', tests=86, classes=43)
    return tmp_path


def test_the_card_of_a_network_for_signs(of_signs):
    make_card.main([
        'stn_gtsrb', '--cell', SIGNS_CELL, '--run', str(of_signs / 'run'), '--baseline', SIGNS_PLAIN, '--record',
        str(of_signs / 'results.jsonl'), '--output', str(of_signs / 'cards'), '--data', str(of_signs / 'data')])
    folder = of_signs / 'cards' / 'stn_gtsrb'
    card = ModelCard.load(folder / 'README.md')
    assert card.data.eval_results[0].dataset_name == 'GTSRB' and card.data.eval_results[0].metric_value == 0.995
    for text in (
            '| network | parameters | errors by seed | mean |\n', '| **stn_gtsrb** | 1,354,929 | 0.50 | **0.50** |\n',
            '| plain | 1,354,929 | 0.75 | **0.75** |', 'A small CNN', 'behind an affine spatial transformer',
            '32 x 32 pixels, in 2 looks', '](look.jpg)', '3,000 held-back training signs',
            'in `scripts/reproduce/pays_cells.py`', '    timm-stn eval stn_gtsrb --data GTSRB_FOLDER\n',
            'reproduce.py signs --model input --data GTSRB_FOLDER'):
        assert text in card.content, text
    assert 'MNIST' not in card.content and 'The paper' not in card.content and 'no download' not in card.content
    assert {path.name for path in folder.iterdir()} == {'README.md', 'config.json', 'look.jpg', 'model.safetensors'}
    names = json.loads((folder / 'config.json').read_text())['label_names']
    assert len(set(names)) == 43 and names[8].endswith(' 120 km/h')
    assert (names[14], names[17], names[38], names[40]) == ('stop', 'no entry', 'keep right', 'roundabout')
    with Image.open(folder / 'look.jpg') as picture:
        assert min(picture.size) > 500
    x = torch.rand(2, 3, 32, 32)
    by_folder = create(f'local-dir:{folder}', pretrained=True).eval()
    assert torch.equal(by_folder(x), rounded(create('stn_gtsrb', seed=3)).eval()(x))
    assert 2_500_000 < (folder / 'model.safetensors').stat().st_size < 3_000_000
    assert 'half precision; loaded, they are float32' in card.content
