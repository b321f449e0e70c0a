"""`timm-stn demo` runs a network on digits, `timm-stn eval` on the test set of any task."""
import argparse
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import timm
import torch
from PIL import Image
from torch import Tensor, nn

from .._progress import progress
from ..data import TASKS, load_mnist, test_set
from ..data.mnist import DATA_VARIABLE
from ..data.tasks import are_wrong, batches_of
from ..names.zoo import EXAMPLES, card_folder, set_of, weights_of, zoo_names
from ..view.dependence import tell, witnessing
from ..view.draw import Caption, draw_look, save_picture
from ..view.images import read_sheet
from ..view.observe import observe
from ..view.sheet import best_answers
from .common import Refused, attempt, check_output, positive, quiet_argument
from .models import FROM_CONFIG, check_known, create_model, described, kwargs_argument, load_model, model_arguments

__all__ = [
    'EXAMPLES', 'demo', 'demo_arguments', 'draw_digits', 'eval_arguments', 'evaluate', 'normalized', 'read_sheet',
    'set_argument', 'wrong_answers']

DEMO, DEMO_SET = 'stn_mnist_cnn_rts', 'RTS'
FOOTER = (f'{DEMO} on held-out digits of MNIST, rotated, scaled and moved. The outline is where the transformer '
          'looked, the dot the top left corner of what it saw.')
SETS = [kind for kind, task in TASKS.items() if task.dims == 2]  # those of images


def demo_arguments(add: Callable[..., Any]) -> None:
    add('--data', help=f'folder with MNIST (default: {DATA_VARIABLE}, else a few digits in the package)')
    add('--download', action='store_true', help='download MNIST to --data if it is not there')
    add('--count', type=positive, default=12, help='digits in the picture (default: %(default)s)')
    add('--output', default='demo.png', metavar='FILE', help='(default: %(default)s)')
    quiet_argument(add)


def demo(args: argparse.Namespace) -> int:
    check_output(args.output)
    model = attempt(f'--model {DEMO}', create_model, DEMO, True, {}).eval()
    images, labels, source = _demo_digits(args.data, args.download)
    picture, right = attempt(f'--model {DEMO}', draw_digits, model, images[:args.count], labels[:args.count])
    attempt(f'--output {args.output}', save_picture, picture, args.output)
    wrong = wrong_answers(model, images, labels)
    print(f'weights   {weights_of(model)}')
    print(f'digits    {source}')
    print(f'picture   {args.output}: {right} of {len(images[:args.count])} right')
    print(f'all       {_error(wrong, len(labels))}')
    return 0


def draw_digits(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Image.Image, int]:
    """A picture of where a network looks in digits (N, 1, S, S), with its answers; and how many of them are right."""
    look = observe(model, images)
    answers, truth = best_answers(look.logits, '0123456789'), labels.tolist()
    right = [int(a[0][0]) == t for a, t in zip(answers, truth)]
    captions = [Caption(a, '', ok, '' if ok else f'is a {t}') for a, ok, t in zip(answers, right, truth)]
    return draw_look(images, look.seen, look.outlines, captions, footer=FOOTER), sum(right)


def _demo_digits(data: str | None, download: bool) -> tuple[Tensor, Tensor, str]:
    """Held-out digits and their source: MNIST's test set if available, else the sheet in the package."""
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


def _digits(kind: str, data: str | None, download: bool) -> tuple[Tensor, Tensor]:
    if download:
        attempt(f'--download (to {data})', load_mnist, data, 'test', True)
    return attempt('--data', test_set, kind, data)


def eval_arguments(add: Callable[..., Any]) -> None:
    add('name', nargs='?', metavar='NAME', help='the same as --model NAME')
    model_arguments(add)
    set_argument(add)
    add('--data', help=f'folder with MNIST, or what --set is made of (default: the variable {DATA_VARIABLE})')
    add('--download', action='store_true', help='download MNIST to --data if it is not there')
    quiet_argument(add)


def set_argument(add: Callable[..., Any]) -> None:
    sizes = ', '.join(f'{kind} {TASKS[kind].size}' for kind in SETS)
    add('--set', type=_set, choices=SETS,
        help=f'what to measure on, with the image side of each: {sizes}; default: what a network of ours is for')


def _set(text: str) -> str:
    if text in TASKS and text not in SETS:
        raise argparse.ArgumentTypeError(f'{text} is made of volumes, which no timm model takes')
    return text


