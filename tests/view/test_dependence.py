"""Whether theta depends on the image: the numbers, who gathers them, and the one line that says that it does not."""
import argparse
import gc
import os
import sys
import weakref

import numpy as np
import pytest
import timm
import torch
from makers import rand, write_mnist
from PIL import Image

import timm_stn
from timm_stn import SpatialTransformer, cli, run
from timm_stn.cli.digits import EXAMPLES, read_sheet
from timm_stn.names.zoo import card_folder
from timm_stn.publish.push import push_to_hub
from timm_stn.view import dependence as module
from timm_stn.view.dependence import LITTLE, Dependence, advice, dependence, witnessing

NOTHING = ['--model', 'stn_mnist_cnn', '--no-pretrained']
TRAINED = 'stn_mnist_cnn_rts'
SCRIPT = '''
import sys, timm, torch
torch.manual_seed(0)
model = timm.create_model('stn_mnist_cnn', stn_transform='translation')
if sys.argv[1] == 'well':
    torch.nn.init.normal_(model.stn.localization.regression.weight)
with torch.inference_mode():
    for _ in range(2):
        model.eval()(torch.rand(5, *model.pretrained_cfg['input_size']))
del model
{ending}
'''


def images(n, side=16, seed=0):
    return rand(n, 1, side, side, seed=seed)


def transformer(transform='translation', weight=0.3, **settings):
    """One whose theta depends on the image, as far as the weight says."""
    torch.manual_seed(0)
    stn = SpatialTransformer(1, (16, 16), transform, **settings)
    torch.nn.init.normal_(stn.localization.regression.weight, std=weight)
    return stn.eval()


@pytest.fixture
def digits(tmp_path):
    """Eight of the package's digits, turned and moved, as files."""
    pixels, _ = read_sheet(card_folder(TRAINED) / EXAMPLES)
    folder = tmp_path / 'digits'
    folder.mkdir()
    for i, digit in enumerate(pixels[:8, 0]):
        Image.fromarray((255 * digit).round().byte().numpy()).save(folder / f'{i}.png')
    return folder


def said(capsys):
    """What stderr has of it."""
    return [line for line in capsys.readouterr().err.splitlines() if 'does the same' in line]


# --- the numbers ---

def test_spread_of_a_translation_is_that_of_theta():
    stn = transformer()
    stn(images(9))
    shifts = stn.last_theta[:, :, 2].numpy().astype(np.float64)
    expected = np.sqrt(shifts.var(0).mean())
    assert expected > LITTLE
    assert dependence(stn, stn.last_theta) == (9, pytest.approx(expected), 0, 0)


def test_spread_over_glimpses():
    stn = transformer('affine', glimpses=3, scale=0.5)
    stn(images(7))
    theta = stn.last_theta.double().numpy()
    axis = np.linspace(-1, 1, 5)
    lattice = np.array([(x, y, 1) for x in axis for y in axis])
    points = np.einsum('ngij,pj->ngpi', theta, lattice)
    expected = np.sqrt(points.var(0).mean())
    assert expected > LITTLE
    assert dependence(stn, stn.last_theta)[:2] == (7, pytest.approx(expected))


def test_spread_without_a_matrix():
    """Of thin-plate splines, whose control points, moved alike, move all: by a translation's standard deviation."""
    stn = transformer('tps')
    control = stn.transform.num_params // 2
    move = torch.linspace(-0.2, 0.3, 6)
    found = dependence(stn, move[:, None].repeat(1, 2 * control))
    assert found.spread == pytest.approx(move.double().numpy().std(), rel=1e-4)


def test_dead_features():
    stn = transformer()
    features = torch.rand(6, 10)
    features[:, 2], features[:, 7] = 0, 1.5
    features[:, 4] = torch.tensor([0, 0, 0, 0, 0, 1e-6])
    assert dependence(stn, torch.eye(2, 3).repeat(6, 1, 1), features) == (6, 0, 2, 10)


def test_features_are_what_the_regression_sees():
    stn = transformer(iterations=2)
    stn(images(4))
    seen = stn.localization.last_features
    assert seen.shape == (4, stn.localization.regression.in_features) and not seen.requires_grad
    stn.iterations = 1
    stn(images(4))
    theta = stn.localization.regression(stn.localization.last_features)
    assert torch.equal(theta, stn.last_theta[:, :, 2]) and not torch.equal(seen, stn.localization.last_features)
    stn.localization.last_features = None
    torch.compile(stn, backend='eager')(images(4))
    assert stn.localization.last_features is None and 'last_features' not in ''.join(stn.state_dict())


