"""Which files `timm-stn show` is asked for."""
from pathlib import Path

import pytest

from timm_stn.cli.common import Refused
from timm_stn.cli.files import image_files


def test_files_and_folders_in_the_order_given(photos):
    files = image_files([str(photos / 'b.jpg'), str(photos)], photos / 'look.png', [])
    assert [(file.path.name, file.named) for file in files] == [
        ('b.jpg', True), ('a.png', False), ('b.jpg', False), ('c.png', False)]
    assert [file.label for file in files] == ['photos', '', '', 'more'], 'beside folders of classes there is no class'
    assert image_files([str(photos / 'more')], Path('look.png'), [])[0].label == 'more'


def test_the_picture_itself_is_none_of_them(photos):
    assert [file.path.name for file in image_files([str(photos)], photos / 'a.png', [])] == ['b.jpg', 'c.png']
    with pytest.raises(Refused, match="--output: '.*a.png' is one of the images"):
        image_files([str(photos / 'a.png')], photos / '..' / 'photos' / 'a.png', [])


@pytest.mark.parametrize(('name', 'message'), [
    ('gone.png', 'no file or folder'), ('bare', 'no pictures in the folder')])
def test_what_is_not_there_is_refused(photos, name, message):
    (photos / 'bare').mkdir()
    with pytest.raises(Refused, match=f'argument IMAGE: {message}'):
        image_files([str(photos / name)], Path('look.png'), [])
