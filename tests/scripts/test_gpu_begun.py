"""An interrupted job goes on elsewhere: its checkpoint travels in tars, one after another."""
import json
import os
import random
import shutil
from argparse import Namespace

import gpu
import gpu_begun
import pytest
from gpu_jobs import Clock, Places, read
from gpu_queue import Job

MOST = 100_000
GOES_ON = '''
import json, pathlib, sys
folder = pathlib.Path(sys.argv[1])
held = folder / 'checkpoint.pt'
(folder / 'result.json').write_text(json.dumps({'args': {}, 'bytes': len(held.read_bytes()) if held.exists() else 0}))
'''


def job(name, script='train_task.py', **fields):
    return Job(name, (str(script), '{run}'), 1, ('mnist',), **fields)


def begun(places, name, size, time=1e9):
    """A job that was cut off."""
    folder = places.runs / name
    folder.mkdir(parents=True, exist_ok=True)
    content = {'checkpoint.pt': random.Random(f'{name} {time}').randbytes(size), 'log.txt': b'',
               'summary.csv': name.encode(), 'environment.jsonl': b'{"revision": "there"}\n'}
    for file, written in content.items():
        (folder / file).write_bytes(written)
        os.utime(folder / file, (time, time))
    return content


@pytest.fixture
def here(tmp_path):
    (tmp_path / 'here' / 'base').mkdir(parents=True)
    script = tmp_path / 'goes_on.py'
    script.write_text(GOES_ON)
    jobs = [job('large-0', script), *(job(name) for name in ('a-0', 'b-0', 'c-0'))]
    return Places(tmp_path / 'here', tmp_path / 'root', jobs=jobs)


def load(here, there, *names):
    """Copies paths of the pack to the other machine, which keeps what it has."""
    for name in names:
        source, place = here.runs.parent / name, there / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, place, dirs_exist_ok=True) if source.is_dir() else shutil.copyfile(source, place)


@pytest.fixture
def run(here, monkeypatch, capsys):
    """What gpu.py does in a folder, and what it says."""
    monkeypatch.setattr('gpu_jobs.on_signals', lambda handler: None)  # or pytest would ignore Ctrl-C
    return lambda there: work(there, here.jobs, capsys)


def work(there, jobs, capsys):
    places = Places(there, there / 'root', jobs=jobs)
    for folder in (there / 'mnist', places.running):
        folder.mkdir(parents=True, exist_ok=True)
    args = Namespace(places=places, only='large-*', pack=there, smoke=False, output=None, device='cpu', cores=1)
    folder = there / 'folder'
    folder.mkdir(exist_ok=True)
    code = gpu.work(args, {'revision': 'here'}, dict(os.environ), Clock(40), folder)
    return code, capsys.readouterr().out


@pytest.mark.parametrize('size, most, count', [(290_000, MOST, 4), (46 * 2 ** 20, gpu_begun.MOST, 4)])
def test_a_large_checkpoint_travels_in_several_loads_and_the_job_goes_on(tmp_path, here, run, size, most, count):
    there = tmp_path / 'there'
    before = begun(here, 'large-0', size)
    tars = gpu_begun.write(here.runs.parent, here.to_go_on(), most)['large-0']
    assert len(tars) == count and all((here.runs.parent / tar).stat().st_size <= most for tar in tars)
    for number, names in enumerate((['base', *tars[:2]], tars[2:3]), 1):
        load(here, there, *names)
        code, said = run(there)
        assert code == 0 and 'large-0/checkpoint.pt came in part' in said and 'started' not in said
        assert f'large-0 has begun elsewhere, and waits for its checkpoint: {" ".join(tars[number + 1:])}\n' in said
    load(here, there, *tars[3:])
    code, said = run(there)
    assert code == 0 and 'large-0 ended' in said and 'waits' not in said and 'came in part' not in said
    folder = there / 'runs' / 'large-0'
    assert json.loads((folder / 'result.json').read_text())['bytes'] == size
    assert (folder / 'checkpoint.pt').read_bytes() == before['checkpoint.pt']
    assert (folder / 'summary.csv').read_bytes() == before['summary.csv']
    assert [line['revision'] for line in read(folder / 'environment.jsonl')] == ['there', 'here']


def test_a_tar_that_is_cut_off_does_not_let_the_job_begin_anew(tmp_path, here, run):
    begun(here, 'large-0', 50_000)
    tar, = gpu_begun.write(here.runs.parent, here.to_go_on(), MOST)['large-0']
    load(here, tmp_path / 'there', 'base', tar)
    (tmp_path / 'there' / tar).write_bytes((here.runs.parent / tar).read_bytes()[:20_000])
    _, said = run(tmp_path / 'there')
    assert 'runs-0.tar is broken off' in said and f'waits for its checkpoint: {tar}' in said and 'started' not in said


