"""Scenes: a sign is where its box says, drawn as scipy draws it, among clutter of other signs."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import rand
from scipy.ndimage import map_coordinates

from timm_stn.data import TASKS
from timm_stn.data.scenes import DRAWS, PARTS, scene_boxes, sign_scenes
from timm_stn.data.tasks import batches_of, boxes_of

AT = dict(zip(PARTS, np.cumsum([0, *PARTS.values()])))  # where the numbers of a part begin


@pytest.fixture(scope='module')
def signs():
    """Five, of one colour each, dark red to light red, whose boxes fill their images; and their classes."""
    shades = torch.linspace(40, 250, 5)[:, None, None, None] * torch.tensor([1, 0, 0])[:, None, None]
    known = torch.cat((torch.arange(5)[:, None] + 10, torch.tensor([[0, 0, 1000, 1000]] * 5)), dim=1)
    return shades.expand(-1, -1, 32, 32).to(torch.uint8).contiguous(), known


def numbers(count=1, side=0.5, place=(0.5, 0.5), seed=0):
    u = rand(count, DRAWS, seed=seed)
    u[:, AT['side']] = side
    u[:, AT['place']:AT['place'] + 2] = torch.tensor(place)
    return u


def test_what_the_task_says_of_itself(signs):
    task, u = TASKS['SCENES'], rand(6, DRAWS)
    images, classes = task.make(*signs, torch.tensor([4, 0, 4, 1, 2, 3]), u)
    assert images.shape == (6, 3, 256, 256) and task.size == 256 and task.channels == 3 and task.classes == 43
    assert images.dtype == torch.float32 and images.min() >= 0 and images.max() <= 1
    assert classes.tolist() == [14, 10, 14, 11, 12, 13] and task.draws == DRAWS == 108


@pytest.mark.parametrize(('side', 'pixels'), [(0., 20), (0.5, 38), (1., 56)])
@pytest.mark.parametrize('place', [(0., 0.), (0.25, 0.75), (1., 1.)])
def test_the_sign_is_where_its_box_says(signs, side, pixels, place):
    """The pixels that differ between scenes of two signs, on the same background."""
    u = numbers(side=side, place=place)
    u[:, AT['pieces']:] = numbers(seed=1)[:, AT['pieces']:]
    one, other = (sign_scenes(*signs, torch.tensor([i]), u)[0][0] for i in (0, 4))
    rows, columns = ((one - other).abs().amax(0) > 1e-4).nonzero(as_tuple=True)
    box = scene_boxes(signs[1], torch.tensor([0]), u)[0]
    left, top, right, bottom = ((box + 1) * 128).tolist()
    corner = [p * (256 - pixels) for p in place]
    assert [left, top, right, bottom] == pytest.approx([*corner, corner[0] + pixels, corner[1] + pixels], abs=1e-3)
    found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert [float(edge) for edge in found] == pytest.approx([left, top, right, bottom], abs=1.01)


def test_the_sign_is_drawn_as_by_scipy(signs):
    """On a background of the same numbers; opaque within, and fading out towards its edge."""
    numbers_of = np.random.default_rng(0)
    smooth = np.cumsum(np.cumsum(numbers_of.normal(size=(3, 32, 32)), 1), 2)
    smooth = (smooth - smooth.min()) / (smooth.max() - smooth.min())
    both = torch.stack((torch.zeros(3, 32, 32), torch.from_numpy(smooth).float()))
    known = torch.tensor([[1, 100, 200, 900, 800]] * 2)
    u = numbers(side=0.3, place=(0.4, 0.9))
    u[:, AT['pieces'] + 4::7] = 0.  # all clutter is of the black one
    black, found = (sign_scenes(both, known, torch.tensor([i]), u)[0][0].double().numpy() for i in (0, 1))
    side = 20 + 36 * 0.3
    corner = np.array([0.4, 0.9]) * (256 - side)
    axis = np.arange(256) + 0.5
    inside = [(axis - c) / side for c in corner]  # x, y in the sign's image, 0 to 1
    alpha = [np.clip((1 - np.abs(2 * at - 1)) * 4, 0, 1) for at in inside]
    alpha = alpha[1][:, None] * alpha[0]
    pixels = np.meshgrid(inside[1] * 32 - 0.5, inside[0] * 32 - 0.5, indexing='ij')
    for c in range(3):
        drawn = map_coordinates(smooth[c], pixels, order=1, mode='nearest')
        assert np.abs(found[c] - black[c] - alpha * drawn).max() < 1e-4  # black adds nothing, and covers as much
    box = scene_boxes(known, torch.tensor([1]), u)[0].double().numpy()
    expected = np.concatenate((corner, corner)) + side * np.array([0.1, 0.2, 0.9, 0.8])
    assert np.abs((box + 1) * 128 - expected).max() < 1e-3


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_boxes_lie_inside_and_an_image_depends_on_its_own_row(signs, seed):
    index, u = torch.tensor([3, 1]), rand(2, DRAWS, seed=seed)
    boxes = scene_boxes(signs[1], index, u)
    assert boxes.abs().max() <= 1 + 1e-6 and (boxes[:, 2:] - boxes[:, :2]).min() >= 2 * 20 / 256 - 1e-6
    whole, _ = sign_scenes(*signs, index, u)
    alone, _ = sign_scenes(*signs, index[1:], u[1:])
    torch.testing.assert_close(alone, whole[1:], rtol=0, atol=1e-6)


def test_clutter_is_of_other_signs():
    """Of white signs it is white, in at least a third of twelve squares of 24 x 24, which may lie on one another."""
    known = torch.tensor([[0, 0, 0, 1000, 1000]])
    u = numbers(8)
    u[:, AT['colour']:AT['pieces']] = 0.5  # a grey without gratings
    white, black = (sign_scenes(torch.full((1, 3, 32, 32), value), known, torch.zeros(8, dtype=torch.long), u)[0]
                    for value in (1., 0.))
    clutter = ((white - black).amin(1) > 0.99).sum((1, 2))
    assert (clutter > 12 * 24 * 24 / 3).all() and (clutter < 12 * 24 * 24 + 38 * 38).all()
    rest = white[(white - black).abs() < 1e-6]
    torch.testing.assert_close(rest, torch.full_like(rest, 0.5), rtol=0, atol=1e-3)


def test_boxes_of_batches_are_those_of_the_images(signs):
    boxes = torch.cat(list(boxes_of('SCENES', signs[1], seed=3, batch_size=2)))
    images = torch.cat([x for x, _ in batches_of('SCENES', *signs, seed=3, batch_size=3)])
    for i in (0, 4):  # each sign is one shade of red where its box has its middle
        x, y = ((boxes[i, :2] + boxes[i, 2:]) / 2 * 128 + 128).long().tolist()
        torch.testing.assert_close(images[i, :, y, x], signs[0][i, :, 0, 0] / 255, rtol=0, atol=1e-5)


def test_numbers_of_another_shape(signs):
    with pytest.raises(ValueError, match=r'u must have shape \(1, 108\), got \(1, 4\)'):
        sign_scenes(*signs, torch.tensor([0]), torch.rand(1, 4))
