"""What travels to a GPU machine and back: parts and loads of a pack, files in pieces."""
import io
import os
import random
import subprocess
import tarfile
from argparse import Namespace

import gpu
import numpy as np
import pytest
import torch
from birds_cells import birds
from cells import SEEDS
from gpu_files import add, read, write
from gpu_jobs import Places
from gpu_pack import DIGITS, PARTS, SIDE, Load, Missing, Sources, lacking, loads, pack, report, thin, unpack
from gpu_queue import Job, queue
from gpu_tiny import images
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import write_mnist
from measure_learning import pictures
from PIL import Image
from records import read as read_lines
from safetensors.torch import load_file, save_file

MOST = 200_000


def contents(path):
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}


# there


def job(name, *parts):
    return Job(name, ('train_task.py',), 1, parts)


NEEDS = st.lists(st.lists(st.sampled_from('abcdef'), min_size=1, max_size=4, unique=True), max_size=8)


@given(NEEDS, st.integers(4, 12))
def test_every_job_has_its_parts_when_its_load_is_there(needs, room):
    sizes = dict(zip(('base', *'abcdef'), (1, 1, 2, 3, 3, 3, 2)))
    jobs = [job(f'{i}-', *parts) for i, parts in enumerate(needs)]
    found = loads(jobs, sizes, room, ['base'])
    parts = [part for load in found for part in load.parts]
    assert len(parts) == len(set(parts)) and set(parts) == {'base', *(part for need in needs for part in need)}
    assert all(sum(sizes[part] for part in load.parts) <= room for load in found)
    assert sorted(j.name for load in found for j in load.jobs) == sorted(j.name for j in jobs)
    for number, load in enumerate(found):
        here = {part for earlier in found[:number + 1] for part in earlier.parts}
        before = here - {*load.parts}
        assert all({*j.parts} <= here and (number == 0 or not {*j.parts} <= before) for j in load.jobs)


def test_parts_of_the_first_jobs_travel_first():
    assert loads([job('x', 'a'), job('y', 'b', 'c'), job('z', 'd')], dict(base=1, a=2, b=3, c=3, d=1), 6, ['base']) == [
        Load(['base', 'a', 'b'], [job('x', 'a')]), Load(['c', 'd'], [job('y', 'b', 'c'), job('z', 'd')])]


def test_birds_travel_as_they_are(tmp_path):
    data = tmp_path / 'data' / 'cub200-2010'
    data.mkdir(parents=True)
    for split in ('train', 'test'):
        images(data / f'{split}.tar', classes=3, count=2, side=16, kind='jpeg')
    pack(Sources(tmp_path / 'data'), tmp_path / 'pack', ['birds-train', 'birds-test'])
    birds = next(job for job in queue() if job.kind == 'birds')
    assert lacking([birds], {'birds-train', 'lite0'}) == [
        'waiting for parts that are not here (timm-scripts, birds-test): 1 birds']
    paths, broken = unpack(tmp_path / 'pack', tmp_path / 'there', [birds._replace(parts=('birds-train', 'birds-test'))])
    assert not broken
    for split in ('train', 'test'):
        for name, content in contents(data / f'{split}.tar').items():
            assert (paths['birds'] / split / name).read_bytes() == content


def test_a_part_that_is_broken_stops_what_needs_it_alone(tmp_path):
    for part in ('birds-train', 'birds-test', 'mnist'):
        (tmp_path / part).mkdir()
    images(tmp_path / 'birds-test' / 'test.tar', classes=3, count=2, side=16, kind='jpeg')
    (tmp_path / 'birds-train' / 'train.tar').write_bytes(b'broken')
    _, broken = unpack(tmp_path, tmp_path / 'there', [job('x', 'birds-train', 'birds-test'), job('y', 'mnist')])
    assert list(broken) == ['birds-train'] and 'ReadError' in broken['birds-train']


def test_of_a_tar_may_travel_some_images_and_the_names_of_others(tmp_path):
    images(tmp_path / 'all.tar', classes=3, count=2, side=16, kind='png')
    every = contents(tmp_path / 'all.tar')
    chosen = list(every)[1]
    thin(tmp_path / 'all.tar', tmp_path / 'some.tar', {chosen})
    assert contents(tmp_path / 'some.tar') == {
        name: every[name] if name == chosen else b'' for name in every if name[:5] == chosen[:5] or '00000_' in name}


