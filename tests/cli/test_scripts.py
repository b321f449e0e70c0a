"""timm's own scripts as commands: what is handed over to them, and what is told where they are not there."""
import sys

import pytest
from commands import refused

from timm_stn import cli
from timm_stn.cli import scripts
from timm_stn.cli.scripts import SCRIPTS
from timm_stn.network.arguments import DEFAULTS
from timm_stn.run import TIMM_SCRIPTS


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """Scripts of timm's names that print their arguments; `sys` is as it was afterwards."""
    for name in SCRIPTS:
        (tmp_path / f'{name}.py').write_text('import sys; print(sys.argv)')
    monkeypatch.setenv(TIMM_SCRIPTS, str(tmp_path))
    monkeypatch.setattr(sys, 'path', list(sys.path))
    monkeypatch.setattr(sys, 'argv', list(sys.argv))
    return tmp_path


@pytest.fixture
def missing(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(TIMM_SCRIPTS, raising=False)


@pytest.mark.parametrize('given', [
    ['--help', '--model', 'x', '--', '-1', '--version'], ['--model'], ['-m', 'stn_resnet18', '--model-kwargs', 'a=1'],
    ['--model', 'stn_resn*'], ['--model=hf-hub:stn_x/stn_y'], ['--model', 'stn_list.txt'], ['--model', 'resnt50'],
    ['--device-modules', 'my_modules', '--model', 'stn_mine'],  # which may register it
])
def test_everything_is_handed_over(checkout, monkeypatch, capsys, given):
    monkeypatch.chdir(checkout)
    (checkout / 'stn_list.txt').write_text('stn_resnet18')
    for name in SCRIPTS:
        assert cli.main([name, *given]) == 0
        out = capsys.readouterr().out
        assert out.endswith(f'{[str(checkout / f"{name}.py"), *given]}\n')
        assert ('--stn-log N' in out) == (name == 'train' and '--help' in given) == (out.count('\n') > 1)


def test_a_log_is_asked_for_without_the_script(checkout, monkeypatch, capsys):
    """It gets the other arguments. Only training has logs; other scripts say that they know no such option."""
    asked = []
    monkeypatch.setattr(scripts, 'run_script', lambda script, *args: asked.append((script.stem, *args)))
    given = ['--stn-log', '50', '--lr', '1', '--', '--stn-log']
    for name in ('train', 'validate'):
        assert cli.main([name, *given]) == 0
    assert asked == [('train', given[2:], 50), ('validate', tuple(given))]
    for wrong in (['--stn-log', '0'], ['--stn-log=x'], ['--lr', '1', '--stn-log']):
        message = refused(capsys, 'train', *wrong)
        assert message.startswith('timm-stn train: error: argument --stn-log: takes a positive integer, ')


@pytest.mark.parametrize('given', [
    ['--model', 'stn_resnt50'], ['--model=stn_resnt50'], ['-m', 'stn_resnt50.a1_in1k'],
    ['--data-dir', 'x', '--model-kwargs', 'a=1', '--model', 'stn_resnt50', '--epochs', '1']])
def test_unknown_names_are_refused_at_once(checkout, capsys, given):
    for name in SCRIPTS:
        message = refused(capsys, name, *given)
        assert message.startswith(f'timm-stn {name}: error: argument --model: unknown model ')
        assert 'the nearest are stn_resnet50, ' in message
    assert 'there are stn_resnet18.a1_in1k, ' in refused(capsys, 'train', '--model', 'stn_resnet18.a9')


def test_without_a_checkout(missing, capsys):
    message = refused(capsys, 'train', '--model', 'x')
    assert message.startswith('timm-stn train: error: TIMM_SCRIPTS does not name') and 'git clone' in message


@pytest.mark.parametrize('name', SCRIPTS)
def test_help_without_a_checkout(missing, capsys, name):
    """Our own arguments, and how to get the others."""
    assert cli.main([name, '--help']) == 0
    text = capsys.readouterr().out
    assert text.startswith(f'usage: timm-stn {name} ') and 'git clone' in text and TIMM_SCRIPTS in text
    assert ('\n--stn-log N ' in text) == (name == 'train')
    assert all(f'\n  {argument} ' in text for argument in DEFAULTS) and '](' not in text and '`' not in text
