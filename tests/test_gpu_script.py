"""scripts/gpu.py on a CPU, tiny: all of it, killed in the middle, run again; what comes back is recorded once."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from gpu import keep_measured
from gpu_jobs import Places, started
from gpu_queue import queue
from records import read

ROOT = Path(__file__).resolve().parents[1]
JOB = 'table1-R-fcn-0'


def command(*args):
    return [sys.executable, ROOT / 'scripts' / 'gpu.py', *map(str, args)]


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


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp('gpu')
    code, said = run(folder)
    assert code == 0 and f'{JOB} ended' in said, said
    return folder


def test_a_rehearsal_of_everything_killed_in_the_middle_and_run_again(tmp_path):
    """Nothing is lost, nothing counts double, nothing goes on by itself, and all of it takes less than its budget."""
    kinds = {job.kind: job for job in reversed(queue())}
    process = subprocess.Popen(command(*arguments(tmp_path, '--sections', 'queue', '--cores', 2, '--budget', 120)),
                               stdout=subprocess.PIPE, text=True)
    said = ''
    while 'learning started' not in said:  # the last job, so that the first has ended
        line = process.stdout.readline()
        assert line, f'ended too early: {said}'
        said += line
    process.send_signal(signal.SIGKILL)
    process.wait()
    runs = tmp_path / 'pack' / 'rehearsal'
    pid, since = (runs / 'learning' / 'pid').read_text().split()
    assert started(int(pid)) == since, 'the job goes on, though what had started it was killed'
    assert gpu('collect', tmp_path / 'out', *places(tmp_path))[0] == 0
    before = record(tmp_path)

    begin = time.monotonic()
    code, again = gpu(*arguments(tmp_path, '--cores', 2, '--budget', 120))
    assert code == 0 and time.monotonic() - begin < 130, again
    assert f'process {pid} of an earlier run is ended' in again and started(int(pid)) != since
    assert all(f'--- {section}: 0' in again for section in ('checks', 'speed'))
    there = {kind for kind, job in kinds.items() if kind != 'birds' or 'TIMM_SCRIPTS' in os.environ}
    assert ('wait for parts that are not here: timm-scripts' in again) == ('birds' not in there)
    for kind in there:
        assert (said + again).count(f'{kinds[kind].name} ended') == 1, said + again

    for _ in range(2):
        code, told = gpu('collect', tmp_path / 'out', *places(tmp_path))
        assert code == 0 and told.count(': ') <= 1 + len(there), told
    names = [line['name'] for line in record(tmp_path)]
    assert before == record(tmp_path)[:len(before)]
    assert sorted(names) == sorted(kinds[kind].name for kind in there - {'learning'})
    assert [line['name'] for line in read(tmp_path / 'root' / 'docs' / 'learning.jsonl')] == [
        'alive/birds/adamw-0.001/rotation']
    assert {p.name for p in (tmp_path / 'root' / 'docs' / 'gpu' / 'cpu').iterdir()} == {
        'environment.json', 'speed.json', 'checks.txt'}


def test_a_run_that_is_asked_to_end_ends_its_jobs_and_keeps_what_they_made(tmp_path):
    process = subprocess.Popen(command(*arguments(tmp_path, '--sections', 'queue', '--only', JOB, '--budget', 80)),
                               stdout=subprocess.PIPE, text=True)
    while f'{JOB} started' not in process.stdout.readline():
        assert process.poll() is None
    time.sleep(1)
    pid, since = (tmp_path / 'pack' / 'rehearsal' / JOB / 'pid').read_text().split()
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=30)[0]
    assert process.returncode == 143 and f'{JOB} was cut off' in said and started(int(pid)) != since
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
    assert code == 0 and 'started' not in said, said
    folder = tmp_path / 'pack' / 'runs' / JOB
    assert gpu('collect', tmp_path / 'out', *places(tmp_path))[0] == 0
    assert (folder / 'checkpoint.pt').read_bytes() == b'so far' and record(tmp_path) == []


def test_a_job_that_went_on_elsewhere_tells_where_it_had_begun(tmp_path):
    folder = tmp_path / 'pack' / 'finished' / JOB
    folder.mkdir(parents=True)
    (folder / 'result.json').write_text('{"args": {"data": "/x", "seed": 0}, "test_error": 1.0}')
    (folder / 'environment.jsonl').write_text('{"revision": "a"}\n{"revision": "b"}\n{"revi')
    Places(tmp_path / 'pack', tmp_path / 'root').record()
    assert record(tmp_path) == [dict(
        name=JOB, args={'seed': 0}, test_error=1.0, environment={'revision': 'b'}, begun_with=[{'revision': 'a'}])]


def test_a_rehearsal_is_no_record(finished):
    code, said = gpu('collect', finished / 'out', '--pack', finished / 'pack')
    assert code == 1 and 'rehearsal' in said, said


def test_a_job_that_fails_is_told(tmp_path):
    folder = tmp_path / 'pack' / 'rehearsal' / JOB
    folder.mkdir(parents=True)
    (folder / 'checkpoint.pt').write_bytes(b'broken')
    code, said = run(tmp_path)
    assert code == 1 and f'{JOB} failed' in said and 'Error' in said, said


def test_a_record_of_speed_keeps_what_the_next_does_not_reach(tmp_path):
    old, new = tmp_path / 'old.json', tmp_path / 'new.json'
    old.write_text(json.dumps({'revision': 'a', 'results': [
        {'case': 'x', 'ms': {'plain': 1}}, {'case': 'y', 'ms': {'plain': 2}}, {'case': 'z', 'skipped': 'no'}]}))
    new.write_text(json.dumps({'revision': 'b', 'results': [
        {'case': 'y', 'ms': {'plain': 3}}, {'case': 'x', 'skipped': 'not reached'}, {'case': 'z', 'skipped': 'no'}]}))
    keep_measured(new, old, None)
    found = json.loads(old.read_text())
    assert found['revision'] == 'b' and found['results'] == [
        {'case': 'y', 'ms': {'plain': 3}}, {'revision': 'a', 'case': 'x', 'ms': {'plain': 1}},
        {'case': 'z', 'skipped': 'no'}]
    keep_measured(new, tmp_path / 'none yet.json', 'c')
    assert json.loads((tmp_path / 'none yet.json').read_text()) == json.loads(new.read_text()) | {'revision': 'c'}
