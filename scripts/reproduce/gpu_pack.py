"""The parts of a pack: the data of gpu_queue.py's jobs for a bare machine, one folder per part.

`pack` makes the parts here; `unpack` makes the jobs' input files there. All parts are lossless except `lite0` and
`lite2` (weights in half precision) and `signs` (JPEG; docs/gpu.md has the loss).
"""
import gzip
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from gpu_files import add
from gpu_queue import Job

MOST = 60 * 2 ** 20  # bytes that travel at once, with the checkout
SIDE, COLUMNS = 32, 64  # pixels of a sign; signs side by side in a picture of many
QUALITY = 92  # of the JPEG of signs: the highest at which all are less than 30 MiB


class Sources(NamedTuple):
    """The sources of a pack."""
    data: Path | None = None  # has mnist/, gtsrb32/ and cub200-2010/, as measure_learning.py wants them
    weights: Path | None = None  # the ImageNet checkpoint of tf_efficientnet_lite0
    scripts: Path | None = None  # a checkout of pytorch-image-models
    weights2: Path | None = None  # the ImageNet checkpoint of tf_efficientnet_lite2

    def find(self, name: str, *path: str) -> Path:
        found = getattr(self, name)
        if found is None:
            raise Missing(f'--{name} is not given, and needed')
        if not found.joinpath(*path).exists():
            raise Missing(f'--{name}: there is no {found.joinpath(*path)}')
        return found.joinpath(*path)


class Missing(SystemExit):
    """The source of a part is missing."""


# parts: each fills a folder


def base(sources: Sources, folder: Path) -> None:
    """The part that every job needs: a wheel of timm."""
    import timm
    wheel = f'timm=={timm.__version__}'
    command = [sys.executable, '-m', 'pip', 'download', '-q', '--no-deps', '-d', str(folder), wheel]
    if subprocess.run(command).returncode:
        raise SystemExit(f'The wheel of {wheel} could not be downloaded.')


def mnist(sources: Sources, folder: Path) -> None:
    """All of the folder, unchanged, if it can be read."""
    from timm_stn.data import load_mnist
    for path in DIGITS:
        shutil.copyfile(sources.find('data', 'mnist', path), folder / path)
    for split in ('train', 'test'):
        try:
            load_mnist(folder, split)
        except ValueError as error:
            raise SystemExit(f'--data {sources.data}, mnist: {error}') from error


def lite0(sources: Sources, folder: Path) -> None:
    """ImageNet weights of tf_efficientnet_lite0, in half precision."""
    in_halves(sources.find('weights'), folder)


def lite2(sources: Sources, folder: Path) -> None:
    """The same of tf_efficientnet_lite2."""
    in_halves(sources.find('weights2'), folder)


