"""The animation of a log, and the command that makes it."""
import pytest
from PIL import Image, ImageSequence

from timm_stn import cli
from timm_stn.view.history import picture_place
from timm_stn.view.over_time import EACH, FIRST, LAST, STRIP, frames, save_animation

STEPS = (0, 10, 250, 1_000_000)
COLORS = ('red', 'lime', 'blue', 'white')


@pytest.fixture
def log(tmp_path):
    """The folder of a run whose pictures are of one colour each, the last one wider."""
    folder = tmp_path / 'run'
    for step, color in zip(STEPS, COLORS):
        place = picture_place(folder, step)
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (700 + 60 * (color == 'white'), 100), color).save(place, quality=95)
    return folder


def refused(capsys, *argv):
    with pytest.raises(SystemExit) as stop:
        cli.main(list(argv))
    assert stop.value.code == 2
    line, = capsys.readouterr().err.splitlines()
    return line


def pictures(log):
    return [(step, picture_place(log, step)) for step in STEPS]


def test_frames_have_one_size_and_say_their_step(log):
    made = frames(pictures(log))
    assert {image.size for image in made} == {(760, 100 + 2 * STRIP)}
    for image, color in zip(made, COLORS):
        assert max(abs(a - b) for a, b in zip(image.getpixel((300, 110)), Image.new('RGB', (1, 1), color).getpixel(
            (0, 0)))) < 5
    strips = [image.crop((0, 0, 760, 2 * STRIP)).tobytes() for image in made]
    assert len(set(strips)) == len(STEPS)
    dark = [sum(image.getpixel((x, 42)) < (90, 90, 90) for x in range(304, 500)) for image in made]  # the bar
    assert dark[0] <= dark[1] <= dark[2] < dark[3] > 10


@pytest.mark.parametrize('name', ['look.webp', 'look.gif', 'LOOK.GIF'])
def test_it_pauses_at_the_last_and_begins_again(log, tmp_path, name):
    save_animation(frames(pictures(log)), tmp_path / name)
    with Image.open(tmp_path / name) as image:
        durations = []
        for frame in ImageSequence.Iterator(image):
            frame.load()
            durations.append(frame.info['duration'])
        assert durations == [FIRST, EACH, EACH, LAST] and image.info['loop'] == 0
        image.seek(2)
        red, green, blue = image.convert('RGB').getpixel((100, image.height - 20))
        assert blue > 200 and red < 60 and green < 60


def test_a_single_picture(log, tmp_path):
    save_animation(frames(pictures(log)[:1]), tmp_path / 'one.webp')
    with Image.open(tmp_path / 'one.webp') as image:
        assert getattr(image, 'n_frames', 1) == 1


def test_other_names_are_refused(log, tmp_path):
    with pytest.raises(ValueError, match=r"path must end in \.webp or \.gif, got '.*look\.png'"):
        save_animation(frames(pictures(log)), tmp_path / 'look.png')
    assert not (tmp_path / 'look.png').exists()


# --- timm-stn show RUN --over-time ---

def test_the_command(log, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for given, output in (([], 'look.webp'), (['--output', 'a.gif'], 'a.gif')):
        assert cli.main(['show', str(log), '--over-time', *given]) == 0
        assert capsys.readouterr().err == f'{output}: 4 pictures, steps 0 to 1,000,000\n'
        with Image.open(output) as image:
            assert image.n_frames == 4


@pytest.mark.parametrize(('given', 'message'), [
    (['run', '--output', 'look.png'],
     "argument --output: with --over-time, takes the name of an animation, as look.webp or look.gif, got 'look.png'"),
    (['run', '--output', 'nowhere'], 'argument --output: takes the name of a picture'),
    (['run', 'run'], "argument --over-time: takes the folder of one run of train.py, got 'run run'"),
    (['missing'], "argument --over-time: takes the folder of one run of train.py, got 'missing'"),
    (['.'], "argument --over-time: '.' has no log with pictures; train with `timm-stn train ... --stn-log N`")])
def test_what_it_refuses(log, tmp_path, monkeypatch, capsys, given, message):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert message in refused(capsys, 'show', *given, '--over-time')
    assert sorted(tmp_path.iterdir()) == before


def test_a_broken_picture_is_named_and_nothing_is_written(log, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    picture_place(log, 10).write_text('no picture')
    assert 'step-00000010.jpg' in refused(capsys, 'show', str(log), '--over-time')
    assert not (tmp_path / 'look.webp').exists()
