"""scripts/gpu.py: a job of the queue on a CPU, tiny; what comes back is recorded once."""
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
JOB = 'table1-R-fcn-0'


def gpu(*args):
    command = [sys.executable, ROOT / 'scripts' / 'gpu.py', *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def places(folder):
    return '--pack', folder / 'pack', '--root', folder / 'root'


def run(folder, *args):
    return gpu('run', *places(folder), '--device', 'cpu', '--smoke', '--sections', 'queue', '--only', JOB,
               '--output', folder / 'out', '--budget', 80, *args)


def record(folder):
    return [json.loads(line) for line in (folder / 'root' / 'model_cards' / 'results.jsonl').read_text().splitlines()]


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp('gpu')
    code, said = run(folder)
    assert code == 0 and f'{JOB} ended' in said, said
    return folder


def test_a_result_comes_back_and_is_recorded_once(finished):
    for _ in range(2):
        code, said = gpu('collect', finished / 'out', *places(finished))
        assert code == 0 and JOB not in said, said
    line, = record(finished)
    assert line['name'] == JOB and line['environment']['device'] == 'cpu' and 0 < line['test_error'] <= 100
    assert not {'data', 'output'} & line['args'].keys(), 'paths of one machine'


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


def test_a_rehearsal_is_no_record(finished):
    code, said = gpu('collect', finished / 'out', '--pack', finished / 'pack')
    assert code == 1 and 'rehearsal' in said, said


def test_a_job_that_fails_is_told(tmp_path):
    folder = tmp_path / 'pack' / 'rehearsal' / JOB
    folder.mkdir(parents=True)
    (folder / 'checkpoint.pt').write_bytes(b'broken')
    code, said = run(tmp_path)
    assert code == 1 and f'{JOB} failed' in said and 'Error' in said, said
