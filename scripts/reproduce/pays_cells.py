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


def megapixel_digits() -> Iterator[Cell]:
    """Which digit is there three times, among marks, on 1500 x 1500 pixels (Katharopoulos and Fleuret 2019).

    Glimpses are 36 pixels wide and start where the first stage of the network responds to the shrunk image.
    """
    ours = ('img_size=1500', 'stn_size=32', 'stn_scale=0.024', 'stn_transform=translation', 'stn_bound=False',
            'stn_localization=saliency:0')
    plain = ('--model', 'test_byobnet', '--model-kwargs', 'global_pool=max')
    rows = [(f'plain, {side} x {side}', f'plain{side}', (*plain, '--img-size', str(side))) for side in (180, 250, 375)]
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
    return [*scattered_birds(), *megapixel_digits()]
