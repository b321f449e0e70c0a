"""Compare the speed of `timm_stn.warp` with torch's `F.affine_grid` + `F.grid_sample`.

Both warp images by theta (N, 2, 3) and send the gradient back to theta only, as for a spatial transformer on the input.
Each case runs in one process, on one thread. A round times both sides once, in alternating order, so a slow phase of
the machine affects both. The report has the median time of each side and the median of the ratios within the rounds.
Times are CPU times, so waiting for other programs does not count; with --threads above 1 they are wall-clock times.
Only ratios are comparable between machines.

    python scripts/check/benchmark.py --check
    python scripts/check/benchmark.py --device cuda --output FILE    # on a GPU: what benchmark_gpu.py measures
"""
import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from timm_stn.geometry.functional import warp


class Case(NamedTuple):
    shape: tuple[int, int, int, int]
    size: tuple[int, int]
    goal: float

    @property
    def label(self) -> str:
        return f'{"x".join(map(str, self.shape))} -> {"x".join(map(str, self.size))}'


CASES = (
    Case((8, 3, 224, 224), (224, 224), 0.75),
    Case((8, 3, 448, 448), (224, 224), 0.75),
    Case((64, 1, 42, 42), (42, 42), 0.85),
    Case((8, 64, 56, 56), (56, 56), 1.05),
)


def plain(image: Tensor, theta: Tensor, size: tuple[int, int], padding_mode: str) -> Tensor:
    grid = F.affine_grid(theta, [*image.shape[:2], *size], align_corners=False)
    return F.grid_sample(image, grid, padding_mode=padding_mode, align_corners=False)


def ours(image: Tensor, theta: Tensor, size: tuple[int, int], padding_mode: str) -> Tensor:
    return warp(image, theta, size=size, padding_mode=padding_mode)


def measure(case: Case, padding_mode: str, seconds: float, clock: Callable[[], float]) -> tuple[float, float, float]:
    """Median milliseconds of plain and ours, and the median ratio, after a warm-up."""
    torch.manual_seed(0)
    image = torch.randn(case.shape)
    theta = (torch.eye(2, 3) + 0.1 * torch.randn(case.shape[0], 2, 3)).requires_grad_()
    grad = torch.randn(*case.shape[:2], *case.size)
    sides: list[Callable[..., Tensor]] = [plain, ours]
    times: dict[Callable[..., Tensor], list[float]] = {side: [] for side in sides}
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop or len(times[plain]) < 20:
        for side in sides:
            theta.grad = None
            start = clock()
            side(image, theta, case.size, padding_mode).backward(grad)  # type: ignore[no-untyped-call]
            times[side].append(1000 * (clock() - start))
        sides.reverse()
    before, after = times[plain][5:], times[ours][5:]
    ratio = statistics.median(b / a for a, b in zip(before, after))
    return statistics.median(before), statistics.median(after), ratio


def main() -> int:
    if any(word.startswith('--device') for word in sys.argv[1:]):
        import benchmark_gpu  # has arguments of its own
        return benchmark_gpu.main()
    parser = argparse.ArgumentParser(
        description=__doc__.split('\n')[0],
        epilog='With --device cuda, what benchmark_gpu.py measures; options: --device cuda --help')
    parser.add_argument('--check', action='store_true', help='exit with status 1 if a goal is missed')
    parser.add_argument('--padding-mode', choices=('border', 'zeros', 'reflection'), default='border')
    parser.add_argument('--seconds', type=float, default=5., help='for each case')
    parser.add_argument('--threads', type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = time.process_time if args.threads == 1 else time.perf_counter
    missed = 0
    print(f'{"case":<28}{"plain ms":>10}{"ours ms":>10}{"ratio":>8}{"goal":>8}  pass')
    for case in CASES:
        before, after, ratio = measure(case, args.padding_mode, args.seconds, clock)
        missed += ratio > case.goal
        passed = 'no' if ratio > case.goal else 'yes'
        print(f'{case.label:<28}{before:>10.2f}{after:>10.2f}{ratio:>8.2f}{case.goal:>8.2f}  {passed}', flush=True)
    return int(args.check and missed > 0)


if __name__ == '__main__':
    sys.exit(main())
