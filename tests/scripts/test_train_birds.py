"""train_birds.sh: whose runs it takes as its own."""
import os
import subprocess

import pytest
from makers import ROOT

STUB = '#!/usr/bin/env bash\necho "$*" >>"$ASKED"\n'


@pytest.fixture
def birds(tmp_path):
    """`birds(*words)` runs it with a python that does nothing: exit status, what it said, what was asked."""
    for split in ('train', 'test'):
        (tmp_path / 'data' / split).mkdir(parents=True)
    (tmp_path / 'weights').touch()
    (tmp_path / 'python').write_text(STUB)
    (tmp_path / 'python').chmod(0o755)

    def run(*words):
        (tmp_path / 'asked').write_text('')
        env = os.environ | dict(ASKED=str(tmp_path / 'asked'), PYTHON=str(tmp_path / 'python'))
        env.pop('BASE', None)
        command = [ROOT / 'scripts/train/train_birds.sh', tmp_path / 'data', tmp_path / 'weights', tmp_path / 'out']
        done = subprocess.run([*command, *words], env=env, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr, (tmp_path / 'asked').read_text()
    return run


@pytest.mark.parametrize('kept', ['result.json', 'last.pth.tar'])
@pytest.mark.parametrize('name, model', [('plain112', 'resnet26'), ('zoom112', 'stn_resnet26')])
def test_a_run_of_another_backbone_is_neither_resumed_nor_finished(birds, tmp_path, name, model, kept):
    run = tmp_path / 'out' / name
    run.mkdir(parents=True)
    (run / kept).touch()
    (run / 'args.yaml').write_text(f'mixup: 0.0\nmodel: {model}\nmodel_ema: false\n')
    code, said, asked = birds(name)
    other = model.replace('resnet26', 'tf_efficientnet_lite0')
    assert (code, asked) == (2, '')
    assert said == f'{run} is a run of {model}, not of {other} (BASE); another OUTPUT keeps both\n'
    code, said, asked = birds('BASE=resnet26', name)
    assert code == 0 and ('is finished' in said if kept == 'result.json' else f'--resume {run}/last.pth.tar' in asked)


def test_a_start_that_failed_leaves_a_folder_to_any_backbone(birds, tmp_path):
    (tmp_path / 'out' / 'plain112').mkdir(parents=True)
    (tmp_path / 'out' / 'plain112' / 'args.yaml').write_text('model: resnet26\n')
    code, said, asked = birds('plain112')
    assert code == 0 and ' --model tf_efficientnet_lite0 ' in asked, said
