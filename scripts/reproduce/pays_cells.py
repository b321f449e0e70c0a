"""Where a transformer pays, as cells like those of `cells.py`; `pays.py` makes docs/when_it_pays.md of their runs."""
from collections.abc import Iterable, Iterator

from cells import Cell, options, train

BIRDS = ('birds-train', 'birds-test', 'lite0')  # parts of the pack
LITE0 = ('--weights', '{lite0}/model.safetensors', '--normalize', '--channels-last')
FINE_TUNED = (*LITE0, *options(  # as scripts/train/train_birds.sh, but that all layers have the same rate
    batch_size=32, lr=0.001, weight_decay=0.05, warmup_epochs=1, smoothing=0.1))


def scattered_birds() -> Iterator[Cell]:
    """Birds somewhere on large canvases, and as large as it happens."""
    ours = ('stn_size=112', 'stn_transform=attention', 'stn_scale=0.5', 'stn_localization=saliency:3', 'stn_whole=True')
    plain, twin = 'tf_efficientnet_lite0', 'stn_tf_efficientnet_lite0'
    for row, name, model, more in (
            ('plain, 112 x 112', 'plain112', plain, ('--img-size', '112')),
            ('plain, 168 x 168', 'plain168', plain, ('--img-size', '168')),
            ('plain, 224 x 224', 'plain224', plain, ('--img-size', '224')),
            ('plain, 448 x 448', 'plain448', plain, ()),
            ('the whole and a glimpse, each 112 x 112', 'whole1', twin, ('--model-kwargs', *ours)),
            ('the whole and two glimpses, each 112 x 112', 'whole2', twin,
             ('--model-kwargs', *ours, 'stn_glimpses=2'))):
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
            ('plain, 256 x 256', 'plain256', 'signs_cnn', ()),
            ('a glimpse of 32 x 32', 'glimpse', 'stn_signs_cnn', (
                '--model-kwargs', *ours, 'stn_localization=saliency:4', 'stn_localization_size=64'))):
        command = train('signs', '--model', model, *more, '--set', 'SCENES', *SIGNS, *options(epochs=6, val_interval=6))
        yield Cell('sign-scenes', f'scenes-{name}', row, 'error', command, 300, choice=dict(model=name),
                   parts=('signs',))


ORBIT, ROTATION = 'stn_localization=orbit:', 'stn_transform=rotation'


def turned_digits() -> Iterator[Cell]:
    """Digits turned by any angle, of which a network was trained on none, or on nothing else."""
    small, black = 'channels=[32,64]', 'stn_padding_mode=zeros'
    rotating, recipe = (small, ROTATION, black), options(epochs=8, val_interval=8)
    yield from on_both('turned-digits', 'UPRIGHT', 'TURNED', recipe, 'mnist', ('mnist',), 30, (
        ('plain', 'plain', 'UPRIGHT', 'mnist_cnn', (small,)),
        ('looks in 8 poses (orbit)', 'orbit8', 'UPRIGHT', 'stn_mnist_cnn', (small, f'{ORBIT}8', black)),
        ('plain', 'plain', 'TURNED', 'mnist_cnn', (small,)),
        ('turns the image', 'rotation', 'TURNED', 'stn_mnist_cnn', rotating),
        ('turns the image, two looks', 'rotation2', 'TURNED', 'stn_mnist_cnn', (*rotating, 'stn_iterations=2')),
    ))


def turned_birds() -> Iterator[Cell]:
    """Birds, likewise; what is outside of a turned photograph is its reflection."""
    size, model = ('--img-size', '112'), 'tf_efficientnet_lite0'
    mirror = 'stn_padding_mode=reflection'
    rotating = (ROTATION, mirror, 'stn_iterations=2')
    recipe = (*size, *FINE_TUNED, *options(epochs=6, val_interval=6))  # tests in eight poses take as long as training
    yield from on_both('turned-birds', 'BIRDS', 'BIRDS-TURNED', recipe, 'birds', BIRDS, 100, (
        ('plain', 'plain', 'BIRDS', model, ()),
        ('looks in 8 poses (orbit)', 'orbit8', 'BIRDS', f'stn_{model}', (f'{ORBIT}8', mirror)),
        ('plain', 'plain', 'BIRDS-TURNED', model, ()),
        ('turns the image, two looks', 'rotation2', 'BIRDS-TURNED', f'stn_{model}', rotating),
    ))


def on_both(
        experiment: str,
        upright: str,
        turned: str,
        recipe: tuple[str, ...],
        data: str,
        parts: tuple[str, ...],
        seconds: float,
        networks: Iterable[tuple[str, str, str, str, tuple[str, ...]]],
) -> Iterator[Cell]:
    """Two cells of each network (row, name, set that it is trained on, model, its arguments): errors on both sets."""
    for row, name, kind, model, kwargs in networks:
        other, where = (turned, 'upright') if kind == upright else (upright, 'turned')
        given = ('--model-kwargs', *kwargs) if kwargs else ()
        command = train(data, '--model', model, *given, '--set', kind, '--also', other, *recipe)
        for column, tested in (('upright', upright), ('turned', turned)):
            yield Cell(
                experiment, f'{experiment}-{where}-{name}', f'trained on {where}: {row}', column, command, seconds,
                choice=dict(trained=where, model=name), parts=parts, returns=False,
                result=('test_error',) if tested == kind else ('errors_on', tested))


def megapixel_digits() -> Iterator[Cell]:
    """Which digit is there three times, among marks, on 1500 x 1500 pixels (Katharopoulos and Fleuret 2019).

    Glimpses are 36 pixels wide and start where the first stage of the network responds to the shrunk image.
    """
    ours = ('img_size=1500', 'stn_size=32', 'stn_scale=0.024', 'stn_transform=translation', 'stn_bound=False',
            'stn_localization=saliency:0')
    plain = ('--model', 'test_byobnet', '--model-kwargs', 'global_pool=max')
    rows = [(f'plain, {side} x {side}', f'plain{side}', (*plain, '--img-size', str(side)))
            for side in (180, 250, 375, 750)]
    for count, side in ((5, 250), (5, 375), (10, 250)):
        rows.append((f'{count} glimpses, found at {side} x {side}', f'{count}at{side}', (
            '--model', 'stn_test_byobnet', '--model-kwargs', *ours, f'stn_glimpses={count}',
            f'stn_localization_size={side}')))
    for row, name, network in rows:
        command = train('mnist', *network, '--set', 'MEGAPIXEL', *options(
            epochs=6, batch_size=16, lr=0.002, weight_decay=0.05, val_interval=6))
        yield Cell('megapixel', f'megapixel-{name}', row, 'error', command, 120, choice=dict(model=name))


def pays() -> list[Cell]:
    """All of them."""
    return [*scattered_birds(), *turned_digits(), *turned_birds(), *megapixel_digits(), *signs(), *sign_scenes()]