def in_halves(weights: Path, folder: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file
    state = load_file(weights)
    halves = {k: v.half() if v.dtype == torch.float32 else v for k, v in state.items()}
    save_file(halves, folder / 'model.safetensors')


def timm_scripts(sources: Sources, folder: Path) -> None:
    """timm's scripts, without the package."""
    for path in sources.find('scripts', 'train.py').parent.glob('*.py'):
        shutil.copyfile(path, folder / path.name)


def birds_train(sources: Sources, folder: Path) -> None:
    thin(sources.find(*BIRDS['train']), folder / 'train.tar')


def birds_test(sources: Sources, folder: Path) -> None:
    thin(sources.find(*BIRDS['test']), folder / 'test.tar')


def signs(sources: Sources, folder: Path) -> None:
    """One picture of all signs of a split; no JPEG block (8 x 8 pixels) has pixels of two signs."""
    from measure_learning import picture
    from PIL import Image
    for split in ('train', 'test'):
        with tarfile.open(sources.find('data', 'gtsrb32', f'{split}.tar')) as tar:
            found = {m.name: picture(tar, m) for m in tar if m.isfile()}
        every = Image.new('RGB', (SIDE * COLUMNS, SIDE * -(-len(found) // COLUMNS)))
        for i, image in enumerate(found.values()):
            every.paste(image, place(i)[:2])
        every.save(folder / f'{split}.jpg', quality=QUALITY, subsampling=0, optimize=True, progressive=True)
        boxes = sources.find('data', 'gtsrb32', f'{split}-boxes.csv').read_bytes()
        (folder / f'{split}-boxes.csv.gz').write_bytes(gzip.compress(boxes, mtime=0))
        (folder / f'{split}.json.gz').write_bytes(gzip.compress(json.dumps(list(found)).encode(), mtime=0))


def place(index: int) -> tuple[int, int, int, int]:
    """The box of a sign in that picture: left, top, right, bottom."""
    left, top = SIDE * (index % COLUMNS), SIDE * (index // COLUMNS)
    return left, top, left + SIDE, top + SIDE


def learning(sources: Sources, folder: Path) -> None:
    """The images of signs and birds that measure_learning.py selects, unchanged.

    It chooses by their number, so that the others of their classes are there by name alone.
    """
    import measure_learning
    data = sources.find('data')
    chosen: dict[Path, set[str]] = {}
    for choose in (measure_learning.choice_of_signs, measure_learning.choice_of_birds):
        for path, classes in (*choose(str(data), False), *choose(str(data), True)):
            chosen.setdefault(path, set()).update(name for names in classes for name in names)
    for path, names in chosen.items():
        thin(path, folder / path.relative_to(data), names)


def thin(source: Path, target: Path, names: set[str] | None = None) -> None:
    """A compressed tar: all of it, or the given members, others of their classes as empty files, and one per class."""
    target.parent.mkdir(parents=True, exist_ok=True)
    wanted = {Path(name).parent for name in names or ()}
    with tarfile.open(source) as old, tarfile.open(target, 'w:gz') as new:
        seen = set()
        for member in old:
            parent = Path(member.name).parent
            if member.isfile() and (names is None or parent in wanted or parent not in seen):
                seen.add(parent)
                whole = names is None or member.name in names
                add(new, member.name, old.extractfile(member).read() if whole else b'')  # type: ignore[union-attr]


PARTS: dict[str, Callable[[Sources, Path], None]] = {
    'base': base, 'mnist': mnist, 'lite0': lite0, 'lite2': lite2, 'timm-scripts': timm_scripts,
    'birds-train': birds_train, 'birds-test': birds_test, 'learning': learning, 'signs': signs}
DIGITS = [f'{split}-{kind}-ubyte.gz' for split in ('train', 't10k') for kind in ('images-idx3', 'labels-idx1')]
BIRDS = {split: ('data', 'cub200-2010', f'{split}.tar') for split in ('train', 'test')}
SIGNS = [('data', 'gtsrb32', f'{split}{end}') for split in ('train', 'test') for end in ('.tar', '-boxes.csv')]
NEEDS: dict[str, list[tuple[str, ...]]] = {
    'base': [], 'mnist': [('data', 'mnist', name) for name in DIGITS], 'lite0': [('weights',)],
    'lite2': [('weights2',)],
    'timm-scripts': [('scripts', 'train.py')], 'birds-train': [BIRDS['train']], 'birds-test': [BIRDS['test']],
    'learning': [*BIRDS.values(), *SIGNS], 'signs': SIGNS}


def usual(sources: Sources) -> list[str]:
    """The parts to be made where none is named: all, but `lite2` only of weights that are given."""
    return [name for name in PARTS if name != 'lite2' or sources.weights2]


def check(sources: Sources, names: Iterable[str]) -> None:
    """Check that the sources of these parts are there.

    Raises:
        Missing: It says what is not there, and which parts can be made without.
    """
    wrong = {}
    for name in PARTS:
        try:
            for need in NEEDS[name]:
                sources.find(*need)
        except Missing as error:
            wrong[name] = str(error)
    if told := {name: wrong[name] for name in names if name in wrong}:
        lines = [f'{name}: {error}' for name, error in told.items()]
        raise Missing('\n'.join([*lines, f'Without: --parts {" ".join(name for name in PARTS if name not in wrong)} '
                                         '(with make PARTS="...")']))


def pack(sources: Sources, folder: Path, names: Iterable[str]) -> None:
    """Make parts again; each is written to a temporary folder and moved into place when complete."""
    check(sources, names)
    for name in names:
        beside = folder / f'.{name}'
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        try:
            PARTS[name](sources, beside)
            shutil.rmtree(folder / name, ignore_errors=True)
            beside.rename(folder / name)
        finally:
            shutil.rmtree(beside, ignore_errors=True)


# there


def present(folder: Path) -> set[str]:
    """The existing parts."""
    return {name for name in PARTS if (folder / name).is_dir()}


def unpack(folder: Path, target: Path, jobs: Iterable[Job]) -> tuple[dict[str, Path], dict[str, str]]:
    """Make the input files of these jobs, unless a part holds them unchanged.

    Returns:
        Words of their commands, and their paths; parts that are broken, and why.
    """
    needed, broken = {part for job in jobs for part in job.parts}, {}
    paths = {name: folder / name for name in present(folder)} | {name: target / name for name in UNPACK}
    for name, (parts, make) in UNPACK.items():
        for part in parts if needed >= {*parts} else ():
            try:
                make(folder, paths[name], part)
            except Exception as error:  # of a file that was broken on its way; what does not need it goes on
                broken[part] = repr(error)
    return paths, broken


def unpack_birds(folder: Path, target: Path, part: str) -> None:
    """Write one folder per class."""
    split = part.removeprefix('birds-')
    with tarfile.open(folder / part / f'{split}.tar') as tar:
        tar.extractall(target / split, filter='data')


def unpack_learning(folder: Path, target: Path, part: str) -> None:
    """Write the data as measure_learning.py reads it."""
    target.mkdir(exist_ok=True)
    for path in [folder / part] if part == 'mnist' else (folder / part).iterdir():
        (target / path.name).symlink_to(path)


def unpack_signs(folder: Path, target: Path, part: str) -> None:
    """Write tars of PNG as measure_learning.py reads them, and the boxes."""
    from PIL import Image
    target.mkdir(exist_ok=True)
    for split in ('train', 'test'):
        boxes, names = (gzip.decompress((folder / part / f'{split}{end}.gz').read_bytes())
                        for end in ('-boxes.csv', '.json'))
        (target / f'{split}-boxes.csv').write_bytes(boxes)
        every = Image.open(folder / part / f'{split}.jpg')
        with tarfile.open(target / f'{split}.tar', 'w') as tar:
            for i, name in enumerate(json.loads(names)):
                file = BytesIO()
                every.crop(place(i)).save(file, 'PNG', compress_level=1)
                add(tar, name, file.getvalue())


UNPACK: dict[str, tuple[tuple[str, ...], Callable[[Path, Path, str], None]]] = {
    'birds': (('birds-train', 'birds-test'), unpack_birds), 'learning': (('mnist', 'learning'), unpack_learning),
    'signs': (('signs',), unpack_signs)}


# what travels


def size(*paths: Path) -> int:
    files = (file for path in paths for file in (path.rglob('*') if path.is_dir() else [path]))
    return sum(file.stat().st_size for file in files if file.is_file())


def size_of_checkout(root: Path) -> int:
    """Size of the files that git does not ignore."""
    listed = subprocess.run(['git', 'ls-files', '-coz', '--exclude-standard'], cwd=root, capture_output=True, text=True)
    return size(*{root / name for name in listed.stdout.split('\0') if name})


class Load(NamedTuple):
    """One upload, and the jobs that can start after it if earlier uploads are kept."""
    parts: list[str]
    jobs: list[Job]


def loads(jobs: Iterable[Job], sizes: dict[str, int], room: int, always: Iterable[str]) -> list[Load]:
    """As few uploads as possible, the parts of the first jobs first."""
    found = [Load(list(always), [])]
    for job in jobs:
        for part in job.parts:
            if any(part in load.parts for load in found):
                continue
            fits = [load for load in found if sum(sizes[p] for p in (*load.parts, part)) <= room]
            if not fits:
                found.append(Load([], []))
            (fits or found[-1:])[0].parts.append(part)
        last = [load for load in found if set(load.parts) & {*job.parts}][-1]
        last.jobs.append(job)
    return found


def report(folder: Path, root: Path, jobs: list[Job], begun: dict[str, list[str]]) -> str:
    """The sizes of the parts, and which to upload together.

    Args:
        begun: The tars of interrupted jobs, as `gpu_begun.write` returns them: parts that these jobs need, too.
    """
    def mib(count: int) -> str:
        return f'{count / 2 ** 20:8.2f} MiB'

    there = present(folder)
    names = [*(name for name in PARTS if name in there), *dict.fromkeys(tar for tars in begun.values() for tar in tars)]
    sizes = {name: size(folder / name) for name in names}
    checkout = size_of_checkout(root)
    lines = [f'{mib(checkout)}  checkout', *(f'{mib(count)}  {name}' for name, count in sizes.items())]
    ready = [job._replace(parts=(*job.parts, *begun.get(job.name, ()))) for job in jobs if {*job.parts} <= there]
    for number, load in enumerate(loads(ready, sizes, MOST - checkout, sizes.keys() & {'base'}), 1):
        names = ' '.join(str(folder.relative_to(root) / name) if folder.is_relative_to(root) else name
                         for name in load.parts)
        weight, begin = checkout + sum(sizes[p] for p in load.parts), tally(job.kind for job in load.jobs)
        lines.append(f'{mib(weight)}  load {number} with the checkout: {names}')
        lines.append(f'{"":14}jobs that can then begin: {begin or "none yet"}')
        if weight > MOST:
            lines.append(f'{"":14}that is more than {MOST / 2 ** 20:.0f} MiB, for a part travels whole')
    return '\n'.join([*lines, *lacking(jobs, there)])


def tally(kinds: Iterable[str]) -> str:
    """The number of each, in words."""
    listed = list(kinds)
    return ', '.join(f'{listed.count(kind)} {kind}' for kind in dict.fromkeys(listed))


def lacking(jobs: Iterable[Job], there: set[str]) -> list[str]:
    """A line for each kind of job that waits for parts."""
    waiting: dict[tuple[str, ...], list[str]] = {}
    for job in jobs:
        if missing := tuple(part for part in job.parts if part not in there):
            waiting.setdefault(missing, []).append(job.kind)
    return [f'waiting for parts that are not here ({", ".join(missing)}): {tally(kinds)}'
            for missing, kinds in waiting.items()]

