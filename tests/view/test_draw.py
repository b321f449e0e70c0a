"""Outlines against thetas whose picture is known, and the picture itself."""
import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

from timm_stn import SpatialTransformer, warp
from timm_stn.view.draw import COLORS, Caption, draw_look, draw_outlines, heat, outline, picture_format, save_picture

SIDE = 256


def transformer(transform='affine', **settings):
    return SpatialTransformer(3, (16, 16), transform, **settings)


def drawn(picture, color=COLORS[0]):
    """Pixel centres (K, 2), xy, that have exactly that colour."""
    rows, columns = np.nonzero((np.asarray(picture) == ImageColor.getrgb(color)).all(-1))
    return np.stack([columns, rows], 1) + 0.5


def black(size=(16, 16)):
    return torch.zeros(3, *size)


# --- outlines ---

def test_identity_is_the_border():
    points = outline(transformer(), torch.eye(2, 3)[None], points_per_side=4)
    assert points.shape == (1, 1, 16, 2)
    expected = [
        (-1, -1), (-0.5, -1), (0, -1), (0.5, -1), (1, -1), (1, -0.5), (1, 0), (1, 0.5),
        (1, 1), (0.5, 1), (0, 1), (-0.5, 1), (-1, 1), (-1, 0.5), (-1, 0), (-1, -0.5)]
    torch.testing.assert_close(points[0, 0], torch.tensor(expected, dtype=torch.float32))


def test_rotation_turns_the_corners():
    stn = transformer('rotation')
    theta = stn.transform.matrix(torch.tensor([[math.pi / 2]]))
    corners = outline(stn, theta, points_per_side=1)[0, 0]
    torch.testing.assert_close(corners, torch.tensor([[1.0, -1], [1, 1], [-1, 1], [-1, -1]]), atol=1e-6, rtol=0)


@pytest.mark.parametrize('transform', ['affine', 'projective', 'tps', 'diffeomorphic', 'affine+tps'])
@pytest.mark.parametrize('settings', [{}, {'glimpses': 3, 'scale': 0.5}, {'iterations': 2}])
def test_shapes_of_every_family(transform, settings):
    stn = transformer(transform, **settings)
    torch.nn.init.normal_(stn.localization.regression.bias, std=0.05)
    seen, theta = stn.look(torch.rand(2, 3, 16, 16))
    points = outline(stn, theta, points_per_side=5)
    assert points.shape == (2, settings.get('glimpses', 1), 20, 2) and points.isfinite().all()
    assert seen.shape[0] == 2


def test_curved_borders_are_sampled_densely():
    stn = transformer('tps')
    params = torch.zeros(1, stn.transform.num_params)
    params[0, 3] = 0.3  # y of the second control point
    top = outline(stn, params, points_per_side=32)[0, 0, :32]
    chord = top[0] + (top[-1] - top[0]) * torch.linspace(0, 1, 32)[:, None]
    assert (top - chord).norm(dim=1).max() > 0.05


def test_outline_refuses_volumes():
    with pytest.raises(ValueError, match='affine3d'):
        outline(SpatialTransformer(1, (8, 8, 8), 'affine3d'), torch.eye(3, 4)[None])


# --- drawing ---

@pytest.mark.parametrize('scale,shift', [(0.5, (0.25, -0.1)), (0.7, (0.0, 0.2)), (1.0, (0.0, 0.0))])
@pytest.mark.parametrize('reach', [1.06, 1.5])
def test_outline_lies_where_theta_says(scale, shift, reach):
    theta = torch.tensor([[[scale, 0, shift[0]], [0, scale, shift[1]]]])
    picture = draw_outlines(black(), outline(transformer(), theta)[0], SIDE, reach)
    points = drawn(picture)
    low, high = (((np.array(shift) + s * scale) / reach + 1) * SIDE / 2 for s in (-1, 1))
    middle = (low + high) / 2
    assert np.abs(points.max(0) - high).max() < 2.5  # half of the line's width
    right = points[(np.abs(points[:, 1] - middle[1]) < 10) & (points[:, 0] > middle[0])]
    below = points[(np.abs(points[:, 0] - middle[0]) < 10) & (points[:, 1] > middle[1])]
    assert abs(right[:, 0].mean() - high[0]) < 0.8 and abs(below[:, 1].mean() - high[1]) < 0.8
    dot = points[(np.abs(points - low) < 6).all(1)]  # fills the top left corner, on both sides of the lines
    assert len(dot) > 30 and np.abs(dot.mean(0) - low).max() < 1.5


