"""What `timm-stn show` says of each image, and of all."""
import json
from pathlib import Path
from types import SimpleNamespace

import torch

from timm_stn.cli.lines import count_of, said_of
from timm_stn.view.caption import Caption
from timm_stn.view.classes import Classes

PLACE = torch.tensor([[[0.123, 0], [1, 0], [1, 1], [0, 1]]])


def viewed(name='mine', way=''):
    return SimpleNamespace(name=name, way=way, classes=Classes(['ant', 'bee'], {}))


def sight(right=None, truth=None, glimpses=1):
    caption = Caption([('ant', 0.12345678)], '', right)
    theta = (torch.eye(2, 3) / 3).expand(glimpses, 2, 3)
    return SimpleNamespace(
        caption=caption, truth=truth, stage='input', theta=theta, place=PLACE.expand(glimpses, 4, 2))


def test_a_line_has_what_is_known():
    line, = said_of(Path('a.png'), True, [viewed()], [sight()]).lines
    assert json.loads(line) == {
        'file': 'a.png', 'answer': 'ant', 'probability': 0.123457, 'stage': 'input',
        'theta': [[0.333333, 0, 0], [0, 0.333333, 0]], 'box': [[0.12, 0], [1, 0], [1, 1], [0, 1]]}
    said = said_of(Path('a.png'), True, [viewed(), viewed('yours', 'orbit:8')], [sight(), sight(False, 1, glimpses=2)])
    first, second = (json.loads(line) for line in said.lines)
    assert first['model'] == 'mine' and 'as' not in first and 'class' not in first
    assert second['model'] == 'yours' and second['as'] == 'orbit:8'
    assert second['class'] == 'bee' and second['right'] is False
    assert torch.tensor(second['theta']).shape == (2, 2, 3) and torch.tensor(second['box']).shape == (2, 4, 2)
    assert said.right == [None, False] and said.unnamed == [True, False]


def test_counts_name_what_there_is():
    one = [said_of(Path('a'), True, [viewed()], [sight(*args)]) for args in ((True, 0), (False, 1), (False, 1), ())]
    assert count_of([viewed()], one, 0, 0) == '4 images, 1 right, 2 wrong, 1 of classes that the model does not name'
    none = [said_of(Path('a'), False, [viewed()], [sight()])]
    assert count_of([viewed()], none, 2, 3) == '1 images, 2 skipped that cannot be read, 3 more not shown (--count)'
    both = [viewed('mine'), viewed('yours')]
    two = [said_of(Path('a'), True, both, [sight(True, 0), sight(False, 0)])]
    assert count_of(both, two, 0, 0) == '1 images, mine: 1 right, 0 wrong; yours: 0 right, 1 wrong'
