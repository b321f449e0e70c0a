"""Tables of boxes: what is read, what is refused, which file they are of, and where they lie in the input."""
import pytest
import torch

from timm_stn.view.boxes import are_beyond, boxes_of_file, by_trailing_parts, read_boxes, to_input


def table(tmp_path, text):
    (tmp_path / 'boxes.csv').write_text(text, encoding='utf-8')
    return tmp_path / 'boxes.csv'


def test_boxes_are_read_by_name_of_column(tmp_path):
    text = '\ufefffile, width,y1, x1,x2,y2\n./a/b.png,9,2,1,3.5,4\n"c, d.png",9,0,0,1,1\na/b.png,9,5,5,5,6\n\n'
    assert read_boxes(table(tmp_path, text)) == {
        'a/b.png': [(1, 2, 3.5, 4), (5, 5, 5, 6)], 'c, d.png': [(0, 0, 1, 1)]}


def test_a_table_without_rows_has_no_boxes(tmp_path):
    assert read_boxes(table(tmp_path, 'file,x1,y1,x2,y2\n')) == {}


@pytest.mark.parametrize('text,message', [
    ('', 'line 1: columns file,x1,y1,x2,y2 are needed; file,x1,y1,x2,y2 missing'),
    ('file;x1;y1;x2;y2\n', "missing in 'file;x1;y1;x2;y2'"),
    ('file,x1,y1,y2\na,1,1,2\n', 'line 1: .*; x2 missing'),
    ('file,x1,y1,x2,y2\na,1,1,2,2\nb,1,1,two,2\n', "line 3: x2 must be a number, got 'two'"),
    ('file,x1,y1,x2,y2\na,1,1,2\n', "line 2: y2 must be a number, got ''"),
    ('file,x1,y1,x2,y2\na,1,1,nan,2\n', "line 2: x2 must be a number, got 'nan'"),
    ('file,x1,y1,x2,y2\na,1,1,0,2\n', 'line 2: x2 must not be less than x1, got x1=1, x2=0'),
    ('file,x1,y1,x2,y2\na,1,1,2,0.5\n', 'line 2: y2 must not be less than y1, got y1=1, y2=0.5'),
    ('file,x1,y1,x2,y2\n,1,1,2,2\n', 'line 2: no file'),
])
def test_what_is_no_table_of_boxes_is_refused_with_its_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_boxes(table(tmp_path, text))


def test_files_are_found_by_the_last_parts_of_their_path(tmp_path, monkeypatch):
    boxes = {'c.png': [(0, 0, 1, 1)], 'b/c.png': [(0, 0, 2, 2)], (tmp_path / 'd.png').as_posix(): [(0, 0, 3, 3)]}
    assert boxes_of_file('/a/b/c.png', boxes) == [(0, 0, 2, 2)]
    assert boxes_of_file('/a/bb/c.png', boxes) == [(0, 0, 1, 1)]
    assert boxes_of_file('/a/b/cc.png', boxes) == []
    monkeypatch.chdir(tmp_path)
    assert boxes_of_file('d.png', boxes) == [(0, 0, 3, 3)]
    assert by_trailing_parts('e/d.png', boxes) is None


def test_boxes_in_the_input():
    config = dict(input_size=(3, 100, 100), crop_pct=0.5, interpolation='bilinear')
    boxes = torch.tensor([[50.0, 50.0, 150.0, 150.0], [0.0, 0.0, 200.0, 100.0]])
    assert to_input(boxes, (200, 200), config).tolist() == [[-1, -1, 1, 1], [-2, -2, 2, 0]]
    assert to_input(boxes.long(), (200, 200), config).tolist() == to_input(boxes, (200, 200), config).tolist()
    assert to_input(boxes[:0], (200, 200), config).shape == (0, 4)


def test_a_table_in_another_encoding_is_refused(tmp_path):
    (tmp_path / 'b.csv').write_bytes('file,x1,y1,x2,y2\nGrünfink.jpg,1,2,3,4\n'.encode('latin-1'))
    with pytest.raises(ValueError, match='it must be a text file in UTF-8'):
        read_boxes(tmp_path / 'b.csv')


@pytest.mark.parametrize(('box', 'beyond'), [
    ((0, 0, 20, 10), False), ((-0.5, 0, 20.5, 10.5), False), ((0, 0, 22, 10), True), ((0, 0, 20, 12), True),
    ((-2, 0, 20, 10), True)])
def test_boxes_of_other_units_are_told(box, beyond):
    assert are_beyond([(1, 1, 2, 2), box], (20, 10)) is beyond
