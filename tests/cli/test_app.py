"""`timm-stn app`: what it refuses. The page is in tests/app/."""
import importlib.util
import socket
import subprocess
import sys

import pytest
from commands import MODEL, refused
from makers import ROOT

from timm_stn import cli
from timm_stn.cli import app as command

needs_gradio = pytest.mark.skipif(importlib.util.find_spec('gradio') is None, reason='needs gradio')


def test_without_gradio_it_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setattr(command.importlib.util, 'find_spec', lambda name: None)
    assert refused(capsys, 'app').endswith('the page needs Gradio: pip install "timm-stn[app]"\n')


@needs_gradio
def test_an_older_gradio_is_refused(capsys, monkeypatch):
    monkeypatch.setattr(command.importlib.metadata, 'version', lambda name: '6.30.2')
    assert 'for it is of version 6.30.2, and 6.31 is needed' in refused(capsys, 'app')
    assert f'app = ["gradio>={".".join(map(str, command.LEAST))}"]' in (ROOT / 'pyproject.toml').read_text()


@needs_gradio
@pytest.mark.parametrize('argv,why', [
    (['--port', '70000'], 'argument --port: takes 1 to 65535, got 70000'),
    (['--port', '0'], 'argument --port: takes a positive integer'),
    (['--host', 'no.such.host.invalid'], "argument --host: cannot listen on no.such.host.invalid"),
    (['--model', 'test_vit'], 'stn_test_vit has'),
    (['--model', 'stn_nothing'], 'argument --model'),
    ([*MODEL, '--model-kwargs', 'num_classes=0'], 'has no classifier'),
    ([*MODEL, '--model-kwargs', 'in_chans=2'], 'images have 1 or 3 channels'),
    (['--checkpoint', 'nothing.pth'], 'argument --checkpoint: no file'),
    (['--share'], 'unrecognized arguments: --share'),
], ids=str)
def test_wrong_arguments(capsys, argv, why):
    assert why in refused(capsys, 'app', *argv)


@needs_gradio
def test_a_port_that_is_taken(capsys):
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f'argument --port: cannot listen on {port} of 127.0.0.1' in refused(capsys, 'app', '--port', port)


@needs_gradio
def test_what_is_served(monkeypatch):
    """A given model comes first, on this computer only unless another host is named."""
    served = []
    monkeypatch.setattr(command, 'serve', lambda *args: served.append(args))
    assert cli.main(['app']) == cli.main(['app', *MODEL, '--host', '0.0.0.0']) == 0
    (shelf, host, port), (other, everywhere, _) = served
    assert host == '127.0.0.1' and port >= 7860 and everywhere == '0.0.0.0'
    assert shelf.names[0] == 'stn_mnist_cnn_rts' and shelf.given is None
    assert other.names == ['stn_test_resnet', *shelf.names] and other.given.name == 'stn_test_resnet'


def test_nothing_else_imports_gradio():
    code = '''import sys
import timm_stn.app.serve
from timm_stn import cli
cli.main(["list", "--own"])
assert not [name for name in sys.modules if name.startswith('gradio')]'''
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
