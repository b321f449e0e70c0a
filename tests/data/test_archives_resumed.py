"""Whatever stops it, another run goes on, and gives the same bytes; nothing half made is ever at its place."""
import errno
import importlib
import itertools
import json
import os
import shutil
import sys
from collections import namedtuple

import pytest
from small_archives import cub_files, picture, small_cub, small_gtsrb, small_svhn, tree, write_tgz

from timm_stn.data.archives import InTheWay, WrongSource, cub, unpack_cub, unpack_gtsrb, unpack_svhn
from timm_stn.data.archives.unpacking import Job

EVENTS = ('os.mkdir', 'os.rename', 'os.remove', 'os.rmdir')  # and open to write


@pytest.fixture(autouse=True)
def no_sync(monkeypatch):
    """Other programs may have much to write."""
    monkeypatch.setattr(os, 'sync', lambda: None)


def archives_of(kind, folder):
    """A call that unpacks small archives of a set to a folder."""
    if kind == 'cub':
        small_cub(folder / 'cub.tgz', classes=2, each=3, side=16)
        return lambda out: unpack_cub([folder / 'cub.tgz'], out, subset=True)
    if kind == 'gtsrb':
        zips, _ = small_gtsrb(folder, tracks=2, frames=1, tests=2, classes=2)
        return lambda out: unpack_gtsrb(zips, out, subset=True)
    small_svhn(folder / 'train.tar.gz', folder / 'by-hand')
    return lambda out: unpack_svhn([folder / 'train.tar.gz'], out, subset=True)


def killed_at(number, run):
    """Whether a process that does `run` is killed at its n-th step that changes the disk; False if it has fewer."""
    process = os.fork()
    if process:
        _, status = os.waitpid(process, 0)
        assert os.waitstatus_to_exitcode(status) in (0, 9)
        return os.waitstatus_to_exitcode(status) == 9
    steps = itertools.count(1)

    def hook(event, args):
        if (event in EVENTS or (event == 'open' and args[2] & (os.O_WRONLY | os.O_RDWR))) and next(steps) == number:
            os._exit(9)

    sys.addaudithook(hook)
    try:
        run()
        os._exit(0)
    except BaseException:
        os._exit(1)


@pytest.mark.parametrize('kind', ['cub', 'gtsrb', 'svhn'])
def test_killed_at_any_step(tmp_path, kind):
    unpack = archives_of(kind, tmp_path)
    unpack(tmp_path / 'whole')
    expected = tree(tmp_path / 'whole')
    for number in itertools.count(1):
        out = tmp_path / 'out'
        if not killed_at(number, lambda out=out: unpack(out)):
            break
        there = {path: content for path, content in tree(out).items() if '.part/' not in path} if out.exists() else {}
        assert there.items() <= expected.items(), f'something half made is at its place after step {number}'
        unpack(out)
        assert tree(out) == expected and not any(out.glob('.*.part')), f'step {number}'
        shutil.rmtree(out)
    assert number > 10


def test_what_is_there_is_not_written_again_unless_it_is_damaged(tmp_path):
    unpack = archives_of('cub', tmp_path)
    unpack(tmp_path / 'whole')
    out = tmp_path / 'out'
    assert killed_at(25, lambda: unpack(out))
    paths = sorted(path.relative_to(out / '.cub.part') for path in out.glob('.cub.part/*/*/*.jpg'))
    assert 3 <= len(paths) < 6
    for path, content in zip(paths, (b'', b'x' * (out / '.cub.part' / paths[1]).stat().st_size)):
        (out / '.cub.part' / path).write_bytes(content)
    before = [(out / '.cub.part' / path).stat() for path in paths]
    unpack(out)
    same = [(old.st_ino, old.st_mtime_ns) == ((out / path).stat().st_ino, (out / path).stat().st_mtime_ns)
            for old, path in zip(before, paths)]
    assert same == [False, False] + [True] * (len(paths) - 2)
    assert tree(tmp_path / 'out') == tree(tmp_path / 'whole')


def test_what_a_run_with_another_archive_has_left_goes(tmp_path):
    unpack = archives_of('cub', tmp_path)
    unpack(tmp_path / 'whole')
    files, _ = cub_files([('009.Other', [picture((9, 9), k) for k in range(9)])])
    write_tgz(tmp_path / 'other.tgz', files)
    assert killed_at(20, lambda: unpack_cub([tmp_path / 'other.tgz'], tmp_path / 'out', subset=True))
    assert list((tmp_path / 'out').glob('.cub.part/*/009.Other/*.jpg'))
    unpack(tmp_path / 'out')
    assert tree(tmp_path / 'out') == tree(tmp_path / 'whole')
    assert not (tmp_path / 'out' / 'train' / '009.Other').exists()


