#!/usr/bin/env python
"""Check a release: `python scripts/release/check_dist.py dist/`, a folder with one wheel and one sdist."""
import argparse
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MOST = dict(wheel=4.5e6, sdist=10e6)  # bytes
SMALL = 2_500_000  # bytes; weights up to here are part of the wheel, others of neither
WEIGHTS = 'model.safetensors'


def expected_in_wheel(card: Path) -> list[str]:
    """The files of a card in the package: all, or without the weights if these are only on the Hub."""
    names = [p.name for p in card.iterdir()] if is_small(card) else ['README.md', 'config.json']
    return [f'timm_stn/model_cards/{card.name}/{name}' for name in names]


def is_small(card: Path) -> bool:
    """Whether the weights of a card are part of a release; those that are not are on the Hub."""
    return (card / WEIGHTS).is_file() and (card / WEIGHTS).stat().st_size <= SMALL


def check_wheel(path: Path) -> list[str]:
    names = zipfile.ZipFile(path).namelist()
    wanted = [str(p.relative_to(ROOT)) for p in (ROOT / 'timm_stn').rglob('*.py')]
    wanted += ['timm_stn/py.typed']
    wanted += [name for card in (ROOT / 'model_cards').iterdir() if card.is_dir() for name in expected_in_wheel(card)]
    wrong = [f'lacks {name}' for name in wanted if name not in names]
    return wrong + [f'holds {n}' for n in names if n not in wanted and '.dist-info/' not in n]


def check_sdist(path: Path) -> list[str]:
    with tarfile.open(path) as archive:
        names = {name.partition('/')[2] for name in archive.getnames()}
    wanted = ['pyproject.toml', 'README.md', 'LICENSE', 'CHANGELOG.md', 'Makefile', 'tests/network/test_model.py',
              'scripts/train/train_task.py', 'docs/hub.md', 'timm_stn/network/model.py']
    cards = [card for card in (ROOT / 'model_cards').iterdir() if card.is_dir()]
    wanted += [f'model_cards/{card.name}/{p.name}' for card in cards for p in card.iterdir()
               if p.name != WEIGHTS or is_small(card)]
    wrong = [f'holds model_cards/{card.name}/{WEIGHTS}' for card in cards
             if not is_small(card) and f'model_cards/{card.name}/{WEIGHTS}' in names]
    return wrong + [f'lacks {name}' for name in wanted if name not in names]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('folder', type=Path)
    folder = parser.parse_args().folder
    (wheel,), (sdist,) = folder.glob('*.whl'), folder.glob('*.tar.gz')
    version = {}
    exec((ROOT / 'timm_stn' / 'version.py').read_text(), version)
    wrong = []
    for kind, path, found in (('wheel', wheel, check_wheel(wheel)), ('sdist', sdist, check_sdist(sdist))):
        size = path.stat().st_size
        found += [f'is larger than {MOST[kind]:,.0f} bytes'] if size > MOST[kind] else []
        found += [f'is not of version {version["__version__"]}'] if version['__version__'] not in path.name else []
        wrong += [f'{path.name} {what}' for what in found]
        print(f'{path.name}: {size:,} bytes')
    sys.exit('\n'.join(wrong) or 0)


if __name__ == '__main__':
    main()
