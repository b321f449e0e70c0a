"""Measure how far optimizer steps move theta for several `stn_lr_scale`; writes the table of docs/training.md.

    python scripts/reproduce/measure_lr_scale.py            # prints the table
    python scripts/reproduce/measure_lr_scale.py --write    # writes it to docs/training.md

The network is a new `stn_test_resnet` with an affine input transformer; the optimizer trains all parameters. The loss
is linear in theta, with another slope for each image. So theta's gradient does not depend on theta, and differences
come from the optimizer. Weight decay is on, because LAMB adapts to the weights only then.
"""
import argparse
import re

import timm
import torch
from checkout import ROOT
from timm.optim import create_optimizer_v2

import timm_stn  # noqa: F401

OPTIMIZERS = {  # name of timm's optimizer -> (learning rate, further arguments)
    'sgd': (0.01, dict(momentum=0.9)),
    'adamw': (1e-3, {}),
    'lion': (1e-4, {}),
    'muon': (1e-3, {}),
    'lamb': (5e-3, {}),
}
SCALES = (0.1, 1.0, 10.0)
STEPS = (1, 10)
PAGE = ROOT / 'docs' / 'training.md'
MARKS = '<!-- measure_lr_scale: begin -->\n', '<!-- measure_lr_scale: end -->\n'


def distances(opt: str, lr_scale: float, weight_decay: float = 0.05) -> dict[int, float]:
    """Root mean square distance of theta from its start after each number of `STEPS`."""
    torch.manual_seed(0)
    model = timm.create_model('stn_test_resnet', stn_lr_scale=lr_scale).double()  # steps are small
    images = torch.rand(8, 3, 64, 64).double()
    slope = torch.randn(8, 2, 3).double() / 10
    lr, arguments = OPTIMIZERS[opt]
    optimizer = create_optimizer_v2(model, opt, lr=lr, weight_decay=weight_decay, **arguments)
    start = model.stn.regress(images).detach()
    found = {}
    for step in range(1, max(STEPS) + 1):
        optimizer.zero_grad()
        (model.stn.regress(images) * slope).sum((1, 2)).mean().backward()
        optimizer.step()
        if step in STEPS:
            found[step] = (model.stn.regress(images).detach() - start).square().mean().sqrt().item()
    return found


def measure() -> dict[str, dict[float, dict[int, float]]]:
    """Optimizer -> lr_scale -> number of steps -> distance."""
    return {opt: {scale: distances(opt, scale) for scale in SCALES} for opt in OPTIMIZERS}


def table(measured: dict[str, dict[float, dict[int, float]]]) -> str:
    others = [s for s in SCALES if s != 1]
    head = ['optimizer', 'learning rate', 'first step at `stn_lr_scale=1`',
            *(f'{s:g}: {n} step{"s" * (n > 1)}' for s in others for n in STEPS)]
    rows = [head, ['---'] * len(head)]
    for opt, by_scale in measured.items():
        relative = [by_scale[s][n] / by_scale[1.0][n] for s in others for n in STEPS]
        rows.append([opt, f'{OPTIMIZERS[opt][0]:g}', f'{by_scale[1.0][1]:.2g}', *(f'{r:.3f}' for r in relative)])
    return ''.join(f'| {" | ".join(row)} |\n' for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--write', action='store_true', help=f'put the table into {PAGE.name}')
    arguments = parser.parse_args()
    text = table(measure())
    print(text, end='')
    if arguments.write:
        begin, end = MARKS
        page = PAGE.read_text()
        pattern = re.escape(begin) + '.*' + re.escape(end)
        if not re.search(pattern, page, re.DOTALL):
            parser.error(f'{PAGE} has no {begin.strip()} and {end.strip()} around the table.')
        PAGE.write_text(re.sub(pattern, lambda _: begin + text + end, page, flags=re.DOTALL))


if __name__ == '__main__':
    main()
