"""Draws test images with where a trained network looks in them, what it sees there, its answers, and the true boxes."""
import argparse
import io
import json
from pathlib import Path

import torch
import train_task
from checkout import ROOT
from pays_page import all_cells
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from timm_stn.data import TASKS
from timm_stn.data.birds import bird_names, load_birds
from timm_stn.data.tasks import Data
from timm_stn.publish.run_record import read_run
from timm_stn.view.draw import Caption, draw_look
from timm_stn.view.observe import observe
from timm_stn.view.sheet import best_answers, sheet_of
from timm_stn.whole_file import write_whole

MOST = 120_000  # bytes of a picture
QUALITIES = (85, 75, 60, 45, 30, 20, 10)
CHECKPOINT = 'last.pth.tar'  # of timm's train.py
FOOTER = '{name} on test images. The outline is where it looked, the dot the top left corner of what it saw{boxes}.'


def draw(args: argparse.Namespace) -> None:
    """Draw the picture of an experiment, of the run in the folder `args.run`."""
    name = args.run.resolve().name.rpartition('-')[0]
    if other := {cell.experiment for cell in all_cells() if cell.name == name} - {args.experiment}:
        raise SystemExit(f'argument --run: {args.run} is a run of {other.pop()}, not of {args.experiment}')
    output = args.output or ROOT / 'docs' / 'pays' / f'{args.experiment}.jpg'
    if (args.run / CHECKPOINT).is_file():
        picture = of_photos(args.run, args.data, args.count)
    elif all((args.run / name).is_file() for name in ('result.json', 'model.safetensors')):
        picture = of_task(args.run, args.data, args.count, args.set)
    else:
        raise SystemExit(f'argument --run: takes the folder of a finished run, with result.json and model.safetensors, '
                         f'or with {CHECKPOINT}; got {args.run}')
    content = small(picture)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(output, lambda path: Path(path).write_bytes(content))
    print(f'{output}: {len(content):,} bytes')


def of_task(run: Path, data: Data, count: int, kind: str | None = None) -> Image.Image:
    """The picture of a run of train_task.py, on its own set or another."""
    if kind and kind not in TASKS:
        raise SystemExit(f'argument --set: takes one of {", ".join(TASKS)}, got {kind!r}')
    args = train_task.parse_args(['--output', 'none'])
    vars(args).update(json.loads((run / 'result.json').read_text())['args'], device='cpu', weights=None)
    args.set, task = kind or args.set, TASKS[kind or args.set]
    model = train_task.create_model(args).eval()
    if task.dims != 2 or not getattr(model, 'spatial_transformers', dict)():
        raise SystemExit(f'argument --run: takes a run of a network with transformers, of images; {run} is of '
                         f'{args.model} on {args.set}')
    model.load_state_dict(load_file(run / 'model.safetensors'))
    images, classes, boxes = held_out(args.set, data, count)
    names = bird_names(data) if task.load is load_birds else [str(i) for i in range(task.classes)]
    scale = train_task.scale_of(model, args)
    with torch.inference_mode():
        inputs = train_task.shown(argparse.Namespace(args=args, scale=scale), images)
        look = observe(model, inputs)
    pixels, seen = (x if scale is None else x * scale[1] + scale[0] for x in (inputs, look.seen))
    footer = FOOTER.format(name=run.name, boxes='' if boxes is None else ', white what is to be found')
    glimpses = look.outlines.shape[1]
    many = [f'glimpse {g + 1}' for g in range(glimpses)] if glimpses > 1 else ['what it saw']
    told = captions(look.logits, classes, names)
    return draw_look(pixels, seen, look.outlines, told, ('where it looked', *many, 'answer'), footer=footer, tile=128,
                     boxes=None if boxes is None else boxes.reshape(len(boxes), -1, 4))


def held_out(kind: str, data: Data, count: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Images (N, C, H, W) of the test set of a task, at even distances in it, their classes, and true boxes.

    They are those of `timm_stn.data.test_set`; no others are made. Boxes are as of `Task.boxes`, or None.
    """
    task = TASKS[kind]
    digits, labels = task.load(data, 'test')
    index = torch.arange(min(count, len(digits))) * len(digits) // min(count, len(digits))
    u = torch.rand(len(digits), task.draws, generator=torch.Generator().manual_seed(0))[index]
    boxes = task.boxes(labels, index, u) if task.boxes else None
    return *task.make(digits, labels, index, u), boxes


def captions(logits: Tensor, classes: Tensor, names: list[str]) -> list[Caption]:
    """Answers by their names, and whether the first is right."""
    answers = best_answers(logits, names)
    truths = [names[c] for c in classes.tolist()]
    return [Caption(best, '', best[0][0] == truth, '' if best[0][0] == truth else f'is {truth}')
            for best, truth in zip(answers, truths, strict=True)]


def of_photos(run: Path, data: Data, count: int) -> Image.Image:
    """The picture of a run of train_birds.sh: test images of classes at even distances, the first of each."""
    folders = sorted(path for path in Path(data or '.', 'test').glob('*') if path.is_dir())
    if not folders:
        raise SystemExit(f'argument --data: of a run of train_birds.sh takes a folder with a folder test, with one '
                         f'folder of images per class; got {data}')
    model = read_run(run / CHECKPOINT).model.eval()
    model.pretrained_cfg['label_names'] = [path.name.partition('.')[2].replace('_', ' ') for path in folders]
    count = min(count, len(folders))
    chosen = [folders[i * len(folders) // count] for i in range(count)]
    return sheet_of(model, [min(folder.iterdir()) for folder in chosen], run.name)[0]


def small(picture: Image.Image) -> bytes:
    """A JPEG of at most MOST bytes, as good as these allow."""
    for quality in QUALITIES:
        file = io.BytesIO()
        picture.save(file, 'JPEG', quality=quality, optimize=True)
        if file.tell() <= MOST:
            return file.getvalue()
    raise SystemExit(f'argument --count: a picture of {picture.width} x {picture.height} has more than {MOST:,} bytes')
