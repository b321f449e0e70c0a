"""`timm-stn show`: what it prints, what it draws, and how it refuses."""
import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from commands import MODEL, has_color, refused
from PIL import Image

from timm_stn import cli
from timm_stn.view import gallery
from timm_stn.view.caption import GOOD, WRONG
from timm_stn.view.draw import COLORS


def show(capsys, *argv):
    assert cli.main(['show', *map(str, argv)]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_show(photos, tmp_path, capsys):
    output = tmp_path / 'out' / 'look.png'
    lines = show(capsys, photos / 'b.jpg', photos, *MODEL, '--output', output)
    assert [Path(line['file']).name for line in lines] == ['b.jpg', 'a.png', 'b.jpg', 'c.png']
    for line in lines:
        assert line['stage'] == 'input' and 0 < line['probability'] < 1 and isinstance(line['answer'], str)
        assert line['theta'] == [[1, 0, 0], [0, 1, 0]]
    assert lines[0] == {**lines[2], 'file': str(photos / 'b.jpg')}
    assert has_color(output, COLORS[0]) and [p.name for p in output.parent.iterdir()] == ['look.png']


def test_show_glimpses_in_grey(photos, tmp_path, capsys):
    kwargs = ['in_chans=1', 'num_classes=3', 'stn_glimpses=2', 'stn_scale=0.5', 'stn_transform=translation']
    labels = tmp_path / 'labels.txt'
    labels.write_text('ant\nbee\ncat\n')
    lines = show(capsys, photos, *MODEL, '--model-kwargs', *kwargs, '--labels', labels, '--count', 2,
                 '--output', tmp_path / 'g.png')
    assert len(lines) == 2 and lines[0]['answer'] in ('ant', 'bee', 'cat')
    thetas = np.array(lines[0]['theta'])
    assert thetas.shape == (2, 2, 3) and np.abs(thetas[0] - thetas[1]).max() > 0.1, 'two places'
    assert has_color(tmp_path / 'g.png', COLORS[0]) and has_color(tmp_path / 'g.png', COLORS[1])


def test_show_checkpoint_of_a_stage(photos, tmp_path, capsys):
    model = timm.create_model('stn_test_resnet', stn_stages=('input', 2))
    model.spatial_transformers()[2].localization.regression.bias.data[2] = 0.025  # times lr_scale
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'c.pt')
    common = [photos / 'a.png', *MODEL[:2], '--checkpoint', tmp_path / 'c.pt', '--output', tmp_path / 's.png',
              '--model-kwargs', "stn_stages=('input',2)"]
    line, = show(capsys, *common, '--stage', '2')
    assert line['stage'] == 2 and line['theta'] == [[1, 0, 0.25], [0, 1, 0]]
    line, = show(capsys, *common)
    assert line['stage'] == 'input' and line['theta'] == [[1, 0, 0], [0, 1, 0]]
    assert "transformers at input, 2, got '3'" in refused(capsys, 'show', *common, '--stage', '3')


def test_show_stages_only(photos, tmp_path, capsys):
    line, = show(capsys, photos / 'a.png', *MODEL, '--model-kwargs', 'stn_stages=(1,)', '--output', tmp_path / 's.png')
    assert line['stage'] == 1 and has_color(tmp_path / 's.png', COLORS[0])


def test_show_what_a_folder_holds(photos, tmp_path, capsys):
    model = timm.create_model('stn_test_resnet', num_classes=2, stn_transform='tps')
    args = dict(model._model_args, num_classes=2)  # timm 1.0.29 does not save them by itself
    timm.models.save_for_hf(model, tmp_path / 'mine', model_args=args, safe_serialization=True)
    line, = show(capsys, photos / 'a.png', '--model', f'local-dir:{tmp_path / "mine"}', '--output', tmp_path / 'f.png')
    assert line['answer'] in ('0', '1') and len(line['theta']) == model.stn.transform.num_params
    timm.models.save_for_hf(timm.create_model('test_resnet'), tmp_path / 'plain', safe_serialization=True)
    line, = show(capsys, photos / 'a.png', '--model', f'local-dir:{tmp_path / "plain"}', '--output', tmp_path / 'f.png')
    assert line['as'].startswith('saliency:'), 'a plain model looks where its features respond'


