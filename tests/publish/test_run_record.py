"""A run of timm's train.py, read back from its files and pushed."""
import argparse
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from hub_server import card_errors
from huggingface_hub import ModelCard
from makers import environment_of
from PIL import Image
from pushing import REPO, WRITE, load, refused

import timm_stn
from timm_stn import cli
from timm_stn.publish.card import write_card
from timm_stn.publish.run_record import read_run
from timm_stn.publish.save import save_network
from timm_stn.run import TIMM_SCRIPTS


def run_folder(tmp_path, **changed):
    """A checkpoint as train.py writes one, with what lies beside it."""
    folder, data = tmp_path / 'run', tmp_path / 'secret' / 'birds'
    rng = np.random.default_rng(0)
    for split, label in ((split, label) for split in ('train', 'val') for label in ('jay', 'owl')):
        (data / split / label).mkdir(parents=True)
        Image.fromarray(rng.integers(0, 256, (50, 40, 3), dtype=np.uint8)).save(data / split / label / 'a.png')
    folder.mkdir()
    args = dict(
        model='stn_test_resnet', num_classes=2, in_chans=None, input_size=None, img_size=96, mean=[0.4, 0.5, 0.6],
        std=None, crop_pct=0.9, interpolation='', gp=None, bn_eps=None, epochs=9, lr=None, data_dir=str(data),
        val_split='val', output=str(tmp_path / 'secret'), initial_checkpoint=str(tmp_path / 'secret' / 'w.pth'),
        eval_metric='top1', model_kwargs={'stn_transform': 'similarity'}, model_ema_force_cpu=False, dataset='')
    args.update(changed)
    given = dict(num_classes=2, in_chans=args['in_chans'] or 3, **args['model_kwargs'])
    models = [timm.create_model(args['model'], **given) for _ in range(2)]
    for model in (model for model in models if hasattr(model, 'stn')):
        torch.nn.init.normal_(model.stn.localization.regression.bias, std=0.1)
    held = dict(epoch=4, arch=args['model'], args=argparse.Namespace(**args, lr_base=0.1, rank=0, world_size=1),
                optimizer={}, version=2, metric=87.5, state_dict=models[0].state_dict())
    held['state_dict_ema'] = models[1].state_dict()
    torch.save(held, folder / 'last.pth.tar')
    (folder / 'args.yaml').write_text(yaml.safe_dump(args))
    rows = ['epoch,train_loss,eval_loss,eval_top1,eval_top5,lr', '3,1,0.9,80.0,100,0.1', '4,1,0.5,87.5,100.0,0.1']
    (folder / 'summary.csv').write_text('\n'.join(rows) + '\n')
    return folder / 'last.pth.tar', models


def test_checkpoint(hub, tmp_path, capsys):
    path, (_, averaged) = run_folder(tmp_path)
    assert cli.main(['push', str(path), '--repo', REPO, '--license', 'mit']) == 0
    assert '--no-picture' in capsys.readouterr().out
    files = hub.files(REPO)
    assert sorted(files) == ['README.md', 'config.json', 'look.png', 'model.safetensors']
    loaded = load(REPO).eval()
    x = torch.randn(2, 3, 96, 96)
    assert torch.equal(loaded(x), averaged.eval()(x)) and loaded.num_classes == 2
    cfg = loaded.pretrained_cfg
    assert (list(cfg['mean']), cfg['crop_pct'], tuple(cfg['input_size'])) == ([0.4, 0.5, 0.6], 0.9, (3, 96, 96))
    assert cfg['label_names'] == ['jay', 'owl'] and cfg['license'] == 'mit'
    text = files['README.md'].decode()
    assert str(tmp_path) not in text and 'secret' not in text and 'w.pth' in text
    assert not card_errors(text.split('---')[1])
    (tmp_path / 'README.md').write_text(text)
    card = ModelCard.load(tmp_path / 'README.md')
    assert (card.data.license, card.data.library_name) == ('mit', 'timm')
    assert card.data.pipeline_tag == 'image-classification' and 'timm-stn' in card.data.tags
    result, = card.data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_name) == ('accuracy', 0.875, 'birds')
    assert 'import timm, timm_stn' in text and f"'hf-hub:{REPO}'" in text and '![' in text and '| loss | 0.5 |' in text
    assert Image.open(io.BytesIO(files['look.png'])).width > 300
    code = re.search(r'```python\n(.*?)```', text, re.DOTALL).group(1)
    scope = {}
    exec(code, scope)
    assert scope['transform'](Image.new('RGB', (120, 100))).shape == (3, 96, 96)


