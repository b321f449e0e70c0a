"""Makes a pack of tiny, random data, for rehearsals: `python scripts/reproduce/gpu_tiny.py FOLDER PARTS...`"""
import argparse
import gzip
import io
import math
import os
import struct
import tarfile
from pathlib import Path

import timm
import torch
from gpu_files import add
from gpu_pack import PARTS, Sources, pack
from PIL import Image
from safetensors.torch import save_file


def sources(folder: Path) -> Sources:
    """Data as measure_learning.py reads it, and weights."""
    data = folder / 'data'
    for name in ('mnist', 'gtsrb32', 'cub200-2010'):
        (data / name).mkdir(parents=True)
    digits(data / 'mnist')
    for split in ('train', 'test'):
        images(data / 'gtsrb32' / f'{split}.tar', classes=6, count=10, side=32, kind='png')
        images(data / 'cub200-2010' / f'{split}.tar', classes=200, count=1, side=64, kind='jpeg')
        names = [f'{i // 10:05}/{i % 10:05}_00000.png,64,64,8,8,56,56,{i // 10}' for i in range(60)]
        boxes = '\n'.join(['file,width,height,x1,y1,x2,y2,class', *names, ''])
        (data / 'gtsrb32' / f'{split}-boxes.csv').write_text(boxes)
    torch.manual_seed(0)
    for name in ('lite0', 'lite2'):
        save_file(timm.create_model(f'tf_efficientnet_{name}').state_dict(), folder / f'{name}.safetensors')
    scripts = os.environ.get('TIMM_SCRIPTS')
    return Sources(data, folder / 'lite0.safetensors', Path(scripts) if scripts else None, folder / 'lite2.safetensors')


def digits(folder: Path) -> None:
    for split, count in (('train', 256), ('t10k', 100)):
        for kind, shape in (('images-idx3', (count, 28, 28)), ('labels-idx1', (count,))):
            most = 255 if len(shape) == 3 else 9
            content = bytes(i * 37 % (most + 1) for i in range(math.prod(shape)))
            head = struct.pack(f'>I{len(shape)}I', 2048 + len(shape), *shape)
            (folder / f'{split}-{kind}-ubyte.gz').write_bytes(gzip.compress(head + content))


def images(path: Path, classes: int, count: int, side: int, kind: str) -> None:
    """A tar of images of sixteen random colours, one folder per class."""
    generator = torch.Generator().manual_seed(0)
    with tarfile.open(path, 'w') as tar:
        for i in range(classes * count):
            colours = torch.randint(256, (48,), generator=generator).tolist()
            file = io.BytesIO()
            Image.frombytes('RGB', (4, 4), bytes(colours)).resize((side, side)).save(file, kind)
            add(tar, f'{i // count:05}/{i % count:05}_00000.{kind}', file.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('folder', type=Path)
    parser.add_argument('parts', nargs='+', choices=[*PARTS], metavar='PART', help=f'of {", ".join(PARTS)}')
    args = parser.parse_args()
    found = sources(args.folder / 'sources')
    pack(found, args.folder, [name for name in args.parts if found.scripts or name != 'timm-scripts'])


if __name__ == '__main__':
    main()
