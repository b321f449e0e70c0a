"""Run timm's own tests on plain and `stn_` names and compare the results: `make timm-tests`.

The tests come from the source distribution of the installed timm (PyPI), cached in build/timm-tests. The plugin
twins.py runs each test for the twins too. exceptions.json lists known differences with reasons. The report goes to
docs/timm_tests.md. The exit status is 1 if a test passes for an architecture but not for its twin and is not listed, or
if a listed one passes. An interrupted run writes no report; --resume continues it.
"""
import argparse
import fnmatch
import json
import os
import shlex
import subprocess
import sys
import tarfile
from collections import Counter, defaultdict
from pathlib import Path

import timm
import torch

from timm_stn.whole_file import place_of_file, write_text

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CACHE = ROOT / 'build' / 'timm-tests'
DOWNLOADS = 'not (load_pretrained or features_pretrained or test_model_inference)'  # needs hundreds of checkpoints


def fetch_tests() -> Path:
    """The folder of the source distribution that matches the installed timm, downloaded once."""
    folder = CACHE / f'timm-{timm.__version__}'
    if not (folder / 'tests').is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            [sys.executable, '-m', 'pip', 'download', '-q', f'timm=={timm.__version__}', '--no-binary', 'timm',
             '--no-deps', '-d', str(CACHE)], check=True)
        with tarfile.open(CACHE / f'timm-{timm.__version__}.tar.gz') as archive:
            members = [m for m in archive.getmembers() if '/tests/' in m.name or m.name.endswith('pyproject.toml')]
            archive.extractall(CACHE, members, **({'filter': 'data'} if hasattr(tarfile, 'data_filter') else {}))
    return folder


def select(max_params: float) -> list[str]:
    """The smallest architecture of every family, if it has at most `max_params` parameters."""
    names = [name for name, _ in json.loads((HERE / 'families.json').read_text()).values()]
    return [name for name in names if count_params(name) <= max_params]


def count_params(name: str) -> int:
    with torch.device('meta'):
        return sum(p.numel() for p in timm.create_model(name).parameters())


def run_tests(folder: Path, models: list[str], args: argparse.Namespace) -> dict:
    """Outcomes by case: {case: {'plain': [outcome, message], 'stn': ...}}."""
    results = CACHE / f'{args.output.stem}.jsonl'
    if not args.resume:
        results.unlink(missing_ok=True)
    files = [str(f) for f in sorted(folder.glob('tests/test_*.py')) if 'create_model' in f.read_text()]
    keyword = f'{DOWNLOADS} and ({args.tests})' if args.tests else DOWNLOADS
    env = dict(os.environ, HF_HUB_OFFLINE='1', PYTHONPATH=os.pathsep.join([str(ROOT), str(HERE)]))
    status = subprocess.run(
        [sys.executable, '-m', 'pytest', '-q', '-p', 'twins', '-p', 'no:cacheprovider', '-W', 'ignore', '--tb=no',
         '--rootdir', str(folder), '-c', str(folder / 'pyproject.toml'),
         '-k', keyword, '--twin-models', ','.join(models), '--twin-stages', args.stages,
         '--twin-results', str(results), *files], cwd=folder, env=env).returncode
    if status not in (0, 1, 5):  # passed, some failed, none were left
        raise SystemExit(f'pytest ended early, with status {status}; --resume runs the rest')
    return read_results(results)


def read_results(path: Path) -> dict:
    results: dict = defaultdict(dict)
    for line in path.read_text().splitlines():
        case, kind, *outcome = json.loads(line)
        results[case].setdefault(kind, outcome)
    return results


def differences(results: dict) -> list[tuple[str, str]]:
    """Cases (with messages) in which plain passes and stn does not."""
    return [
        (case, f"{twin['stn'][0]}: {twin['stn'][1]}") for case, twin in results.items()
        if twin.get('plain', [''])[0] == 'passed' and twin.get('stn', ['passed'])[0] != 'passed'
    ]


def reason(case: str, message: str, exceptions: list[dict]) -> str | None:
    """The reason of a known difference: its name is listed, and its message contains the `error`, if given."""
    name = case.rpartition('/')[2]
    for entry in exceptions:
        if entry.get('error', '') in message and any(fnmatch.fnmatchcase(name, escape(p)) for p in entry['cases']):
            return entry['reason']
    return None


