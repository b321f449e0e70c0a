"""Which images are drawn, when, and that drawing leaves a network as it was."""
import random

import numpy as np
import pytest
import torch
from makers import in_training, rand
from PIL import Image

from timm_stn.training_log.pictures import COUNT, due, find_sitters, options_of, save_picture
from timm_stn.view.dependence import witnessing
from timm_stn.view.history import picture_place


@pytest.mark.parametrize(('every', 'lines', 'most'), [(1, 10, 11), (50, 1_000, 45), (10, 10_000, 61), (1, 100_000, 77)])
def test_a_long_run_has_few_pictures(every, lines, most):
    """All at first, then at growing intervals."""
    last, drawn = 0, [0]
    for step in range(every, every * lines + 1, every):
        if due(last, step):
            last = step
            drawn.append(step)
    gaps = np.diff(drawn)
    assert drawn[:6] == [k * every for k in range(6)] and len(drawn) <= most and len(drawn) >= min(0.8 * lines, 40)
    assert (np.diff(gaps) >= -every).all() and gaps[-1] <= max(0.16 * drawn[-1] + every, every)


@pytest.fixture
def data(tmp_path):
    for k, name in enumerate(('a1', 'a10', 'a2')):
        for i in range(5):
            path = tmp_path / 'data' / 'val' / name / f'{i}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new('RGB', (80, 80), (50 * k + 10 * i, 0, 0)).save(path)
    return tmp_path / 'data'


BATCH = rand(10, 3, 64, 64)


def test_validation_images_one_of_each_class_in_turn(data):
    network = in_training()
    network.reset_classifier(3)
    options = dict(data_dir=str(data), val_split='validation', mean=[0, 0, 0], std=[1, 1, 1], img_size=64)
    sitters, note = find_sitters(network, options, BATCH)
    assert note is None and sitters.pixels.shape == (COUNT, 3, 64, 64)
    assert sitters.classes.of_folder == {'a1': 0, 'a2': 1, 'a10': 2}
    assert sitters.classes.names == ['a1', 'a2', 'a10']
    made = {0: 0, 1: 100, 2: 50}  # by class, the red of the first file of its folder
    got = sorted((truth, round(255 * image[0, 5, 5].item())) for truth, image in zip(sitters.truths, sitters.pixels))
    assert got == sorted((c, made[c] + 10 * i) for c, files in enumerate((3, 3, 2)) for i in range(files))


@pytest.mark.parametrize(('options', 'why'), [
    (dict(), 'there is no folder of validation images'),
    (dict(data_dir='data', val_split='test'), 'there is no folder'),
    (dict(data_dir='data', val_split='val', dataset='hfds/x'), 'there is no folder'),
    (dict(data='data', val_split='empty'), 'there are no images in data/empty')])
def test_else_the_first_of_the_training(data, monkeypatch, options, why):
    monkeypatch.chdir(data.parent)
    (data / 'empty').mkdir()
    sitters, note = find_sitters(in_training(), options, BATCH)
    assert note.startswith(f'the pictures are of the first {COUNT} images of the training, as {why}')
    assert torch.equal(sitters.pixels, BATCH[:COUNT]) and sitters.truths == [None] * COUNT
    assert len(find_sitters(in_training(), options, BATCH[:3])[0].pixels) == 3


def test_images_of_two_channels_are_not_drawn():
    with pytest.raises(ValueError, match='images have 1 or 3 channels, and these have 2'):
        find_sitters(in_training(in_chans=2), {}, BATCH[:, :2])


@pytest.mark.parametrize('kwargs', [
    dict(), dict(stn_stages=(1,)), dict(stn_localization='saliency:1', stn_scale=0.5), dict(in_chans=1),
    dict(stn_stages=('input', 2), stn_glimpses=2, stn_scale=0.5, stn_whole=True)])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_drawing_leaves_all_as_it_was(kwargs, dtype):
    network = in_training(**kwargs).to(dtype)
    batch = BATCH[:, :kwargs.get('in_chans', 3)]
    network(batch.to(dtype)).sum().backward()
    sitters, _ = find_sitters(network, {}, batch)

    def state():
        transformers = list(network.spatial_transformers().values())
        return dict(
            modes=[m.training for m in network.modules()], values=[v.clone() for v in network.state_dict().values()],
            gradients=[p.grad.clone() for p in network.parameters() if p.grad is not None],
            thetas=[t.last_theta for t in transformers], random=(random.random(), np.random.rand(), torch.rand(2)))

    seeds = random.getstate(), np.random.get_state(), torch.get_rng_state()
    with witnessing() as witness:
        before = state()
        random.setstate(seeds[0])
        np.random.set_state(seeds[1])
        torch.set_rng_state(seeds[2])
        picture = sitters.draw(network)
        after = state()
        assert not witness.found()
    assert before['modes'] == after['modes'] and before['random'][:2] == after['random'][:2]
    for key in ('values', 'gradients', 'thetas'):
        assert all(torch.equal(a, b) for a, b in zip(before[key], after[key], strict=True))
    assert torch.equal(before['random'][2], after['random'][2])
    assert picture.width > 500


def test_pictures_of_one_log_have_one_layout():
    """Wherever the network looks, and whatever it answers."""
    network = in_training()
    sitters, _ = find_sitters(network, {}, BATCH)
    sizes = set()
    for scale in (0.0, 3.0):
        with torch.no_grad():
            network.stn.localization.regression.bias.fill_(scale)
        sizes.add(sitters.draw(network).size)
    assert len(sizes) == 1


def test_autocast_leaves_no_casts_of_inference_behind():
    network = in_training()
    with torch.autocast('cpu', torch.bfloat16):
        sitters, _ = find_sitters(network, {}, BATCH)
        sitters.draw(network)
        network(BATCH).float().sum().backward()


def test_options_and_files(tmp_path):
    assert options_of(tmp_path) == {}
    (tmp_path / 'args.yaml').write_text('model: x\nmean: null\n')
    assert options_of(tmp_path) == {'model': 'x', 'mean': None}
    (tmp_path / 'args.yaml').write_text('- [')
    assert options_of(tmp_path) == {}
    save_picture(tmp_path, 5, Image.new('RGB', (4, 4)))
    with Image.open(picture_place(tmp_path, 5)) as image:
        assert image.size == (4, 4)