def published(path, folder):
    """A run's network as it comes back from what is pushed of it, and its config."""
    save_network(read_run(path).model, folder)
    return timm.create_model(f'local-dir:{folder}', pretrained=True), json.loads((folder / 'config.json').read_text())


ARCHITECTURES = [  # of which timm's cfg has sizes to test at
    dict(model='resnet10t', model_kwargs={}), dict(model='stn_test_mambaout'),
    dict(model='stn_mobilenetv4_conv_small_035', model_kwargs={'stn_size': 64, 'stn_localization': 'fc'})]
READING = [
    dict(img_size=64, mean=None, crop_pct=None), dict(img_size=None, input_size=[3, 64, 96], crop_pct=0.8),
    dict(img_size=None, mean=None, std=[0.2], crop_pct=None, interpolation='bilinear'),
    dict(img_size=80, in_chans=1, mean=None, interpolation='')]


@pytest.mark.parametrize('reading', READING, ids=['img_size', 'input_size', 'std', 'in_chans'])
@pytest.mark.parametrize('arch', ARCHITECTURES, ids=lambda arch: arch['model'])
def test_the_config_says_how_the_run_read_its_images(tmp_path, arch, reading):
    """timm's validate.py, which asks for sizes to test at, reads images as train.py did."""
    path, (model, averaged) = run_folder(tmp_path, **arch, **reading)
    args = vars(torch.load(path, weights_only=False)['args'])
    assert model.pretrained_cfg['test_input_size']
    trained = timm.data.resolve_data_config(args, model=model)
    channels = args['in_chans'] or 3
    trained['input_size'] = (channels, *trained['input_size'][1:])
    loaded, config = published(path, tmp_path / 'out')
    for use_test_size in (False, True):
        found = timm.data.resolve_model_data_config(loaded, use_test_size=use_test_size)
        assert len(found['mean']) == len(found['std']) == channels
        if channels == 1:  # timm's loaders take the mean of the three
            trained.update({key: pytest.approx([sum(model.pretrained_cfg[key]) / 3]) for key in ('mean', 'std')})
        assert {k: v if isinstance(v, (str, float)) else list(v) for k, v in found.items()} == {
            k: list(v) if isinstance(v, (list, tuple)) else v for k, v in trained.items()}
    assert not [key for key in config['pretrained_cfg'] if key.startswith('test_')]
    assert not config['pretrained_cfg'].get('pool_size')
    x = torch.rand(2, *trained['input_size'])
    assert torch.equal(loaded.eval()(x), averaged.eval()(x))


THEIRS = dict(
    license='cc-by-nc-4.0', origin_url='https://theirs', paper_ids='arXiv:0', paper_name='theirs', notes='theirs',
    tag='theirs', description='theirs')


@pytest.mark.parametrize('model', ['stn_resnet10t', 'resnet10t', 'stn_resnet10t.c3_in1k', 'stn_mnist_cnn_tc'])
@pytest.mark.parametrize('start,inherits', [
    ({}, False), (dict(pretrained=True), True), (dict(pretrained=False, pretrained_path='w.safetensors'), False),
    (dict(pretrained=True, initial_checkpoint='w.pth'), False), (dict(pretrained=True, pretrained_path='w'), False)])
def test_a_run_from_pretrained_weights_inherits_what_is_said_of_them(tmp_path, monkeypatch, model, start, inherits):
    make = timm.create_model

    def create(name, **kwargs):
        made = make(name, **kwargs)
        made.pretrained_cfg.update(THEIRS, label_names=['a', 'b'])
        return made

    monkeypatch.setattr(timm, 'create_model', create)
    small = dict(channels=(2, 4)) if 'mnist' in model else {}
    given = dict(model=model, model_kwargs=small, pretrained=False, initial_checkpoint='', in_chans=None, mean=None)
    path, _ = run_folder(tmp_path, **{**given, 'in_chans': 1 if small else None, 'img_size': None, **start})
    run = read_run(path)
    cfg = run.model.pretrained_cfg
    assert {k: cfg.get(k) for k in THEIRS} == (THEIRS if inherits else dict.fromkeys(THEIRS))
    assert cfg.get('label_names') is None and run.class_names() == ['jay', 'owl']
    card = write_card(run.model, 'acme/net', run)
    assert ('cc-by-nc-4.0, as that of the weights that its training' if inherits else 'Weights: unknown.') in card


