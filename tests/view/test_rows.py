"""Rows of looks: how far each network's tiles reach, and what is said below them."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

from timm_stn.view.caption import SCALE, Caption
from timm_stn.view.gallery import Sight
from timm_stn.view.lattice import SIDE
from timm_stn.view.rows import picture_of_rows, reach_of_all, tiles_of, told_of
from timm_stn.view.tiles import COLORS

WHOLE = torch.cartesian_prod(torch.linspace(-1, 1, SIDE), torch.linspace(-1, 1, SIDE)).flip(-1)[None]
MINE, PLAIN = SimpleNamespace(name='mine', way=''), SimpleNamespace(name='plain', way='saliency:3')


def sight(scale=1.0, told='the outline is there.', glimpses=1):
    picture = Image.new('RGB', (40, 40), 'navy')
    titles = 'where it looked', *['what it saw'] * glimpses, 'answer'
    return Sight(picture, [picture] * glimpses, list(range(glimpses)), titles, told, 'input', torch.eye(2, 3)[None],
                 scale * WHOLE.repeat(glimpses, 1, 1), torch.zeros(1, 4, 2), torch.zeros(0, 4),
                 Caption([('7', 0.5)], 'a.png'), None)


def colored(picture, color):
    return (np.asarray(picture) == ImageColor.getrgb(color)).all(-1)


def test_tiles_show_what_is_beyond_the_edge():
    assert reach_of_all([sight(), sight(0.5)]) == pytest.approx(1.06)
    assert reach_of_all([sight(), sight(1.25)]) == pytest.approx(1.3) and reach_of_all([sight(3.0)]) == 1.5


def test_each_network_reaches_as_far_as_it_looks():
    """The input is as large beside a network that looks far as alone."""
    picture = picture_of_rows([[sight(), sight(1.4)], [sight(), sight(1.2)]], [MINE, PLAIN], ['told'])
    alone = picture_of_rows([[sight()], [sight()]], [MINE], ['told'])
    first = slice(22 * SCALE, (22 + 176) * SCALE)
    beside, by_itself = (colored(p, 'navy').any(0)[first].sum() for p in (picture, alone))
    assert beside == by_itself > 300


def test_a_grid_is_drawn_over_the_input_alone():
    plain, lined = (tiles_of(sight(0.5, glimpses=2), 352, 1.06, grid) for grid in (False, True))
    assert len(plain) == len(lined) == 3 and plain[1:] == lined[1:]
    assert colored(lined[0], COLORS[1]).sum() > 1.3 * colored(plain[0], COLORS[1]).sum()


def test_what_is_said_below():
    assert told_of([sight()], [MINE]) == ['mine: the outline is there.']
    untrained = ('Nothing was trained to look in plain (saliency:3), and its answer is that of the plain model, of the '
                 'whole image.')
    assert told_of([sight(), sight()], [MINE, PLAIN]) == ['The outline is there.', untrained]
    assert told_of([sight(), sight(told='features.')], [MINE, PLAIN])[:2] == ['mine: the outline is there.',
                                                                              'plain: features.']
    assert told_of([sight()], [MINE], {'masks', 'boxes', 'grid'})[1:] == [
        'Thin lines: the sampling grid, nine by nine.', 'White: true boxes.', 'Tinted: true masks.']
