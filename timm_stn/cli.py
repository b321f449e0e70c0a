"""The command `timm-stn`: pictures, figures and facts. A wrong argument is one line on stderr and exit status 2."""
import argparse
import ast
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NoReturn

import timm
import torch
from PIL import Image
from timm.models import load_checkpoint
from torch import Tensor, nn

from .card import read_run
from .data import DISTORTIONS, load_mnist, test_set
from .data.mnist import DATA_VARIABLE
from .dependence import tell, witnessing
from .diagnostics import observe, report, self_check, weights_of, wrong_answers
from .hub import PICTURE, Pushed, PushError, push_to_hub
from .picture import best_answers, class_names, data_config, draw, read_images, short_name
from .run import ScriptNotFound, find_script, run_script
from .version import __version__
from .visualize import GOOD, WRONG, Caption, draw_look, save_picture
from .zoo import card_folder, zoo_names

__all__ = ['main']

DEMO, DEMO_SET = 'stn_mnist_cnn_rts', 'RTS'
EXAMPLES = 'examples.png'  # in the card's folder: a sheet of held-out digits, as scripts/make_examples.py writes it
FROM_CONFIG = ('hf-hub:', 'hf_hub:', 'local-dir:')
SCRIPTS = ('train', 'validate', 'inference', 'benchmark', 'onnx_export')  # timm's own, found by TIMM_SCRIPTS


class Refused(Exception):
    """What the user asked for cannot be done; the message is for the user."""


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f'{self.prog}: error: {" ".join(message.split())}\n')


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status.

    Raises:
        SystemExit: With status 2 for wrong arguments, 0 for ``--help`` and ``--version``.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv and argv[0] in SCRIPTS:
        return _script(*argv)
    args = _parser().parse_args(argv)
    parser: Parser = args.parser
    try:
        status: int = args.run(args)
        sys.stdout.flush()
        return status
    except Refused as error:
        parser.error(str(error))
    except BrokenPipeError:  # the reader of our output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _parser() -> Parser:
    parser = Parser(prog='timm-stn', description='Spatial transformers for timm: pictures, figures, facts.')
    parser.add_argument('--version', action='version', version=f'timm-stn {__version__}')
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
    for run, text, arguments in (
            (_demo, 'classify held-out digits and draw where the transformer looked; works offline', _demo_arguments),
            (_show, 'draw where the transformers of any stn_ model look in images', _show_arguments),
            (_eval, 'error over a fixed test set of 10,000 distorted digits', _eval_arguments),
            (_push, 'publish a trained network on the Hugging Face Hub: docs/hub.md', _push_arguments),
            (_list, 'names of models', _list_arguments),
            (_doctor, 'versions, devices, what was found of timm, and a self-check', lambda add: None),
    ):
        command = commands.add_parser(run.__name__[1:], help=text, description=text[0].upper() + text[1:] + '.')
        command.set_defaults(run=run, parser=command)
        arguments(command.add_argument)
    for name in SCRIPTS:  # listed only: `main` hands over what follows the name
        commands.add_parser(name, help=f"timm's {name}.py, unchanged, with all its arguments; TIMM_SCRIPTS says where")
    return parser


def _script(name: str, *args: str) -> int:
    try:
        script = find_script(name, here=False)
    except ScriptNotFound as error:
        Parser(prog=f'timm-stn {name}').error(str(error))
    run_script(script, args)
    return 0


# models


def _model_arguments(add: Callable[..., Any]) -> None:
    add('--model', metavar='NAME', help='as in `timm-stn list`, or hf-hub:USER/NAME, local-dir:FOLDER; '
        "default: that of --checkpoint, if it is one of timm's train.py")
    add('--checkpoint', metavar='FILE', help='weights to load; default: the trained ones that the name stands for')
    add('--model-kwargs', nargs='+', type=_keyword, default=[], metavar='KEY=VALUE', help='arguments of the model')
    add('--no-pretrained', action='store_true', help='random weights, unless --checkpoint is given')
    add('--device', default='cpu', help='as torch names it (default: %(default)s)')


