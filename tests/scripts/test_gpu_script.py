"""gpu.py on a CPU, tiny: all of it, killed in the middle, run again; what comes back is recorded once."""
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import gpu_jobs
import pytest
from gpu import keep_measured, sanitized
from gpu_jobs import Clock, Places, started
from gpu_queue import queue
from records import read, replace

ROOT = Path(__file__).resolve().parents[2]
JOB = 'table1-R-fcn-0'


def command(*args):
    return [sys.executable, ROOT / 'scripts' / 'reproduce' / 'gpu.py', *map(str, args)]


def gpu(*args):
    done = subprocess.run(command(*args), capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def places(folder):
    return '--pack', folder / 'pack', '--root', folder / 'root'


def arguments(folder, *args):
    return 'run', *places(folder), '--device', 'cpu', '--smoke', '--output', folder / 'out', *args


def run(folder, *args):
    return gpu(*arguments(folder, '--sections', 'queue', '--only', JOB, '--budget', 80, *args))


def record(folder):
    return read(folder / 'root' / 'model_cards' / 'results.jsonl')


def pids_of(folder):
    """Of what has been started, and maybe ended."""
    return [int(file.stem) for file in Places(folder / 'pack', folder, smoke=True).running.glob('*.pid')]


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp('gpu')
    code, said = run(folder)
    assert code == 0 and f'{JOB} ended' in said, said
    return folder


def test_a_rehearsal_of_everything_killed_in_the_middle_and_run_again(tmp_path):
    """Nothing is lost, nothing counts double, nothing goes on by itself, and all of it takes less than its budget."""
    kinds = {job.kind: job for job in reversed(queue())}
    process = subprocess.Popen(command(*arguments(tmp_path, '--sections', 'queue', '--cores', 2, '--budget', 300)),
                               stdout=subprocess.PIPE, text=True)
    said = ''
    while 'learning started' not in said:  # the last job, so that the first has ended
        line = process.stdout.readline()
        assert line, f'ended too early: {said}'
        said += line
    process.send_signal(signal.SIGKILL)
    process.wait()
    pids = [pid for pid in pids_of(tmp_path) if started(pid)]
    assert pids, 'the job goes on, though what had started it was killed'
    shutil.rmtree(tmp_path / 'pack' / 'rehearsal' / 'learning')  # as where what travels replaces what was there
    assert gpu('collect', tmp_path / 'out', *places(tmp_path))[0] == 0
    before = record(tmp_path)

    begin = time.monotonic()
    code, again = gpu(*arguments(tmp_path, '--cores', 2, '--budget', 300))
    assert code == 0 and time.monotonic() - begin < 310, again
    assert all(f'process {pid} of an earlier run is ended' in again for pid in pids)
    assert not any(map(started, pids)) and not any(map(started, pids_of(tmp_path)))
    assert all(f'--- {section}: 0' in again for section in ('checks', 'speed'))
    there = {kind for kind in kinds if kind not in ('birds', 'birds2') or 'TIMM_SCRIPTS' in os.environ}
    missing = 'waiting for parts that are not here (timm-scripts): 1 birds, 1 birds2' in again
    assert missing == ('birds' not in there)
    for kind in there:
        assert (said + again).count(f'{kinds[kind].name} ended') == 1, said + again

    for _ in range(2):
        code, told = gpu('collect', tmp_path / 'out', *places(tmp_path))
        assert code == 0 and 'left to run' in told, told
    names = [line['name'] for line in record(tmp_path)]
    assert before == record(tmp_path)[:len(before)]
    assert sorted(names) == sorted(kinds[kind].name for kind in there - {'learning'})
    assert [line['name'] for line in read(tmp_path / 'root' / 'docs' / 'learning.jsonl')] == [
        'alive/birds/adamw-0.001/rotation']
    recorded = tmp_path / 'root' / 'docs' / 'gpu' / 'cpu'
    assert {p.name for p in recorded.iterdir()} == {'speed.json', 'checks.txt'}
    head, *_, last = (recorded / 'checks.txt').read_text().splitlines()
    assert json.loads(head)['device'] == 'cpu' and ' passed' in last
    assert json.loads((recorded / 'speed.json').read_text())['time'] == json.loads(head)['time']
    for path in recorded.iterdir():  # of an earlier run, which is collected later
        path.write_text(path.read_text().replace('"time": "2', '"time": "3'))
    assert gpu('collect', tmp_path / 'out', *places(tmp_path))[1].count('is older than the one that is recorded') == 2


def test_a_run_that_is_asked_to_end_ends_its_jobs_and_keeps_what_they_made(tmp_path):
    process = subprocess.Popen(command(*arguments(tmp_path, '--sections', 'queue', '--only', JOB, '--budget', 80)),
                               stdout=subprocess.PIPE, text=True)
    while f'{JOB} started' not in process.stdout.readline():
        assert process.poll() is None
    time.sleep(1)
    pid, = pids_of(tmp_path)
    assert started(pid)
    for _ in range(2):  # as `timeout` and make do
        process.send_signal(signal.SIGTERM)
        time.sleep(0.05)
    said = process.communicate(timeout=30)[0]
    assert process.returncode == 143 and f'{JOB} was cut off' in said and not started(pid)
    assert (tmp_path / 'out' / 'runs-0.tar').is_file()


def test_a_result_comes_back_and_is_recorded_once(finished):
    for _ in range(2):
        code, said = gpu('collect', finished / 'out', *places(finished))
        assert code == 0 and 'left to run' in said, said
    line, = record(finished)
    assert line['name'] == JOB and line['environment']['device'] == 'cpu' and 0 < line['test_error'] <= 100
    assert not {'data', 'output'} & line['args'].keys(), 'paths of one machine'
    assert 'begun_with' not in line
    assert (finished / 'pack' / 'finished' / JOB / 'summary.csv').is_file()


def test_a_job_with_a_result_is_not_run_again(finished):
    code, said = run(finished)
    assert code == 0 and 'started' not in said, said


def test_a_job_that_was_cut_off_comes_back_with_its_checkpoint(finished, tmp_path):
    folder = tmp_path / 'pack' / 'rehearsal' / JOB
    folder.mkdir(parents=True)
    (folder / 'checkpoint.pt').write_bytes(b'so far')
    code, said = run(tmp_path, '--budget', 20)  # too little to start it
    assert code == 0 and f'{JOB} started' not in said, said
    folder = tmp_path / 'pack' / 'runs' / JOB
    code, said = gpu('collect', tmp_path / 'out', *places(tmp_path))
    assert code == 0 and f'cut off, and to go on where it was: {JOB}' in said, said
    assert (folder / 'checkpoint.pt').read_bytes() == b'so far' and record(tmp_path) == []


def test_a_pack_leaves_where_they_are_results_that_are_not_recorded(tmp_path):
    """Or the next run would not bring them back."""
    here = Places(tmp_path / 'pack', tmp_path / 'root')
    for name in (JOB, 'table1-R-cnn-0'):
        (here.runs / name).mkdir(parents=True)
        (here.runs / name / 'result.json').write_text('{"args": {}}')
    replace(tmp_path / 'root' / 'model_cards' / 'results.jsonl', [{'name': JOB}])
    here.put_aside(recorded=True)
    assert [path.name for path in here.runs.iterdir()] == ['table1-R-cnn-0'] and (here.finished / JOB).is_dir()
    here.record()
    assert [line['name'] for line in record(tmp_path)] == [JOB, 'table1-R-cnn-0']
    assert not any(here.runs.iterdir())


def test_a_job_that_went_on_elsewhere_tells_where_it_had_begun(tmp_path):
    folder = tmp_path / 'pack' / 'finished' / JOB
    folder.mkdir(parents=True)
    (folder / 'result.json').write_text('{"args": {"data": "/x", "seed": 0}, "test_error": 1.0}')
    (folder / 'environment.jsonl').write_text('{"revision": "a"}\n{"revision": "b"}\n{"revi')
    job, lacks = Places(tmp_path / 'pack', tmp_path / 'root').record().popitem()
    assert job.name == JOB and lacks == ['summary.csv']
    assert record(tmp_path) == [dict(
        name=JOB, args={'seed': 0}, test_error=1.0, environment={'revision': 'b'}, begun_with=[{'revision': 'a'}])]


def test_a_rehearsal_is_no_record(finished, tmp_path):
    for option in ('--pack', '--root'):
        code, said = gpu('collect', finished / 'out', option, tmp_path)
        assert code == 1 and 'rehearsal' in said, said
    assert not any(tmp_path.iterdir())


def test_rehearsals_and_runs_do_not_share_a_folder(tmp_path):
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'environment.json').write_text('{"smoke": false, "device": "a GPU"}')
    code, said = run(tmp_path)
    assert code == 1 and 'is of a real run: name another folder' in said, said
    assert json.loads((tmp_path / 'out' / 'environment.json').read_text())['device'] == 'a GPU'


