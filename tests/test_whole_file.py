"""Files that are there whole, or as they were before, with nothing left beside them."""
import argparse
import os
import tempfile

import pytest

from timm_stn.whole_file import check_place, place_of_file, place_of_folder, write_files, write_text, write_whole


def broken(path):
    place = path / 'a' if path.is_dir() else path
    place.write_text('half of')
    raise RuntimeError('no space left')


def test_a_file_that_fails_stays_as_it_was(tmp_path):
    place = tmp_path / 'new' / 'a'
    write_text(place, 'old')
    with pytest.raises(RuntimeError, match='no space left'):
        write_whole(place, broken)
    assert place.read_text() == 'old' and [*place.parent.iterdir()] == [place]


def test_files_are_moved_when_all_are_there(tmp_path):
    (tmp_path / 'a').write_text('old')
    (tmp_path / 'kept').write_text('kept')
    with pytest.raises(RuntimeError, match='no space left'):
        write_files(tmp_path, broken)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {'a': 'old', 'kept': 'kept'}

    def save(beside):
        write_text(beside / 'a', 'new')
        write_text(beside / 'below' / 'b', 'b')

    write_files(tmp_path, save)
    found = {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob('*') if path.is_file()}
    assert found == {'a': 'new', 'kept': 'kept', 'below/b': 'b'}


def test_places_where_a_file_can_be_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'old').write_text('old')
    for place in (tmp_path / 'a', tmp_path / 'new' / 'deep' / 'a', tmp_path / 'old', type(tmp_path)('a')):
        check_place(place)
    assert [path.name for path in tmp_path.iterdir()] == ['old'] and (tmp_path / 'old').read_text() == 'old'


@pytest.mark.parametrize('name', [
    'folder', 'file/a', 'file/deep/a', 'gone/a', f'{"x" * 252}.png', f'{"x" * 300}/a.png', 'itself/a'])
def test_places_where_none_can_are_told_as_writing_would(name, tmp_path):
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'file').write_text('')
    (tmp_path / 'gone').symlink_to('nowhere')
    (tmp_path / 'itself').symlink_to('itself')
    for write in (check_place, lambda place: write_text(place, 'text')):
        with pytest.raises(OSError):
            write(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['file', 'folder', 'gone', 'itself']


def test_a_folder_that_takes_no_files(tmp_path, monkeypatch):
    def refuse(dir):
        raise PermissionError(13, 'Not for you', f'{dir}/tmp')

    monkeypatch.setattr(tempfile, 'TemporaryFile', refuse)
    with pytest.raises(PermissionError, match='Not for you'):
        check_place(tmp_path / 'new' / 'a')
    if os.path.isdir('/proc'):  # where nobody may write
        monkeypatch.undo()
        with pytest.raises(OSError):
            check_place(type(tmp_path)('/proc/look.png'))


def test_places_are_checked_before_anything_is_made(tmp_path):
    (tmp_path / 'file').write_text('kept')
    for path in (tmp_path / 'new' / 'ä b' / 'c', tmp_path / 'file'):
        check_place(path)
        assert place_of_file(str(path)) == path
    assert place_of_folder(str(tmp_path)) == tmp_path
    for wrong in (tmp_path, tmp_path / 'file' / 'a', tmp_path / 'file' / 'a' / 'b', '/proc/no such/a'):
        with pytest.raises(argparse.ArgumentTypeError, match=f"cannot write '{wrong}': "):
            place_of_file(str(wrong))
    for wrong in (tmp_path / 'file', '/proc/no such'):
        with pytest.raises(argparse.ArgumentTypeError, match=f"cannot write '{wrong}': "):
            place_of_folder(str(wrong))
    assert os.listdir(tmp_path) == ['file'] and (tmp_path / 'file').read_text() == 'kept'
