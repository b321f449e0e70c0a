"""What cards say of the data that their networks were trained on, by the task of `timm_stn.data.tasks`."""
from typing import NamedTuple


class Data(NamedTuple):
    """One data set."""
    name: str  # as the Hub has it
    title: str
    text: str
    held_back: str  # what settings were chosen on
    folder: str  # in commands
    licence: str
    classes: tuple[str, ...] = ()  # their names


def _digits(kind: str, text: str) -> Data:
    return Data(
        'mnist', f'MNIST, {kind}',
        f'MNIST, 60,000 training digits made anew in every epoch: {text}.\n'
        f"Tested on the 10,000 test digits, made once with a fixed seed (`timm_stn.data.test_set('{kind}')`).",
        '5,000 held-back training digits', 'MNIST_FOLDER',
        'Weights: Apache-2.0. MNIST: Y. LeCun, C. Cortes, C. Burges, public.')


LIMIT = 'speed limit {} km/h'
SIGNS = (  # in the words of the benchmark's own list
    *map(LIMIT.format, (20, 30, 50, 60, 70, 80)), 'end of speed limit 80 km/h', *map(LIMIT.format, (100, 120)),
    'no passing', 'no passing for vehicles over 3.5 t', 'right of way at the next intersection', 'priority road',
    'yield', 'stop', 'no vehicles', 'no vehicles over 3.5 t', 'no entry', 'general caution', 'dangerous curve left',
    'dangerous curve right', 'double curve', 'bumpy road', 'slippery road', 'road narrows on the right', 'road work',
    'traffic signals', 'pedestrians', 'children crossing', 'bicycles crossing', 'beware of ice or snow',
    'wild animals crossing', 'end of all limits', 'turn right ahead', 'turn left ahead', 'ahead only',
    'go straight or right', 'go straight or left', 'keep right', 'keep left', 'roundabout', 'end of no passing',
    'end of no passing for vehicles over 3.5 t')
DATA = {
    **{kind: _digits(kind, text) for kind, text in dict(
        R='rotated by up to 90 degrees to either side, on 28 x 28 pixels',
        RTS='rotated by up to 45 degrees, scaled by 0.7 to 1.2, at a random place of a 42 x 42 canvas',
        P='scaled by 0.75 to 1, then in a projective distortion: each corner moved by N(0, 5 pixels), on 28 x 28 '
          'pixels',
        E='scaled by 0.75 to 1, then in an elastic distortion: 16 control points of a thin-plate spline moved by '
          'N(0, 1.5 pixels), on 28 x 28 pixels',
        T='at a random place of a 60 x 60 canvas',
        TC='at a random place of a 60 x 60 canvas with six 6 x 6 patches of other digits as clutter',
        ADD='two at a time, one in each of two channels of 42 x 42 pixels, each rotated by up to 45 degrees, scaled by '
            '0.7 to 1.2 and moved by itself; the class is their sum, 0 to 18').items()},
    'SIGNS': Data(
        'gtsrb', 'GTSRB',
        'The German Traffic Sign Recognition Benchmark, its official splits: 39,209 signs to train on, each changed\n'
        'a little anew in every epoch (`timm_stn/data/signs.py`), and 12,630 to test on as they are. Images have\n'
        '32 x 32 pixels, to which the originals were resized.',
        '3,000 held-back training signs, of tracks of their own', 'GTSRB_FOLDER',
        'Weights: Apache-2.0. The photographs: J. Stallkamp, M. Schlipsing, J. Salmen, C. Igel; see the terms of the\n'
        'benchmark, https://benchmark.ini.rub.de.', SIGNS),
}
