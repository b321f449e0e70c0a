"""Prepares and checks the runs of check_timm_scripts.sh. A failed check exits with its message."""
import argparse
import csv
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

COLORS = {'blue': (40, 40, 200), 'green': (40, 200, 40), 'red': (200, 40, 40)}
COUNTS = {'train': 8, 'validation': 4}  # of each colour


def prepare(folder: Path) -> None:
    """Write an ImageFolder and random weights (plain model and whole network), also in folders for `local-dir:`."""
    import timm  # here, since the checks are run often and do not need it
    from timm.models import save_for_hf

    import timm_stn  # noqa: F401
    _draw(folder / 'data')
    for model, file, hub in (('test_resnet', 'plain.pth', 'teacher'), ('stn_test_resnet', 'whole.pth', 'network')):
        torch.manual_seed(123)
        net = timm.create_model(model, num_classes=len(COLORS))
        torch.save(net.state_dict(), folder / file)
        save_for_hf(net, str(folder / hub), safe_serialization=True)


def _draw(folder: Path) -> None:
    """Draw a rectangle of the class's colour on noise. File names are unique over classes, for inference.py."""
    import numpy as np
    from PIL import Image
    rng = np.random.default_rng(0)
    for split, count in COUNTS.items():
        for name, color in COLORS.items():
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                pixels = rng.integers(0, 90, (72, 80, 3), dtype=np.uint8)
                top, left = rng.integers(0, 36, 2)
                pixels[top:top + 30, left:left + 36] = color
                Image.fromarray(pixels).save(folder / split / name / f'{split}_{name}_{i}.jpg')


def _load(file: Path) -> Any:
    return torch.load(file, map_location='cpu', weights_only=False)


def trained(checkpoint: Path) -> None:
    """Check that every transformer has left the identity and all values are finite, in the model and its EMA."""
    stored = _load(checkpoint)
    for key in {'state_dict', 'state_dict_ema'} & set(stored):
        state = stored[key]
        broken = [k for k, v in state.items() if v.is_floating_point() and not v.isfinite().all()]
        last = {k: v for k, v in state.items() if k.endswith('stn.localization.regression.weight')}
        still = [k for k, v in last.items() if not v.any()]
        if broken or still or not last:
            raise SystemExit(f'{checkpoint} {key}: not finite {broken}, not trained {still}, of {list(last)}')


def loaded(plain: Path, checkpoint: Path, new: str) -> None:
    """Check that a plain checkpoint equals another's backbone, except batch statistics and keys that match `new`."""
    have = _load(checkpoint)['state_dict']
    statistics = r'running_(mean|var)$|num_batches_tracked$'
    weights = {k: v for k, v in _load(plain).items() if not re.search(statistics, k)}
    differ = [k for k, v in weights.items() if not torch.allclose(have[f'backbone.{k}'], v, atol=1e-6)]
    expected = [k for k in weights if re.match(new, k)]
    if differ != expected:
        raise SystemExit(f'{checkpoint}: weights that are not those of {plain}: {differ}; expected: {expected}')


def resumed(killed: Path, again: Path, epochs: int, updates: int) -> None:
    """Check that a run resumed from the killed run's last checkpoint: epochs and batch counts continue."""
    start = _load(killed)['epoch'] + 1
    with open(again.parent / 'summary.csv') as file:
        seen = [int(row['epoch']) for row in csv.DictReader(file)]
    counts = {k: int(v) for k, v in _load(again)['state_dict'].items() if 'num_batches_tracked' in k}
    if not start or seen != list(range(start, epochs)) or set(counts.values()) != {epochs * updates}:
        raise SystemExit(f'{again}: killed after {start} of {epochs} epochs; then epochs {seen}, batches {counts}')


def same(pattern: str, first: Path, second: Path) -> None:
    """Check that the last number after `pattern` is the same in two logs."""
    numbers = [float(re.findall(pattern + r'\s*(-?[\d.]+)', file.read_text())[-1]) for file in (first, second)]
    if abs(numbers[0] - numbers[1]) > 2e-4 * max(map(abs, numbers)):
        raise SystemExit(f'{pattern} is {numbers[0]} in {first} and {numbers[1]} in {second}')


def versions(checkout: Path) -> None:
    """Print the versions behind a table."""
    found = re.search(r"__version__ = '(.*)'", (checkout / 'timm' / 'version.py').read_text())
    scripts = found.group(1) if found else 'unknown'
    print(f"timm {version('timm')}, scripts of {scripts}, torch {version('torch')}, timm_stn {version('timm_stn')}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    for run, types in ((prepare, [Path]), (trained, [Path]), (loaded, [Path, Path, str]),
                       (resumed, [Path, Path, int, int]), (same, [str, Path, Path]), (versions, [Path])):
        command = commands.add_parser(run.__name__, help=run.__doc__)
        command.set_defaults(run=run)
        names: Any = run.__code__.co_varnames[:run.__code__.co_argcount]
        for name, kind in zip(names, types):
            command.add_argument(name, type=kind)
    args = vars(parser.parse_args())
    args.pop('run')(**args)


if __name__ == '__main__':
    main()