def test_a_full_disk(tmp_path, monkeypatch):
    unpack = archives_of('cub', tmp_path)
    unpack(tmp_path / 'whole')
    write, times = type(tmp_path).write_bytes, itertools.count()

    def fill(path, content):
        if next(times) == 3:
            write(path, content[:20])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(type(tmp_path), 'write_bytes', fill)
        with pytest.raises(OSError, match='No space left on device'):
            unpack(tmp_path / 'out')
    assert len(list(tmp_path.glob('out/.cub.part/*/*/*'))) == 3
    unpack(tmp_path / 'out')
    assert tree(tmp_path / 'out') == tree(tmp_path / 'whole')


def test_a_disk_without_room_is_told_before_anything_is_written(tmp_path, monkeypatch):
    unpack = archives_of('cub', tmp_path)
    usage = namedtuple('usage', 'total used free')
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage(10 ** 9, 10 ** 9, 100))
    with pytest.raises(InTheWay, match=r'about 0\.0 GB are still to be written, and 0\.0 GB are free'):
        unpack(tmp_path / 'out')
    assert not list(tmp_path.glob('out/.cub.part/t*'))


def test_an_image_that_is_none_leaves_nothing(tmp_path):
    files, photographs = cub_files()
    files[f'CUB_200_2011/images/{photographs[-1].path}'] = b'none'
    write_tgz(tmp_path / 'cub.tgz', files)
    with pytest.raises(WrongSource):
        unpack_cub([tmp_path / 'cub.tgz'], tmp_path / 'out', subset=True)
    assert not any((tmp_path / 'out').iterdir())


@pytest.mark.parametrize('kind', ['cub', 'gtsrb', 'svhn'])
def test_done_is_done(tmp_path, kind):
    unpack = archives_of(kind, tmp_path)
    unpack(tmp_path / 'out')
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / 'out').rglob('*')}
    for path in tmp_path.iterdir():
        if path.is_file():
            path.write_bytes(b'not looked at') if kind != 'svhn' else None
    done = unpack(tmp_path / 'out')
    assert (done[0] if kind == 'svhn' else done).was_there
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / 'out').rglob('*')}


@pytest.mark.parametrize('name', ['train', 'test', 'train-boxes.csv', 'test-boxes.csv'])
@pytest.mark.parametrize('kind', ['folder', 'file', 'dangling link'])
def test_what_is_in_the_way(tmp_path, name, kind):
    out = tmp_path / 'out'
    out.mkdir()
    if kind == 'folder':
        (out / name).mkdir()
    elif kind == 'file':
        (out / name).write_text('mine')
    else:
        (out / name).symlink_to(tmp_path / 'nowhere')
    with pytest.raises(InTheWay, match=rf"out' has {name} already, not of a finished run of this command"):
        unpack_cub([tmp_path / 'not-even-there'], out)
    assert [path.name for path in out.iterdir()] == [name]


def test_what_comes_in_the_way_later(tmp_path, monkeypatch):
    """Between two runs somebody puts a folder where one is to go."""
    unpack = archives_of('cub', tmp_path)

    def interrupt(old, new):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, 'rename', interrupt)
        with pytest.raises(KeyboardInterrupt):
            unpack(tmp_path / 'out')
    (tmp_path / 'out' / 'test').mkdir()
    with pytest.raises(InTheWay, match='has test already'):
        unpack(tmp_path / 'out')
    (tmp_path / 'out' / 'test').rmdir()
    assert unpack(tmp_path / 'out').counts == {'train': 4, 'test': 2, 'classes': 2}


def test_a_part_that_was_removed_is_not_taken_for_done(tmp_path):
    unpack = archives_of('cub', tmp_path)
    unpack(tmp_path / 'out')
    expected = tree(tmp_path / 'out')
    shutil.rmtree(tmp_path / 'out' / 'train')
    with pytest.raises(InTheWay, match='has test, train-boxes.csv, test-boxes.csv already'):
        unpack(tmp_path / 'out')
    shutil.rmtree(tmp_path / 'out' / 'test')
    for split in ('train', 'test'):
        (tmp_path / 'out' / f'{split}-boxes.csv').unlink()
    assert not unpack(tmp_path / 'out').was_there and tree(tmp_path / 'out') == expected
    Job(tmp_path / 'out', 'cub', (), {}).done.write_text('{')
    with pytest.raises(InTheWay, match=r'\.cub\.json. is damaged: remove it'):
        unpack(tmp_path / 'out')


