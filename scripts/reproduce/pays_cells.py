"""Where a transformer pays, as cells like those of `cells.py`; `pays.py` makes docs/when_it_pays.md of their runs."""
from collections.abc import Iterator

from cells import Cell, options, train

BIRDS = ('birds-train', 'birds-test', 'lite0')  # parts of the pack
LITE0 = ('--weights', '{lite0}/model.safetensors', '--normalize', '--channels-last')
FINE_TUNED = (*LITE0, *options(  # as scripts/train/train_birds.sh
    batch_size=32, lr=0.001, weight_decay=0.05, layer_decay=0.85, warmup_epochs=1, smoothing=0.1))


def scattered_birds() -> Iterator[Cell]:
    """Birds somewhere on large canvases, and as large as it happens."""
    ours = ('stn_size=112', 'stn_transform=translation', 'stn_whole=True', 'stn_scale=0.5')
    for row, name, model, more in (
            ('plain, 112 x 112', 'plain112', 'tf_efficientnet_lite0', ('--img-size', '112')),
            ('plain, 224 x 224', 'plain224', 'tf_efficientnet_lite0', ('--img-size', '224')),
            ('plain, 448 x 448', 'plain448', 'tf_efficientnet_lite0', ()),
            ('whole and a glimpse, each 112 x 112', 'whole1', 'stn_tf_efficientnet_lite0', ('--model-kwargs', *ours))):
        command = train('birds', '--model', model, *more, '--set', 'SCATTERED', *FINE_TUNED,
                        *options(epochs=8, val_interval=4))
        yield Cell('scattered-birds', f'scattered-{name}', row, 'error', command, 200, choice=dict(model=name),
                   parts=BIRDS, returns=False)


SIGNS = ('--channels-last', '--amp', *options(  # one recipe for all networks
    epochs=15, batch_size=128, lr=0.002, weight_decay=0.05, ema_decay=0.998, smoothing=0.1))


def signs() -> Iterator[Cell]:
    """Traffic signs as they are (GTSRB), each a crop that the sign fills."""
    for row, name, model, more in (
            ('plain', 'plain', 'signs_cnn', ()),
            ('looks twice at the image', 'input', 'stn_signs_cnn', ('stn_iterations=2',)),
            ('looks twice at the image and at two layers', 'features', 'stn_signs_cnn', (
                "stn_stages=['input',0,2]", 'stn_iterations=2'))):
        given = ('--model-kwargs', *more) if more else ()
        command = train('signs', '--model', model, *given, '--set', 'SIGNS', *SIGNS)
        yield Cell('signs', f'signs-{name}', row, 'error', command, 150, choice=dict(model=name), parts=('signs',),
                   weights=(0,) if name == 'input' else ())


def sign_scenes() -> Iterator[Cell]:
    """Small signs anywhere on canvases of 256 x 256 pixels."""
    ours = ('img_size=256', 'stn_size=32', 'stn_transform=translation', 'stn_scale=0.22')
    for row, name, model, more in (
            ('plain, 64 x 64', 'plain64', 'signs_cnn', ('--img-size', '64')),
            ('plain, 128 x 128', 'plain128', 'signs_cnn', ('--img-size', '128')),
            ('a glimpse of 32 x 32', 'glimpse', 'stn_signs_cnn', (
                '--model-kwargs', *ours, 'stn_localization=saliency:4', 'stn_localization_size=64'))):
        command = train('signs', '--model', model, *more, '--set', 'SCENES', *SIGNS)
        yield Cell('sign-scenes', f'scenes-{name}', row, 'error', command, 300, choice=dict(model=name),
                   parts=('signs',))


def pays() -> list[Cell]:
    """All of them."""
    return [*scattered_birds(), *signs(), *sign_scenes()]
