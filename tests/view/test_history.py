"""What a log says of a batch, and its files: written, cut off, read back."""
import numpy as np
import pytest
import torch
from makers import PLANAR, move_theta, rand, transformer

from timm_stn.view.geometry_of_looks import looks
from timm_stn.view.history import (
    LINES,
    append_line,
    last_step,
    picture_place,
    pictures_of,
    read_lines,
    scalars,
)


def turned(degrees):
    a = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    return torch.stack([torch.stack([a.cos(), -a.sin(), a * 0], -1), torch.stack([a.sin(), a.cos(), a * 0], -1)], -2)


def test_mean_and_spread_are_those_of_numpy():
    stn = move_theta(transformer('affine', (12, 10)), 0.01)
    theta = stn.regress(rand(5, 2, 12, 10)).detach()
    (said,), found = scalars(stn, theta), looks(stn, theta)
    assert set(said) == {'outside', *(f'{key}{part}' for key in ('scale', 'stretch', 'angle', 'shear', 'x', 'y')
                                      for part in ('', '_spread'))}
    for key, value in dict(scale=found.scale, stretch=found.stretch, shear=found.shear, x=found.center[..., 0],
                           y=found.center[..., 1], angle=found.angle).items():
        assert said[key] == pytest.approx(value.mean().item(), rel=1e-2, abs=1e-5)
        assert said[f'{key}_spread'] == pytest.approx(np.std(value.numpy()), rel=1e-2, abs=1e-5)
    assert said['outside'] == pytest.approx(found.outside.mean().item(), rel=1e-4)


@pytest.mark.parametrize(('degrees', 'mean', 'spread'), [
    ([179, -179], 180, 1), ([170, -170, 180], 180, np.sqrt(200 / 3)), ([-10, 10, 30], 10, np.sqrt(800 / 3))])
def test_angles_are_directions(degrees, mean, spread):
    said, = scalars(transformer('rotation', (8, 8)), turned([float(d) for d in degrees]))
    assert abs(said['angle']) == pytest.approx(mean, abs=0.1)
    assert said['angle_spread'] == pytest.approx(spread, rel=1e-3)
    assert abs(said['shear']) < 1e-4 and said['scale'] == pytest.approx(1)


@pytest.mark.parametrize('family', PLANAR)
def test_any_family_has_numbers(family):
    stn = move_theta(transformer(family))
    (said,) = scalars(stn, stn.regress(rand(3, 2, 12, 10)))
    bends = family in ('projective', 'tps', 'diffeomorphic', 'zoom', 'affine+tps', 'zoom+rotation')
    assert ('bend' in said) == bends and (not bends or said['bend'] > 0)
    assert all(isinstance(value, float) and np.isfinite(value) for value in said.values())


def test_volumes():
    stn = transformer('affine3d', (4, 6, 8))
    (said,) = scalars(stn, stn.regress(rand(3, 2, 4, 6, 8)))
    assert set(said) == {'outside', *(f'{k}{s}' for k in ('scale', 'x', 'y', 'z') for s in ('', '_spread'))}


def test_one_for_each_glimpse_and_stream():
    stn = transformer('similarity', glimpses=2, scale=0.5)
    first, second = scalars(stn, stn.regress(rand(3, 2, 12, 10)))
    assert [(said['x'], said['y']) for said in (first, second)] == [pytest.approx(tile) for tile in stn.tiles.tolist()]
    stage = transformer('affine')
    stage.rows = 2
    theta = torch.eye(2, 3).repeat(6, 1, 1) * torch.tensor([1.0, 0.5] * 3)[:, None, None]
    assert [said['scale'] for said in scalars(stage, theta)] == [1.0, 0.5]
    assert [said['scale_spread'] for said in scalars(stage, theta)] == [0, 0]


def test_no_line_is_lost(tmp_path):
    """A line that was cut off is no line, and the next begins on its own."""
    assert read_lines(tmp_path) == [] and last_step(tmp_path) == 0
    lines = [{'step': n, 'transformers': {'input': {'scale': 0.5 * n}}} for n in (10, 20, 30)]
    append_line(tmp_path, lines[0])
    append_line(tmp_path, lines[1])
    with (tmp_path / LINES).open('a') as file:
        file.write('{"step": 25, "tra\xe9')
    append_line(tmp_path, lines[2])
    with (tmp_path / LINES).open('a') as file:
        file.write('[1]\n{"step": "x"}\n\n')
    assert read_lines(tmp_path) == lines and last_step(tmp_path) == 30


def test_numbers_that_json_has_not_are_not_written(tmp_path):
    with pytest.raises(ValueError):
        append_line(tmp_path, {'step': float('nan')})


def test_pictures_are_in_the_order_of_steps(tmp_path):
    assert pictures_of(tmp_path) == []
    places = [picture_place(tmp_path, step) for step in (2_000, 10, 123_456_789)]
    places[0].parent.mkdir()
    for place in [*places, places[0].with_name('step-x.jpg'), places[0].with_name('.step-00000001.jpg.tmp')]:
        place.touch()
    assert pictures_of(tmp_path) == [(10, places[1]), (2_000, places[0]), (123_456_789, places[2])]
    assert last_step(tmp_path) == 123_456_789