def test_advice():
    line = advice('layer3', Dependence(153, 0.00004, 9, 20))
    assert line == ('the transformer at layer3 does the same for all 153 images (standard deviation 0.0000; '
                    '9 of 20 features are dead): see https://github.com/timm-stn/timm_stn/blob/main/docs/training.md#it-does-nothing')
    assert 'deviation 0.0049):' in advice('input', Dependence(2, 0.0049, 0, 0))
    assert advice('input', Dependence(153, LITTLE, 20, 20)) is None
    assert advice('input', Dependence(1, 0.0, 0, 20)) is None and advice('input', Dependence(0, 0.0, 0, 0)) is None


# --- who gathers them ---

def test_batches_come_to_one_call_on_all():
    stn, x = transformer('affine', glimpses=2, scale=0.5, localization='fc'), images(23)
    with torch.no_grad():
        stn.localization.standardize.running_mean[:9] = 100  # a ReLU follows: these are dead
    stn(x)
    whole = dependence(stn, stn.last_theta, stn.localization.last_features)
    with witnessing() as witness, torch.inference_mode():
        for part in (*x.split(5), x[:0]):
            stn(part)
    (stage, found), = witness.found()
    assert stage == 'input' and (found.images, found.dead, found.features) == (23, whole.dead, whole.features)
    assert found.spread == pytest.approx(whole.spread, rel=1e-6) and 9 <= whole.dead < whole.features


@pytest.mark.parametrize('order', [(0, 1), (1, 0)])
def test_what_differs_between_batches_only_is_not_dead(order):
    stn = transformer()
    with witnessing() as witness:
        for value in order:
            stn.localization.last_features = torch.tensor([[float(value), 1]]).repeat(3, 1)
            witness.see(stn, torch.eye(2, 3).repeat(3, 1, 1))
    assert witness.found()[0][1][2:] == (1, 2)


def test_far_away_points_do_not_cancel():
    stn = transformer()
    theta = torch.eye(2, 3, dtype=torch.float64).repeat(4, 1, 1)
    theta[:, 0, 2] = 123456.7 + torch.tensor([0, 0, 1, 1], dtype=torch.float64) / 1024
    with witnessing() as witness:
        for part in theta.split(2):
            witness.see(stn, part)
    assert witness.found()[0][1].spread == pytest.approx(1 / 2048 / 2 ** 0.5, rel=1e-6)


def test_starts_anew_after_training():
    stn, copy = transformer(), transformer(weight=0)
    with witnessing() as witness:
        stn(images(4))
        copy(images(4))
        stn.train()(images(8))
        assert [found.images for _, found in witness.found()] == [4, 4]  # until there is another evaluation
        stn.eval()(images(3))
        stn(images(2))
    assert [found.images for _, found in witness.found()] == [5] and not witness.advice()


def test_one_line_a_stage():
    well, still, other = transformer(), transformer(weight=0), transformer(weight=0)
    with witnessing() as witness:
        for stn in (well, still, other):
            stn(images(4))
        other.stage = 3
        transformer(weight=0)(images(1))
    assert len(witness.found()) == 4 and len(witness.advice()) == 1
    with witnessing() as witness:
        for stn in (well, still, other):
            stn(images(4))
    first, second = witness.advice()
    assert 'transformer at input does' in first and 'transformer at 3 does' in second


def test_nothing_is_kept_alive():
    stn = transformer(weight=0)
    with witnessing() as witness:
        stn(images(4))
        gone = [weakref.ref(o) for o in (stn, stn.last_theta, stn.localization.last_features)]
        del stn
        gc.collect()
        assert [o() for o in gone] == [None] * 3
        transformer(weight=0)(images(3))
    assert [found.images for _, found in witness.found()] == [4, 3]


def test_off_it_costs_nothing(monkeypatch):
    def touched(*args):
        raise AssertionError('numbers were taken')

    monkeypatch.setattr(module, '_Tally', touched)
    stn = transformer()
    assert SpatialTransformer.witness is None
    stn(images(2))
    with pytest.raises(AssertionError, match='numbers were taken'), witnessing():
        stn(images(2))
    assert SpatialTransformer.witness is None and 'witness' not in vars(stn)
    stn(images(2))


