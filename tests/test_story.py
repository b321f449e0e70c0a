"""From images to a published model, as the README tells it: its own commands, on tiny data and a loopback Hub."""
import os
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from hub_server import Hub, User
from makers import ROOT, environment_of
from PIL import Image

from timm_stn.run import TIMM_SCRIPTS, clone_command

STORY = (ROOT / 'README.md').read_text().split('## From images to a published model')[1].split('\n## ')[0]
COMMANDS = [
    line for block in re.findall(r'```bash\n(.*?)```', STORY, re.DOTALL)
    for line in block.replace('\\\n', ' ').splitlines()]
TINY = dict(BIRDS='birds', MORE='more', ORG='acme', stn_resnet50='stn_test_resnet')
TINY.update({'--num-classes 200': '--num-classes 2', '--num-classes 20': '--num-classes 3', '--epochs 12': '--epochs 1',
             '--epochs 5': '--epochs 1', ' --model-kwargs': ' --pretrained-path plain.pth --model-kwargs'})
OPTIONS = ['--device', 'cpu', '--batch-size', '2', '--workers', '0']


def draw(folder, classes):
    rng = np.random.default_rng(0)
    for split in ('train', 'validation'):
        for label in range(classes):
            (folder / split / f'bird{label}').mkdir(parents=True)
            for i in range(2):
                image = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
                image.save(folder / split / f'bird{label}' / f'{i}.png')


def tell(command, folder, env):
    """Run a line of the README, made small."""
    for large, small in TINY.items():
        command = command.replace(large, small)
    program, *argv = shlex.split(command, comments=True)
    if program == 'timm-stn':
        argv = ['-m', 'timm_stn', *argv, *(OPTIONS if argv[0] == 'train' else [])]
    done = subprocess.run(
        [sys.executable, *argv], cwd=folder, env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize('file', ['README.md', 'docs/timm_scripts.md'])
def test_what_is_cloned_is_what_the_error_says(file):
    if '--branch' not in clone_command():
        pytest.skip(f'timm {timm.__version__} is no release')
    command, = re.findall(r'^ *(git clone .*pytorch-image-models)$', (ROOT / file).read_text(), re.MULTILINE)
    version = command.replace("$(python -c 'import timm; print(timm.__version__)')", timm.__version__)
    assert version == clone_command()


def test_what_training_needs_is_said():
    said = STORY.split('```')[0]
    assert all(f'`{text}' in said for text in ('--device cpu`', '--pretrained`', '--pretrained-path ', TIMM_SCRIPTS))


def test_it_is_short():
    assert len(STORY.strip().splitlines()) < 30


@pytest.mark.skipif(TIMM_SCRIPTS not in os.environ, reason=f"{TIMM_SCRIPTS} names no checkout of timm's scripts")
def test_the_story(tmp_path):
    draw(tmp_path / 'birds', 2)
    draw(tmp_path / 'more', 3)
    torch.save(timm.create_model('test_resnet').state_dict(), tmp_path / 'plain.pth')
    clone, export, train, show, login, push, load, train_on = COMMANDS
    assert clone.startswith('git clone') and login == 'hf auth login'  # no network here; the token below stands for it
    assert export.startswith(f'export {TIMM_SCRIPTS}=')
    with Hub() as hub:
        hub.users = {'hf_AnnWrites': User('ann', ('ann', 'acme'))}
        env = environment_of(hub, tmp_path / 'home', 'hf_AnnWrites')
        env.update(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1')
        tell(train, tmp_path, env)
        tell(show, tmp_path, env)
        assert Image.open(tmp_path / 'look.png').size[0] > 100
        assert f'{hub.url}/acme/stn_birds' in tell(push, tmp_path, env)
        assert {'README.md', 'config.json', 'model.safetensors'} <= set(hub.files('acme/stn_birds'))
        env['HF_HOME'] = str(tmp_path / 'elsewhere')  # of somebody else
        assert "SpatialTransformer(\n    transform=attention" in tell(load, tmp_path, env)
        tell(train_on, tmp_path, env)
        assert not hub.unknown
    assert list((tmp_path / 'output' / 'train').glob('*/last.pth.tar'))
