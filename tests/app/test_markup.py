"""What is shown, as HTML."""
import base64
import re
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
from PIL import Image

from timm_stn.app.answers import Answers
from timm_stn.app.markup import CSS, answers_of, escaped, hint, pictures_of, refusal

HOSTILE = '</td><script>alert(1)</script><img src="http://a/b.png" onerror="x"> {{value}} ${props} `'
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
FOUND = Answers(
    [('Where it looked', PICTURE), ('What it saw', PICTURE)], [(HOSTILE, 0.9), ('b', 0.1)], [('b', 1.0)], '')


class Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.texts = [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.texts.append(data)


def read(html):
    reader = Reader()
    reader.feed(html)
    return reader


def test_names_of_others_are_texts():
    page = read(answers_of(FOUND))
    assert not {tag for tag, _ in page.tags} & {'script', 'img'}
    assert HOSTILE in page.texts and '{{' not in answers_of(FOUND) and '${' not in answers_of(FOUND)
    for html in (escaped(HOSTILE), hint(HOSTILE), refusal(HOSTILE)):
        assert HOSTILE in read(html).texts and '{' not in html


def test_pictures_are_within():
    page = read(pictures_of(FOUND, ['A note.']))
    sources = [attributes['src'] for tag, attributes in page.tags if tag == 'img']
    assert len(sources) == 2 and all(attributes['alt'] for tag, attributes in page.tags if tag == 'img')
    content = base64.b64decode(sources[0].removeprefix('data:image/png;base64,'))
    assert np.array_equal(Image.open(BytesIO(content)), PICTURE)
    assert any('A note.' in text for text in page.texts)


def test_answers_have_probabilities_and_bars():
    texts = read(answers_of(FOUND)).texts
    assert texts.count('90.0 %') == 1 and texts.count('10.0 %') == 1 and '100.0 %' in texts
    assert [float(w) for w in re.findall(r'width:([\d.]+)%', answers_of(FOUND))] == [90, 10, 100]


def test_it_says_why_there_are_no_answers_of_the_backbone():
    html = answers_of(FOUND._replace(plain=None, reason='It has none.'))
    assert 'It has none.' in html and html.count('<table>') == 1


def test_the_style_asks_for_nothing():
    assert not re.search(r'url\(|@import|http', CSS)