def test_outline_on_a_picture_that_is_not_square():
    theta = torch.eye(2, 3)[None] * 0.5
    points = drawn(draw_outlines(black((16, 32)), outline(transformer(), theta)[0], SIDE, reach=1.0))
    assert np.abs(points.max(0) - (SIDE / 2 + SIDE / 4, SIDE / 2 + SIDE / 8)).max() < 2.5


def test_what_is_in_the_outline_is_what_was_seen():
    """The mean of a blob's position in the input, followed through the look, is its position in what was seen."""
    image = torch.zeros(1, 3, 40, 40)
    image[:, :, 10:14, 24:28] = 1
    theta = torch.tensor([[[0.5, 0, 0.3], [0, 0.5, -0.4]]])
    seen = draw_outlines(warp(image, theta)[0], torch.zeros(0, 4, 2), SIDE, reach=1.0)
    rows, columns = np.nonzero(np.asarray(seen)[..., 0] > 127)
    found = (np.array([columns.mean(), rows.mean()]) + 0.5) / SIDE * 2 - 1
    source = found * 0.5 + (0.3, -0.4)
    assert np.abs(source - (26 / 20 - 1, 12 / 20 - 1)).max() < 0.02


def test_true_boxes_are_white_and_below_outlines():
    """Left, top, right, bottom of the picture's pixels, by hand; where a glimpse's outline is the same, it is seen."""
    boxes = torch.tensor([[-0.5, -0.25, 0.75, 0.5], [-1.0, -1.0, -0.75, -0.75]])
    picture = np.asarray(draw_outlines(black(), torch.zeros(0, 4, 2), SIDE, 1.0, boxes[:1]).convert('L'), float)
    rows, columns = np.nonzero(picture > 127)
    expected = (boxes[0].numpy() + 1) * SIDE / 2
    found = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    assert np.abs(found - expected).max() < 2.5
    inner = picture[int(expected[1]) + 5:int(expected[3]) - 5, int(expected[0]) + 5:int(expected[2]) - 5]
    assert inner.max() == 0
    both = np.asarray(draw_outlines(black(), torch.zeros(0, 4, 2), SIDE, 1.0, boxes).convert('L'), float)
    assert (both > 127).sum() > (picture > 127).sum()
    ring = torch.tensor([[[-0.5, -0.25], [0.75, -0.25], [0.75, 0.5], [-0.5, 0.5]]])
    covered = draw_outlines(black(), ring, SIDE, 1.0, boxes[:1]).getpixel((SIDE // 2, round(float(expected[1]))))
    assert covered[0] > 200 and covered[2] < 60, 'it is the colour of the glimpse'


def test_wild_outlines_are_drawn():
    points = torch.tensor([[[-1e9, 0.0], [1e9, 1e9], [float('nan'), 0], [3.0, 4]]]).nan_to_num()
    assert draw_outlines(black(), points, SIDE).size == (SIDE, SIDE)


@pytest.mark.parametrize('answers,tiles,channels', [(1, 1, 1), (3, 2, 3)])
def test_picture(answers, tiles, channels):
    n = 5
    images, seen = torch.rand(n, channels, 20, 30), torch.rand(n, tiles, channels, 10, 10)
    points = outline(transformer(), torch.eye(2, 3).repeat(n, tiles, 1, 1) * 0.5)
    names = ['7'] if answers == 1 else ['a name so long that it does not fit into a column', 'b', 'c']
    captions = [Caption([(name, 1 / (k + 2)) for k, name in enumerate(names)], 'a note')] * n
    picture = draw_look(images, seen, points, captions, footer='a footer ' * 40)
    assert picture.mode == 'RGB' and 0.7 < picture.width / picture.height < 3
    for color in COLORS[:tiles]:
        assert len(drawn(picture, color)) > 100
    tall, wide = (draw_look(images, seen, points, captions, blocks=b) for b in (1, 5))
    assert tall.height > n * 128 * 2 > wide.height and tall.width < wide.width


def test_frames_have_the_color_of_their_outline():
    images, seen = torch.zeros(1, 1, 8, 8), torch.zeros(1, 2, 1, 8, 8)
    points = outline(transformer(), torch.eye(2, 3)[None] * 0.5)
    some = draw_look(images, seen, points, [Caption([('1', 1.0)])], glimpse_of=(None, 0))
    both = draw_look(images, seen, points, [Caption([('1', 1.0)])], glimpse_of=(0, 0))
    assert len(drawn(both)) > len(drawn(some)) and not len(drawn(some, COLORS[1]))


def test_picture_refuses_other_lengths():
    x = torch.zeros(2, 1, 8, 8)
    with pytest.raises(ValueError, match='one length'):
        draw_look(x, x[:, None], torch.zeros(2, 1, 4, 2), [])


def test_heat_spans_all_of_an_image():
    maps = torch.rand(2, 3, 5, 4, 4)
    maps[1] = 0
    colors = heat(maps)
    assert colors.shape == (2, 3, 3, 4, 4) and colors.min() >= 0 and colors.max() <= 1
    brightness = colors[0].mean(1).flatten()
    order = maps[0].mean(1).flatten().argsort()
    assert (brightness[order].diff() >= 0).all() and colors[1].std(dim=(0, 2, 3)).max() == 0


def test_save_picture(tmp_path):
    path = tmp_path / 'new' / 'a.png'
    save_picture(Image.new('RGB', (3, 2), '#123456'), path)
    assert Image.open(path).size == (3, 2) and [p.name for p in path.parent.iterdir()] == ['a.png']
    for name in ('b.xyz', 'b', 'b.psd', 'b.h5', 'b.mpg'):  # some of these Pillow only reads
        with pytest.raises(ValueError, match=rf"format of pictures, as \.png, got '.*{name}'"):
            save_picture(Image.new('RGB', (3, 2)), tmp_path / name)


@pytest.mark.parametrize(('name', 'kind'), [
    ('a.png', 'PNG'), ('a.JPG', 'JPEG'), ('a.webp', 'WEBP'), ('a.tiff', 'TIFF'), ('a.gif', 'GIF'), ('a.pdf', 'PDF')])
def test_formats_that_can_be_written(name, kind, tmp_path):
    assert picture_format(tmp_path / name) == kind
    save_picture(Image.new('RGB', (3, 2), '#123456'), tmp_path / name)
    assert (tmp_path / name).stat().st_size > 20


def test_layout_can_be_fixed():
    """With the width of answers and the reach given, it depends neither on the answers nor on where it looked."""
    images, seen = torch.rand(2, 3, 16, 16), torch.rand(2, 1, 3, 16, 16)
    square = torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]]).expand(2, 1, 4, 2)
    sizes, corners = set(), set()
    for far, name in ((0.5, '7'), (1.2, 'a much longer name of a class')):
        picture = draw_look(images, seen, square * far, [Caption([(name, 0.5)])] * 2, tile=64, answer=120, reach=1.3)
        sizes.add(picture.size)
        corners.add(picture.getpixel((2 * 22 + 11, 2 * 40 + 64)))  # beyond the image's edge, and before the outline
    assert len(sizes) == len(corners) == 1
