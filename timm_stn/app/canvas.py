"""A canvas to draw a digit on, light on dark as MNIST: what Gradio's HTML component is made of, and what it gives.

Gradio's own sketchpad asks for WebGL and uploads each movement of the pen.
"""
import base64
import binascii
from io import BytesIO

from PIL import Image

from ..view.images import BadImage
from .limits import open_limited

__all__ = ['SCRIPT', 'TEMPLATE', 'drawing_of']

SIDE, PEN = 280, 22  # pixels of the canvas, and of the pen, of which 20 : 2 becomes a digit of MNIST
PREFIX = 'data:image/png;base64,'
MOST_CHARACTERS = 1_000_000

TEMPLATE = f'''<canvas width="{SIDE}" height="{SIDE}" role="img" aria-label="Canvas to draw a digit on"
style="width: {SIDE}px; max-width: 100%; touch-action: none; cursor: crosshair; border-radius: 8px; background: #000">
</canvas><br><button type="button" class="sm secondary" style="margin-top: 8px">Wipe</button>'''
SCRIPT = f'''
const canvas = element.querySelector('canvas'), pen = canvas.getContext('2d');
let last = null;
const wipe = () => {{ pen.fillStyle = '#000'; pen.fillRect(0, 0, {SIDE}, {SIDE}); }};
const tell = (value) => {{ props.value = value; trigger('change'); }};
const place = (event) => {{
  const box = canvas.getBoundingClientRect();
  return [(event.clientX - box.left) * {SIDE} / box.width, (event.clientY - box.top) * {SIDE} / box.height];
}};
const draw = (event) => {{
  const next = place(event);
  pen.lineCap = pen.lineJoin = 'round'; pen.lineWidth = {PEN}; pen.strokeStyle = '#fff';
  pen.beginPath(); pen.moveTo(...last); pen.lineTo(...next); pen.stroke();
  last = next;
}};
canvas.addEventListener('pointerdown', (event) => {{
  canvas.setPointerCapture(event.pointerId); last = place(event); draw(event);
}});
canvas.addEventListener('pointermove', (event) => {{ if (last) draw(event); }});
for (const end of ['pointerup', 'pointercancel']) canvas.addEventListener(end, () => {{
  if (last) {{ last = null; tell(canvas.toDataURL('image/png')); }}
}});
element.querySelector('button').addEventListener('click', () => {{ wipe(); tell(''); }});
wipe();
'''


def drawing_of(value: str | None) -> Image.Image | None:
    """The drawing, in mode ``L``, of what the canvas says; None if nothing is drawn.

    Raises:
        BadImage: It is no drawing of the canvas.
    """
    if not value:
        return None
    if len(value) > MOST_CHARACTERS or not value.startswith(PREFIX):
        raise BadImage('no drawing of the canvas')
    try:
        content = base64.b64decode(value[len(PREFIX):], validate=True)
    except binascii.Error as error:
        raise BadImage('no drawing of the canvas') from error
    picture = open_limited(BytesIO(content), 'L')
    low, high = picture.getextrema()
    return None if low == high else picture