def _keyword(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition('=')
    if not (key.isidentifier() and equals):
        raise argparse.ArgumentTypeError(f'takes KEY=VALUE, got {text!r}')
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


def _load(args: argparse.Namespace, **defaults: Any) -> Any:
    """The model that ``_model_arguments`` describe, in eval mode on its device."""
    if args.checkpoint and not Path(args.checkpoint).is_file():
        raise Refused(f'argument --checkpoint: no file {args.checkpoint!r}')
    if args.model is None:
        return _attempt(f'--device {args.device}', _load_run(args).to, args.device).eval()
    pretrained = not args.checkpoint and not args.no_pretrained
    if not args.model.startswith(FROM_CONFIG):
        _check_name(args.model, pretrained)
    model = _attempt(f'--model {args.model}', _create, args.model, pretrained, {**defaults, **dict(args.model_kwargs)})
    if args.checkpoint:
        hint = 'Was the model built with other arguments? Give them: --model-kwargs KEY=VALUE'
        _attempt(f'--checkpoint {args.checkpoint}', load_checkpoint, model, args.checkpoint, hint=hint)
    return _attempt(f'--device {args.device}', model.to, args.device).eval()


def _load_run(args: argparse.Namespace) -> Any:
    """The model of a checkpoint, as train.py made it; its name becomes that of the command line."""
    if not args.checkpoint or args.model_kwargs:
        raise Refused("argument --model: it takes a name; only --checkpoint alone, of timm's train.py, needs none")
    hint = 'If it holds weights alone, say of which model: --model NAME, and --model-kwargs KEY=VALUE'
    model = _attempt(f'--checkpoint {args.checkpoint}', read_run, Path(args.checkpoint), hint=hint).model
    args.model = model.pretrained_cfg['architecture']
    return model


def _create(name: str, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return timm.create_model(name, pretrained=pretrained, **kwargs)


def _check_name(name: str, pretrained: bool) -> None:
    arch = name.partition('.')[0]
    if not timm.is_model(arch):
        near = _nearest(arch, timm.list_models())
        raise Refused(f'argument --model: unknown model {name!r}{near}; see `timm-stn list`')
    if pretrained and weights_of(name) is None and arch not in zoo_names():  # those say how to train them
        raise Refused(f'argument --model: {name} has no trained weights; give --checkpoint FILE or --no-pretrained')


def _check_transformers(name: str) -> None:
    arch = name.partition('.')[0]
    if not name.startswith(FROM_CONFIG) and timm.is_model(f'stn_{arch}') and not arch.startswith('stn_'):
        raise Refused(f'argument --model: {name} has no spatial transformer; stn_{name} has')


def _nearest(name: str, names: Iterable[str]) -> str:
    near = get_close_matches(name, names, 3, cutoff=0.5)
    return f', the nearest are {", ".join(near)}' if near else ''


def _attempt(argument: str, run: Callable[..., Any], *values: Any, hint: str = '') -> Any:
    """What others raise on the user's values, in one line: timm, torch and the Hub have errors of many types."""
    try:
        return run(*values)
    except Exception as error:
        raise Refused(f'argument {argument}: {type(error).__name__}: {error} {hint}'.rstrip()) from error


# show


def _show_arguments(add: Callable[..., Any]) -> None:
    add('images', nargs='+', metavar='IMAGE', help='files, or folders of them')
    _model_arguments(add)
    add('--stage', help="whose transformer is shown, as in stn_stages (default: 'input' if there is one)")
    add('--labels', metavar='FILE', help='names of the classes, one a line (default: those that the model has)')
    add('--count', type=_positive, default=24, help='at most so many images (default: %(default)s)')
    add('--output', default='look.png', metavar='FILE', help='(default: %(default)s)')


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'takes a positive integer, got {text!r}')
    return int(text)


def _show(args: argparse.Namespace) -> int:
    _check_output(args.output)
    _check_transformers(args.model or '')
    paths = _image_files(args.images)
    names = _read_labels(args.labels) if args.labels else None
    model = _load(args)
    if not hasattr(model, 'spatial_transformers'):
        raise Refused(f'argument --model: {args.model} has no spatial transformer')
    if not model.num_classes:
        raise Refused(f'argument --model: {args.model} has no classifier (num_classes=0)')
    stage, config = _stage(model, args.stage), _attempt(f'--model {args.model}', data_config, model)
    images = _attempt('IMAGE', read_images, paths[:args.count], config).to(args.device)
    with witnessing() as witness:
        look = _attempt('IMAGE', observe, model, images, stage)
    answers = _attempt(f'--model {args.model}', best_answers, look.logits, names or class_names(model))
    for i, (path, answer) in enumerate(zip(paths, answers)):
        print(json.dumps({
            'file': str(path), 'answer': answer[0][0], 'probability': round(answer[0][1], 6),
            'stage': look.stage, 'theta': _numbers(look.theta[i])}))
    captions = [Caption(a, short_name(p.name)) for a, p in zip(answers, paths)]
    picture = draw(images, look, captions, config, args.model)
    _attempt(f'--output {args.output}', save_picture, picture, args.output)
    skipped = f', {len(paths) - args.count} more not shown (--count)' if len(paths) > args.count else ''
    print(f'{args.output}: {len(images)} images{skipped}', file=sys.stderr)
    tell(witness.advice())
    return 0


def _check_output(path: str) -> None:
    if Image.registered_extensions().get(Path(path).suffix.lower()) is None:
        raise Refused(f'argument --output: takes the name of a picture, as look.png, got {path!r}')


def _image_files(given: Sequence[str]) -> list[Path]:
    known = Image.registered_extensions()
    paths: list[Path] = []
    for text in given:
        path = Path(text)
        if not path.exists():
            raise Refused(f'argument IMAGE: no file or folder {text!r}')
        found = sorted(p for p in path.rglob('*') if p.suffix.lower() in known) if path.is_dir() else [path]
        if not found:
            raise Refused(f'argument IMAGE: no pictures in the folder {text!r}')
        paths += found
    return paths


def _read_labels(path: str) -> list[str]:
    text = _attempt(f'--labels {path}', Path(path).read_text)
    return [line.strip() for line in text.splitlines()]


def _stage(model: Any, text: str | None) -> int | str | None:
    """A stage as it is named on the command line, where 2 and '2' are the same."""
    stages = {str(stage): stage for stage in model.spatial_transformers()}
    if text is not None and text not in stages:
        raise Refused(f'argument --stage: there are transformers at {", ".join(stages)}, got {text!r}')
    return stages[text] if text is not None else None


def _numbers(theta: Tensor) -> Any:
    """The glimpses' thetas as nested lists; that of a single glimpse by itself."""
    rounded = (theta.double().cpu() * 1e6).round() / 1e6
    return (rounded[0] if len(rounded) == 1 else rounded).tolist()


# digits


def _demo_arguments(add: Callable[..., Any]) -> None:
    add('--data', help=f'folder with MNIST (default: {DATA_VARIABLE}, or else the few digits in the package)')
    add('--download', action='store_true', help='download MNIST to --data if it is not there')
    add('--count', type=_positive, default=12, help='digits in the picture (default: %(default)s)')
    add('--output', default='demo.png', metavar='FILE', help='(default: %(default)s)')


def _demo(args: argparse.Namespace) -> int:
    _check_output(args.output)
    model = _attempt(f'--model {DEMO}', _create, DEMO, True, {}).eval()
    images, labels, source = _demo_digits(args.data, args.download)
    shown, truth = images[:args.count], labels[:args.count].tolist()
    look = observe(model, shown)
    answers = _attempt(f'--model {DEMO}', best_answers, look.logits, '0123456789')
    right = [int(a[0][0]) == t for a, t in zip(answers, truth)]
    captions = [
        Caption(a, '' if ok else f'is a {t}', GOOD if ok else WRONG) for a, ok, t in zip(answers, right, truth)]
    picture = draw_look(shown, look.seen, look.outlines, captions, footer=(
        f'{DEMO} on held-out digits of MNIST, turned, scaled and moved. The outline is where the transformer '
        'looked, the dot the top left corner of what it saw.'))
    _attempt(f'--output {args.output}', save_picture, picture, args.output)
    wrong = wrong_answers(model, images, labels)
    print(f'weights   {weights_of(model)}')
    print(f'digits    {source}')
    print(f'picture   {args.output}: {sum(right)} of {len(right)} right')
    print(f'all       {_error(wrong, len(labels))}')
    return 0


def _demo_digits(data: str | None, download: bool) -> tuple[Tensor, Tensor, str]:
    """Held-out digits: MNIST's test set where that is at hand, else the sheet that comes with the package."""
    if data or download:
        images, labels = _digits(DEMO_SET, data, download)
        return images, labels, f'the test set of MNIST in {data or os.environ[DATA_VARIABLE]}'
    if os.environ.get(DATA_VARIABLE):
        try:
            return (*test_set(DEMO_SET), f'the test set of MNIST in {os.environ[DATA_VARIABLE]}')
        except FileNotFoundError as error:
            print(f'timm-stn demo: {error}', file=sys.stderr)
    sheet = card_folder(DEMO) / EXAMPLES
    if not sheet.is_file():
        raise Refused(f'argument --data: {sheet} is missing; name a folder with MNIST, or add --download')
    images, labels = read_sheet(sheet)
    return images, labels, f'{sheet}, the first {len(labels)} of the test set'


def read_sheet(path: Path) -> tuple[Tensor, Tensor]:
    """Digits (N, 1, S, S) in [0, 1] and their classes (N,) of a square sheet with the classes in its text `labels`."""
    with Image.open(path) as image:
        labels = [int(c) for c in image.info['labels']]
        pixels = torch.frombuffer(bytearray(image.convert('L').tobytes()), dtype=torch.uint8)
        side = round(len(labels) ** 0.5)
        size = image.width // side
    tiles = pixels.reshape(side, size, side, size).transpose(1, 2).reshape(-1, 1, size, size)
    return tiles.float() / 255, torch.tensor(labels)


def _digits(kind: str, data: str | None, download: bool) -> tuple[Tensor, Tensor]:
    if download:
        _attempt(f'--download (to {data})', load_mnist, data, 'test', True)
    return _attempt('--data', test_set, kind, data)


def _eval_arguments(add: Callable[..., Any]) -> None:
    _model_arguments(add)
    sizes = ', '.join(f'{kind} {distortion.size}' for kind, distortion in DISTORTIONS.items())
    add('--set', required=True, choices=list(DISTORTIONS), help=f'distortion, of images so wide: {sizes}')
    add('--data', help=f'folder with MNIST (default: the environment variable {DATA_VARIABLE})')
    add('--download', action='store_true', help='download MNIST to --data if it is not there')


def _eval(args: argparse.Namespace) -> int:
    """Pixels go in as they are, in [0, 1], as in scripts/train_mnist.py."""
    as_it_is = args.model is None or args.model.startswith(FROM_CONFIG)
    model = _load(args, **({} if as_it_is else _digit_kwargs(args.model, args.set)))
    for name, value, needed in (('in_chans', getattr(model, 'in_chans', 1), 1), ('num_classes', model.num_classes, 10)):
        if value != needed:
            raise Refused(f'argument --model: digits need {name}={needed}, and {args.model} has {value}')
    images, labels = _digits(args.set, args.data, args.download)
    start = time.perf_counter()
    with witnessing() as witness:
        what = f'--model {args.model} (on --set {args.set}: images of {images.shape[-1]} x {images.shape[-1]})'
        wrong = _attempt(what, wrong_answers, model, images, labels, args.device)
    seconds = time.perf_counter() - start
    print(f'weights   {args.checkpoint or (None if args.no_pretrained else weights_of(model)) or "random"}')
    print(f'{args.model} on {args.set}: {_error(wrong, len(labels))}, {seconds:.1f} s')
    tell(witness.advice())
    return 0


def _digit_kwargs(name: str, kind: str) -> dict[str, Any]:
    cfg = timm.get_pretrained_cfg(name) if timm.is_model(name.partition('.')[0]) else None
    fixed = cfg is not None and cfg.fixed_input_size and name not in zoo_names()
    return {'in_chans': 1, 'num_classes': 10, **({'img_size': DISTORTIONS[kind].size} if fixed else {})}


def _error(wrong: int, count: int) -> str:
    return f'test error {100 * wrong / count:.2f} % ({wrong} of {count:,} wrong)'


# push


def _push_arguments(add: Callable[..., Any]) -> None:
    add('model', nargs='?', metavar='CHECKPOINT|NAME',
        help="checkpoint of timm's train.py, name as in `timm-stn list`, or folder as a repository holds it")
    add('--repo', required=True, metavar='ORG/NAME', help='where to; with --all ORG alone')
    add('--all', action='store_true', help='all trained networks of this package, as they stand, with their cards')
    add('--private', action='store_true', help='create it as a private repository')
    add('--revision', metavar='BRANCH', help='branch, created if it is missing (default: main)')
    add('--message', help='of the commit')
    add('--card', metavar='FILE', help='a README.md to use (default: one that tells of the run)')
    add('--replace-card', action='store_true', help='replace the README.md that the repository has; else it is kept')
    add('--images', nargs='+', metavar='IMAGE',
        help="for the card's picture of where it looks; they become public "
             '(default: some of the validation images of the run, if they are still there)')
    add('--no-picture', action='store_true', help='no picture')
    add('--license', metavar='ID', help="of the weights, for the card (default: the model's)")
    add('--dry-run', action='store_true', help='write it, try it out, print the card, and send nothing')


def _push(args: argparse.Namespace) -> int:
    if bool(args.model) == args.all:
        raise Refused('argument CHECKPOINT|NAME: takes one, or else --all')
    if args.all and '/' in args.repo:
        raise Refused(f'argument --repo: with --all takes ORG alone, got {args.repo!r}')
    given = {k: getattr(args, k) for k in ('revision', 'private', 'message', 'card', 'license', 'dry_run')}
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
        print(f'{PICTURE} shows images that you have chosen, or of the run; --no-picture leaves it out')
    if pushed.kept_card:
        print('its README.md is not this one and was kept; --replace-card replaces it')


# list, doctor


def _list_arguments(add: Callable[..., Any]) -> None:
    add('filter', nargs='?', default='*', metavar='FILTER', help="part of a name, or a pattern as '*resnet50*'")
    add('--pretrained', action='store_true', help='only those with weights, with their tags')
    add('--own', action='store_true', help='only those with trained transformers, and where their weights are')


def _list(args: argparse.Namespace) -> int:
    names = zoo_names() if args.own else timm.list_models('stn_*', pretrained=args.pretrained)
    pattern = args.filter if any(c in args.filter for c in '*?[') else f'*{args.filter}*'
    found = [n for n in names if fnmatch(n, pattern) or fnmatch(n, f'stn_{pattern}')]
    if args.own and args.pretrained:
        found = [n for n in found if weights_of(n)]
    if not found:
        raise Refused(f'argument FILTER: no model matches {args.filter!r}{_nearest(args.filter, names)}')
    for name in found:
        print(f'{name:<20} {weights_of(name) or "not trained yet"}' if args.own else name)
    return 0


def _doctor(args: argparse.Namespace) -> int:
    for group, facts in report().items():
        print(group)
        for name, fact in facts.items():
            print(f'  {name:<27} {fact}')
    print('self-check')
    checks = self_check()
    for name, (passed, found) in checks.items():
        print(f'  {name:<27} {"passed" if passed else "FAILED"}: {found}')
    return 0 if all(passed for passed, _ in checks.values()) else 1


if __name__ == '__main__':
    sys.exit(main())
