"""Check every architecture of timm with transformers at the input and at all possible stages; one JSON line each.

For each architecture, `stn_<arch>` is built on the meta device with transformers at the input and at all stages, and
its keys are checked. Then it is built with real numbers, for the smallest images with maps larger than 2 x 2 at every
stage. Checked are the logits at the identity, their response to transformers that look elsewhere, and gradients (see
contract.py). Architectures with more parameters than --limit-params are built only on the meta device.

    python scripts/check/sweep.py --output sweep.jsonl                        # resumes where it stopped
    python scripts/check/sweep.py --output sweep.jsonl --retry failed         # repeats failed ones
    python scripts/check/sweep.py --output sweep.jsonl --table docs/architectures.md

A worker process handles many architectures. A worker that crashes or takes too long or too much memory is replaced, and
its architecture is recorded as failed. Weights come from a pool of random numbers, with the mean and the standard
deviation of the initialisation, because drawing new ones would take most of the time.
"""
import argparse
import contextlib
import fnmatch
import json
import os
import queue
import re
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

import contract
import timm
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import timm_stn
from timm_stn.network.stages import feature_infos
from timm_stn.whole_file import place_of_file

VERSIONS = {'timm': timm.__version__, 'torch': torch.__version__, 'timm_stn': timm_stn.__version__}
INSTEAD = re.compile(r"use 'input' or another stage, for example '(\S+)'")
Record = dict[str, Any]


# one architecture


def examine(arch: str, limit_params: float = 1e9) -> Record:
    """The record of one architecture; failed checks are in ``failures``."""
    record: Record = {'arch': arch, 'family': family(arch), 'versions': VERSIONS, 'failures': []}
    failures = Collector(record['failures'])
    with failures('build'), torch.device('meta'):
        plain = contract.make(arch, contract.input_size(arch))
        record['params'] = sum(p.numel() for p in plain.parameters())
        plain, size, holding, refused = smallest(arch, plain)
        record['size'] = size[1:]
        modules = {i: info['module'] for i, info in enumerate(feature_infos(plain))}
        record['stages'] = {
            **{s: {'module': name, 'layout': lay.fmt, 'map': lay.size, 'prefix': lay.prefix}
               for s, (name, lay) in holding.items()},
            **{s: {'module': modules[s], 'reason': reason} for s, reason in refused.items()}}
        stages = [*holding, *dict.fromkeys(name for reason in refused.values() for name in INSTEAD.findall(reason))]
        record['instead'] = stages[len(holding):]
        twin = contract.make('stn_' + arch, size, stn_stages=('input', *stages))
        record['input'] = twin.stn is not None
        keys = set(twin.state_dict())
        contract.check_keys(plain.state_dict(), twin)
        contract.check_loads(plain, twin)
        if record['params'] > limit_params:
            with torch.no_grad():
                shapes = [tuple(contract.first(m(torch.zeros(1, *size))).shape) for m in (plain, twin)]
            assert shapes[0] == shapes[1], f'logits {shapes[1]} instead of {shapes[0]}'
    if not record['failures'] and record['params'] <= limit_params:
        with failures('numbers'):
            record.update(numbers(arch, size, stages, keys, failures))
    record['device'] = 'cpu' if 'error' in record else 'meta'
    return record


class Collector:
    """Turns an error in a step into a line of ``failures``."""

    def __init__(self, failures: list[str]) -> None:
        self.failures = failures

    @contextlib.contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.failures.append(f'{step}: {type(error).__name__}: {error}'[:600])


def smallest(
        arch: str,
        plain: nn.Module,
) -> tuple[nn.Module, tuple[int, int, int], contract.Holding, dict[int, str]]:
    """The network, and its stages, for the smallest images with maps above 2 x 2 at each stage and no lost stage.

    Tried are 3, 4, 5, 7 and 8 times the last stage's reduction, then the network's own size.
    """
    native = contract.input_size(arch)
    reduction = max((int(info.get('reduction', 0)) for info in feature_infos(plain)), default=0)
    known = None
    for side in (n * reduction for n in (3, 4, 5, 7, 8) if 0 < n * reduction < min(native[1:])):
        size = contract.input_size(arch, side)
        try:
            small = contract.make(arch, size)
            holding, refused = contract.survey(small, size)
        except Exception:  # whatever a network says of images too small for it
            continue
        if any(min(layout.size) <= contract.SMALL for _, layout in holding.values()):
            continue
        if refused and known is None:
            known = contract.survey(plain, native)
        if not refused or (known and set(known[1]) == set(refused)):
            return small, size, holding, refused
    return plain, native, *(known or contract.survey(plain, native))


