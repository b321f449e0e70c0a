"""What the page shows of a look, as HTML that asks nobody for anything: pictures are within it."""
import base64
import html
from io import BytesIO

from PIL import Image

from ..view.caption import percent
from .answers import Answers, Ranking

__all__ = ['CSS', 'SHOWN', 'escaped', 'hint', 'refusal', 'shown']

SHOWN = 'stn-shown'  # class of the element with pictures and answers
ABOUT = 'The outline is where the transformer looked. The dot marks the top left corner of what it saw.'
CSS = '''
.gradio-container { max-width: 1180px !important; }
.stn-title h1 { margin: 0 0 2px; font-size: 26px; }
.stn-title p { margin: 0; color: var(--body-text-color-subdued); }
.stn-pictures { display: flex; flex-wrap: wrap; gap: 16px; }
.stn-pictures figure { margin: 0; flex: 1 1 200px; max-width: 330px; }
.stn-pictures img { width: 100%; border-radius: 8px; display: block; }
.stn-pictures figcaption, .stn-answers h3 { margin: 0 0 6px !important; font-size: 15px; font-weight: 600; }
.stn-about { margin: 10px 0 18px !important; font-size: 13px; color: var(--body-text-color-subdued); }
.stn-answers { display: flex; flex-wrap: wrap; gap: 12px 28px; }
.stn-answers section { flex: 1 1 220px; min-width: 0; }
.stn-answers table { width: 100%; border-collapse: collapse; table-layout: fixed; margin: 0; }
.stn-answers td { padding: 3px 0; border: 0; font-size: 14px; vertical-align: middle; }
.stn-answers td.name { width: 45%; padding-right: 8px; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.stn-answers td.share { width: 62px; text-align: right; font-variant-numeric: tabular-nums; }
.stn-answers .bar { height: 8px; border-radius: 4px; background: var(--border-color-primary); overflow: hidden; }
.stn-answers .bar div { height: 100%; background: #FFB000; }
.stn-answers .plain .bar div { background: #8A93A6; }
.stn-answers tr:first-child td { font-weight: 600; }
.stn-hint { padding: 48px 16px; text-align: center; border-radius: 8px;
            border: 1px dashed var(--border-color-primary); }
.stn-refusal { padding: 14px 16px; border: 1px solid #D0312D; border-left-width: 6px; border-radius: 8px; }
'''


def escaped(text: str) -> str:
    """A text that may come from somebody else's file, for HTML, and for Gradio's templates, in which braces call."""
    text = html.escape(text)
    for sign in '{}$`\\':
        text = text.replace(sign, f'&#{ord(sign)};')
    return text


def shown(found: Answers, notes: list[str]) -> str:
    """Pictures and answers."""
    pictures = ''.join(
        f'<figure><figcaption>{escaped(title)}</figcaption><img src="{_data(picture)}" alt="{escaped(title)}"></figure>'
        for title, picture in found.pictures)
    plain = f'<p>{escaped(found.reason)}</p>' if found.plain is None else _table(found.plain)
    return (
        f'<div class="{SHOWN}"><div class="stn-pictures">{pictures}</div>'
        f'<p class="stn-about">{escaped(" ".join([ABOUT, *notes]))}</p><div class="stn-answers">'
        f'<section><h3>Answer with the transformer</h3>{_table(found.ranking)}</section>'
        f'<section class="plain"><h3>Answer of the backbone alone</h3>{plain}</section></div></div>')


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
