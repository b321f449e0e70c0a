"""Scattered birds against canvases that numpy and PIL's conventions put together pixel by pixel."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import rand
from scipy.ndimage import map_coordinates

from timm_stn.data import TASKS, birds, scattered
from timm_stn.data.tasks import batches_of, boxes_of

SIDE = scattered.SIDE
PHOTOS = (rand(5, 3, 224, 224, seed=3) * 255).to(torch.uint8)
LABELS = torch.tensor([4, 0, 3, 1, 9])


def near(u, room):
    """Where a window begins: within 16 pixels of one end of its room or the other."""
    off = int(2 * u % 1 * 17)
    return off if u < 0.5 else room - off


def by_hand(index, u, crops=False):
    """One canvas (448, 448, 3) in float64, and its box."""
    u = [float(value) for value in u]
    scale, place, texture, shift, rest = u[0], u[1:3], u[3:6], u[6:8], u[8:]
    photos = PHOTOS.permute(0, 2, 3, 1).numpy()
    left, top = (near(value, 224 - 64) for value in texture[1:])
    corner = photos[int(texture[0] * 5)][top:top + 64, left:left + 64]
    row = np.concatenate([corner, corner[:, ::-1]], 1)
    tile = np.concatenate([row, row[::-1]])
    tile = np.roll(tile, [-int(value * 128) for value in shift[::-1]], (0, 1))
    canvas = np.tile(tile, (4, 4, 1))[:SIDE, :SIDE].copy()
    for i, side in enumerate(scattered.PATCHES):
        chosen, x, y, to_x, to_y = rest[5 * i:5 * i + 5]
        left, top = near(x, 224 - side), near(y, 224 - side)
        column, row = (int(value * (SIDE - side + 1)) for value in (to_x, to_y))
        canvas[row:row + side, column:column + side] = photos[int(chosen * 5)][top:top + side, left:left + side]
    half = 0.25 + 0.5 * scale
    center = [(2 * value - 1) * (1 - half) for value in place]
    axis = (2 * np.arange(SIDE) + 1) / SIDE - 1
    x, y = ((axis - middle) / half for middle in center)
    alpha = [((1 - abs(along)) / 0.2).clip(0, 1) for along in (x, y)]
    alpha = (alpha[1][:, None] * alpha[0])[:, :, None]
    where = np.meshgrid(((y + 1) * 224 - 1) / 2, ((x + 1) * 224 - 1) / 2, indexing='ij')
    bird = PHOTOS[index] / 255
    if crops:
        bird = birds.random_crops(bird[None], torch.tensor(u[-birds.CROP_DRAWS:])[None])[0]
    shown = np.stack([map_coordinates(c.double().numpy(), where, order=1, mode='nearest') for c in bird], 2)
    box = [center[0] - half, center[1] - half, center[0] + half, center[1] + half]
    return canvas / 255 * (1 - alpha) + shown * alpha, box


@pytest.mark.parametrize('crops', [False, True])
def test_canvases_by_hand(crops):
    u, index = rand(4, scattered.DRAWS, seed=5), torch.tensor([2, 0, 4, 2])
    canvases, classes = scattered.scattered(PHOTOS, LABELS, index, u, crops)
    boxes = scattered.boxes(LABELS, index, u)
    assert canvases.shape == (4, 3, SIDE, SIDE) and canvases.dtype == torch.float32
    assert classes.tolist() == [3, 4, 9, 3]
    for n, one in enumerate(index.tolist()):
        expected, box = by_hand(one, u[n], crops)
        torch.testing.assert_close(canvases[n].permute(1, 2, 0).double(), torch.tensor(expected), rtol=0, atol=2e-4)
        torch.testing.assert_close(boxes[n], torch.tensor(box), rtol=0, atol=1e-6)


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 2 ** 16))
def test_birds_are_whole_and_as_large_as_it_says(seed):
    boxes = scattered.boxes(LABELS, torch.arange(5), rand(5, scattered.DRAWS, seed=seed))
    sides = (boxes[:, 2:] - boxes[:, :2]) / 2
    assert (boxes.abs() <= 1 + 1e-6).all() and (sides >= 0.25 - 1e-6).all() and (sides <= 0.75 + 1e-6).all()
    torch.testing.assert_close(sides[:, 0], sides[:, 1])


def test_a_canvas_depends_on_its_own_numbers_only():
    u = rand(3, scattered.DRAWS)
    whole, _ = scattered.scattered(PHOTOS, LABELS, torch.tensor([1, 2, 3]), u)
    alone, _ = scattered.scattered(PHOTOS, LABELS, torch.tensor([2]), u[1:2])
    assert torch.equal(whole[1:2], alone)


def test_as_a_task_with_boxes():
    task = TASKS['SCATTERED']
    canvases, classes = zip(*batches_of('SCATTERED', PHOTOS, LABELS, batch_size=2), strict=True)
    boxes = list(boxes_of('SCATTERED', LABELS, batch_size=2))
    assert [len(part) for part in canvases] == [len(part) for part in boxes] == [2, 2, 1]
    assert torch.equal(torch.cat(classes), LABELS) and canvases[0][0].numel() == task.elements
    u = torch.rand(2, task.draws, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(boxes[0], scattered.boxes(LABELS, torch.arange(2), u))
    trained, _ = task.to_train_on(PHOTOS, LABELS, torch.arange(2), u)
    assert not torch.equal(trained, canvases[0])
    with pytest.raises(ValueError, match="must be one that has boxes, .*SCATTERED.*; got 'R'"):
        next(boxes_of('R', LABELS))


def test_wrong_shapes_are_told():
    with pytest.raises(ValueError, match=rf'u \(2, {scattered.DRAWS}\); got .* and \(2, 3\)'):
        scattered.scattered(PHOTOS, LABELS, torch.arange(2), rand(2, 3))
    with pytest.raises(ValueError, match=r'S from 88, .* got \(5, 3, 60, 60\)'):
        scattered.scattered(PHOTOS[:, :, :60, :60], LABELS, torch.arange(2), rand(2, scattered.DRAWS))