def numbers(
        arch: str,
        size: tuple[int, int, int],
        stages: list[int | str],
        keys: set[str],
        failures: Collector,
) -> Record:
    """Check identity logits, response and gradients with real numbers."""
    with PooledInit():
        plain = contract.make(arch, size)
    x = contract.images(size)
    contract.wake(plain, x)
    with torch.no_grad():
        expected = contract.first(plain(x))
    twin = timm_stn.wrap(plain, stages=('input', *stages))
    if set(twin.state_dict()) != keys:
        failures.failures.append('numbers: a wrapped model has other keys than the one that is built by name')
    found: Record = {'error': None, 'response': None, 'silent': None}
    with failures('identity'):
        found['error'] = contract.identity_error(expected, twin, x)
        found['response'] = contract.response(expected, twin, x)
    with failures('gradients'):
        found['silent'] = contract.check_gradients(twin, x)
    return found


class PooledInit(TorchDispatchMode):
    """Random initialisation from a pool of numbers drawn once: same mean and standard deviation, many times faster.

    The pool's length is a prime, so that rows of a weight do not repeat. Normal distributions become uniform ones.
    """

    pool = torch.empty(1_000_003).uniform_(-1, 1, generator=torch.Generator().manual_seed(0))

    def __init__(self) -> None:
        super().__init__()
        self.start = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.normal_.default and self._takes(args[0]):
            mean, std = (*args[1:], *(0.0, 1.0)[len(args) - 1:])
            return self._fill(args[0], mean, 3 ** 0.5 * std)
        if func is torch.ops.aten.uniform_.default and self._takes(args[0]):
            low, high = (*args[1:], *(0.0, 1.0)[len(args) - 1:])
            return self._fill(args[0], (low + high) / 2, (high - low) / 2)
        if func is torch.ops.aten.erfinv_.default:  # within truncated normal distributions
            return args[0]
        return func(*args, **(kwargs or {}))

    @staticmethod
    def _takes(x: Tensor) -> bool:
        return x.is_contiguous() and x.device.type == 'cpu' and x.dtype == torch.float32

    def _fill(self, x: Tensor, mean: float, reach: float) -> Tensor:
        flat, done = x.detach().view(-1), 0
        while done < flat.numel():
            part = self.pool[self.start:self.start + flat.numel() - done]
            torch.mul(part, reach, out=flat[done:done + part.numel()])
            done += part.numel()
            self.start = (self.start + part.numel()) % self.pool.numel()
        return flat.add_(mean).view_as(x) if mean else x


# all of them


def architectures(patterns: Iterable[str]) -> list[str]:
    """timm's own architectures that match one of the patterns, sorted by name."""
    own = [a for a in timm.list_models() if timm.model_entrypoint(a).__module__.startswith('timm.')]
    return [a for a in own if any(fnmatch.fnmatch(a, p) for p in patterns)]


def family(arch: str) -> str:
    return str(timm.model_entrypoint(arch).__module__.split('.')[-1])


def by_size(archs: list[str], cache: Path) -> list[str]:
    """Architectures, smallest first. Parameter counts are cached in a file, because counting takes minutes."""
    sizes = json.loads(cache.read_text()) if cache.exists() else {}
    for arch in archs:
        if arch not in sizes:
            with torch.device('meta'):
                sizes[arch] = sum(p.numel() for p in timm.create_model(arch).parameters())
    cache.write_text(json.dumps(sizes))
    return sorted(archs, key=lambda a: (sizes[a], a))


def read(path: Path) -> dict[str, Record]:
    """The last record of each architecture with the current versions."""
    records = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):  # a line cut short by a kill
            record = json.loads(line)
            if record['versions'] == VERSIONS:
                records[record['arch']] = record
    return records