def escape(pattern: str) -> str:
    return pattern.replace('[', '[[]')


def unused(results: dict, exceptions: list[dict]) -> list[str]:
    """Listed exceptions whose cases (of this run) all pass."""
    different = {case.rpartition('/')[2] for case, _ in differences(results)}
    ran = {case.rpartition('/')[2] for case in results}
    patterns = [escape(p) for e in exceptions for p in e['cases']]
    return [p for p in patterns if fnmatch.filter(ran, p) and not fnmatch.filter(different, p)]


def report(results: dict, models: list[str], exceptions: list[dict], args: argparse.Namespace) -> str:
    counts: dict[str, Counter] = defaultdict(Counter)
    for case, twin in results.items():
        for kind, (outcome, _) in twin.items():
            counts[case.rpartition('/')[2].partition('[')[0]][kind, outcome] += 1
    columns = [(kind, outcome) for kind in ('plain', 'stn') for outcome in ('passed', 'failed', 'skipped')]
    rows = ['| test | ' + ' | '.join(' '.join(c) for c in columns) + ' |', '| --- |' + ' ---: |' * len(columns)]
    total: Counter = Counter()
    for test in sorted(counts):
        total.update(counts[test])
        rows.append(f'| `{test}` | ' + ' | '.join(str(counts[test][c]) for c in columns) + ' |')
    rows.append('| **all** | ' + ' | '.join(f'**{total[c]}**' for c in columns) + ' |')
    found = [(case, message, reason(case, message, exceptions)) for case, message in differences(results)]
    by_reason: dict[str, list[str]] = defaultdict(list)
    for case, message, why in found:
        by_reason[why or 'NOT LISTED'].append(f'`{case.rpartition("/")[2]}`' + ('' if why else f': {message}'))
    lines = [
        '# timm\'s own tests: plain and stn', '',
        f'timm {timm.__version__}, torch {torch.__version__.partition("+")[0]}; written by `{command(args)}`. Every '
        'test of timm that creates a model by name runs for the architecture, then for its twin. Tests over hundreds '
        f'of architectures run over {len(models)}: the smallest of each family, if it has at most '
        f'{args.max_params / 1e6:g} M parameters' + (f', with `stn_stages={args.stages}`' if args.stages else '') + '. '
        'Tests with their own list of architectures run over that list. Tests that download checkpoints are skipped.',
        '',
        *rows, '', '## Where plain passes and stn does not', '']
    for why in sorted(by_reason):
        lines += [f'* {why}', *(f'  * {case}' for case in sorted(by_reason[why]))]
    lines += [*([] if by_reason else ['Nowhere.']), '', '## Architectures', '', ', '.join(models)]
    return '\n'.join(lines) + '\n'


def command(args: argparse.Namespace) -> str:
    return ('python scripts/check/timm_tests.py ' + shlex.join(args.given)) if args.given else 'make timm-tests'


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--models', default='', help='architectures, by comma, instead of the selection by family')
    parser.add_argument('--max-params', type=float, default=35e6, help='size of the largest architecture selected')
    parser.add_argument('--tests', default='', help='expression that selects tests, as for pytest -k')
    parser.add_argument('--stages', default='', help='stn_stages of the twins, by comma; default: the input')
    parser.add_argument('--resume', action='store_true', help='run only what an interrupted run has left')
    parser.add_argument('--output', type=place_of_file, default=str(ROOT / 'docs' / 'timm_tests.md'))
    args = parser.parse_args()
    args.given = [a for a in sys.argv[1:] if a != '--resume']
    models = args.models.split(',') if args.models else select(args.max_params)
    exceptions = json.loads((HERE / 'exceptions.json').read_text())
    results = run_tests(fetch_tests(), models, args)
    write_text(args.output, report(results, models, exceptions, args))
    unlisted = [case for case, message in differences(results) if reason(case, message, exceptions) is None]
    stale = unused(results, exceptions)
    print(f'{args.output}: {len(results)} cases; {len(unlisted)} unlisted differences; not needed: {stale or "none"}')
    return 1 if unlisted or stale else 0


if __name__ == '__main__':
    sys.exit(main())
