"""The page itself, in Gradio, which is imported only here and only when a page is made."""
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from ..names.zoo import zoo_names
from ..view.images import BadImage
from .answers import answers
from .distort import MOST_CLUTTER, Distortion, distort
from .inputs import as_digit, is_blank, pixels_of, save_examples
from .limits import AT_ONCE, MOST_WAITING
from .markup import hint, refusal, shown
from .shelf import Network, Shelf

__all__ = ['EXAMPLES', 'Show', 'build_page', 'theme']

EXAMPLES = 16  # digits
KEPT = 32  # inputs that are read from a file once, while sliders move
TITLE = 'Where does the network look?'
INTRODUCTION = (
    'A spatial transformer chooses the part of an image that its network sees. '
    'Move the sliders: the input is distorted, and the transformer undoes it.')
UNTRAINED = "Its transformer is untrained and looks at the whole image: only the backbone's weights are timm's."
DROP, DRAW = 'Drop a picture, to see where the network looks in it.', 'Draw a digit.'
PICTURE, DRAWING = 'picture', 'drawing'


class Show:
    """What a network makes of the picture or drawing on the page, as HTML. Several threads may call it at once."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf
        self._read = functools.lru_cache(KEPT)(self._pixels)

    def __call__(
            self,
            name: str,
            file: str | None,
            drawing: dict[str, Any] | None,
            source: str,
            turn: float,
            scale: float,
            right: float,
            down: float,
            clutter: float,
    ) -> str:
        try:
            network = self.shelf.get(name)
            pixels = self._input(network, file, drawing if source == DRAWING else None, source)
        except BadImage as error:
            return refusal(f'This file cannot be used: {error}.')
        if isinstance(pixels, str):
            return hint(pixels)
        by = Distortion(turn, scale, right, down, int(clutter))
        pieces = pixels[None] if network.pieces is None else network.pieces
        distorted = distort(pixels, by, network.config['mean'], pieces)
        return shown(answers(network, distorted), self._notes(network))

    def _input(self, network: Network, file: str | None, drawing: dict[str, Any] | None, source: str) -> Tensor | str:
        """The input in [0, 1], or what is to be done before there is one."""
        if source == PICTURE or not network.digits:
            return self._read(file, network.name) if file else DROP
        picture: Image.Image | None = (drawing or {}).get('composite')
        if picture is None or is_blank(picture):
            return DRAW
        return as_digit(picture, network.config['input_size'][1])

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
    digits = _takes_digits(shelf, first)
    examples = [str(path) for path in save_examples(folder, EXAMPLES)]
    with gr.Blocks(title=f'timm-stn: {TITLE}', analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.HTML(f'<div class="stn-title"><h1>{TITLE}</h1><p>{INTRODUCTION}</p></div>')
        source = gr.State(PICTURE)
        with gr.Row():
            with gr.Column(scale=4, min_width=300):
                name = gr.Dropdown(shelf.names, value=first, label='Network', elem_id='network')
                with gr.Tabs(selected=PICTURE) as tabs:
                    with gr.Tab('Picture', id=PICTURE) as picture_tab:
                        file = gr.File(
                            examples[0] if digits and examples else None, height=120, elem_id='file',
                            label='Drop a picture here, or click to pick one')
                        gallery = gr.Gallery(
                            examples, label='Or take a held-out digit', columns=8, allow_preview=False, height='auto',
                            buttons=[], interactive=False, visible=digits, elem_id='examples')
                    with gr.Tab('Draw a digit', id=DRAWING, visible=digits) as drawing_tab:
                        drawing = gr.Sketchpad(
                            type='pil', image_mode='L', canvas_size=(280, 280), fixed_canvas=True, layers=False,
                            transforms=(), brush=gr.Brush(18, ['#000000'], color_mode='fixed'), show_label=False,
                            buttons=[], elem_id='drawing')
                sliders = [
                    gr.Slider(-90, 90, 0, step=1, label='Turn (degrees)', elem_id='turn'),
                    gr.Slider(0.5, 1.5, 1, step=0.05, label='Scale', elem_id='scale'),
                    gr.Slider(-0.4, 0.4, 0, step=0.01, label='Shift right (widths)', elem_id='right'),
                    gr.Slider(-0.4, 0.4, 0, step=0.01, label='Shift down (heights)', elem_id='down'),
                    gr.Slider(0, MOST_CLUTTER, 0, step=1, label='Clutter (patches)', elem_id='clutter')]
                reset = gr.Button('Undo all distortions', size='sm', elem_id='reset')
            with gr.Column(scale=7, min_width=300):
                result = gr.HTML(elem_id='result', min_height=420)
        _connect(gr, page, show, [name, file, drawing, source, *sliders], result, reset)
        gallery.select(_chosen(gr, examples), None, file, show_progress='hidden', api_visibility='private')
        for tab, which in ((picture_tab, PICTURE), (drawing_tab, DRAWING)):
            tab.select(functools.partial(str, which), None, source, show_progress='hidden', api_visibility='private')
        name.change(
            lambda chosen: _parts_for(gr, _takes_digits(shelf, chosen)), name, [tabs, gallery, drawing_tab, source],
            show_progress='hidden', api_visibility='private')
    return page.queue(max_size=MOST_WAITING, default_concurrency_limit=AT_ONCE)


def _connect(gr: Any, page: Any, show: Show, inputs: Sequence[Any], result: Any, reset: Any) -> None:
    """All that changes the result: while a request runs, only the last of those behind it is kept."""
    name, file, drawing, source, *sliders = inputs
    gr.on(
        [page.load, name.change, file.change, drawing.change, source.change, *(slider.input for slider in sliders)],
        show.__call__, inputs, result, trigger_mode='always_last', show_progress='hidden', api_name='look')
    reset.click(
        lambda: [slider.value for slider in sliders], None, sliders, show_progress='hidden', api_visibility='private',
    ).then(show.__call__, inputs, result, show_progress='hidden', api_visibility='private')


def _takes_digits(shelf: Shelf, name: str) -> bool:
    return shelf.get(name).digits


def _chosen(gr: Any, examples: Sequence[str]) -> Any:
    def chosen(event: Any) -> str:
        return examples[event.index]

    chosen.__annotations__['event'] = gr.SelectData  # by which Gradio knows what to hand over
    return chosen


def _parts_for(gr: Any, digits: bool) -> list[Any]:
    """What is shown for networks of digits only."""
    back = {} if digits else {'selected': PICTURE}
    return [gr.Tabs(**back), gr.Gallery(visible=digits), gr.Tab(visible=digits),
            gr.skip() if digits else PICTURE]


def theme() -> Any:
    """Gradio's default with the fonts of the visitor's system: it loads none."""
    import gradio as gr
    return gr.themes.Default(
        primary_hue='amber', font=['system-ui', 'sans-serif'], font_mono=['ui-monospace', 'monospace'])
