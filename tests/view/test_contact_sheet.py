"""The page of many images: whole in itself, escaped, with what its choices go by."""
import base64
import io
import re
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

from timm_stn.view.caption import Caption
from timm_stn.view.classes import Classes
from timm_stn.view.contact_sheet import card_of, page_of
from timm_stn.view.gallery import Sight
from timm_stn.view.lattice import SIDE

WHOLE = torch.cartesian_prod(torch.linspace(-1, 1, SIDE), torch.linspace(-1, 1, SIDE)).flip(-1)[None]
NASTY = '<img src="http://x">\'&\udcff.png'


class Network:
    def __init__(self, name):
        self.name, self.classes = name, Classes(['ant', 'bee', NASTY], {})


def sight(answer='ant', right=None, truth=None, size=200):
    picture = Image.effect_noise((size, size), 80).convert('RGB')
    caption = Caption([(answer, 0.75), ('bee', 0.125)], 'note', right, '' if right in (None, True) else f'is {NASTY}')
    titles = 'where it looked', 'what it saw', 'answer'
    return Sight(picture, [picture], [0], titles, 'told', 'input', torch.eye(2, 3), WHOLE,
                 torch.zeros(1, 4, 2), torch.zeros(0, 4), caption, truth)


class Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.texts = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)

    def of(self, name):
        return [attrs for tag, attrs in self.tags if tag == name]


def read(page):
    reader = Reader()
    reader.feed(page)
    return reader


def test_a_page_holds_all_that_it_shows():
    cards = [card_of(f'{i}.png', [sight()], [Network('mine')]) for i in range(3)]
    page = page_of(cards, 'mine', ['3 images'])
    reader = read(page)
    assert len(reader.of('article')) == 3 and len(reader.of('img')) == 6
    for image in reader.of('img'):
        kind, data = re.fullmatch(r'data:image/(\w+);base64,(.+)', image['src']).groups()
        with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
            assert picture.format.lower() == kind and picture.size == (168, 168)
    assert not re.search(r'(src|href)=(?!["\']?data:)|url\(|@import|fetch\(', page)
    policy, = (meta['content'] for meta in reader.of('meta') if 'content' in meta and 'default' in meta['content'])
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_names_are_text_and_nothing_else():
    card = card_of(NASTY, [sight(NASTY, False, 2)], [Network(NASTY)])
    page = page_of([card, card_of('b.png', [sight()], [Network('mine')])], NASTY, [NASTY])
    page.encode()
    reader = read(page)
    known = NASTY.replace('\udcff', '?')
    assert all(image['src'].startswith('data:') for image in reader.of('img')) and len(reader.of('img')) == 4
    assert reader.of('article')[0]['data-class'] == known
    assert {'value': known} in [dict(option) for option in reader.of('option')]
    assert f'is {known}' in reader.texts and known in reader.texts and len(reader.of('script')) == 1


@pytest.mark.parametrize(('answers', 'rights', 'kinds'), [
    (['ant'], [None], ''), (['ant'], [True], 'right'), (['ant'], [False], 'wrong'),
    (['ant', 'ant'], [True, True], 'right'), (['ant', 'bee'], [True, False], 'wrong differ'),
    (['ant', 'bee'], [None, None], 'differ')])
def test_cards_know_what_they_are_found_by(answers, rights, kinds):
    row = [sight(answer, right, None if right is None else 1) for answer, right in zip(answers, rights)]
    networks = [Network(f'model {k}') for k in range(len(row))]
    card = card_of('a/b/c.png', row, networks)
    reader = read(page_of([card], 'x', []))
    attrs, = reader.of('article')
    assert attrs['data-is'] == kinds and attrs['data-p'] == '0.750000'
    assert attrs['data-class'] == ('ant' if rights[0] is None else 'bee')
    assert 'b/c.png' in reader.texts and ('model 1' in reader.texts) == (len(row) > 1)
    shown = [option['value'] for option in reader.of('option')]
    assert [kind for kind in ('right', 'wrong', 'differ') if kind in shown] == kinds.split()


def test_hundreds_of_images_make_a_small_page():
    """Noise, which compresses worst of all."""
    card = card_of('a.png', [sight()], [Network('mine')])
    assert len(page_of([card] * 300, 'x', [])) < 10e6