def test_only_one_process_writes(tmp_path):
    fcntl = pytest.importorskip('fcntl')
    unpack = archives_of('cub', tmp_path)
    (tmp_path / 'out' / '.cub.part').mkdir(parents=True)
    with (tmp_path / 'out' / '.cub.part' / 'lock').open('w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InTheWay, match='another process is writing there'):
            unpack(tmp_path / 'out')
    assert json.loads((unpack(tmp_path / 'out').out / '.cub.json').read_text()) == {'train': 4, 'test': 2, 'classes': 2}


@pytest.mark.parametrize('kind', ['cub', 'gtsrb', 'svhn'])
def test_another_process_is_done_while_this_one_checks_its_sources(tmp_path, monkeypatch, kind):
    unpack, module = archives_of(kind, tmp_path), importlib.import_module(f'timm_stn.data.archives.{kind}')
    plan = module._plan

    def slow(*args):
        found = plan(*args)
        monkeypatch.setattr(module, '_plan', plan)
        unpack(tmp_path / 'out')
        before.update(times(tmp_path / 'out'))
        return found

    def times(folder):
        return {path: path.stat().st_mtime_ns for path in folder.rglob('*')}

    before = {}
    monkeypatch.setattr(module, '_plan', slow)
    for _ in range(2):
        done = unpack(tmp_path / 'out')
        assert (done[0] if kind == 'svhn' else done).was_there
        assert times(tmp_path / 'out').items() == before.items()  # nor is a hidden folder left


def test_another_process_has_made_a_part_meanwhile(tmp_path, monkeypatch):
    small_cub(tmp_path / 'part.tgz', classes=2, each=3)
    small_cub(tmp_path / 'cub.tgz')
    plan = cub._plan

    def slow(*args):
        found = plan(*args)
        monkeypatch.setattr(cub, '_plan', plan)
        unpack_cub([tmp_path / 'part.tgz'], tmp_path / 'out', subset=True)
        return found

    monkeypatch.setattr(cub, '_plan', slow)
    monkeypatch.setattr(cub, 'COUNTS', {'train': 6, 'test': 6, 'classes': 3})
    with pytest.raises(InTheWay, match='holds a part of the set, 4 train'):
        unpack_cub([tmp_path / 'cub.tgz'], tmp_path / 'out')


def test_what_two_processes_have_written_is_put_in_order(tmp_path):
    """The first is done, and the second has filled its folder again."""
    unpack = archives_of('cub', tmp_path)
    unpack(tmp_path / 'out')
    expected = tree(tmp_path / 'out')
    part = tmp_path / 'out' / '.cub.part'
    for name in ('train', 'test'):
        shutil.copytree(tmp_path / 'out' / name, part / name)
        shutil.copy(tmp_path / 'out' / f'{name}-boxes.csv', part)
    shutil.copy(tmp_path / 'out' / '.cub.json', part / 'whole.json')
    assert unpack(tmp_path / 'out').was_there
    assert tree(tmp_path / 'out') == expected and not part.exists()


def test_a_file_system_without_locks_is_written_to(tmp_path, monkeypatch):
    fcntl = pytest.importorskip('fcntl')

    def none(file, how):
        raise OSError(errno.ENOSYS, 'Function not implemented')

    monkeypatch.setattr(fcntl, 'flock', none)
    assert archives_of('cub', tmp_path)(tmp_path / 'out').counts['train'] == 4
    assert not (tmp_path / 'out' / '.cub.part').exists()


def test_on_a_network_what_is_open_stays_for_a_moment(tmp_path, monkeypatch):
    """NFS renames a file that is removed while it is open, in its folder."""
    unlink, held = os.unlink, []

    def silly(path, **kwargs):
        if held and os.path.basename(path) == 'lock' and not held[-1].closed:
            os.rename(path, os.path.join(os.path.dirname(path), '.nfs0001'))
        else:
            unlink(path, **kwargs)

    unpacking = importlib.import_module('timm_stn.data.archives.unpacking')
    take = unpacking.take
    monkeypatch.setattr(unpacking, 'take', lambda file, path: held.append(file) or take(file, path))
    monkeypatch.setattr(os, 'unlink', silly)
    for _ in range(2):
        archives_of('cub', tmp_path)(tmp_path / 'out')
        assert not (tmp_path / 'out' / '.cub.part').exists()


def test_a_lock_that_was_removed_is_none(tmp_path, monkeypatch):
    """Between opening and locking it, another process was done, removed it, and a third one made its own."""
    fcntl = pytest.importorskip('fcntl')
    unpack, lock = archives_of('cub', tmp_path), fcntl.flock

    def late(file, how):
        lock(file, how)
        shutil.rmtree(tmp_path / 'out' / '.cub.part')
        (tmp_path / 'out' / '.cub.part').mkdir()
        (tmp_path / 'out' / '.cub.part' / 'lock').touch()

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, 'flock', late)
        with pytest.raises(InTheWay, match='another process is writing there'):
            unpack(tmp_path / 'out')
    assert not unpack(tmp_path / 'out').was_there