def test_a_sign_loses_what_jpeg_takes_of_it_alone(tmp_path):
    """As if each were a JPEG of its own, but for the size: what lies beside it in the large one does not matter."""
    data = tmp_path / 'data' / 'gtsrb32'
    data.mkdir(parents=True)
    for split, count in (('train', 30), ('test', 11)):
        images(data / f'{split}.tar', classes=5, count=count, side=SIDE, kind='png')
        (data / f'{split}-boxes.csv').write_text('file,width\nx,3\n')
    pack(Sources(tmp_path / 'data'), tmp_path / 'pack', ['signs'])
    paths, broken = unpack(tmp_path / 'pack', tmp_path, [job('x', 'signs')])
    assert not broken
    for split in ('train', 'test'):
        assert (paths['signs'] / f'{split}-boxes.csv').read_text() == 'file,width\nx,3\n'
        before, after = contents(data / f'{split}.tar'), contents(paths['signs'] / f'{split}.tar')
        assert list(before) == list(after)
        for name, content in before.items():
            alone = io.BytesIO()
            Image.open(io.BytesIO(content)).save(alone, 'JPEG', quality=92, subsampling=0)
            assert (np.asarray(Image.open(io.BytesIO(after[name]))) == np.asarray(Image.open(alone))).all()


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    images(tmp_path / 'a.tar', classes=1, count=2, side=16, kind='png')
    every = contents(tmp_path / 'a.tar')
    cut = list(every)[1]
    with tarfile.open(tmp_path / 'cut.tar', 'w') as tar:
        for name, content in every.items():
            add(tar, name, content[:-100] if name == cut else content)
    with pytest.raises(SystemExit, match=f'cut.tar: {cut}: .*truncated'):
        pictures(tmp_path / 'cut.tar', 16, [list(every)])


def test_what_is_missing_is_named(tmp_path):
    write_mnist(tmp_path / 'data' / 'mnist')
    with pytest.raises(Missing) as error:
        pack(Sources(tmp_path / 'data'), tmp_path / 'pack', ['mnist', 'lite0', 'signs'])
    assert str(error.value).splitlines() == [
        'lite0: --weights is not given, and needed',
        f'signs: --data: there is no {tmp_path}/data/gtsrb32/train.tar',
        'Without: --parts base mnist (with make PARTS="...")']
    assert not (tmp_path / 'pack').exists(), 'nothing is half done'


def test_a_part_that_cannot_be_made_leaves_the_one_before(tmp_path):
    (tmp_path / 'pack' / 'mnist').mkdir(parents=True)
    (tmp_path / 'pack' / 'mnist' / 'digits').write_text('old')
    write_mnist(tmp_path / 'mnist')
    (tmp_path / 'mnist' / DIGITS[-1]).unlink()
    (tmp_path / 'mnist' / DIGITS[-1]).mkdir()
    with pytest.raises(IsADirectoryError):
        pack(Sources(tmp_path), tmp_path / 'pack', ['mnist'])
    assert [path.name for path in (tmp_path / 'pack').iterdir()] == ['mnist']
    assert (tmp_path / 'pack' / 'mnist' / 'digits').read_text() == 'old'


def test_files_that_are_none_of_mnist_are_told_here_and_not_on_the_gpu(tmp_path):
    write_mnist(tmp_path / 'mnist')
    (tmp_path / 'mnist' / DIGITS[0]).write_text('<html>404')
    with pytest.raises(SystemExit, match=f'mnist: .*{DIGITS[0]}: corrupt or truncated'):
        pack(Sources(tmp_path), tmp_path / 'pack', ['mnist'])
    assert not (tmp_path / 'pack' / 'mnist').exists()


