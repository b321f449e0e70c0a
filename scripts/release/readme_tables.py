#!/usr/bin/env python
"""Write README.md's tables of arguments and trained networks: `python scripts/release/readme_tables.py [--check]`."""
import argparse
import json
import sys
from pathlib import Path

from check_dist import SMALL
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from timm_stn.network.arguments import argument_table
from timm_stn.whole_file import write_text

ROOT = Path(__file__).resolve().parents[2]
START, END = '<!-- from {}, by scripts/release/readme_tables.py -->', '<!-- end -->'


def row(folder: Path) -> str:
    """The table row of one network, from its card's metadata, its config and its weights."""
    config = json.loads((folder / 'config.json').read_text())
    result, = ModelCard.load(folder / 'README.md').data.eval_results
    weights = folder / 'model.safetensors'
    count = sum(t.numel() for t in load_file(weights).values() if t.is_floating_point())
    size = ' x '.join(map(str, config['pretrained_cfg']['input_size']))
    megabytes = weights.stat().st_size / 1e6
    where = 'in the package' if weights.stat().st_size <= SMALL else 'in this repository'
    return (f'| [`{folder.name}`](model_cards/{folder.name}/README.md) | {result.dataset_name} | '
            f'{100 * result.metric_value:.2f} % | {size} | {count / 1e6:.2f} M | {megabytes:.1f} MB, {where} |')


def networks() -> str:
    names = ('name', 'trained on', 'top-1 accuracy', 'input', 'parameters', 'weights')
    head = f'| {" | ".join(names)} |\n|{" --- |" * len(names)}'
    folders = sorted(p for p in (ROOT / 'model_cards').iterdir() if (p / 'model.safetensors').is_file())
    return '\n'.join([head, *map(row, folders)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--check', action='store_true', help='write nothing; exit with 1 if the table is out of date')
    args = parser.parse_args()
    readme = ROOT / 'README.md'
    text = readme.read_text()
    new = text
    tables = {'the fields of timm_stn/network/arguments.py': argument_table(), 'model_cards/': networks()}
    for source, table in tables.items():
        start = START.format(source)
        before, rest = new.split(start)
        new = f'{before}{start}\n{table}\n{END}{rest.split(END, 1)[1]}'
    if args.check:
        sys.exit(f'{readme} has an old table: run scripts/release/readme_tables.py' if new != text else 0)
    write_text(readme, new)


if __name__ == '__main__':
    main()
