"""Where a transformer pays, as cells like those of `cells.py`; `pays.py` makes docs/when_it_pays.md of their runs."""
from collections.abc import Iterator

from cells import Cell, options, train

BIRDS = ('birds-train', 'birds-test', 'lite0')  # parts of the pack
LITE0 = ('--weights', '{lite0}/model.safetensors', '--normalize', '--channels-last')
FINE_TUNED = (*LITE0, *options(  # as scripts/train/train_birds.sh
    batch_size=32, lr=0.001, weight_decay=0.05, layer_decay=0.85, warmup_epochs=1, smoothing=0.1))


def scattered_birds() -> Iterator[Cell]:
    """Birds somewhere on large canvases, and as large as it happens."""
    ours = ('stn_size=112', 'stn_transform=attention', 'stn_scale=0.5', 'stn_localization=saliency:3', 'stn_whole=True')
    plain, twin = 'tf_efficientnet_lite0', 'stn_tf_efficientnet_lite0'
    for row, name, model, more in (
            ('plain, 112 x 112', 'plain112', plain, ('--img-size', '112')),
            ('plain, 224 x 224', 'plain224', plain, ('--img-size', '224')),
            ('plain, 448 x 448', 'plain448', plain, ()),
            ('the whole and a glimpse, each 112 x 112', 'whole1', twin, ('--model-kwargs', *ours)),
            ('the whole and two glimpses, each 112 x 112', 'whole2', twin,
             ('--model-kwargs', *ours, 'stn_glimpses=2'))):
        command = train('birds', '--model', model, *more, '--set', 'SCATTERED', *FINE_TUNED,
                        *options(epochs=8, val_interval=4))
        yield Cell('scattered-birds', f'scattered-{name}', row, 'error', command, 200, choice=dict(model=name),
                   parts=BIRDS, returns=False)


def pays() -> list[Cell]:
    """All of them."""
    return [*scattered_birds()]