def test_compiled_code_and_meta_tensors_say_nothing():
    with witnessing() as witness:
        torch.compile(transformer(), backend='eager')(images(2))
        transformer().to('meta')(images(2).to('meta'))
    assert not witness.found() and not witness.advice()


def test_warmup_is_not_counted():
    stn = transformer()
    with witnessing(warmup=1) as witness:
        stn(images(4))
        assert witness.found()[0][1].images == 0 and not witness.advice()
        stn(images(3))
    assert witness.found()[0][1].images == 3


def test_replicas_are_left_out():
    stn, witness = transformer(), module.Witness()
    witness.see(stn, torch.eye(2, 3).repeat(2, 1, 1))
    stn._is_replica = True
    witness.see(stn, torch.eye(2, 3).repeat(2, 1, 1))
    assert [found.images for _, found in witness.found()] == [2]


# --- in networks ---

def network(**kwargs):
    return timm.create_model('stn_test_resnet', in_chans=1, num_classes=2, **kwargs).eval()


def counts(model, n=3):
    with witnessing() as witness, torch.no_grad():
        model(images(n, 64))
    return [(stage, found.images) for stage, found in witness.found()]


@pytest.mark.parametrize(('kwargs', 'expected'), [
    (dict(stn_stages=('input', 2, 'layer3')), [('input', 3), (2, 3), ('layer3', 3)]),
    (dict(stn_stages=(2,), stn_target='input'), [(2, 3)]),
    (dict(stn_stages=('input', 2), stn_glimpses=2, stn_scale=0.5, stn_size=32), [('input', 3), (2, 3)]),
    (dict(stn_stages=('input', 2), stn_glimpses=2, stn_towers='separate'), [('input', 3), (2, 3), (2, 3)]),
    (dict(stn_stages=(('input', dict(localization='shared:3')), 2)), [('input', 3), (2, 3)]),
    (dict(stn_stages=(('input', dict(localization='shared:3')), 2), stn_whole=True, stn_size=32),
     [(2, 3), ('input', 3)]),
])
def test_stages_and_images(kwargs, expected):
    """As many as there are, however often the backbone is asked, and by the names of ``stn_stages``."""
    model = network(**kwargs)
    assert sorted(counts(model), key=str) == sorted(expected, key=str)
    assert list(model.spatial_transformers()) == [s if isinstance(s, int | str) else s[0] for s in kwargs['stn_stages']]


def test_a_glance_in_training_is_no_evaluation():
    model = network(stn_stages=(('input', dict(localization='shared:3')), 2))
    with witnessing() as witness:
        model(images(3, 64))
        model.train()(images(4, 64))
        assert sorted(found.images for _, found in witness.found()) == [3, 3]
    assert all('witness' not in vars(m) for m in model.modules())


# --- scripts ---

@pytest.fixture
def script(tmp_path, monkeypatch, capsys):
    """Runs SCRIPT with an ending; gives what it was ended by, and the lines."""
    monkeypatch.setattr(sys, 'path', list(sys.path))
    monkeypatch.setattr(sys, 'argv', list(sys.argv))
    monkeypatch.delenv('RANK', raising=False)

    def start(kind, ending='', name='evaluate', text=SCRIPT):
        path = tmp_path / f'{name}.py'
        path.write_text(text.replace('{ending}', ending))
        try:
            run.run_script(path, [kind])
        except BaseException as end:
            return end, said(capsys)
        return None, said(capsys)

    return start


@pytest.mark.parametrize(('ending', 'kind', 'code'), [
    ('', type(None), None), ('sys.exit(0)', SystemExit, 0), ('sys.exit(3)', SystemExit, 3),
    ('raise KeyboardInterrupt', KeyboardInterrupt, None)])
def test_script(script, ending, kind, code):
    """However it ends, that stays as it was; the network is gone by then."""
    end, lines = script('not', ending)
    assert type(end) is kind and getattr(end, 'code', None) == code
    line, = lines
    assert line.startswith('timm-stn: the transformer at input does the same for all 10 images (standard deviation 0.0')
    assert 'of 20 features are dead): see https://' in line
    assert script('well', ending)[1] == []