def test_what_is_in_the_folder_already_counts(finished, tmp_path):
    """As where a run goes on in the same OUT with another pack, or a new checkout."""
    (tmp_path / 'out').mkdir()
    for path in (finished / 'out').iterdir():
        (tmp_path / 'out' / path.name).write_bytes(path.read_bytes())
    code, said = run(tmp_path)
    assert code == 0 and 'each has a result' in said and 'started' not in said, said
    assert gpu('collect', tmp_path / 'out', *places(tmp_path))[0] == 0
    assert [line['name'] for line in record(tmp_path)] == [JOB]


def test_two_runs_of_the_same_jobs_are_refused(tmp_path):
    running = Places(tmp_path / 'pack', tmp_path, smoke=True).running
    running.mkdir(parents=True)
    with (running / 'lock').open('w') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        code, said = run(tmp_path)
    assert code == 1 and 'Another run is at work' in said, said


def test_what_cannot_be_done_is_told(tmp_path):
    for args, message in (
            (('--only', 'tabel*'), '--only tabel*: no job is named so; these are: card-* volumes-* scattered-*'),
            (('--sections', 'checks', '--budget', 25), 'checks: left out, for no time is left for it'),
            (('--budget', 25), f'not started, for the shortest takes 20 s, and 12 s are kept to copy results: {JOB}')):
        assert message in run(tmp_path, *args)[1]
    code, said = gpu('run', '--device', 'cpu', '--output', tmp_path / 'out')
    assert code == 2 and '--device cpu is for rehearsals: --smoke is needed' in said
    code, said = gpu('collect', tmp_path)
    assert code == 1 and f'there is no {tmp_path}/environment.json' in said


