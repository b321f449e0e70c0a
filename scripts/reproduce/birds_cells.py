"""The runs of train_birds.sh as cells of tables; their arguments are in that script, and in the record."""
from cells import Cell

NAMES = dict(
    plain112='plain, 112 x 112', plain176='plain, 176 x 176', plain224='plain, 224 x 224', zoom112='zoom, 112 x 112',
    whole2='the whole image and 2 glimpses', whole4='the whole image and 4 glimpses',
    glimpses2='2 glimpses', glimpses4='4 glimpses',
    one176='1 glimpse of 176 x 176, scale 0.85',
    zoom192='1 glimpse of 192 x 192, scale 0.5 to 1')


def birds() -> list[Cell]:
    """One for each, with the accuracy of the last epoch."""
    return [Cell('birds', f'birds-*/{name}', row, 'error', (), 150, result=('top1',), higher=True,
                 parts=('birds-train', 'birds-test', 'lite0')) for name, row in NAMES.items()]
