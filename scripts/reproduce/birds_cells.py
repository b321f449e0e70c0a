"""The runs of train_birds.sh as cells of tables; their arguments are in that script, and in the record."""
from cells import Cell

NAMES = dict(
    plain112='plain, 112 x 112', plain176='plain, 176 x 176', plain224='plain, 224 x 224', zoom112='zoom, 112 x 112',
    whole2='the whole image and 2 glimpses', whole4='the whole image and 4 glimpses',
    glimpses2='2 glimpses', glimpses4='4 glimpses',
    one176='1 glimpse of 176 x 176, scale 0.85',
    zoom192='1 glimpse of 192 x 192, scale 0.5 to 1', plain448='plain, enlarged to 448 x 448',
    whole2at448='the whole image, enlarged to 448 x 448, and 2 glimpses, each 224 x 224')

LITE2 = ('plain224', 'zoom192', 'whole2')  # those with tf_efficientnet_lite2, too


def birds() -> list[Cell]:
    """One for each, with the accuracy of the last epoch; those with tf_efficientnet_lite2 are a table of their own."""
    runs = [('birds', 'lite0', name, row) for name, row in NAMES.items()]
    runs += [('birds2', 'lite2', name, f'lite2, {NAMES[name]}') for name in LITE2]
    return [Cell('birds', f'{kind}-*/{name}', row, 'error', (), 150, result=('top1',), higher=True,
                 parts=('birds-train', 'birds-test', part)) for kind, part, name, row in runs]