def test_a_job_that_fails_is_told(tmp_path):
    folder = tmp_path / 'pack' / 'rehearsal' / JOB
    folder.mkdir(parents=True)
    (folder / 'checkpoint.pt').write_bytes(b'broken')
    code, said = run(tmp_path)
    assert code == 1 and f'{JOB} failed' in said and 'Error' in said, said


@pytest.mark.parametrize('good', [True, False])
def test_the_service_that_shares_a_gpu_is_used_where_it_works(tmp_path, monkeypatch, capsys, good):
    service = tmp_path / 'bin' / gpu_jobs.MPS
    service.parent.mkdir()
    service.write_text(f'#!/bin/sh\necho "$CUDA_MPS_PIPE_DIRECTORY" "$@" >>{tmp_path}/calls\n'
                       f'[ "$1" = -d ] || cat >>{tmp_path}/calls\n')
    service.chmod(0o755)
    monkeypatch.setenv('PATH', f'{service.parent}:{os.environ["PATH"]}')
    monkeypatch.setattr(gpu_jobs, 'works', lambda env: good and Path(env['CUDA_MPS_LOG_DIRECTORY']).is_dir())
    env = {'PATH': os.environ['PATH']}
    with gpu_jobs.shared_gpu(env, tmp_path):
        assert ('CUDA_MPS_PIPE_DIRECTORY' in env) == good
    pipe = tmp_path / 'mps-PIPE'
    assert (tmp_path / 'calls').read_text() == f'{pipe} -d\n{pipe}\nquit\n'
    assert ('jobs share the device without' in capsys.readouterr().out) == (not good)


def test_a_device_that_does_not_work_is_found_out():
    assert gpu_jobs.works({**os.environ, 'CUDA_VISIBLE_DEVICES': ''}) is False


def test_what_comes_back_is_in_the_order_of_its_worth(tmp_path):
    here = Places(tmp_path / 'pack', tmp_path / 'root')
    sizes = {'card-RTS-0': dict.fromkeys(('result.json', 'model.safetensors', 'checkpoint.pt'), 2 ** 20),
             'birds-0/plain224': {'last.pth.tar': 2 ** 21, 'summary.csv': 10, 'model_best.pth.tar': 2 ** 21},
             'table1-R-cnn-0': {'checkpoint.pt': 2 ** 21, 'log.txt': 10, 'more': 10},
             'card-TC-0': {'result.json': 10, 'model.safetensors': 2 ** 20, 'checkpoint.pt': 2 ** 20}}
    sizes['card-RTS-0']['result.json'] = 10
    for name, files in sizes.items():
        (here.runs / name).mkdir(parents=True)
        for file, size in files.items():
            (here.runs / name / file).write_bytes(bytes(size))
    assert [name for name, _ in here.worth_keeping()] == [
        'card-RTS-0/result.json', 'card-TC-0/result.json', 'birds-0/plain224/summary.csv', 'table1-R-cnn-0/log.txt',
        'card-RTS-0/model.safetensors', 'card-TC-0/model.safetensors',
        'birds-0/plain224/last.pth.tar', 'table1-R-cnn-0/checkpoint.pt']


