"""Files that are there whole, or as they were before, with nothing left beside them."""
import argparse
import os

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


@pytest.mark.skipif(os.geteuid() == 0, reason='root writes everywhere')
def test_a_folder_that_may_not_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError):
        check_place(tmp_path / 'a')