def test_show_a_run_of_train_py_by_its_checkpoint_alone(photos, capsys, tmp_path):
    model = timm.create_model('stn_test_resnet', stn_transform='similarity', num_classes=3)
    args = argparse.Namespace(model='stn_test_resnet', num_classes=3, model_kwargs=dict(stn_transform='similarity'))
    held = dict(arch='stn_test_resnet', state_dict=model.state_dict(), args=args, epoch=0)
    torch.save(held, tmp_path / 'c.pth.tar')
    line, = show(capsys, photos / 'a.png', '--checkpoint', tmp_path / 'c.pth.tar', '--output', tmp_path / 'f.png')
    assert line['stage'] == 'input' and (tmp_path / 'f.png').is_file()
    message = refused(capsys, 'show', photos / 'a.png', '--checkpoint', tmp_path / 'c.pth.tar', '--model-kwargs', 'a=1')
    assert 'argument --model-kwargs a=1: needs --model NAME, too' in message


@pytest.mark.parametrize('argv,message', [
    (['nowhere.png', *MODEL], "IMAGE: no file or folder 'nowhere.png'"),
    (['more/..', *MODEL[:1], 'stn_test_resnt'], "unknown model 'stn_test_resnt', the nearest are stn_test_resnet"),
    ([*MODEL], 'argument IMAGE: it takes files, or folders of them'),
    (['a.png', '--model', 'test_resnet', '--no-pretrained', '--stage', '1'], 'test_resnet has no spatial transformer'),
    (['a.png', *MODEL, '--as', 'orbit:8'], 'argument --as: it is for plain timm models'),
    (['a.png', *MODEL, '--boxes', 'notes.txt'], '--boxes notes.txt: ValueError: line 1: columns file,x1,y1,x2,y2'),
    (['a.png', *MODEL, '--masks', 'empty'], '--masks empty: BadImage: no pictures in it'),
    (['a.png', *MODEL, '--output', 'notes.txt/a.html'], "--output: cannot write 'notes.txt/a.html'"),
    (['a.png', '--model', 'stn_mnist_fcn'], 'no trained weights; give --checkpoint FILE or --no-pretrained'),
    (['notes.txt', *MODEL], 'no image can be read; notes.txt: not an image of these formats: PNG, JPEG'),
    (['x' * 300, *MODEL], 'IMAGE: no file or folder'),
    (['empty', *MODEL], "IMAGE: no pictures in the folder 'empty'"),
    (['a.png', *MODEL, '--output', 'look.xyz'], "--output: takes the name of a picture, as look.png, got 'look.xyz'"),
    (['a.png', *MODEL, '--output', 'look.psd'], "--output: takes the name of a picture, as look.png, got 'look.psd'"),
    (['a.png', *MODEL, '--output', 'a.png'], "--output: 'a.png' is one of the images"),
    (['a.png', *MODEL, '--stage', '3'], "--stage: there are transformers at input, got '3'"),
    (['a.png', *MODEL, '--model-kwargs', 'stn_glimpse=2'], "Did you mean 'stn_glimpses'?"),
    (['a.png', *MODEL, '--model-kwargs', 'glimpses'], "--model-kwargs: takes KEY=VALUE, got 'glimpses'"),
    (['a.png', *MODEL, '--model-kwargs', 'in_chans=4'],
     '--model-kwargs in_chans=4: ValueError: images have 1 or 3 channels, and the model takes 4'),
    (['a.png', *MODEL, '--model-kwargs', 'num_classes=0'], 'has no classifier'),
    (['a.png', *MODEL, '--checkpoint', 'no.pt'], "--checkpoint: no file 'no.pt'"),
    (['a.png', *MODEL, '--checkpoint', 'notes.txt'], '--checkpoint notes.txt'),
    (['a.png', *MODEL, '--labels', 'no.txt'], '--labels no.txt: FileNotFoundError'),
    (['a.png', *MODEL, '--device', 'abacus'], '--device abacus'),
    (['a.png', *MODEL, '--count', '0'], "--count: takes a positive integer, got '0'"),
    (['a.png'], 'argument --model: it takes a name; only --checkpoint alone'),
])
def test_show_refuses(photos, capsys, monkeypatch, argv, message):
    monkeypatch.chdir(photos)
    Path('empty').mkdir()
    assert message in refused(capsys, 'show', *argv)
    assert not (photos / 'look.png').exists()


