"""Small archives in the very form of the published ones, of random images or of given ones.

`small_cub(path)`, `small_gtsrb(folder)` and `small_svhn(path)` write them. Tests that want them wrong change the files
of `cub_files` and `gtsrb_files` (contents by name) first, and write them with `write_tgz` and `write_zip`.
"""
import io
import tarfile
import zipfile
from typing import NamedTuple

import h5py
import numpy as np
from PIL import Image

RED, GREEN, GREY = (255, 0, 0), (0, 255, 0), (90, 90, 90)
ENTRIES = [  # size of the image, boxes (left, top, width, height), labels
    ((200, 100), [(80, 30, 20, 40), (100, 30, 20, 40)], [7, 10]),
    ((100, 60), [(40, 20, 20, 20)], [3]),
    ((120, 60), [(10 + 15 * i, 20, 15, 20) for i in range(6)], [1, 2, 3, 4, 5, 6]),  # too long
    ((90, 40), [(5 + 16 * i, 10, 16, 20) for i in range(5)], [10, 10, 9, 1, 2]),
]


class Photograph(NamedTuple):
    """What a small archive of birds holds of one."""
    path: str  # <class>/<file>
    split: str
    box: tuple[int, int, int, int]  # left, top, right, bottom
    content: bytes


def picture(size, seed=0, kind='JPEG'):
    """The bytes of a random image of (width, height) pixels."""
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def small_cub(path, classes=3, each=4, side=48):
    """A small `CUB_200_2011.tgz`; returns its photographs.

    Every second image of a class is to train on. Boxes are the middle half of each image.

    Args:
        path: The archive.
        classes: How many; or a list of (folder, list of contents of JPEGs), as ('001.Black_footed_Albatross', [...]).
        each: Random images of a class.
        side: Their width and height, in pixels; some are a little larger.
    """
    files, photographs = cub_files(classes, each, side)
    write_tgz(path, files)
    return photographs


def cub_files(classes=3, each=4, side=48):
    """Contents by name, and photographs, of `small_cub`."""
    if isinstance(classes, int):
        classes = [(f'{c + 1:03}.Random_{"abcdefghijkl"[c % 12]}_Bird', [
            picture((side + k % 3, side + c % 4), c * each + k) for k in range(each)]) for c in range(classes)]
    photographs, labels = [], []
    for c, (folder, contents) in enumerate(classes):
        for k, content in enumerate(contents):
            width, height = Image.open(io.BytesIO(content)).size
            box = width // 4, height // 4, width // 4 + width // 2, height // 4 + height // 2
            name = f'{folder}/{folder.partition(".")[2]}_{k + 1:04}_{c * 1000 + k}.jpg'
            photographs.append(Photograph(name, 'test' if k % 2 else 'train', box, content))
            labels.append(c + 1)
    lists = {
        'images': [photograph.path for photograph in photographs], 'image_class_labels': labels,
        'train_test_split': [int(photograph.split == 'train') for photograph in photographs],
        'bounding_boxes': [f'{x1:.1f} {y1:.1f} {x2 - x1:.1f} {y2 - y1:.1f}'
                           for _, _, (x1, y1, x2, y2), _ in photographs],
        'classes': [folder for folder, _ in classes]}
    files = {'attributes.txt': b'1 has_bill_shape::curved_(up_or_down)\n', 'CUB_200_2011/README': b'The dataset\n',
             'CUB_200_2011/images/._.DS_Store': b'of a Mac', 'CUB_200_2011/parts/parts.txt': b'1 back\n'}
    files.update((f'CUB_200_2011/images/{photograph.path}', photograph.content) for photograph in photographs)
    for name, values in lists.items():
        files[f'CUB_200_2011/{name}.txt'] = ''.join(f'{i + 1} {v} \n' for i, v in enumerate(values)).encode()
    return files, photographs


def small_gtsrb(folder, tracks=4, frames=3, tests=5, classes=3):
    """The three zips of GTSRB, small; returns their paths and the rows of their tables, by path of the image."""
    files, rows = gtsrb_files(tracks, frames, tests, classes)
    paths = [folder / name for name in ('GTSRB_Final_Training_Images.zip', 'GTSRB_Final_Test_Images.zip',
                                        'GTSRB_Final_Test_GT.zip')]
    folder.mkdir(parents=True, exist_ok=True)
    for path, part in zip(paths, files):
        write_zip(path, part)
    return paths, rows


