"""The page itself, in Gradio, which is imported only here and only when a page is made."""
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..names.brief import short
from ..names.zoo import zoo_names
from ..view.images import BadImage
from .answers import answers
from .canvas import SCRIPT, TEMPLATE, drawing_of
from .distort import MOST_CLUTTER, Distortion, distort
from .inputs import as_digit, pixels_of, save_examples
from .limits import AT_ONCE, MOST_WAITING
from .markup import answers_of, hint, pictures_of, refusal
from .shelf import Loading, Network, Shelf

__all__ = ['EXAMPLES', 'Show', 'build_page', 'theme']

EXAMPLES = 12  # digits
KEPT = 32  # inputs that are read from a file once, while sliders move
TITLE = 'Where does the network look?'
INTRODUCTION = (
    'A spatial transformer chooses the part of an image that its network sees. '
    'Distort the input with the sliders, and watch what the transformer makes of it.')
UNTRAINED = "Its transformer is untrained and looks at the whole image: only the backbone's weights are timm's."
DROP, DRAW = 'Drop a picture, to see where the network looks in it.', 'Draw a digit.'
PICTURE, DRAWING = 'picture', 'drawing'


class Show:
    """What a network makes of the picture or drawing on the page, as HTML: pictures, answers. Threads may share it."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf
        self._read = functools.lru_cache(KEPT)(self._pixels)

    def __call__(
            self,
            name: str,
            file: str | None,
            drawing: str | None,
            source: str,
            turn: float,
            scale: float,
            right: float,
            down: float,
            clutter: float,
    ) -> tuple[str, str]:
        try:
            network = self.shelf.get(name)
        except Loading:
            return hint(f'{name} is being loaded: choose it again in a moment.'), ''
        except Exception as error:  # of many types: its weights may be on the Hub
            return refusal(f'{name} cannot be loaded: {type(error).__name__}: {short(error)}'), ''
        try:
            pixels = self._input(network, file, drawing, source)
        except BadImage as error:
            return refusal(f'This file cannot be used: {error}.'), ''
        if isinstance(pixels, str):
            return hint(pixels), ''
        by = Distortion(turn, scale, right, down, int(clutter))
        pieces = pixels[None] if network.pieces is None else network.pieces
        distorted = distort(pixels, by, network.config['mean'], pieces)
        found = answers(network, distorted)
        return pictures_of(found, self._notes(network)), answers_of(found)

    def _input(self, network: Network, file: str | None, drawing: str | None, source: str) -> Tensor | str:
        """The input in [0, 1], or what is to be done before there is one."""
        if source == PICTURE or not network.digits:
            return self._read(file, network.name) if file else DROP
        picture = drawing_of(drawing)
        return DRAW if picture is None else as_digit(picture, network.config['input_size'][1])

    def _pixels(self, file: str, name: str) -> Tensor:
        network = self.shelf.get(name)
        return pixels_of(Path(file), network.config, network.digits)

    def _notes(self, network: Network) -> list[str]:
        named = network is not self.shelf.given and network.name not in zoo_names()
        return [UNTRAINED] if named else []


def build_page(shelf: Shelf, folder: Path) -> Any:
    """The page, a ``gradio.Blocks``, which starts with the first network of a shelf.

    Args:
        shelf: The networks.
        folder: For the files of example digits.
    """
    import gradio as gr
    show, first = Show(shelf), shelf.names[0]
    digits = shelf.takes_digits(first)
    examples = [str(path) for path in save_examples(folder, EXAMPLES)]
    with gr.Blocks(title=f'timm-stn: {TITLE}', analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.HTML(f'<div class="stn-title"><h1>{TITLE}</h1><p>{INTRODUCTION}</p></div>')
        with gr.Row():
            with gr.Column(scale=4, min_width=300):
                name = gr.Dropdown(shelf.names, value=first, label='Network', elem_id='network')
                source = gr.Radio(
                    [('A picture', PICTURE), ('Draw a digit', DRAWING)], value=PICTURE, label='Its input',
                    visible=digits, elem_id='source')
                file = gr.File(
                    examples[0] if digits and examples else None, height=170, label='Your picture', elem_id='file')
                gallery = gr.Dataset(
                    components=[gr.Image(visible=False)], samples=[[path] for path in examples], type='index',
                    label='Or a held-out digit', layout='gallery', samples_per_page=EXAMPLES,
                    visible=digits and bool(examples), elem_id='examples')
                drawing = gr.HTML(
                    '', html_template=TEMPLATE, js_on_load=SCRIPT, visible='hidden', elem_id='drawing')
            with gr.Column(scale=7, min_width=300):
                pictures = gr.HTML(elem_id='pictures')
                sliders, reset = _sliders(gr)
                ranking = gr.HTML(elem_id='answers')
        _connect(gr, page, show, [name, file, drawing, source, *sliders], [pictures, ranking], reset)
        gallery.click(lambda i: examples[i], gallery, file, show_progress='hidden', api_visibility='private',
                      concurrency_id='page')
        gr.on(
            [name.change, source.change], lambda name, source: _inputs_for(gr, shelf.takes_digits(name), source),
            [name, source], [source, file, gallery, drawing], show_progress='hidden', api_visibility='private',
            concurrency_id='page')
    return page.queue(max_size=MOST_WAITING, default_concurrency_limit=AT_ONCE)


def _sliders(gr: Any) -> tuple[list[Any], Any]:
    """Sliders in the order of `Distortion`, and the button that undoes them."""
    with gr.Row():
        turn = gr.Slider(-90, 90, 0, step=1, label='Turn', min_width=140, elem_id='turn')
        scale = gr.Slider(0.5, 1.5, 1, step=0.05, label='Scale', min_width=140, elem_id='scale')
        clutter = gr.Slider(0, MOST_CLUTTER, 0, step=1, label='Clutter', min_width=140, elem_id='clutter')
    with gr.Row():
        right = gr.Slider(-0.4, 0.4, 0, step=0.01, label='Shift right', min_width=140, elem_id='right')
        down = gr.Slider(-0.4, 0.4, 0, step=0.01, label='Shift down', min_width=140, elem_id='down')
        reset = gr.Button('Undo all', min_width=140, elem_id='reset')
    return [turn, scale, right, down, clutter], reset


def _connect(gr: Any, page: Any, show: Show, inputs: Sequence[Any], shown: Sequence[Any], reset: Any) -> None:
    """All that changes the result: while a request runs, only the last of those behind it is kept."""
    name, file, drawing, source, *sliders = inputs
    gr.on(
        [page.load, name.change, file.change, drawing.change, source.change, *(slider.input for slider in sliders)],
        show.__call__, inputs, shown, trigger_mode='always_last', show_progress='hidden', api_name='look',
        concurrency_id='page')
    reset.click(
        lambda: [slider.value for slider in sliders], None, sliders, show_progress='hidden', api_visibility='private',
        concurrency_id='page',
    ).then(show.__call__, inputs, shown, show_progress='hidden', api_visibility='private', concurrency_id='page')


def _inputs_for(gr: Any, digits: bool, source: str) -> list[Any]:
    """What is shown: files for all networks, examples and the canvas for those of digits."""
    draws = digits and source == DRAWING
    return [gr.Radio(visible=digits), gr.File(visible=not draws), gr.Dataset(visible=digits and not draws),
            gr.HTML(visible=True if draws else 'hidden')]


def theme() -> Any:
    """Gradio's default with the fonts of the visitor's system: it loads none."""
    import gradio as gr
    return gr.themes.Default(
        primary_hue='amber', font=['system-ui', 'sans-serif'], font_mono=['ui-monospace', 'monospace'])