def test_show_without_a_hub(photos, capsys, monkeypatch):
    def create_model(*args, pretrained, **kwargs):
        raise ConnectionError('no Hub') if pretrained else ValueError('no network')

    monkeypatch.setattr(timm, 'create_model', create_model)
    message = refused(capsys, 'show', photos / 'a.png', '--model', 'stn_resnet18')
    assert message.endswith('no Hub. Without the trained weights: --checkpoint FILE, or --no-pretrained\n')
    assert refused(capsys, 'show', photos / 'a.png', *MODEL).endswith('no network\n')


@pytest.mark.parametrize('output', ['notes.txt/look.png', 'more.png', f'{"x" * 255}.png', 'gone/look.png'])
@pytest.mark.parametrize('command', ['show', 'demo'])
def test_a_picture_that_could_not_be_written_is_refused_before_any_model(photos, capsys, monkeypatch, command, output):
    monkeypatch.chdir(photos)
    Path('more').rename('more.png')
    Path('gone').symlink_to('nowhere')
    before = sorted(Path().rglob('*'))
    monkeypatch.setattr(timm, 'create_model', None)
    message = refused(capsys, command, *(['a.png', *MODEL] if command == 'show' else []), '--output', output)
    assert f'argument --output: cannot write {output!r}: ' in message and sorted(Path().rglob('*')) == before


def classes_folder(folder, classes, each):
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(each):
            pixels = np.random.default_rng(i).integers(0, 256, (30, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f'{i}.png')
    return folder


def test_show_takes_images_of_all_classes(tmp_path, capsys):
    """One of each, in timm's order of classes, and says which answers are right."""
    data = classes_folder(tmp_path / 'data', ['jay', '10', '2', 'owl'], 3)
    argv = [*MODEL, '--model-kwargs', 'num_classes=4', '--output', data / 'look.png', '--count']
    lines = show(capsys, data, *argv, 4)
    assert [line['class'] for line in lines] == ['2', '10', 'jay', 'owl']
    assert all(line['right'] == (line['answer'] == line['class'] == Path(line['file']).parent.name) for line in lines)
    assert has_color(data / 'look.png', WRONG) and {line['answer'] for line in lines} <= {'2', '10', 'jay', 'owl'}
    assert has_color(data / 'look.png', GOOD) == any(line['right'] for line in lines)
    lines = show(capsys, data, *argv, 6)
    assert [line['class'] for line in lines] == ['2', '2', '10', '10', 'jay', 'owl']
    assert len(show(capsys, data, *argv, 99)) == 12, 'without the picture that is there from before'
    lines = show(capsys, *sorted(data.glob('*/*.png')), *argv, 4)
    assert [line['class'] for line in lines] == ['10', '2', 'jay', 'owl'], 'also of files, in the order that they have'
    lines = show(capsys, data, data / 'jay' / '2.png', *argv, 3)
    assert lines[-1]['file'] == str(data / 'jay' / '2.png'), 'a file that is named is among them'


def test_show_knows_classes_by_name_and_else_not_at_all(tmp_path, capsys):
    data = classes_folder(tmp_path / 'data', ['jay', 'owl'], 1)
    argv = [*MODEL, '--output', tmp_path / 'look.png', '--model-kwargs', 'num_classes=3']
    assert all('class' not in line and line['answer'] in '012' for line in show(capsys, data, *argv))
    (tmp_path / 'labels.txt').write_text('owl\ntit\njay\n')
    for given in ([data], [data / 'owl', data / 'jay'], [data / 'owl' / '0.png', data / 'jay' / '0.png']):
        lines = show(capsys, *given, *argv, '--labels', tmp_path / 'labels.txt')
        assert sorted(line['class'] for line in lines) == ['jay', 'owl']
    (tmp_path / 'labels.txt').write_text('owl\ntit\n')
    message = refused(capsys, 'show', data, *argv, '--labels', tmp_path / 'labels.txt')
    assert f'argument --labels: 3 classes need as many names, and {tmp_path / "labels.txt"} has 2' in message
    (tmp_path / 'labels.txt').write_text('owl\ntit\nrook\n')
    assert cli.main(['show', str(data), *map(str, argv), '--labels', str(tmp_path / 'labels.txt')]) == 0
    assert 'wrong, 1 of classes that the model does not name\n' in capsys.readouterr().err


def test_show_skips_and_names_what_is_no_image(photos, tmp_path, capsys):
    (photos / 'cut.png').write_bytes((photos / 'a.png').read_bytes()[:500])
    for i in range(6):
        (photos / f'{i}.jpg').write_text('')
    Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64) * 16).save(photos / 'deep.png')
    (photos / 'paper.pdf').write_text('%PDF')
    assert cli.main(['show', str(photos), *MODEL, '--output', str(tmp_path / 'look.png')]) == 0
    output = capsys.readouterr()
    assert [Path(json.loads(line)['file']).name for line in output.out.splitlines()] == [
        'a.png', 'b.jpg', 'deep.png', 'c.png']
    assert 'look.png: 4 images, 7 skipped that cannot be read' in output.err and 'paper' not in output.err
    assert output.err.count('timm-stn: skipped ') == 7 and f'skipped {photos / "0.jpg"}: empty' in output.err
    assert 'divided by 257' in output.err and ': deep.png' in output.err