def gtsrb_files(tracks=4, frames=3, tests=5, classes=3):
    """Contents by name of each of the three zips; rows (width, height, x1, y1, x2, y2, class) by path of the image."""
    train, test, rows, seed = {}, {}, {}, 0

    def add(files, path, answer):
        nonlocal seed
        seed += 1
        width, height = 20 + seed % 17, 25 + seed % 23
        files[path] = picture((width, height), seed, 'PPM')
        rows[path] = width, height, 5, 6, width - 5, height - 4, answer

    def table(paths):
        lines = [';'.join(map(str, (path.split('/')[-1], *rows[path]))) for path in paths]
        return '\r\n'.join(['Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId', *lines, '']).encode()

    for c in range(classes):
        place = f'GTSRB/Final_Training/Images/{c:05}'
        own = [f'{place}/{t:05}_{f:05}.ppm' for t in range(c, tracks) for f in range(frames)]
        for path in own:
            add(train, path, c)
        train[f'{place}/GT-{c:05}.csv'] = table(own)
    for i in range(tests):
        add(test, f'GTSRB/Final_Test/Images/{i:05}.ppm', (i * 2) % classes)
    truth = {'GT-final_test.csv': table(test)}
    test['GTSRB/Final_Test/Images/GT-final_test.test.csv'] = b'Filename;Width;Height\r\n'
    train['GTSRB/Readme-Images.txt'] = b'GTSRB'
    return (train, test, truth), rows


def small_svhn(path, folder, split='train'):
    """A small `train.tar.gz` of SVHN; `folder` holds what it holds afterwards."""
    write_svhn(folder / split)
    write_tgz(path, {f'{split}/{file.name}': file.read_bytes() for file in sorted((folder / split).iterdir())}
              | {f'{split}/see_bboxes.m': b'% MATLAB'})


def write_tgz(path, files, extra=()):
    """A tar.gz of files, contents by name, with members (TarInfo, content) after them as they are."""
    with tarfile.open(path, 'w:gz', compresslevel=1) as tar:
        members = [(tarfile.TarInfo(name), content) for name, content in files.items()]
        for member, content in (*members, *extra):
            if content is not None:
                member.size = len(content)
            tar.addfile(member, io.BytesIO(content) if content is not None else None)


def write_zip(path, files, extra=()):
    """A zip of files, contents by name, and of pairs (name or ZipInfo, content)."""
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        for name, content in (*files.items(), *extra):
            archive.writestr(name, content)


def tree(folder):
    """Contents of all files below a folder, by path."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob('*'))
            if path.is_file()}


def write_svhn(folder, entries=ENTRIES):
    """The files of a split; boxes are red and green in turn, the rest is grey."""
    folder.mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / 'digitStruct.mat', 'w') as file:
        names, boxes = (file.create_dataset(f'digitStruct/{key}', (len(entries), 1), h5py.ref_dtype)
                        for key in ('name', 'bbox'))
        count = iter(range(10 ** 6))

        def reference(values, dtype=np.float64):
            return file.create_dataset(f'#refs#/{next(count)}', data=np.array(values, dtype)[:, None]).ref

        for i, (size, places, labels) in enumerate(entries):
            image = Image.new('RGB', size, GREY)
            for k, (left, top, width, height) in enumerate(places):
                image.paste((RED, GREEN)[k % 2], (left, top, left + width, top + height))
            image.save(folder / f'{i + 1}.png')
            names[i, 0] = reference([ord(c) for c in f'{i + 1}.png'], np.uint16)
            group = file.create_group(f'#refs#/{next(count)}')
            for key, values in zip(('left', 'top', 'width', 'height', 'label'), (*zip(*places), labels)):
                if len(values) == 1:
                    group[key] = np.array([values], np.float64)
                else:
                    references = [reference([value]) for value in values]
                    column = group.create_dataset(key, (len(values), 1), h5py.ref_dtype)
                    column[:, 0] = references
            boxes[i, 0] = group.ref
    return folder
