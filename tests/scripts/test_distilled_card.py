"""The card of stn_resnet50_cub: what its first line says, its table, and that its folder loads."""
import json

import make_distilled_card as maker
import pytest
import timm
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import save_file

from timm_stn.names import zoo
from timm_stn.publish.half import rounded

ARGS = dict(seed=0, held_back=0, photos=None, sides=[128, 224, 448], epochs=[12, 400, 60, 20], lr=0.001, batch_size=256,
            output='o', data='d', weights='w', device='cuda', temperature=5.0, until='looking')
SECONDS = dict(teacher=20.0, small=300.0, large=80.0, plain=25.0, plain_448=100.0, looking=75.4)


def result_of(top1=66.1, plain=64.9, plain_448=65.5, **changed):
    figures = dict(top1=top1, plain_top1=plain, teacher_top1=69.5, top5=88.0, plain_top5=87.0, teacher_top5=90.1)
    figures.update(dict(plain_448_top1=plain_448, plain_448_top5=87.5) if plain_448 else {})
    return dict(figures, args={**ARGS, **changed}, train_images=3000, test_images=3033, parameters=23_936_270,
                multiply_adds=12.266, plain_multiply_adds=4.0875, seconds=SECONDS, device='NVIDIA H100 80GB HBM3',
                epochs=dict(teacher=12, small=400, large=60, looking=20),
                versions=dict(torch='2.11.0', timm='1.0.31', timm_stn='0.1.0'))


@pytest.mark.parametrize(('ours', 'other', 'expected'), [
    (66.0, 65.0, 'no clear difference: +1.0 ± 1.2 points'),
    (65.0, 66.0, 'no clear difference: -1.0 ± 1.2 points'),
    (66.0, 60.0, 'this network is better: +6.0 ± 1.2 points'),
    (60.0, 66.0, 'this network is worse: -6.0 ± 1.2 points'),
    (66.0, 66.0, 'no clear difference: +0.0 ± 1.2 points')])
def test_a_comparison(ours, other, expected):
    assert maker.compared(ours, other, 3033) == expected


def test_an_error_is_that_of_the_count():
    draws = (torch.rand(2000, 400, generator=torch.Generator().manual_seed(0)) < 0.3).double().mean(1) * 100
    assert maker.deviation(30.0, 400) == pytest.approx(draws.std().item(), rel=0.05)


def test_the_first_line():
    line = maker.first_line(result_of(plain_448=72.0))
    assert line.startswith('Trained on 3,000 photographs of Caltech-UCSD Birds 200 (2010), of 224 x 224 pixels, by ')
    assert '66.1 % of 3,033 test photographs are classified correctly. A plain ResNet-50 that was trained alike' in line
    assert '(no clear difference: +1.2 ± 1.2 points), and 72.0 % at 448 x 448 (this network is worse: -5.9' in line
    assert line.endswith('its teacher has 69.5 %.') and '448' not in maker.first_line(result_of(plain_448=None))


@pytest.fixture
def run(tmp_path):
    """A run that never was."""
    folder = tmp_path / 'distil-0'
    folder.mkdir()
    (folder / 'result.json').write_text(json.dumps(result_of()))
    torch.manual_seed(3)
    model = timm.create_model('stn_resnet50_cub').eval()
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / 'model.safetensors')
    for i in range(200):
        place = tmp_path / 'birds' / 'test' / f'{i + 1:03}.Bird_{i}'
        place.mkdir(parents=True)
        if i % 33 == 0:
            Image.effect_noise((224, 224), 60).convert('RGB').save(place / 'a.jpg')
    return folder, model


def made(run, tmp_path, *more):
    maker.main(['--run', str(run), '--data', str(tmp_path / 'birds'), '--output', str(tmp_path / 'cards'), *more])
    return tmp_path / 'cards' / 'stn_resnet50_cub'


def test_a_card_and_the_network_that_it_gives(run, tmp_path, monkeypatch, capsys):
    other = tmp_path / 'distil-1'
    other.mkdir()
    (other / 'result.json').write_text(json.dumps(result_of(66.5, 64.7, 65.5, seed=1)))
    folder = made(run[0], tmp_path, '--more', str(other))
    card = ModelCard.load(folder / 'README.md')
    assert card.data.license == 'apache-2.0' and card.data.eval_results[0].metric_value == 0.661
    assert card.content.partition('# stn_resnet50_cub\n\n')[2].startswith('Trained on 3,000 photographs')
    for text in (
            '| **stn_resnet50_cub** | 66.3 ± 0.2 (2 seeds) | 88.0 ± 0.0 (2 seeds) | 12.27 G | 23,936,270 |',
            '| plain ResNet-50, 224 x 224 | 64.8 ± 0.1 (2 seeds) |', '| 4.09 G | 23,917,832 |',
            '| 16.35 G | 23,917,832 |', 'tf_efficientnet_lite0, 224 x 224 | 69.5', '| 0.38 G | 3,627,208 |',
            '400 epochs at 128 x 128',
            '--epochs 12 400 60 20 --sides 128 224 448 --lr 0.001 --batch-size 256 --temperature 5.0 --seed 0',
            'NVIDIA H100 80GB HBM3, 600', 'timm_stn 0.1.0', 'in half precision; loaded, they are',
            '](look.jpg)'):
        assert text in card.content, text
    weights = folder / 'model.safetensors'
    assert weights.stat().st_size < 50e6
    digest = capsys.readouterr().out.partition('SHA-256 is ')[2].partition(',')[0]
    monkeypatch.setitem(zoo._ZOO, 'stn_resnet50_cub', zoo._ZOO['stn_resnet50_cub']._replace(sha256=digest))
    overlay = dict(file=str(weights))
    loaded = timm.create_model('stn_resnet50_cub', pretrained=True, pretrained_cfg_overlay=overlay).eval()
    by_folder = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    x = torch.rand(1, 3, 448, 448)
    assert torch.equal(loaded(x), rounded(run[1])(x)) and torch.equal(loaded(x), by_folder(x))
    assert by_folder.pretrained_cfg['label_names'][:2] == ['Bird 0', 'Bird 1']


def test_what_no_card_is_made_of(run, tmp_path):
    folder, other = run[0], tmp_path / 'other'
    other.mkdir()
    for changed, more, message in (
            (dict(seed=1), None, '--run is of seed 1'), (dict(held_back=600), None, 'was a trial'),
            (dict(sides=[64, 96, 128]), None, 'was a trial'), ({}, dict(seed=1, lr=0.1), 'others: lr'),
            ({}, dict(seed=0), 'got seed 0')):
        (folder / 'result.json').write_text(json.dumps(result_of(**changed)))
        (other / 'result.json').write_text(json.dumps(result_of(**(more or {}))))
        with pytest.raises(SystemExit, match=message):
            made(folder, tmp_path, *(['--more', str(other)] if more else []))
    (folder / 'result.json').unlink()
    with pytest.raises(SystemExit, match='is no finished run of scripts/train/distil.py'):
        made(folder, tmp_path)
    assert not (tmp_path / 'cards').exists()