def test_the_checkpoint_of_another_network(tmp_path, capsys):
    path, _ = run_folder(tmp_path)
    held = torch.load(path, weights_only=False)
    held['state_dict_ema'] = {f'x{i}': torch.empty(0) for i in range(20_000)}
    torch.save(held, path)
    message = refused(capsys, path, '--repo', REPO)
    assert 'do not fit stn_test_resnet' in message and len(message) < 3000


def test_checkpoint_without_more(hub, tmp_path):
    """Neither averaged weights nor anything beside it, and another run's summary is not believed."""
    path, (plain, _) = run_folder(tmp_path)
    held = torch.load(path, weights_only=False)
    held.pop('state_dict_ema')
    torch.save(held, path)
    (path.parent / 'args.yaml').unlink()
    (path.parent / 'summary.csv').write_text('epoch,eval_loss,eval_top1\n4,0.1,99.0\n')
    text = timm_stn.push_to_hub(path, REPO, images=[]).card
    assert '| Top-1 accuracy, % | 87.5 |' in text and '99' not in text.partition('## Recipe')[0] and '![' not in text
    assert '`train.py` measured the weights after epoch 4' in text and 'secret' not in text
    x = torch.randn(1, 3, 96, 96)
    assert torch.equal(load(REPO).eval()(x), plain.eval()(x))
    held['args'].model_ema_force_cpu = True  # then train.py measures the weights that are not pushed
    torch.save({**held, 'state_dict_ema': held['state_dict']}, path)
    assert '87.5' not in timm_stn.push_to_hub(path, REPO, images=[], dry_run=True).card


def test_the_classes_of_a_run_have_the_names_of_its_folders_or_of_its_class_map(tmp_path, monkeypatch, capsys):
    path, _ = run_folder(tmp_path)
    data = tmp_path / 'secret' / 'birds'
    argv = ['show', str(data / 'val'), '--checkpoint', str(path), '--output', str(tmp_path / 'look.png')]

    def named():
        assert cli.main(argv) == 0
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        return read_run(path).class_names(), [line.get('class') for line in lines]

    assert named() == (['jay', 'owl'], ['jay', 'owl'])
    shutil.rmtree(data / 'train' / 'jay')
    assert named() == ([], ['jay', 'owl']), 'the folders shown, since those of training are others'
    shutil.rmtree(data / 'train')
    shutil.copytree(data / 'val', data / 'train')
    shutil.copytree(data / 'val' / 'jay', data / 'train' / 'tit')
    assert named()[0] == [], 'of other classes'
    for content, found in (('owl\njay\n', ['owl', 'jay']), ('owl\n', [])):
        (data / 'train' / 'map.txt').write_text(content)
        held = torch.load(path, weights_only=False)
        held['args'].class_map = 'map.txt'
        torch.save(held, path)
        assert named()[0] == found
    held['args'].class_map, held['args'].dataset = None, 'torch/cifar10'
    torch.save(held, path)
    (path.parent / 'args.yaml').unlink()
    assert named()[0] == []


def test_images_of_a_run_are_of_all_classes_and_some_may_be_bad(hub, tmp_path):
    path, _ = run_folder(tmp_path)
    folder = tmp_path / 'secret' / 'birds' / 'val'
    shutil.copyfile(folder / 'jay' / 'a.png', folder / 'jay' / 'b.png')
    (folder / 'owl' / 'a.png').write_bytes(b'')
    (folder / 'owl' / 'a.pdf').write_text('%PDF')
    images = [image.relative_to(folder).as_posix() for image in read_run(path).images(1)]
    assert images == ['jay/a.png', 'owl/a.png', 'jay/b.png']
    pushed = timm_stn.push_to_hub(path, REPO, dry_run=True)
    assert 'look.png' in pushed.sent and any('owl/a.png: empty' in line for line in pushed.advice)
    with pytest.raises(ValueError, match=r'images: .*owl/a.png: empty'):
        timm_stn.push_to_hub(path, REPO, images=[folder / 'jay' / 'a.png', folder / 'owl' / 'a.png'], dry_run=True)


