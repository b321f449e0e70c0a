"""The runner of other people's scripts, and the check of timm's own in scripts/check/check_timm_scripts.sh."""
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

import timm_stn
from timm_stn import run

ROOT = Path(__file__).parents[1]
HOME = Path(timm.__file__).resolve().parents[1]
CHECK = ROOT / 'scripts' / 'check' / 'check_timm_scripts.sh'
CHECKOUT = os.environ.get(run.TIMM_SCRIPTS)

WHOLE_SCRIPT = '''
import json, os, sys, warnings
import beside, timm, timm.layers
from torch.utils.data import DataLoader, Dataset

class Squares(Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, i):
        return beside.square(i), os.getpid() != int(sys.argv[-1] or 0), timm.__file__

if __name__ == '__main__':
    sys.argv.append(str(os.getpid()))
    loader = DataLoader(Squares(), batch_size=2, num_workers=1, multiprocessing_context='spawn')
    batches = list(loader)
    print(json.dumps(dict(
        argv=sys.argv[:-1], file=__file__, timm=timm.__file__, known=timm.is_model('stn_resnet18'),
        warnings=sys.warnoptions, squares=[int(v) for b in batches for v in b[0]],
        elsewhere=all(bool(v) for b in batches for v in b[1]), theirs=sorted({f for b in batches for f in b[2]}))))
    sys.exit(7)
'''


def environment(**more):
    """Of a process that finds this timm_stn, started from any folder."""
    kept = {k: v for k, v in os.environ.items() if k != run.TIMM_SCRIPTS}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])])
    return {**kept, 'PYTHONPATH': path, 'OMP_NUM_THREADS': '1', **more}


def python(*argv, cwd, **more):
    command = [sys.executable, *map(str, argv)]
    return subprocess.run(command, cwd=cwd, env=environment(**more), capture_output=True, text=True, timeout=600)