def evaluate(args: argparse.Namespace) -> int:
    """Print the error on the test set of a task. Pixels stay in [0, 1], as in scripts/train/train_task.py."""
    if args.name and args.model:
        raise Refused(f'argument NAME: there are two models, {args.name} and --model {args.model}')
    args.model = args.model or args.name
    as_it_is = args.model is None or args.model.startswith(FROM_CONFIG)
    if not as_it_is:
        check_known(args.model)
        args.set = _set_for(args, args.model)
    model = load_model(args, **({} if as_it_is else _digit_kwargs(args.model, args.set)))
    args.set = _set_for(args, getattr(model, 'pretrained_cfg', {}).get('architecture', ''))
    task = TASKS[args.set]
    for name, needed in (('in_chans', task.channels), ('num_classes', task.outputs)):
        value = getattr(model, name, needed)
        if value != needed:
            argument = kwargs_argument(args) if name in dict(args.model_kwargs) else '--model'
            raise Refused(f'argument {argument}: eval measures on sets of images; those of {args.set} need '
                          f'{name}={needed}, and {args.model} has {value}. For images of your own: timm-stn validate')
    if args.download and task.load is not load_mnist:
        raise Refused(f'argument --download: downloads MNIST, and --set {args.set} is not made of it')
    if args.download:
        attempt(f'--download (to {args.data})', load_mnist, args.data, 'test', True)
    digits, labels = attempt('--data', task.load, args.data, 'test')
    start = time.perf_counter()
    with witnessing() as witness:
        what = f'{described(args)} (on --set {args.set}: images of {task.size} x {task.size})'
        parts = batches_of(args.set, digits, labels, batch_size=task.at_once(500))
        wrong = sum(attempt(what, wrong_answers, model, *part, args.device)
                    for part in progress(parts, 'eval', -(-len(labels) // task.at_once(500)), 'batch'))
    seconds = time.perf_counter() - start
    print(f'weights   {args.checkpoint or (None if args.no_pretrained else weights_of(model)) or "random"}')
    print(f'{args.model} on {args.set}: {_error(wrong, len(labels))}, {seconds:.1f} s')
    tell(witness.advice())
    return 0


def _set_for(args: argparse.Namespace, name: str) -> str:
    """--set, or else the set that the network of this name is for."""
    kind = args.set or set_of(name)
    if kind is None:
        raise Refused(f'argument --set: {args.model} is for no set of its own; name one of {", ".join(SETS)}')
    return str(kind)


def _digit_kwargs(name: str, kind: str) -> dict[str, Any]:
    """Arguments of a model for the images of a set; a network that is for one has its own."""
    if set_of(name):
        return {}
    cfg, task = timm.get_pretrained_cfg(name), TASKS[kind]
    fixed = cfg is not None and cfg.fixed_input_size and name not in zoo_names()
    return {'in_chans': task.channels, 'num_classes': task.outputs, **({'img_size': task.size} if fixed else {})}


def _error(wrong: int, count: int) -> str:
    return f'test error {100 * wrong / count:.2f} % ({wrong} of {count:,} wrong)'


def normalized(model: nn.Module, images: Tensor) -> Tensor:
    """Pixels in [0, 1] less the mean of a network's configuration, in its standard deviation."""
    mean, std = (_channels(model, name, images) for name in ('mean', 'std'))
    return (images - mean) / std


def _channels(model: nn.Module, name: str, images: Tensor) -> Tensor:
    """`mean` or `std` of a network's configuration, (1 or C, 1, 1); 0 and 1 where it has none for these channels."""
    values = getattr(model, 'pretrained_cfg', {}).get(name) or ()
    if len(values) not in (1, images.shape[1]):
        values = (float(name == 'std'),)
    return torch.tensor(values)[:, None, None]


@torch.inference_mode()
def wrong_answers(model: nn.Module, images: Tensor, labels: Tensor, device: str = 'cpu') -> int:
    """Number of images (N, C, H, W) of which any answer is wrong; `labels` are (N,), or (N, answers).

    The network's own mean and standard deviation, of its configuration, are taken from pixels in [0, 1].
    """
    model.eval()
    batches = zip(torch.split(images, 500), torch.split(labels, 500))
    return sum(int(are_wrong(model(normalized(model, x).to(device)).cpu(), y).sum()) for x, y in batches)
