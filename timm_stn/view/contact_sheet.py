"""A contact sheet of hundreds of images as one page of HTML: all that it shows is in the file, it asks for nothing."""
import base64
from collections.abc import Sequence
from html import escape
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from PIL import Image, features

from .caption import Caption, percent
from .gallery import Sight, Viewed
from .rows import reach_of_all, tiles_of

__all__ = ['Card', 'card_of', 'page_of']

SIDE, QUALITY = 168, 72  # pixels of a thumbnail, and of its compression
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
ALL = ('all', 'right', 'wrong', 'differ')

STYLE = '''
:root{color-scheme:light dark;--ink:#1f2430;--faint:#70788a;--paper:#f4f5f7;--card:#fff;--good:#138a4b;--bad:#d0312d}
@media(prefers-color-scheme:dark){:root{--ink:#e8eaf0;--faint:#98a0b2;--paper:#14171d;--card:#1f242d;--good:#3fc27f;
--bad:#ff6b63}}
body{margin:0;padding:20px 24px;font:14px/1.4 system-ui,sans-serif;color:var(--ink);background:var(--paper)}
h1{font-size:19px;margin:0 0 2px}p{margin:2px 0;color:var(--faint);max-width:80em}
form{display:none;flex-wrap:wrap;gap:6px 18px;align-items:center;position:sticky;top:0;padding:10px 0;
background:var(--paper);z-index:1}
select{font:inherit;max-width:16em}
main{display:flex;flex-wrap:wrap;gap:12px;align-items:stretch;margin-top:10px}
article{background:var(--card);border-radius:8px;padding:8px 0 8px 8px;
content-visibility:auto;contain-intrinsic-size:auto 250px}
article[hidden]{display:none}
figure{margin:0 8px 6px 0;display:inline-block;vertical-align:top}
.row{display:flex;gap:4px}img{display:block;width:144px;height:144px;border-radius:3px}
b.model{display:block;font-size:13px;margin:2px 0;overflow-wrap:anywhere}
figcaption{width:0;min-width:100%;margin-top:4px;overflow-wrap:anywhere}
.right strong{color:var(--good)}.wrong strong{color:var(--bad)}small{color:var(--faint)}
.file{display:block;width:0;min-width:100%;overflow-wrap:anywhere}
'''
SCRIPT = '''
const form=document.forms[0],main=document.querySelector('main'),cards=[...main.children];
const said=form.querySelector('output');
form.style.display='flex';
function change(){const f=form.elements,how=f.sort.value;let n=0;
for(const c of cards){const d=c.dataset,ok=(!f.show||f.show.value=='all'||d.is.split(' ').includes(f.show.value))
&&(!f.class||!f.class.value||d.class==f.class.value);c.hidden=!ok;n+=ok}
main.append(...[...cards].sort((a,b)=>how=='sure'?b.dataset.p-a.dataset.p:how=='unsure'?a.dataset.p-b.dataset.p:
how=='class'?a.dataset.class.localeCompare(b.dataset.class,undefined,{numeric:true}):0));
said.textContent=n+' of '+cards.length}
form.addEventListener('change',change);change();
'''


class Card(NamedTuple):
    """An image on the page, already as HTML; the class by which it is found, and what is true of it."""
    html: str
    group: str
    kinds: tuple[str, ...]
    probability: float


def card_of(file: str, sights: Sequence[Sight], viewed: Sequence[Viewed], grid: bool = False) -> Card:
    """The card of one image. It is found by its class, or where that is not known by the first network's answer.

    Args:
        file: Its name.
        sights: What each network made of it.
        viewed: The networks.
        grid: Draw the sampling grids, too.
    """
    truths = [v.classes.names[s.truth] for v, s in zip(viewed, sights) if s.truth is not None]
    several = len(sights) > 1
    parts = []
    for sight, network in zip(sights, viewed, strict=True):
        tiles = tiles_of(sight, SIDE, reach_of_all([sight]), grid)
        row = ''.join(f'<img src="{_inlined(tile)}" alt="{_text(title)}" title="{_text(title)}" loading="lazy">'
                      for tile, title in zip(tiles, sight.titles))
        model = f'<b class="model">{_text(network.name)}</b>' if several else ''
        parts.append(f'<figure>{model}<div class="row">{row}</div>{_said(sight.caption)}</figure>')
    rights = [sight.caption.right for sight in sights]
    answers = {sight.caption.answers[0][0] for sight in sights}
    kinds = [kind for kind, holds in (
        ('right', all(rights)), ('wrong', False in rights), ('differ', len(answers) > 1)) if holds]
    name, probability = sights[0].caption.answers[0]
    short = '/'.join(Path(file).parts[-2:])
    html = f'{" ".join(parts)}<small class="file" title="{_text(file)}">{_text(short)}</small>'
    return Card(html, truths[0] if truths else name, tuple(kinds), probability)


def page_of(cards: Sequence[Card], title: str, told: Sequence[str]) -> str:
    """The page.

    Args:
        cards: Of the images, in order.
        title: Of the page.
        told: Lines below the title.
    """
    groups = sorted({card.group for card in cards})
    kinds = [kind for kind in ALL if kind == 'all' or any(kind in card.kinds for card in cards)]
    labels = {'all': 'all', 'right': 'right', 'wrong': 'wrong', 'differ': 'answers that differ'}
    articles = (
        f'<article data-class="{_text(card.group)}" data-is="{" ".join(card.kinds)}" data-p="{card.probability:.6f}">'
        f'{card.html}</article>' for card in cards)
    lines = ''.join(f'<p>{_text(line)}</p>' for line in told)
    options = {
        'show': [(kind, labels[kind]) for kind in kinds],
        'class': [('', 'all'), *((group, group) for group in groups)] if len(groups) > 1 else [],
        'sort': [('given', 'as given'), ('class', 'class'), ('unsure', 'least certain'), ('sure', 'most certain')]}
    form = ''.join(
        f'<label>{name} <select name="{name}">'
        + ''.join(f'<option value="{_text(value)}">{_text(text)}</option>' for value, text in choices)
        + '</select></label>' for name, choices in options.items() if len(choices) > 1 or name == 'sort')
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="viewport" content="width=device-width"><title>{_text(title)}</title>'
        f'<style>{STYLE}</style></head>\n<body><h1>{_text(title)}</h1>{lines}'
        f'<form autocomplete="off">{form}<output></output></form>\n<main>'
        + '\n'.join(articles) + f'</main>\n<script>{SCRIPT}</script></body></html>\n')


def _said(caption: Caption) -> str:
    (name, probability), *others = caption.answers
    kind, mark = {True: ('right', '&#10003; '), False: ('wrong', '&#10007; '), None: ('', '')}[caption.right]
    rest = ', '.join(f'{_text(other)} {percent(p)}' for other, p in others)
    truth = f'<br><strong>{_text(caption.truth)}</strong>' if caption.truth else ''
    return (f'<figcaption class="{kind}"><strong>{mark}{_text(name)}</strong> <small>{percent(probability)}'
            f'{"; " if rest else ""}{rest}</small>{truth}</figcaption>')


def _inlined(picture: Image.Image) -> str:
    kind = 'webp' if features.check('webp') else 'jpeg'
    data = BytesIO()
    picture.save(data, kind, quality=QUALITY)
    return f'data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}'


def _text(text: str) -> str:
    """Escaped, of characters that are some: names of files may hold any bytes."""
    return escape(text.encode(errors='replace').decode(), quote=True)