def make_checkout(folder, **scripts):
    """What looks like a checkout of timm: scripts beside a package `timm` of another version, which works."""
    installed = Path(timm.__file__)
    (folder / 'timm').mkdir(parents=True)
    (folder / 'timm' / '__init__.py').write_text(
        f'__path__.append({str(installed.parent)!r})\nexec(open({str(installed)!r}).read())\n')
    (folder / 'timm' / 'version.py').write_text("__version__ = '0.0.1'\n")
    (folder / 'beside.py').write_text('def square(x):\n    return x * x\n')
    for name, text in scripts.items():
        (folder / f'{name}.py').write_text(text)
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder, no checkout named, and `sys` as it was afterwards."""
    folder = tmp_path / 'here'
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv(run.TIMM_SCRIPTS, raising=False)
    monkeypatch.delenv('RANK', raising=False)
    monkeypatch.setattr(sys, 'path', list(sys.path))
    monkeypatch.setattr(sys, 'argv', list(sys.argv))
    return folder


# --- which script ---

def test_find_script(here, tmp_path, monkeypatch):
    checkout = make_checkout(tmp_path / 'checkout', train='', only='')
    (here / 'train.py').write_text('')
    monkeypatch.setenv(run.TIMM_SCRIPTS, str(checkout))
    assert run.find_script('train.py') == Path('train.py')  # as for `python train.py`
    assert run.find_script('train.py', here=False) == checkout / 'train.py'
    assert run.find_script('train') == run.find_script('train', here=False) == checkout / 'train.py'
    assert run.find_script('only') == run.find_script('only.py') == checkout / 'only.py'
    assert run.find_script('./train.py', here=False) == Path('train.py')
    assert run.find_script(str(checkout / 'only.py')) == checkout / 'only.py'
    with pytest.raises(run.ScriptNotFound, match=r"no script 'nowhere/train\.py'"):
        run.find_script('nowhere/train.py')
    with pytest.raises(run.ScriptNotFound, match=rf'{checkout} has no other\.py.*git clone .*pytorch-image-models'):
        run.find_script('other')


@pytest.mark.parametrize(('version', 'tag'), [('1.0.31', '--branch v1.0.31 '), ('1.0.32.dev0', '')])
def test_no_checkout_says_what_to_clone(here, monkeypatch, version, tag):
    monkeypatch.setattr(timm, '__version__', version)
    with pytest.raises(run.ScriptNotFound) as caught:
        run.find_script('train.py')
    command = f'git clone {tag}https://github.com/huggingface/pytorch-image-models && export TIMM_SCRIPTS='
    assert command in str(caught.value) and 'no train.py here' in str(caught.value)


# --- how it runs ---

def test_whole_script(tmp_path):
    """Workers, helper, flags, exit status; from inside a checkout, where `python -m` finds another timm first."""
    checkout = make_checkout(tmp_path, script=WHOLE_SCRIPT)
    done = python('-W', 'error::BytesWarning', '-m', 'timm_stn.run', 'script.py', '--a', '-b=1', '', cwd=checkout)
    assert done.returncode == 7, done.stderr
    assert json.loads(done.stdout) == dict(
        argv=['script.py', '--a', '-b=1', ''], file='script.py', timm=timm.__file__, known=True,
        warnings=['error::BytesWarning'], squares=[0, 1, 4, 9], elsewhere=True, theirs=[timm.__file__])
    said = [line for line in done.stderr.splitlines() if line.startswith('timm-stn:')]
    assert said == [f'timm-stn: script.py with timm {timm.__version__} of {HOME}, not the 0.0.1 beside it']


def test_exceptions_and_status_come_through(here, capsys):
    script = here / 'script.py'
    script.write_text('raise LookupError("of the script")')
    with pytest.raises(LookupError, match='of the script'):
        run.run_script(script, [])
    script.write_text('import sys; sys.exit(sys.argv[1])')
    with pytest.raises(SystemExit) as stop:
        run.run_script(script, ['bad'])
    assert stop.value.code == 'bad'
    assert capsys.readouterr().err.splitlines() == [f'timm-stn: {script} with timm {timm.__version__} of {HOME}'] * 2


def test_only_rank_0_speaks(here, capsys, monkeypatch):
    (here / 'script.py').write_text('print("ran")')
    monkeypatch.setenv('RANK', '1')
    run.run_script(here / 'script.py', [])
    captured = capsys.readouterr()
    assert captured.out == 'ran\n' and not captured.err


def test_path(here, tmp_path, monkeypatch):
    """The folder of a script comes first, unless it would hide the timm in use."""
    plain, checkout, site = here, make_checkout(tmp_path / 'checkout'), str(HOME)
    monkeypatch.setattr(sys, 'path', ['first', site, 'last'])
    run._add_folder(plain)
    assert sys.path == [str(plain), 'first', site, 'last']
    monkeypatch.setattr(sys, 'path', ['first', site, 'last'])
    run._add_folder(checkout)
    assert sys.path == ['first', site, str(checkout), 'last']
    monkeypatch.setattr(sys, 'path', ['first', 'last'])  # an import hook found timm
    run._add_folder(checkout)
    assert sys.path == ['first', 'last', site, str(checkout)]
    monkeypatch.setattr(run, '_home', lambda: checkout)  # the checkout is what is installed
    monkeypatch.setattr(sys, 'path', ['first', str(checkout)])
    run._add_folder(checkout)
    assert sys.path == [str(checkout), 'first', str(checkout)]


def test_torchrun(tmp_path):
    script = '''
import os, timm, torch, torch.distributed as dist
dist.init_process_group('gloo')
total = torch.ones(()) * (dist.get_rank() + 1)
dist.all_reduce(total)
open(f'rank{dist.get_rank()}', 'w').write(f'{total.item()} {timm.is_model("stn_resnet18")}')
dist.destroy_process_group()
'''
    make_checkout(tmp_path / 'checkout', script=script)
    torchrun = ['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2']
    done = python(*torchrun, '-m', 'timm_stn.run', 'script', cwd=tmp_path, TIMM_SCRIPTS=str(tmp_path / 'checkout'))
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / f'rank{i}').read_text() for i in range(2)] == ['3.0 True'] * 2
    assert done.stderr.count('timm-stn:') == 1


@pytest.mark.parametrize(('error', 'names'), [
    ('Unknown model (resnt50)', 'the nearest are resnet50, '),
    ('Unknown model (stn_resnt50)', 'the nearest are stn_resnet50, '),
    ('Invalid pretrained tag (a9_in1k) for stn_resnet18.', 'there are stn_resnet18.a1_in1k, '),
])
def test_errors_of_timm_about_names_get_the_nearest(here, error, names):
    """Wherever a script got the name from: another option, a file, a model to learn from."""
    script = here / 'script.py'
    name = error.split('(')[1].partition(')')[0]
    script.write_text(f'import timm\ntimm.create_model({"stn_resnet18." * ("tag" in error) + name!r})')
    with pytest.raises(RuntimeError) as caught:
        run.run_script(script, [])
    assert str(caught.value).startswith(error) and names in str(caught.value)


# --- the command line ---

def test_usage(here, monkeypatch, capsys):
    (here / 'script.py').write_text('raise SystemExit("it ran")')
    wrong = 'argument --stn-log: takes a positive integer'
    for argv, expected in (([], 'SCRIPT [args...]'), ([], '--stn-log N'), (['train'], 'git clone'),
                           (['script.py', '--stn-log', '0'], wrong), (['script.py', '--stn-log'], wrong)):
        monkeypatch.setattr(sys, 'argv', ['run.py', *argv])
        with pytest.raises(SystemExit) as stop:
            run.main()
        captured = capsys.readouterr()
        assert stop.value.code == 2 and expected in captured.err and not captured.out


# --- the check of timm's scripts ---

@pytest.fixture(scope='module')
def helper():
    return importlib.import_module('timm_scripts_helper')


def check(*argv, **more):
    return subprocess.run(['bash', str(CHECK), *map(str, argv)], env=environment(PYTHON=sys.executable, **more),
                          capture_output=True, text=True, timeout=1200)


def test_check_finds_transformers_that_did_not_train(helper, tmp_path):
    net = timm.create_model('stn_test_resnet', num_classes=3, stn_stages=('input', 1))
    file = tmp_path / 'last.pth.tar'

    def refused():
        torch.save({'state_dict': net.state_dict(), 'epoch': 0}, file)
        try:
            helper.trained(file)
        except SystemExit as stop:
            return str(stop)

    assert 'stn.localization' in refused()
    for transformer in net.spatial_transformers().values():
        torch.nn.init.normal_(transformer.localization.regression.weight)
    assert refused() is None
    net.get_classifier().bias.data[0] = float('nan')
    assert 'fc.bias' in refused()


def test_check_finds_weights_that_were_not_loaded(helper, tmp_path):
    plain, net = (timm.create_model(name, num_classes=3) for name in ('test_resnet', 'stn_test_resnet'))
    torch.save(plain.state_dict(), tmp_path / 'plain.pth')
    net.load_state_dict(plain.state_dict())
    torch.save({'state_dict': net.state_dict()}, tmp_path / 'net.pth')
    files = tmp_path / 'plain.pth', tmp_path / 'net.pth'
    helper.loaded(*files, '$^')
    with pytest.raises(SystemExit, match=r"expected: \['fc.weight', 'fc.bias'\]"):  # a new classifier is new
        helper.loaded(*files, 'fc')
    net.backbone.fc.bias.data[1] += 1e-3
    torch.save({'state_dict': net.state_dict()}, tmp_path / 'net.pth')
    with pytest.raises(SystemExit, match=r"\['fc.bias'\]; expected: \[\]"):
        helper.loaded(*files, '$^')
    helper.loaded(*files, r'fc\.bias')


def test_check_reports_failures(tmp_path):
    """Scripts that fail for networks with transformers only, and for all models: neither passes for ok."""
    ours = 'import sys; sys.exit(any(a.startswith("stn_") for a in sys.argv))'
    checkout = make_checkout(tmp_path / 'checkout', train="raise SystemExit('broken')", validate=ours)
    done = check('--only', '^(train|device-modules|validate-plain|validate-local-dir)$', '--markdown',
                 tmp_path / 'table.md', TIMM_SCRIPTS=str(checkout))
    assert done.returncode == 1, done.stdout + done.stderr
    lines = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert 'FAILED (plain: fails)' in lines['train'] and 'broken' in done.stderr
    assert 'skipped: no such option' in lines['device-modules']
    assert 'FAILED (plain: ok)' in lines['validate-plain']
    assert lines['validate-local-dir'].split()[1] == 'ok,'  # no stn_ model by name
    assert lines['3'].startswith('3 lines, 2 failed')
    rows = [line for line in (tmp_path / 'table.md').read_text().splitlines() if line.startswith('| ')]
    assert [row.split(' | ')[0][2:] for row in rows[2:]] == [name for name in lines if name != '3']


@pytest.mark.skipif(not CHECKOUT, reason="TIMM_SCRIPTS names no checkout of timm's scripts")
def test_timm_scripts():
    """A fast part of the matrix; scripts/check/check_timm_scripts.sh runs it all."""
    names = ['stages', 'initial-checkpoint', 'validate-plain', 'benchmark']
    done = check('--only', f"^({'|'.join(names)})$", TIMM_SCRIPTS=CHECKOUT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split()[:2] for line in done.stdout.splitlines()[:-1]] == [[name, 'ok,'] for name in names]


def test_plugin_is_this_one():
    assert Path(timm_stn.__file__).parents[1] == ROOT
