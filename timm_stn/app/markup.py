"""What the page shows of a look, as HTML that asks nobody for anything: pictures are within it."""
import base64
import html
from io import BytesIO

from PIL import Image

from ..view.caption import percent
from .answers import Answers, Ranking

__all__ = ['CSS', 'answers_of', 'escaped', 'hint', 'pictures_of', 'refusal']

ABOUT = 'The outline is where the transformer looked. The dot marks the top left corner of what it saw.'
CSS = '''
.gradio-container { max-width: 1200px !important; width: 100%; margin: 0 auto !important; }
#examples .container { width: 54px; height: 54px; }
.stn-title h1 { margin: 0 0 2px; font-size: 26px; }
.stn-title p, .stn-about { margin: 0; opacity: 0.75; }
.stn-pictures { display: flex; flex-wrap: wrap; gap: 12px; }
.stn-pictures figure { margin: 0; flex: 1 1 140px; max-width: 310px; }
.stn-pictures img { width: 100%; border-radius: 8px; display: block; margin: 0; }
.stn-pictures figcaption, .stn-answers h3 { margin: 0 0 6px; font-size: 15px; font-weight: 600; }
.stn-about { margin-top: 8px; font-size: 13px; }
.stn-answers { display: flex; flex-wrap: wrap; gap: 12px 24px; }
.stn-answers section { flex: 1 1 240px; min-width: 0; max-width: 480px; }
.stn-answers table { width: 100%; border-collapse: collapse; table-layout: fixed; }
.stn-answers :is(table, tbody, tr, td) { border: 0 !important; background: none !important; }
.stn-answers td { padding: 3px 0; font-size: 14px; vertical-align: middle; }
.stn-answers td.name { width: 52%; padding-right: 8px; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.stn-answers td.share { width: 62px; text-align: right; font-variant-numeric: tabular-nums; }
.stn-answers .bar { height: 8px; border-radius: 4px; background: rgba(128, 136, 150, 0.25); overflow: hidden; }
.stn-answers .bar div { height: 100%; background: #FFB000; }
.stn-answers .plain .bar div { background: #8A93A6; }
.stn-answers tr:first-child td { font-weight: 600; }
.stn-hint { padding: 64px 16px; text-align: center; border: 1px dashed rgba(128, 136, 150, 0.6); border-radius: 8px; }
.stn-refusal { padding: 14px 16px; border: 1px solid #D0312D; border-left-width: 6px; border-radius: 8px; }
'''


def escaped(text: str) -> str:
    """A text that may come from somebody else's file, for HTML, and for Gradio's templates, in which braces call."""
    text = html.escape(text)
    for sign in '{}$`\\':
        text = text.replace(sign, f'&#{ord(sign)};')
    return text


def pictures_of(found: Answers, notes: list[str]) -> str:
    """Where it looked, and what it saw."""
    pictures = ''.join(
        f'<figure><figcaption>{escaped(title)}</figcaption><img src="{_data(picture)}" alt="{escaped(title)}"></figure>'
        for title, picture in found.pictures)
    return f'<div class="stn-pictures">{pictures}</div><p class="stn-about">{escaped(" ".join([ABOUT, *notes]))}</p>'


def answers_of(found: Answers) -> str:
    """The best answers, beside those of the backbone alone."""
    plain = f'<p>{escaped(found.reason)}</p>' if found.plain is None else _table(found.plain)
    return (
        f'<div class="stn-answers"><section><h3>Answer with the transformer</h3>{_table(found.ranking)}</section>'
        f'<section class="plain"><h3>Answer of the backbone alone</h3>{plain}</section></div>')


def hint(text: str) -> str:
    """What to do first."""
    return f'<div class="stn-hint">{escaped(text)}</div>'


def refusal(text: str) -> str:
    """Why something is not done."""
    return f'<div class="stn-refusal" role="alert">{escaped(text)}</div>'


def _table(ranking: Ranking) -> str:
    rows = ''.join(
        f'<tr><td class="name" title="{escaped(name)}">{escaped(name)}</td>'
        f'<td><div class="bar"><div style="width:{100 * share:.1f}%"></div></div></td>'
        f'<td class="share">{percent(share)}</td></tr>'
        for name, share in ranking)
    return f'<table><tbody>{rows}</tbody></table>'


def _data(picture: Image.Image) -> str:
    file = BytesIO()
    picture.save(file, 'PNG', compress_level=3)
    return f'data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}'