class Worker:
    """A process that checks one architecture after another: one line per name in, one line per record out."""

    def __init__(self, command: list[str], timeout: float) -> None:
        self.command = command
        self.timeout = timeout
        self.process: subprocess.Popen | None = None

    def examine(self, arch: str) -> Record:
        """The record of an architecture, even if the process dies."""
        if self.process is None:
            self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        line, reason = '', 'the process ended: '
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(arch + '\n')
            self.process.stdin.flush()
            if select.select([self.process.stdout], [], [], self.timeout)[0]:
                line = self.process.stdout.readline()
            else:
                reason = f'took more than {self.timeout:g} s: '
        if line:
            return json.loads(line)
        failure = reason + self.stop()
        return {'arch': arch, 'family': family(arch), 'versions': VERSIONS, 'failures': [failure]}

    def stop(self) -> str:
        """End the process; returns how it ended."""
        process, self.process = self.process, None
        if process is None:
            return 'not started'
        process.stdin.close()
        try:
            process.wait(1)
        except subprocess.TimeoutExpired:
            process.kill()
        code = process.wait()
        process.stdout.close()
        return signal.Signals(-code).name if code < 0 else f'exit status {code}'


def worker_command(options: argparse.Namespace) -> list[str]:
    return [sys.executable, '-W', 'ignore', __file__, '--worker', '--memory', str(options.memory),
            '--limit-params', str(options.limit_params)]