def test_what_comes_late_of_a_finished_job_spoils_nothing(tmp_path):
    """Of an older OUT, or of one without the weights."""
    here = Places(tmp_path / 'pack', tmp_path / 'root')
    done, late = here.finished / JOB, here.runs / JOB
    for folder, files in ((done, {'result.json': '{"args": {}, "x": 1}', 'model.safetensors': 'w'}),
                          (late, {'result.json': '{"args": {}, "x": 2}', 'checkpoint.pt': 'c', 'summary.csv': 's'})):
        folder.mkdir(parents=True)
        for name, text in files.items():
            (folder / name).write_text(text)
    here.record()
    assert not late.exists() and {path.name for path in done.iterdir()} == {
        'result.json', 'model.safetensors', 'checkpoint.pt', 'summary.csv'}
    assert json.loads((done / 'result.json').read_text())['x'] == 1 == record(tmp_path)[0]['x']


def test_a_broken_result_is_told_and_made_again(tmp_path, capsys):
    here = Places(tmp_path / 'pack', tmp_path / 'root')
    for name, text in ((JOB, '{"args"'), ('table1-R-cnn-0', '{"args": {}}')):
        (here.runs / name).mkdir(parents=True)
        (here.runs / name / 'result.json').write_text(text)
    assert [job.name for job in here.record()] == ['table1-R-cnn-0']
    assert f'{JOB}/result.json is broken, and deleted' in capsys.readouterr().out
    assert JOB in [job.name for job in here.waiting()]


def test_learning_is_recorded_before_anything_is_put_aside(tmp_path):
    here = Places(tmp_path / 'pack', tmp_path / 'root')
    for place, name in ((here.finished, 'a'), (here.runs, 'b')):
        (place / 'learning').mkdir(parents=True)
        (place / 'learning' / 'finished').touch()
        replace(place / 'learning' / 'learning.jsonl', [dict(name=name, seed=0, tune=False, model_kwargs={})])
    record = tmp_path / 'root' / 'docs' / 'learning.jsonl'
    kept = [dict(name=name, seed=0, tune=False, model_kwargs={}, accuracy=50) for name in ('c', 'b')]
    replace(record, kept)
    here.record_learning()
    assert [line['name'] for line in read(record)] == ['c', 'b', 'a'] and read(record)[:2] == kept


def test_a_record_of_speed_keeps_what_the_next_does_not_reach(tmp_path):
    old, new = tmp_path / 'old.json', tmp_path / 'new.json'
    old.write_text(json.dumps({'revision': 'a', 'results': [
        {'case': 'x', 'ms': 1}, {'case': 'y', 'ms': 2}, {'case': 'z', 'skipped': 'no'}, {'case': 'e', 'ms': 4}]}))
    new.write_text(json.dumps({'revision': 'b', 'results': [
        {'case': 'y', 'ms': 3}, {'case': 'x', 'skipped': 'no'}, {'case': 'z', 'skipped': 'no'},
        {'case': 'e', 'error': 'broken'}]}))
    keep_measured(new, old)
    found = json.loads(old.read_text())
    assert found['revision'] == 'b' and found['results'] == [
        {'case': 'y', 'ms': 3}, {'revision': 'a', 'case': 'x', 'ms': 1}, {'case': 'z', 'skipped': 'no'},
        {'revision': 'a', 'case': 'e', 'ms': 4, 'error': 'broken'}]
    keep_measured(new, tmp_path / 'none yet.json')
    assert json.loads((tmp_path / 'none yet.json').read_text()) == json.loads(new.read_text())


@pytest.mark.parametrize('code', [0, 3])
def test_what_a_sanitizer_says_is_kept(tmp_path, monkeypatch, capsys, code):
    args = Namespace(device='cuda', places=Namespace(running=tmp_path))
    monkeypatch.setattr('shutil.which', lambda name: None)
    assert sanitized(args, dict(os.environ), Clock(200)) == (0, ''), 'where there is none'
    tool = tmp_path / 'compute-sanitizer'
    tool.write_text('#!/bin/sh\necho "$2 $PYTORCH_NO_CUDA_MEMORY_CACHING"\n'
                    f'echo "==== ERROR SUMMARY: {code} errors"\nexit {code}\n')
    tool.chmod(0o755)
    monkeypatch.setattr('shutil.which', lambda name: str(tool))
    failed, said = sanitized(args, dict(os.environ), Clock(200))
    word = 'failed' if code else 'passed'
    assert failed == bool(code) and said.splitlines() == [
        f'{name}: {word}: ==== ERROR SUMMARY: {code} errors' for name in ('memcheck', 'racecheck')]
    assert 'memcheck 1' in capsys.readouterr().out
    args.device = 'cpu'
    assert sanitized(args, dict(os.environ), Clock(200)) == (0, '')