def test_a_picture_is_there_even_if_nobody_reads_the_lines(photos, tmp_path):
    argv = [sys.executable, '-m', 'timm_stn', 'show', str(photos), *MODEL, '--output', str(tmp_path / 'look.png')]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE)
    process.stdout.close()
    assert process.wait() == 141 and (tmp_path / 'look.png').is_file()


def test_each_file_that_cannot_be_read_has_a_line_up_to_twenty(photos, tmp_path, capsys):
    for i in range(23):
        (photos / f'{i}.jpg').write_text('')
    for more in ([], ['--quiet']):
        assert cli.main(['show', str(photos), *MODEL, '--output', str(tmp_path / 'look.png'), *more]) == 0
        lines = capsys.readouterr().err.splitlines()
        skipped = [line for line in lines if line.startswith('timm-stn: skipped ')]
        assert skipped[:20] == [f'timm-stn: skipped {photos / f"{i}.jpg"}: empty, or not a file' for i in range(20)]
        assert skipped[20:] == ['timm-stn: skipped 3 more'] and '3 images, 23 skipped that cannot be read' in lines[0]


def test_models_stand_side_by_side(photos, tmp_path, capsys):
    """Of other sizes, channels, classes and glimpses; the answers of each are those that it gives alone."""
    kwargs = dict(stn_glimpses=2, stn_scale=0.5, stn_transform='translation', in_chans=1, num_classes=3)
    grey = timm.create_model('stn_test_resnet', **kwargs)
    timm.models.save_for_hf(grey, tmp_path / 'grey', model_args=kwargs, safe_serialization=True)
    models = [f'local-dir:{tmp_path / "grey"}', 'stn_test_vit', 'test_resnet']
    output = ['--output', tmp_path / 'look.png', '--no-pretrained']
    lines = show(capsys, '--model', *models, photos, *output)
    assert [(Path(line['file']).name, line['model']) for line in lines] == [
        (name, model) for name in ('a.png', 'b.jpg', 'c.png') for model in models]
    for k, model in enumerate(models):
        alone = show(capsys, photos, '--model', model, *output)
        assert all('model' not in line for line in alone)
        for one, other in zip(alone, lines[k::3]):
            assert other['probability'] == pytest.approx(one['probability'], abs=2e-6)
            assert {**other, 'model': 0, 'probability': 0} == {**one, 'model': 0, 'probability': 0}