def test_an_older_tar_does_not_undo_a_newer_run(tmp_path, here):
    """And is no matter to tell of: it is read at the start of each run there."""
    begun(here, 'large-0', 290_000)
    tars = gpu_begun.write(here.runs.parent, here.to_go_on(), MOST)['large-0']
    there = Places(tmp_path / 'there', tmp_path / 'root', jobs=here.jobs)
    load(here, tmp_path / 'there', 'base', *tars)
    assert gpu_begun.read(tmp_path / 'there', there.runs, here.jobs) == ([], [])
    newer = begun(there, 'large-0', 1000, time=2e9)
    assert gpu_begun.read(tmp_path / 'there', there.runs, here.jobs) == ([], [])
    for name, content in newer.items():
        assert (there.runs / 'large-0' / name).read_bytes() == content


def test_a_job_that_has_a_result_stays_away(tmp_path, here):
    """Or its old checkpoint would take the room of others on the way back."""
    for name in ('large-0', 'a-0'):
        begun(here, name, 200_000)
    tars = gpu_begun.write(here.runs.parent, here.to_go_on(), MOST)
    (tmp_path / 'here' / tars['large-0'][1]).unlink()
    there = tmp_path / 'there' / 'runs'
    assert gpu_begun.read(tmp_path / 'here', there, here.jobs[1:]) == ([], [])
    assert [path.name for path in there.iterdir()] == ['a-0']


def test_a_job_that_went_on_elsewhere_waits_for_its_newer_checkpoint(tmp_path, here):
    """What is left of it on a machine where it ran before is not enough."""
    there = Places(tmp_path / 'there', tmp_path / 'root', jobs=here.jobs)
    begun(there, 'large-0', 1000)
    begun(here, 'large-0', 1000, time=1e9 + 60)
    tar, = gpu_begun.write(here.runs.parent, here.to_go_on(), MOST)['large-0']
    load(here, tmp_path / 'there', 'base')
    told, late = gpu_begun.read(tmp_path / 'there', there.runs, here.jobs)
    assert [job.name for job in late] == ['large-0'] and told[0].endswith(f'waits for its checkpoint: {tar}')
    load(here, tmp_path / 'there', tar)
    assert gpu_begun.read(tmp_path / 'there', there.runs, here.jobs) == ([], [])


def test_small_jobs_share_tars_and_each_is_whole_in_one(tmp_path, here):
    """The others go on although one tar is not there."""
    for name, size in (('a-0', 15_000), ('large-0', 250_000), ('b-0', 15_000), ('c-0', 40_000)):
        begun(here, name, size)
    tars = gpu_begun.write(here.runs.parent, here.to_go_on(), MOST)
    assert tars['a-0'] == tars['b-0'] != tars['c-0'] and len(tars['a-0']) == len(tars['c-0']) == 1
    assert not {*tars['large-0']} & {*tars['a-0'], *tars['c-0']}
    every = {tar for mine in tars.values() for tar in mine}
    assert {f'begun/{path.name}' for path in (tmp_path / 'here' / 'begun').iterdir()} == every
    load(here, tmp_path / 'there', 'base', *every - {*tars['c-0']})
    runs = tmp_path / 'there' / 'runs'
    assert [job.name for job in gpu_begun.read(tmp_path / 'there', runs, here.jobs)[1]] == ['c-0']
    assert (runs / 'b-0' / 'checkpoint.pt').stat().st_size == 15_000


def test_what_does_not_go_on_does_not_travel(tmp_path, here):
    """Of jobs that are finished, that have no checkpoint, or one that is too large to come back."""
    begun(here, 'a-0', 10)
    gpu_begun.write(here.runs.parent, here.to_go_on(), MOST)
    assert list(json.loads((tmp_path / 'here' / 'base' / 'begun.json').read_text())) == ['a-0']
    (here.runs / 'a-0' / 'result.json').write_text('{}')
    begun(here, 'b-0', 10)
    (here.runs / 'b-0' / 'checkpoint.pt').unlink()
    begun(here, 'c-0', 10)
    here.jobs[3] = here.jobs[3]._replace(returns=False)
    assert gpu_begun.write(here.runs.parent, here.to_go_on(), MOST) == {}
    assert json.loads((tmp_path / 'here' / 'base' / 'begun.json').read_text()) == {}
    assert [path.name for path in (tmp_path / 'here').iterdir() if 'begun' in path.name] == []
