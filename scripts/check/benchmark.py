"""Compare the speed of `timm_stn.warp` with torch's `F.affine_grid` + `F.grid_sample`.

Both warp images by theta (N, 2, 3) and send the gradient back to theta only, as for a spatial transformer on the input.
Each case runs in one process, on one thread. A round times both sides once, in alternating order, so a slow phase of
the machine affects both. The report has the median time of each side and the median of the ratios within the rounds.
Times are CPU times, so waiting for other programs does not count; with --threads above 1 they are wall-clock times.
Only ratios are comparable between machines.

    python scripts/check/benchmark.py --check
    python scripts/check/benchmark.py --antialias    # its quality and what it costs, 448 -> 64
    python scripts/check/benchmark.py --device cuda --output FILE    # on a GPU: what benchmark_gpu.py measures
"""
import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from timm_stn.geometry.functional import warp
from timm_stn.geometry.sampler import sample
from timm_stn.geometry.transforms import matrix_grid


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


def antialias(seconds: float, clock: Callable[[], float]) -> None:
    """How near `warp(antialias=True)` is to supersampling, and its time, in times of `warp` without."""
    side, out = 448, 64
    patterns, image = torch.stack(list(_patterns(side).values()))[None], torch.rand(8, 3, side, side)
    print(f'{side} -> {out}, PSNR in dB against 16 x 16 samples of each footprint, plain and anti-aliased; and the '
          'time of anti-aliased in times of plain')
    print(f'{"":<28}' + ''.join(f'{name:>16}' for name in _patterns(side)) + f'{"forward":>10}{"+ backward":>12}')
    for label, matrices in _transforms().items():
        theta = torch.stack(matrices)
        errors = []
        for on in (False, True):
            exact = F.avg_pool2d(warp(patterns.double(), theta[:1].double(), size=16 * out), 16)
            errors.append((warp(patterns, theta[:1], size=out, antialias=on) - exact).square().mean((0, 2, 3)).tolist())
        quality = [f'{-10 * math.log10(plain):.1f}, {-10 * math.log10(ours):.1f}' for plain, ours in zip(*errors)]
        ratios = [_times(image, theta, out, backward, seconds / 2, clock) for backward in (False, True)]
        print(f'{label:<28}' + ''.join(f'{text:>16}' for text in quality) + f'{ratios[0]:>10.2f}{ratios[1]:>12.2f}',
              flush=True)


def _patterns(n: int) -> dict[str, Tensor]:
    """Images (n, n) in [0, 1]: a chirp up to Nyquist, single pixels, noise of an amplitude of 1 / f."""
    square, index = (torch.arange(n) - (n - 1) / 2) ** 2, torch.arange(n)
    frequency = torch.fft.fftfreq(n)
    radius = (frequency[:, None] ** 2 + frequency ** 2).sqrt().clamp(min=1 / n)
    noise = torch.fft.ifft2(torch.fft.fft2(torch.randn(n, n, generator=torch.Generator().manual_seed(0))) / radius).real
    return {'zone plate': 0.5 + 0.5 * torch.cos(math.pi * (square[:, None] + square) / n),
            'checkerboard': (index[:, None] + index) % 2.0,
            'pink noise': (noise - noise.amin()) / (noise.amax() - noise.amin())}


def _transforms() -> dict[str, list[Tensor]]:
    """Matrices of the glimpses that are read of each image; the first one's quality is measured."""
    def turned(degrees: float, width: float = 1, height: float = 1) -> Tensor:
        c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        return torch.tensor([[c * width, -s * height, 0], [s * width, c * height, 0]])

    return {
        'identity': [turned(0)], 'turned by 10 degrees': [turned(10)], 'turned by 30 degrees': [turned(30)],
        'turned by 45 degrees': [turned(45)], 'turned by 30, 0.7 x 0.7': [turned(30, 0.7, 0.7)],
        'projective': [torch.tensor([[0.9, 0.1, 0.05], [-0.1, 0.8, 0], [0.15, -0.2, 1]])],
        'half of the view': [turned(0, 0.5, 0.5)], 'turned by 20, 0.9 x 0.3': [turned(20, 0.9, 0.3)],
        '4 glimpses, whole': [turned(angle) for angle in (0, 10, 20, 30)],
        '4 glimpses, half': [turned(angle, 0.5, 0.5) for angle in (0, 10, 20, 30)],
        '4 glimpses, 1 to 0.5': [turned(0, scale, scale) for scale in (1, 0.8, 0.65, 0.5)]}


def _times(
        image: Tensor,
        theta: Tensor,
        out: int,
        backward: bool,
        seconds: float,
        clock: Callable[[], float],
) -> float:
    """Median ratio of anti-aliased to plain, interleaved. Glimpses lie one below the other, as in the module."""
    params = theta.repeat(len(image), 1, 1).requires_grad_(backward)
    times: dict[bool, list[float]] = {False: [], True: []}
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop or len(times[True]) < 10:
        for on in (False, True):
            params.grad, start = None, clock()
            grid = matrix_grid(params, (out, out))
            values = sample(image, grid.reshape(len(image), -1, out, 2), antialias=on)
            if backward:
                values.sum().backward()  # type: ignore[no-untyped-call]
            times[on].append(clock() - start)
    return statistics.median(b / a for a, b in zip(times[False][3:], times[True][3:]))


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
    parser.add_argument('--antialias', action='store_true', help='quality and cost of anti-aliasing instead')
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = time.process_time if args.threads == 1 else time.perf_counter
    if args.antialias:
        antialias(args.seconds, clock)
        return 0
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