def test_the_report_says_what_to_take_along(tmp_path):
    for name in ('base', 'mnist', 'learning'):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'file').write_bytes(bytes(2 ** 20))
    jobs = [job('x-1', 'mnist'), job('x-2', 'mnist'), job('y-1', 'signs')]
    said = report(tmp_path, tmp_path, jobs, {})
    assert '    1.00 MiB  mnist\n' in said and 'load 1 with the checkout: base mnist\n' in said
    assert 'jobs that can then begin: 2 x\n' in said and 'load 2' not in said
    assert 'more than 60 MiB' not in said
    assert said.endswith('waiting for parts that are not here (signs): 1 y')
    (tmp_path / 'mnist' / 'file').write_bytes(bytes(61 * 2 ** 20))
    assert 'more than 60 MiB, for a part travels whole\n' in report(tmp_path, tmp_path, jobs, {})


def test_tars_of_a_begun_job_travel_one_after_another(tmp_path):
    """No load is too large, and the job is told when its last one is there."""
    tars = [f'begun/runs-{i}.tar' for i in range(4)]
    for name, mib in dict.fromkeys(('base/file', 'mnist/file'), 10).items() | dict.fromkeys(tars, 15).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(mib * 2 ** 20))
    subprocess.run(['git', 'init', '-q'], cwd=tmp_path, check=True)
    (tmp_path / '.git' / 'info' / 'exclude').write_text('*')
    jobs = [job('x-1', 'mnist'), job('y-1', 'mnist'), job('z-1', 'signs')]
    said = report(tmp_path, tmp_path, jobs, {'x-1': tars, 'z-1': ['begun/runs-0.tar']})
    assert f'load 1 with the checkout: base mnist {tars[0]} {tars[1]}\n' in said
    first, second = said.split('load 2 with the checkout: ')
    assert 'can then begin: 1 y' in first and second.startswith(f'{tars[2]} {tars[3]}\n')
    assert 'can then begin: 1 x' in second and 'more than' not in said and 'load 3' not in said


@pytest.mark.parametrize('part, given', [('lite0', 'weights'), ('lite2', 'weights2')])
def test_weights_travel_in_half_precision(tmp_path, part, given):
    state = {'a': torch.rand(3, 4), 'b': torch.tensor([7])}
    save_file(state, tmp_path / 'some.safetensors')
    pack(Sources(**{given: tmp_path / 'some.safetensors'}), tmp_path / 'pack', [part])
    found = load_file(tmp_path / 'pack' / part / 'model.safetensors')
    assert torch.equal(found['a'], state['a'].half()) and torch.equal(found['b'], state['b'])


def test_a_second_backbone_is_packed_where_its_weights_are_given(tmp_path, monkeypatch, capsys):
    """Without, all else is, and the report tells what waits for it."""
    made = []
    monkeypatch.setattr('gpu_pack.pack', lambda sources, folder, names: made.append(list(names)))
    places = Places(tmp_path, tmp_path, jobs=[job('birds2-0', 'lite2')])
    for weights2 in (None, tmp_path / 'some.safetensors'):
        gpu.pack(Namespace(places=places, data=None, weights=None, weights2=weights2, scripts=None, parts=None,
                           pack=tmp_path, root=tmp_path, only='*'))
        said = capsys.readouterr().out
        assert ('lite2 is left out, for --weights2' in said) == (weights2 is None)
        assert 'waiting for parts that are not here (lite2): 1 birds2' in said
    assert made == [[part for part in PARTS if part != 'lite2'], [*PARTS]]
    with pytest.raises(Missing, match='lite2: --weights2 is not given'):
        pack(Sources(), tmp_path, ['lite2'])


def test_birds_of_the_page_have_jobs():
    names = {job.name for job in queue() if job.kind in ('birds', 'birds2')}
    assert names == {cell.name.replace('*', str(seed)) for cell in birds() for seed in range(SEEDS)}


def test_jobs_name_parts_and_words_that_there_are():
    jobs = queue()
    assert len({job.name for job in jobs}) == len(jobs) and len(jobs) == 6 + 87 + 14 + 318 + 52 + 45 + 3 + 1
    names = ('mnist', 'learning', 'birds', 'signs', 'lite0', 'lite2', 'run', 'parent', 'device', 'workers', 'left')
    words = dict.fromkeys(names, '')
    for each in jobs:
        assert each.parts and all(word.format(**words) is not None for word in each.command)


# and back