def work(options: argparse.Namespace) -> None:
    """The worker's loop: reads names, writes records; other output goes to stderr."""
    limit = int(options.memory * 2 ** 30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    with os.fdopen(os.dup(1), 'w') as out:
        os.dup2(2, 1)
        for line in sys.stdin:
            start = time.perf_counter()
            record = examine(line.strip(), options.limit_params)
            record['seconds'] = round(time.perf_counter() - start, 2)
            print(json.dumps(record), file=out, flush=True)


def sweep(options: argparse.Namespace) -> None:
    """Check all architectures that are not yet in the output, with one worker per job."""
    done = read(options.output)
    known = {a for a, r in done.items() if not (options.retry == 'all' or (options.retry and r['failures']))}
    archs = architectures(options.filter)
    if options.order == 'size':
        archs = by_size(archs, options.output.with_suffix('.sizes.json'))
    todo: queue.SimpleQueue[str] = queue.SimpleQueue()
    for arch in archs:
        if arch not in known:
            todo.put(arch)
    print(f'{len(archs)} architectures, {todo.qsize()} to do', flush=True)
    lock = threading.Lock()
    _end_line(options.output)
    with options.output.open('a') as out:
        workers = [Worker(worker_command(options), options.timeout) for _ in range(options.jobs)]
        threads = [threading.Thread(target=_drain, args=(todo, worker, out, lock)) for worker in workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def _end_line(path: Path) -> None:
    if path.exists() and (text := path.read_bytes()) and not text.endswith(b'\n'):
        path.write_bytes(text + b'\n')


def _drain(todo: 'queue.SimpleQueue[str]', worker: Worker, out: TextIO, lock: threading.Lock) -> None:
    try:
        while True:
            record = worker.examine(todo.get_nowait())
            with lock:
                print(json.dumps(record), file=out, flush=True)
                print(_line(record), flush=True)
    except queue.Empty:
        worker.stop()


def _line(record: Record) -> str:
    stages = record.get('stages', {}).values()
    holding = sum('layout' in s for s in stages)
    state = '; '.join(record['failures'])[:160] or ('ok' if record['device'] == 'cpu' else 'ok on meta')
    return f"{record['arch']:45} {holding}/{len(stages)} stages  {record.get('seconds', '-')} s  {state}"


# the table


def table(records: Iterable[Record], total: int) -> str:
    """The documentation page: results by family, and each exception with its reason."""
    families: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda r: r['arch']):
        families.setdefault(record['family'], []).append(record)
    everything = [r for group in families.values() for r in group]
    real = [r for r in everything if r.get('device') == 'cpu']
    good = [r for r in everything if not r['failures']]
    responses = sorted(r['response'] for r in real if r.get('response') is not None)
    lines = [
        '# Architectures', '',
        f"timm {VERSIONS['timm']}, torch {VERSIONS['torch']}: {len(everything)} of {total} architectures checked, "
        f'{len(good)} of them without a failure. {len(real)} ran with real numbers; the others are too large for that '
        'and ran on the meta device. Written by', '',
        '    python scripts/check/sweep.py --output sweep.jsonl',
        '    python scripts/check/sweep.py --output sweep.jsonl --table docs/architectures.md', '',
        'Every architecture is built by its `stn_` name, with transformers at the input and at all possible stages '
        'at once. The checks: state dict keys; loading a plain checkpoint; logits with new transformers, which may '
        f"differ from the plain network's by at most {contract.RELATIVE:g} of their range (in float64 if float32 is "
        "too coarse); gradients, which are finite for all of a transformer's parameters and not zero at its last "
        'layer.', '',
        *_figures(real, responses), '',
        '| family | architectures | passed at the input | stages passed | layouts |',
        '| --- | --- | --- | --- | --- |',
    ]
    lines += [_row(name, group) for name, group in sorted(families.items())]
    lines += [
        '', '## Stages that cannot have a transformer', '',
        'The error gives the reason. If possible, it names another module with a map of the same size and number of '
        'channels. Those modules passed the same checks.', '',
        '| family | stages | reason | with a module to use instead |', '| --- | --- | --- | --- |',
    ]
    for name, group in sorted(families.items()):
        refused = [s['reason'] for r in group for s in r.get('stages', {}).values() if 'reason' in s]
        helped = Counter(_reason(reason) for reason in refused if INSTEAD.search(reason))
        for reason, count in sorted(Counter(map(_reason, refused)).items()):
            lines.append(f'| {name} | {count} | {reason} | {helped[reason]} |')
    failed = [r for r in everything if r['failures']]
    if failed:
        lines += ['', '## Failures', '', '| architecture | what |', '| --- | --- |']
        lines += [f"| {r['arch']} | {_cell('; '.join(r['failures']))} |" for r in failed]
    return '\n'.join(lines) + '\n'


def _figures(real: list[Record], responses: list[float]) -> list[str]:
    errors = sorted(r['error'] for r in real if r.get('error') is not None)
    if not errors or not responses:
        return []
    silent = sum(bool(r.get('silent')) for r in real)
    deaf = [r['arch'] for r in real if r.get('response') is not None and r['response'] < 10 * r['error']]
    return [
        f'Logits differ by {errors[len(errors) // 2]:.1e} of their range in the median, {errors[-1]:.1e} at most. '
        f'Transformers that look elsewhere change them by {responses[len(responses) // 2]:.2g} of their range in the '
        f'median. Where this change is less than ten times the difference at the identity, random weights hardly '
        f'depend on the image, and the check of the identity says little: in {len(deaf)} networks'
        f"{': ' + ', '.join(deaf) if deaf else ''}. In {silent} networks the transformer at the last block has no "
        'gradient, because the head uses only the class token.']


def _row(name: str, group: list[Record]) -> str:
    stages = [s for r in group for s in r.get('stages', {}).values()]
    layouts = Counter(s['layout'] for s in stages if 'layout' in s)
    holding = sum(layouts.values())
    at_input = sum(bool(r.get('input')) and not r['failures'] for r in group)
    return f"| {name} | {len(group)} | {at_input} | {holding} of {len(stages)} | {', '.join(sorted(layouts))} |"


def _reason(text: str) -> str:
    """The reason without the names of stage and network, and without sizes."""
    text = re.sub(r'^stn_stages: (stage \S+ \(\S*\) of \S+ |)', '', text)
    text = re.sub(r"; (use 'input'|name another|name it).*$", '', text)
    text = re.sub(r' of \S+$', '', text)
    return _cell(re.sub(r'yields several things .*, not', 'yields several things, not', text))


def _cell(text: str) -> str:
    return ' '.join(text.replace('|', '\\|').split())[:300]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument('--output', type=place_of_file, default='sweep.jsonl', help='JSON lines; appended to')
    parser.add_argument('--filter', nargs='+', default=['*'], metavar='PATTERN', help='names of architectures')
    parser.add_argument('--jobs', type=int, default=1, help='processes at once')
    parser.add_argument('--order', choices=('size', 'name'), default='size', help='smallest or alphabetically first')
    parser.add_argument('--timeout', type=float, default=600, help='seconds for one architecture')
    parser.add_argument('--memory', type=float, default=10, help='GiB for one process')
    parser.add_argument('--limit-params', type=float, default=1e9, help='larger networks are built on meta only')
    parser.add_argument('--retry', choices=('failed', 'all'), help='examine again what failed, or all')
    parser.add_argument('--table', type=place_of_file, metavar='FILE',
                        help='write the table from the output, examine nothing')
    parser.add_argument('--worker', action='store_true', help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.worker:
        work(options)
    elif options.table:
        known = architectures(options.filter)
        found = read(options.output)
        options.table.write_text(table([found[a] for a in known if a in found], len(known)))
    else:
        sweep(options)


if __name__ == '__main__':
    main()
