"""Files that are there whole, or as they were before, with nothing left beside them."""
import pytest

from timm_stn.whole_file import write_files, write_text, write_whole


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