def files(folder, sizes):
    folder.mkdir(exist_ok=True)
    for i, count in enumerate(sizes):
        path = folder / f'job-{i}' / 'file'
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(random.Random(i).randbytes(count))
        yield f'job-{i}/file', path


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(0, 350_000), max_size=8))
def test_files_come_back_whole_or_are_named(tmp_path_factory, sizes):
    folder = tmp_path_factory.mktemp('files')
    there = list(files(folder / 'there', sizes))
    out = folder / 'out'
    out.mkdir()
    left_out = write(out, there, MOST, count=3)
    assert all(path.stat().st_size <= MOST for path in out.iterdir()) and len(list(out.iterdir())) <= 3
    assert read(out, folder / 'here') == []
    for name, path in there:
        assert (folder / 'here' / name).is_file() == (name not in left_out)
        assert name in left_out or (folder / 'here' / name).read_bytes() == path.read_bytes()
    assert sum(sizes) > 2.3 * MOST or not left_out


def test_a_file_of_which_a_piece_is_missing_is_named_and_leaves_the_one_before(tmp_path):
    there = list(files(tmp_path / 'there', [10, 300_000]))
    (tmp_path / 'out').mkdir()
    assert write(tmp_path / 'out', there, MOST, count=3) == []
    (tmp_path / 'out' / 'runs-1.tar').unlink()
    (tmp_path / 'here' / 'job-1').mkdir(parents=True)
    (tmp_path / 'here' / 'job-1' / 'file').write_bytes(b'before')
    assert read(tmp_path / 'out', tmp_path / 'here') == ['job-1/file came in part, and is not used']
    assert (tmp_path / 'here' / 'job-1' / 'file').read_bytes() == b'before'
    assert (tmp_path / 'here' / 'job-0' / 'file').stat().st_size == 10
    assert not list((tmp_path / 'here').glob('.collect*')), 'nothing is left beside'


@pytest.mark.parametrize('keep', [0, 100, 6_000, 20_000])
def test_of_a_tar_that_is_cut_off_comes_what_is_whole(tmp_path, keep):
    there = list(files(tmp_path / 'there', [3_000, 40_000]))
    (tmp_path / 'out').mkdir()
    write(tmp_path / 'out', there)
    tar = tmp_path / 'out' / 'runs-0.tar'
    tar.write_bytes(tar.read_bytes()[:keep])
    named, = read(tmp_path / 'out', tmp_path / 'here')
    assert named.startswith('runs-0.tar is broken off')
    assert (tmp_path / 'here' / 'job-0' / 'file').is_file() == (keep >= 6_000)
    assert not (tmp_path / 'here' / 'job-1' / 'file').exists()


def test_what_is_newer_stays(tmp_path):
    there = list(files(tmp_path / 'there', [10]))
    (tmp_path / 'out').mkdir()
    write(tmp_path / 'out', there)
    assert read(tmp_path / 'out', tmp_path / 'here') == []
    place = tmp_path / 'here' / 'job-0' / 'file'
    assert place.stat().st_mtime == pytest.approx(there[0][1].stat().st_mtime, abs=1e-3)
    place.write_bytes(b'went on here')
    os.utime(place, (2e9, 2e9))
    assert read(tmp_path / 'out', tmp_path / 'here') == [
        'job-0/file is older than the one that is here, and is not used']
    assert place.read_bytes() == b'went on here'


def test_a_disk_that_is_full_in_the_middle_leaves_the_state_before(tmp_path, monkeypatch):
    there = list(files(tmp_path / 'there', [400_000]))
    out, write_bytes = tmp_path / 'out', type(tmp_path).write_bytes
    out.mkdir()
    write(out, there, MOST, count=3)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert len(before) == 3
    there[0][1].write_bytes(bytes(400_000))

    def full(path, data):
        if 'runs-2' in path.name:
            raise OSError('no space')
        return write_bytes(path, data)

    monkeypatch.setattr(type(tmp_path), 'write_bytes', full)
    with pytest.raises(OSError, match='no space'):
        write(out, there, MOST, count=3)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_pieces_of_two_states_of_a_file_are_not_joined(tmp_path):
    """As where a machine goes while the second tar is not written anew yet."""
    there = list(files(tmp_path / 'there', [300_000]))
    for out in ('old', 'new'):
        (tmp_path / out).mkdir()
        write(tmp_path / out, there, MOST, count=3)
        there[0][1].write_bytes(bytes(300_000))
    (tmp_path / 'new' / 'runs-1.tar').write_bytes((tmp_path / 'old' / 'runs-1.tar').read_bytes())
    assert read(tmp_path / 'new', tmp_path / 'here') == ['job-0/file came in part, and is not used'] * 2
    assert not (tmp_path / 'here' / 'job-0' / 'file').exists()