def test_noise_of_timms_own_scripts_is_not_looked_at(script):
    assert 'all 5 images' in script('not', name='validate')[1][0]  # which warms up with one batch of it
    assert script('not', name='benchmark')[1] == [] == script('not', name='onnx_export')[1]


def test_only_rank_0_says_so(script, monkeypatch):
    monkeypatch.setenv('RANK', '1')
    assert script('not')[1] == []
    monkeypatch.setenv('RANK', '0')
    assert len(script('not')[1]) == 1


def test_train_py_says_so_of_the_last_validation(script):
    """A loop as train.py's: epochs of training and validation, the model gone when it returns."""
    text = SCRIPT.replace('with torch.inference_mode', '''
for epoch in range(2):
    model.train()(torch.rand(7, *model.pretrained_cfg['input_size']))
    with torch.no_grad():
        model.eval()(torch.rand(4 + epoch, *model.pretrained_cfg['input_size']))
sys.exit()
with torch.inference_mode''')
    end, lines = script('not', name='train', text=text)
    assert type(end) is SystemExit and len(lines) == 1 and 'all 5 images' in lines[0]
    assert script('well', name='train', text=text)[1] == []


def test_stderr_that_nobody_reads(script, monkeypatch):
    def broken(*args, **kwargs):
        raise BrokenPipeError

    monkeypatch.setattr(module, 'print', broken, raising=False)
    assert script('not', 'sys.exit(4)')[0].code == 4


# --- show, eval, push ---

def show(capsys, *argv):
    assert cli.main(['show', *map(str, argv)]) == 0
    return said(capsys)


def test_show(digits, tmp_path, capsys):
    output = ['--output', tmp_path / 'look.png']
    line, = show(capsys, digits, *NOTHING, *output)
    assert line.startswith('timm-stn: the transformer at input does the same for all 8 images (standard deviation 0.0')
    assert show(capsys, digits / '0.png', *NOTHING, *output) == []
    assert show(capsys, digits, '--model', TRAINED, *output) == []


def test_show_says_so_of_every_stage(digits, tmp_path, capsys):
    lines = show(capsys, digits, '--model', 'stn_test_resnet', '--no-pretrained', '--model-kwargs',
                 "stn_stages=('input',2)", '--stage', '2', '--output', tmp_path / 'look.png')
    assert [line.split(' does')[0] for line in lines] == [f'timm-stn: the transformer at {s}' for s in ('input', 2)]


def test_eval(tmp_path, capsys):
    write_mnist(tmp_path, test=20)
    assert cli.main(['eval', *NOTHING, '--set', 'R', '--data', str(tmp_path)]) == 0
    output = capsys.readouterr()
    assert output.err.count('\n') == 1 and 'does the same for all 20 images' in output.err
    assert 'does the same' not in output.out


@pytest.mark.skipif(not os.environ.get('TIMM_STN_DATA'), reason='TIMM_STN_DATA names no folder with MNIST')
def test_eval_of_a_trained_network(capsys):
    assert cli.main(['eval', '--model', TRAINED, '--set', 'RTS']) == 0
    assert not capsys.readouterr().err


def test_push(digits, tmp_path, capsys):
    model = timm.create_model('stn_mnist_cnn', stn_transform='similarity')
    path, paths = tmp_path / 'c.pth.tar', sorted(digits.iterdir())
    args = argparse.Namespace(model='stn_mnist_cnn', in_chans=1, model_kwargs=dict(stn_transform='similarity'))
    torch.save(dict(arch='stn_mnist_cnn', state_dict=model.state_dict(), args=args, epoch=0), path)
    push = ['push', str(path), '--repo', 'acme/net', '--dry-run']
    assert cli.main([*push, '--images', *map(str, paths)]) == 0
    line, = said(capsys)
    assert line.startswith('timm-stn: the transformer at input does the same for all 8 images')
    pushed = push_to_hub(model, 'acme/net', images=paths, dry_run=True)
    assert [f'timm-stn: {line}' for line in pushed.advice] == [line]
    for few in (['--images', str(paths[0])], ['--no-picture']):
        assert cli.main([*push, *few]) == 0
        assert said(capsys) == []


def test_push_of_a_trained_network(digits):
    model = timm.create_model(TRAINED, pretrained=True)
    assert push_to_hub(model, 'acme/net', images=sorted(digits.iterdir()), dry_run=True).advice == []
    assert timm_stn.push_to_hub(TRAINED, 'acme/net', dry_run=True).advice == []
