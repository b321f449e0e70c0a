"""Commands that are stopped: by Ctrl-C, from their first import on, or by a reader that leaves, as `head` does."""
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from makers import ROOT

pytestmark = pytest.mark.usefixtures('heeding_signals')

LINE = 'timm-stn: interrupted\n'
STOPPED = 'import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(30)\n'
WORKERS = '''
import time
from torch.utils.data import DataLoader
def slow(i):
    time.sleep(0.05)
    return i
class Endless:
    __len__ = lambda self: 10 ** 9
    __getitem__ = lambda self, i: slow(i)
for i, _ in enumerate(DataLoader(Endless(), num_workers=2)):
    if i == 1:
        print('ready', flush=True)
'''


def start(*argv, path=ROOT, **options):
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(path), str(ROOT)]), 'OMP_NUM_THREADS': '1'}
    return subprocess.Popen([sys.executable, *map(str, argv)], env=env, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, start_new_session=True, **options)


def end(*argv, **options):
    process = start(*argv, **options)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


@pytest.fixture
def script(tmp_path):
    def write(text, name='script.py'):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path
    return write


def test_while_it_loads(script, tmp_path):
    """Ctrl-C comes while `timm_stn` imports torch."""
    script(STOPPED, 'torch/__init__.py')
    command = script('import sys\nfrom timm_stn.cli import main\nsys.exit(main())', 'timm-stn')
    for argv in (['-m', 'timm_stn', 'list'], ['-u', '-m', 'timm_stn.run', 'train.py', '-m'], ['-mtimm_stn.cli'],
                 [command, 'train', '--model', 'x']):
        status, _, err = end(*argv, path=tmp_path)
        assert (status, err) == (130, LINE), argv
    script('import timm_stn')
    for argv in (['-c', 'import timm_stn'], ['-m', 'script']):  # not ours to end
        status, _, err = end(*argv, path=tmp_path)
        assert status == -signal.SIGINT and err.endswith('KeyboardInterrupt\n'), argv


@pytest.mark.parametrize('then', [
    'raise', 'print("saved")', 'raise SystemExit(1)', 'raise OSError("no space left")',  # the second is timm's train.py
])
def test_while_a_script_runs(script, then):
    text = STOPPED.replace('\n', '\n    ')
    status, out, err = end('-m', 'timm_stn.run', script(f'try:\n    {text}\nexcept KeyboardInterrupt:\n    {then}'))
    assert status == 130 and 'Traceback' not in err and err.endswith(LINE) and err.count(LINE) == 1
    assert ('saved' in out) == ('saved' in then) and ('OSError: no space left' in err) == ('OSError' in then)


def test_children_end_with_it(script):
    process = start('-m', 'timm_stn.run', script(WORKERS))
    assert process.stdout.readline() == 'ready\n'
    listed = subprocess.run(['ps', '-o', 'pid=', '--ppid', str(process.pid)], capture_output=True, text=True)
    children = [int(pid) for pid in listed.stdout.split()]
    assert len(children) == 2
    process.send_signal(signal.SIGINT)  # to it alone, as from a supervisor
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and 'Traceback' not in err and err.endswith(LINE)
    deadline = time.monotonic() + 20
    while any(Path(f'/proc/{pid}').exists() for pid in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in children if Path(f'/proc/{pid}').exists()]


def test_through_torchrun(script):
    text = 'import time\nprint("ready", flush=True)\ntime.sleep(120)'
    process = start('-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2',
                    '-m', 'timm_stn.run', script(text))
    assert [process.stdout.readline() for _ in range(2)] == ['ready\n'] * 2
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=100)
    assert 'SignalException' in err and 'timm_stn' not in err.partition('Traceback')[2], 'torchrun has its own'


def test_under_nohup_it_goes_on(script):
    text = 'import signal\nsignal.raise_signal(signal.SIGINT)\nprint("went on")'
    ignore = dict(preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    assert end('-m', 'timm_stn.run', script(text), **ignore)[:2] == (0, 'went on\n')


@pytest.mark.parametrize('unbuffered', ['', '1'])
@pytest.mark.parametrize('argv', ['timm_stn list', 'timm_stn.run --help', 'timm_stn.run {script}'])
def test_the_reader_leaves(script, argv, unbuffered, monkeypatch):
    monkeypatch.setenv('PYTHONUNBUFFERED', unbuffered)
    process = start('-m', *argv.format(script=script('import sys\nprint("much")\nsys.stdout.flush()')).split())
    process.stdout.close()
    assert process.wait() == 141 and 'BrokenPipe' not in process.stderr.read()


def test_another_pipe_breaks(script):
    text = 'import os\nr, w = os.pipe()\nos.close(r)\nprint("said")\nos.write(w, b"-")'
    status, out, err = end('-m', 'timm_stn.run', script(text))
    assert status == 1 and err.endswith('BrokenPipeError: [Errno 32] Broken pipe\n') and out == 'said\n'
