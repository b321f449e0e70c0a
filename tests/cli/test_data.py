"""`timm-stn data`: what it says, how it refuses, and that the commands it names next are right."""
import errno
import importlib
import os
import shlex
import signal
import subprocess
import sys
import tarfile
import time

import pytest
import timm
from commands import refused
from makers import ROOT, needs_weights
from small_archives import cub_files, small_cub, small_gtsrb, small_svhn, tree, write_tgz
from timm.data import create_dataset

from timm_stn import cli
from timm_stn.data.archives import HOMES


@pytest.fixture
def archives(tmp_path, monkeypatch):
    """Arguments of `--source` for each set, of small archives in the current folder."""
    monkeypatch.chdir(tmp_path)
    small_cub(tmp_path / 'CUB_200_2011.tgz', side=64)
    zips, _ = small_gtsrb(tmp_path)
    for split in ('train', 'test'):
        small_svhn(tmp_path / f'{split}.tar.gz', tmp_path / 'by-hand', split)
    return {'cub': ['CUB_200_2011.tgz'], 'gtsrb': [path.name for path in zips], 'svhn': ['train.tar.gz', 'test.tar.gz']}


def said(capsys, kind, sources, *more):
    """The lines of a run, to a folder whose name a shell would take apart."""
    assert cli.main(['data', kind, '--source', *sources, '--out', 'my data', '--subset', *more]) == 0
    output = capsys.readouterr()
    assert not output.err
    return output.out.splitlines()


def test_birds(archives, capsys):
    first, then, *commands = said(capsys, 'cub', archives['cub'])
    assert first == ('my data/train, my data/test, my data/train-boxes.csv, my data/test-boxes.csv: 6 train, 6 test, '
                     '3 classes')
    assert then == "next (downloads timm's weights):" and len(commands) == 2
    show, train = map(shlex.split, commands)
    assert train == ['scripts/train_cub.sh', 'my data', 'OUTPUT']
    assert (ROOT / 'scripts/train_cub.sh').is_file()
    assert timm.is_model(show[show.index('--model') + 1])
    assert len(create_dataset('', root='my data', split='validation')) == 12  # all: docs/data.md tells of it
    show[show.index('--model') + 1] = 'test_resnet'
    assert cli.main([*show[1:], '--no-pretrained']) == 0
    assert 'none is of these images' not in capsys.readouterr().err and os.path.isfile('look.png')
    argv = ['diagnose', '--model', 'stn_test_resnet', '--no-pretrained', '--data']
    assert cli.main([*argv, 'my data/test', '--boxes', 'my data/test-boxes.csv', '--count', '6']) == 0
    assert '6 images' in capsys.readouterr().err  # it refuses boxes of other images
    assert said(capsys, 'cub', archives['cub'])[0].endswith('3 classes (there already)')


def test_what_the_help_says_can_be_copied(capsys, monkeypatch):
    monkeypatch.setenv('COLUMNS', '80')
    with pytest.raises(SystemExit):
        cli.main(['data', '--help'])
    words = capsys.readouterr().out.split()
    addresses = [word for word in words if '://' in word]
    assert set(addresses) <= {f'{home.url}' for home in HOMES.values()}
    assert {name for home in HOMES.values() for name in home.archives} <= {word.rstrip(',;') for word in words}


@needs_weights('stn_gtsrb')
def test_signs(archives, capsys):
    first, _, command = said(capsys, 'gtsrb', archives['gtsrb'], '--quiet')
    assert first.startswith('my data/train.tar, my data/test.tar, ') and first.endswith('27 train, 5 test, 3 classes')
    assert cli.main(shlex.split(command)[1:]) == 0
    assert 'of 5 wrong' in capsys.readouterr().out


def test_house_numbers(archives, capsys):
    first, second, _, command = said(capsys, 'svhn', archives['svhn'])
    assert (first, second) == ('my data/train: 4 train', 'my data/test: 4 test')
    python, script, *argv = shlex.split(command)
    assert python == 'python' and (ROOT / script).is_file()
    args = importlib.import_module('train_task').parse_args(argv)
    assert args.data == 'my data' and timm.is_model(args.model)
    assert not os.path.exists('OUTPUT')


def test_refusals_name_the_file_what_is_accepted_and_where_it_is(archives, capsys):
    accepted = ('Caltech-UCSD Birds 200-2011 takes CUB_200_2011.tgz of https://data.caltech.edu/records/65de6-vp158, '
                'or a folder with what was in it')
    zips = archives['gtsrb']
    for sources, message in (
            (['gone.tgz'], "'gone.tgz': no such file"), ([zips[0]], f"'{zips[0]}': it holds GTSRB"),
            (archives['cub'], "'CUB_200_2011.tgz': the set has 5,994 train, 5,794 test, 200 classes, and this has 6")):
        error = refused(capsys, 'data', 'cub', '--source', *sources, '--out', 'out')
        assert f'argument --source: {message}' in error and accepted in error
    assert "'train.tar.gz': it holds SVHN" in refused(
        capsys, 'data', 'gtsrb', '--source', 'train.tar.gz', '--out', 'out')
    with tarfile.open('bare.tar', 'w'):
        pass
    assert 'takes train.tar.gz, test.tar.gz, extra.tar.gz of http' in refused(
        capsys, 'data', 'svhn', '--source', 'bare.tar', '--out', 'out')
    assert 'invalid choice' in refused(capsys, 'data', 'mnist', '--source', 'a', '--out', 'out')
    assert '--source' in refused(capsys, 'data', 'cub', '--out', 'out')
    assert not os.path.exists('out')


def test_places_that_are_refused(archives, capsys, monkeypatch):
    os.makedirs('out/train')
    argv = ['data', 'cub', '--source', 'CUB_200_2011.tgz', '--subset', '--out']
    assert "argument --out: 'out' has train already" in refused(capsys, *argv, 'out')
    assert "argument --out: cannot write 'CUB_200_2011.tgz'" in refused(capsys, *argv, 'CUB_200_2011.tgz')

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), 'new/.cub.part/train/a.jpg')

    monkeypatch.setattr('timm_stn.data.archives.cub.keep', full)
    assert refused(capsys, *argv, 'new').endswith(
        "argument --out: cannot write 'new/.cub.part/train/a.jpg': No space left on device; run it again, and it goes "
        'on\n')


def test_an_interrupt_is_one_line_and_the_next_run_goes_on(tmp_path, heeding_signals):
    """Images are large enough that a run takes a moment."""
    content = os.urandom(2 ** 21)
    files, photographs = cub_files()
    files = {name: each + content if name.endswith('.jpg') else each for name, each in files.items()}
    write_tgz(tmp_path / 'cub.tgz', files)
    argv = [sys.executable, '-m', 'timm_stn', 'data', 'cub', '--source', 'cub.tgz', '--subset', '--out', 'out']
    env = {**os.environ, 'PYTHONPATH': str(ROOT)}
    process = subprocess.Popen(argv, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob('out/.cub.part/*/*/*.jpg')) and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate()
    if process.returncode:  # it was not done already
        assert (process.returncode, output, errors) == (130, '', 'timm-stn: interrupted\n')
        assert [path.name for path in (tmp_path / 'out').iterdir()] == ['.cub.part']
    done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr
    written = tree(tmp_path / 'out')
    for photograph in photographs:
        assert written[f'{photograph.split}/{photograph.path}'] == photograph.content + content