@pytest.mark.parametrize('split', [False, True])
@pytest.mark.parametrize('newer', [1, 2])
def test_of_two_states_of_a_file_the_newer_is_used(tmp_path, split, newer):
    """Whichever tar is read first."""
    (tmp_path / 'out').mkdir()
    for number in (1, 2):
        there = list(files(tmp_path / 'there', [300_000 if split else 10]))
        there[0][1].write_bytes(bytes([number]) * (300_000 if split else 10))
        os.utime(there[0][1], (1e9 + (number == newer),) * 2)
        assert write(tmp_path / 'out', there, MOST, count=3, first=3 * number) == []
    assert read(tmp_path / 'out', tmp_path / 'here') == []
    assert set((tmp_path / 'here' / 'job-0' / 'file').read_bytes()) == {newer}


def test_a_piece_that_has_changed_is_not_used(tmp_path):
    there = list(files(tmp_path / 'there', [300_000]))
    (tmp_path / 'out').mkdir()
    write(tmp_path / 'out', there, MOST, count=3)
    tar = tmp_path / 'out' / 'runs-1.tar'
    tar.write_bytes(tar.read_bytes()[:50_000] + b'!' + tar.read_bytes()[50_001:])
    assert read(tmp_path / 'out', tmp_path / 'here') == ['job-0/file came in part, and is not used']


def test_what_is_written_replaces_what_was(tmp_path):
    (tmp_path / 'out').mkdir()
    write(tmp_path / 'out', list(files(tmp_path / 'there', [100, 150_000, 150_000])), MOST, count=3)
    assert {path.name for path in (tmp_path / 'out').iterdir()} == {'runs-0.tar', 'runs-1.tar'}
    write(tmp_path / 'out', list(files(tmp_path / 'there', [100])), MOST, count=3)
    assert {path.name for path in (tmp_path / 'out').iterdir()} == {'runs-0.tar'}


def test_a_file_that_goes_meanwhile_stops_nothing(tmp_path):
    (tmp_path / 'out').mkdir()
    there = list(files(tmp_path / 'there', [100]))
    assert write(tmp_path / 'out', [('gone', tmp_path / 'gone'), *there]) == []
    read(tmp_path / 'out', tmp_path / 'here')
    assert [path.name for path in (tmp_path / 'here').iterdir()] == ['job-0']


def test_lines_of_several_machines_come_together(tmp_path):
    """Whichever is collected first, and whatever was written here meanwhile."""
    for out, lines in (('a', ['{"x": 1}', '{"x": 2}']), ('b', ['{"x": 1}', '{"x": 3}'])):
        path = tmp_path / 'there' / out
        path.parent.mkdir(exist_ok=True)
        path.write_text(''.join(f'{line}\n' for line in lines) + '{"x": ')
        (tmp_path / out).mkdir()
        write(tmp_path / out, [('learning/lines.jsonl', path)])
    place = tmp_path / 'here' / 'learning' / 'lines.jsonl'
    place.parent.mkdir(parents=True)
    place.write_text('{"x": 0}\n')
    for out in ('b', 'a', 'b'):
        assert read(tmp_path / out, tmp_path / 'here', 'lines.jsonl') == []
    assert [line['x'] for line in read_lines(place)] == [0, 1, 3, 2]


def test_a_line_that_was_not_written_to_its_end_is_left_out(tmp_path):
    (tmp_path / 'lines').write_text('{"a": 1}\n{"a": 2}\n{"a": ')
    assert read_lines(tmp_path / 'lines') == [{'a': 1}, {'a': 2}]
    (tmp_path / 'lines').write_text('{"a"')
    assert read_lines(tmp_path / 'lines') == read_lines(tmp_path / 'none') == []
