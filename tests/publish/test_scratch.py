"""The temporary folder of a push, and what is left of it when the process ends."""
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from makers import environment_of
from pushing import REPO, WRITE, network

import timm_stn
from timm_stn.publish import scratch
from timm_stn.publish.scratch import scratch_folder

pytestmark = pytest.mark.usefixtures('heeding_signals')

PUSH = f"""
import tempfile, timm, timm_stn
timm_stn.push_to_hub(timm.create_model('stn_mnist_cnn_tc'), '{REPO}')
"""


def left(folder):
    return sorted(folder.glob(f'{scratch.PREFIX}*'))


@pytest.fixture
def pushing(hub, tmp_path):
    """A process in the middle of a push, at the sending of weights; its temporary folder."""
    place = tmp_path / 'place'
    place.mkdir()
    hub.fail('PUT', '/upload/', silent=True)
    env = environment_of(hub, tmp_path / 'home', WRITE)
    env.update(PYTHONPATH=str(Path(timm_stn.__file__).parents[1]), TMPDIR=str(place))
    process = subprocess.Popen([sys.executable, '-c', PUSH], env=env, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 100
    while not any('/upload/' in path for _, path in hub.requests):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    assert len(left(place)) == 1
    yield process, place
    process.kill()
    process.wait()


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_leaves_nothing(pushing, number):
    process, place = pushing
    process.send_signal(number)
    assert process.wait(30) == -number and not left(place)


def test_what_a_killed_push_leaves_goes_with_the_next(pushing, monkeypatch):
    process, place = pushing
    monkeypatch.setattr('tempfile.tempdir', str(place))
    folder, = left(place)
    os.utime(folder, (0, 0))
    with scratch_folder() as mine:
        assert left(place) == sorted([folder, mine]), 'another push is at work there'
    process.kill()
    process.wait()
    with scratch_folder() as mine:
        assert left(place) == [mine]
    assert not left(place)


def test_only_what_pushes_have_left_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
    for name in ('timm-stn-push-young', 'timm-stn-push-old', 'timm-stn-other', 'theirs'):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'file').touch()
        if 'young' not in name:
            os.utime(tmp_path / name, (0, 0))
    (tmp_path / 'timm-stn-push-link').symlink_to(tmp_path / 'theirs')
    (tmp_path / 'timm-stn-push-file').touch()
    with scratch_folder() as mine:
        found = {path.name for path in tmp_path.iterdir()}
    assert found == {
        mine.name, 'timm-stn-push-young', 'timm-stn-other', 'theirs', 'timm-stn-push-link', 'timm-stn-push-file'}
    assert (tmp_path / 'theirs' / 'file').exists()


def test_handlers_of_others_stay(monkeypatch, tmp_path):
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
    seen = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        with scratch_folder():
            os.kill(os.getpid(), signal.SIGTERM)
        assert seen == [signal.SIGTERM]
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with scratch_folder():
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


def test_nothing_of_it_is_pushed(hub):
    assert not [name for name in timm_stn.push_to_hub(network(), REPO).sent if 'lock' in name]
