"""`timm-stn show RUN --over-time`: an animation of where a transformer looked while it was trained."""
import argparse
import sys
from pathlib import Path

from ..view.history import pictures_of
from ..view.over_time import FORMATS, frames, save_animation
from .common import Refused, attempt, check_output

__all__ = ['OUTPUT', 'over_time']

OUTPUT = 'look.webp'


def over_time(args: argparse.Namespace) -> int:
    """Write the animation of the log in the one folder that is named."""
    output = OUTPUT if args.output is None else args.output
    check_output(output)
    if Path(output).suffix.lower() not in FORMATS:
        raise Refused('argument --output: with --over-time, takes the name of an animation, as look.webp or look.gif, '
                      f'got {output!r}')
    if len(args.images) != 1 or not Path(args.images[0]).is_dir():
        raise Refused(f'argument --over-time: takes the folder of one run of train.py, got {" ".join(args.images)!r}')
    folder = Path(args.images[0])
    pictures = pictures_of(folder)
    if not pictures:
        raise Refused(f'argument --over-time: {args.images[0]!r} has no log with pictures; train with '
                      '`timm-stn train ... --stn-log N`')
    images = attempt('--over-time', frames, pictures)
    attempt(f'--output {output}', save_animation, images, Path(output))
    steps = f'step {pictures[0][0]:,}' if len(pictures) == 1 else f'steps {pictures[0][0]:,} to {pictures[-1][0]:,}'
    print(f'{output}: {len(pictures)} pictures, {steps}', file=sys.stderr)
    return 0