def test_boxes_and_masks_are_drawn_and_where_it_looked_is_told_in_pixels_of_the_file(photos, tmp_path, capsys):
    output = ['--output', tmp_path / 'look.png']
    lines = show(capsys, photos, *MODEL, *output)
    plain = np.asarray(Image.open(tmp_path / 'look.png')).astype(int)
    config = timm.data.resolve_model_data_config(timm.create_model('stn_test_resnet'))
    inside = config['input_size'][1]
    side = 45 * inside / np.floor(inside / config['crop_pct'])  # of a.png, 120 x 90: the middle, cut out of 90 x 90
    expected = [[60 - side, 45 - side], [60 + side, 45 - side], [60 + side, 45 + side], [60 - side, 45 + side]]
    assert np.abs(np.subtract(lines[0]['box'], expected)).max() < 0.5
    (tmp_path / 'masks' / 'photos').mkdir(parents=True)
    Image.new('1', (120, 90), 1).save(tmp_path / 'masks' / 'photos' / 'a.png')
    (tmp_path / 'boxes.csv').write_text('file,x1,y1,x2,y2\nphotos/b.jpg,30,40,60,80\n')
    for more, tiles in ((['--masks', tmp_path / 'masks'], 'a'), (['--boxes', tmp_path / 'boxes.csv'], 'b')):
        assert show(capsys, photos, *MODEL, *output, *more) == lines
        differs = np.abs(np.asarray(Image.open(tmp_path / 'look.png'))[:plain.shape[0]].astype(int) - plain).max(-1)
        row = {'a': slice(80, 430), 'b': slice(456, 806)}[tiles]
        assert differs[row].max() > 40, 'on the input and on what was seen'
        assert not differs[{'b': slice(80, 430), 'a': slice(456, 806)}[tiles]].any()


def test_it_is_said_if_no_box_is_of_these_images(photos, tmp_path, capsys):
    (tmp_path / 'boxes.csv').write_text('file,x1,y1,x2,y2\nother.jpg,30,40,60,80\n')
    argv = ['show', photos, *MODEL, '--output', tmp_path / 'look.png', '--boxes', tmp_path / 'boxes.csv']
    assert cli.main([str(part) for part in argv]) == 0
    assert f'--boxes {tmp_path / "boxes.csv"}: none is of these images' in capsys.readouterr().err


def test_a_page_of_all_images(tmp_path, capsys):
    data = classes_folder(tmp_path / 'data', ['jay', '<b>owl'], 20)
    argv = [data, *MODEL, '--model-kwargs', 'num_classes=2', '--output', tmp_path / 'look.html']
    lines = show(capsys, *argv)
    assert len(lines) == 40, 'all, where a picture shows 24'
    page = (tmp_path / 'look.html').read_text()
    assert page.count('<article ') == 40 and '<b>owl' not in page and '&lt;b&gt;owl' in page
    assert len(show(capsys, *argv, '--count', 3)) == 3
    assert (tmp_path / 'look.html').read_text().count('<article ') == 3


def test_many_images_are_looked_at_few_at_a_time(tmp_path, capsys, monkeypatch):
    """And it is all the same to what is said of them."""
    data = classes_folder(tmp_path / 'data', ['jay', 'owl'], 5)
    argv = [data, *MODEL, '--model-kwargs', 'num_classes=2', '--output', tmp_path / 'look.png']
    at_once = show(capsys, *argv)
    sizes = []
    seen = gallery.observe
    monkeypatch.setattr(gallery, 'observe', lambda model, images, *rest: sizes.append(len(images)) or seen(
        model, images, *rest))
    monkeypatch.setattr(gallery, 'BATCH', 4)
    few = show(capsys, *argv)
    assert sizes == [4, 4, 2]
    for one, other in zip(at_once, few, strict=True):
        assert one.pop('probability') == pytest.approx(other.pop('probability'), abs=2e-6) and one == other