class Evil:
    def __reduce__(self):
        return os.system, ('touch evil',)


def test_what_is_no_checkpoint(hub, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, _ = run_folder(tmp_path)
    held = torch.load(path, weights_only=False)
    for name, content in (
            ('evil.pth.tar', {**held, 'args': Evil()}), ('bare.pth.tar', held['state_dict']), ('list.pt', [1]),
            ('other.pth.tar', {**held, 'args': argparse.Namespace(model='stn_nothing')})):
        torch.save(content, name)
    texts = {'text.pt': 'not a checkpoint', 'summary.csv': 'epoch,train_loss\n0,1.6\n', 'args.yaml': 'aa_type: 1\n',
             'hello.txt': 'hello', 'empty.pt': ''}
    for name, text in texts.items():
        Path(name).write_text(text)
    assert 'it lacks state_dict or arch' in refused(capsys, 'list.pt', '--repo', REPO)
    assert 'no checkpoint that can be read safely: it holds posix.system' in refused(
        capsys, 'evil.pth.tar', '--repo', REPO)
    assert not Path('evil').exists()
    assert 'it lacks state_dict or arch' in refused(capsys, 'bare.pth.tar', '--repo', REPO)
    assert 'Unknown model (stn_nothing)' in refused(capsys, 'other.pth.tar', '--repo', REPO)
    for name in texts:
        assert 'no checkpoint that can be read safely' in refused(capsys, name, '--repo', REPO)
    assert 'name its checkpoint' in refused(capsys, path.parent, '--repo', REPO)
    assert 'there is no' in refused(capsys, path, '--repo', REPO, '--images', 'no.png')
    assert 'takes one, or else --all' in refused(capsys, '--repo', REPO)
    assert 'with --all takes ORG alone' in refused(capsys, '--all', '--repo', REPO)
    assert "repo must be ORG/NAME, as acme/stn_birds, got 'acme'" in refused(capsys, path, '--repo', 'acme')
    with pytest.raises(TypeError, match='must be a timm model, with a pretrained_cfg, got Linear'):
        timm_stn.push_to_hub(torch.nn.Linear(1, 1), REPO)
    assert not hub.requests


@pytest.mark.skipif(not os.environ.get(TIMM_SCRIPTS), reason=f'{TIMM_SCRIPTS} does not name a checkout of timm')
def test_a_real_run(hub, tmp_path):
    rng = np.random.default_rng(0)
    for split in ('train', 'validation'):
        for label in ('ant', 'bee'):
            (tmp_path / 'data' / split / label).mkdir(parents=True)
            for i in range(4):
                image = Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8))
                image.save(tmp_path / 'data' / split / label / f'{i}.png')
    options = '--model stn_test_resnet --num-classes 2 --epochs 1 --batch-size 4 --workers 0 --model-ema --img-size 96'
    options += ' --data-dir data --device cpu --output out --experiment run --model-kwargs stn_transform=attention'
    command = [sys.executable, '-m', 'timm_stn.run', 'train.py', *options.split()]
    env = dict(environment_of(hub, tmp_path / 'home', WRITE), PYTHONPATH=str(Path(timm_stn.__file__).parents[1]))
    subprocess.run(command, cwd=tmp_path, env=env, check=True, timeout=400, capture_output=True)
    pushed = timm_stn.push_to_hub(tmp_path / 'out' / 'run' / 'model_best.pth.tar', REPO)
    assert pushed.sent == ['README.md', 'config.json', 'model.safetensors']  # data_dir is relative: no picture
    model = load(REPO).eval()
    state = torch.load(tmp_path / 'out' / 'run' / 'last.pth.tar', weights_only=False)['state_dict_ema']
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert 'Top-1 accuracy' in pushed.card and 'stn_transform: attention' in pushed.card
    assert 'Weights: unknown.' in pushed.card and 'license' not in model.pretrained_cfg
