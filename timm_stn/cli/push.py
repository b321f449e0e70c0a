"""`timm-stn push`: publish trained networks on the Hugging Face Hub."""
import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..names.zoo import card_folder
from ..publish.push import PICTURE, Pushed, PushError, push_to_hub
from ..view.dependence import tell
from .common import Refused, quiet_argument
from .digits import DEMO

__all__ = ['push', 'push_arguments']


def push_arguments(add: Callable[..., Any]) -> None:
    add('model', nargs='?', metavar='CHECKPOINT|NAME',
        help="checkpoint of timm's train.py, name of `timm-stn list`, or folder with the files of a repository")
    add('--repo', required=True, metavar='ORG/NAME', help='repository; with --all ORG alone')
    add('--all', action='store_true', help='all trained networks of this package, with their cards')
    add('--private', action='store_true', help='create the repository as private')
    add('--revision', metavar='BRANCH', help='branch, created if it is missing (default: main)')
    add('--message', help='message of the commit')
    add('--card', metavar='FILE', help='a README.md to use (default: written from the training run)')
    add('--replace-card', action='store_true', help='replace an existing README.md of the repository; else it is kept')
    add('--images', nargs='+', metavar='IMAGE',
        help="images for the card's picture of where it looks; they become public "
             '(default: some validation images of the run, if they still exist)')
    add('--no-picture', action='store_true', help='no picture')
    add('--license', metavar='ID', help='license of the weights (default: that of pretrained weights it started from)')
    add('--half', action='store_true', help='weights in half precision, a file of half the size; loaded as float32')
    add('--dry-run', action='store_true', help='write and test the files, print the card, send nothing')
    quiet_argument(add)


def push(args: argparse.Namespace) -> int:
    if bool(args.model) == args.all:
        raise Refused('argument CHECKPOINT|NAME: takes one, or else --all')
    if args.all and args.half:
        raise Refused('argument --half: with --all, files are pushed as they are')
    if args.all and '/' in args.repo:
        raise Refused(f'argument --repo: with --all takes ORG alone, got {args.repo!r}')
    given = {k: getattr(args, k) for k in ('revision', 'private', 'message', 'card', 'license', 'half', 'dry_run')}
    given['images'] = [] if args.no_picture else args.images
    if not args.all:
        _report_push(_try_push(args.model, args.repo, replace_card=args.replace_card, **given))
        return 0
    for folder in sorted(file.parent for file in card_folder(DEMO).parent.glob('*/model.safetensors')):
        _report_push(_try_push(folder, f'{args.repo}/{folder.name}', replace_card=True, **given))
    return 0


def _try_push(model: str | Path, repo: str, **given: Any) -> Pushed:
    try:
        return push_to_hub(model, repo, **given)
    except (PushError, ValueError) as error:
        raise Refused(str(error)) from error


def _report_push(pushed: Pushed) -> None:
    tell(pushed.advice)
    if pushed.commit is None:
        print(f'{pushed.card}\n{pushed.url}: nothing sent (--dry-run); it would be {", ".join(pushed.sent)}')
        return
    print(f'{pushed.url}: {", ".join(pushed.sent) or "nothing"} sent, {len(pushed.same)} there already; '
          f'checked in commit {pushed.commit}')
    if PICTURE in pushed.sent:
        print(f'{PICTURE} shows your --images or images of the run; --no-picture leaves it out')
    if pushed.kept_card:
        print('its README.md is another one and was kept; --replace-card replaces it')
