"""Shared by the scripts that make cards: the head of a card, its birds, and writing its folder as a whole."""
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from check_dist import SMALL, WEIGHTS

from timm_stn.publish.save import save_network
from timm_stn.whole_file import write_files

CARDS = str(Path(__file__).resolve().parents[2] / 'model_cards')
HALF = 'The file has matrices and kernels in half precision; loaded, they are float32.'
HEAD = '''---
license: apache-2.0
library_name: timm
pipeline_tag: image-classification
tags:
- image-classification
- timm
- timm-stn
- spatial-transformer
'''
BIRDS_HEAD = HEAD + '''model-index:
- name: {name}
  results:
  - task:
      type: image-classification
    dataset:
      type: cub200-2010
      name: Caltech-UCSD Birds 200 (2010), a split of its own
    metrics:
    - type: accuracy
      value: {accuracy:.4f}
---
# {name}

'''


def is_small(model: Any) -> bool:
    """Whether weights of float32 are small enough for a release; others are written in half precision."""
    return sum(value.numel() * value.element_size() for value in model.state_dict().values()) <= SMALL


def birds_of(data: Path) -> tuple[list[str], list[Path]]:
    """The names of the classes of `data/test`, and six photographs for a card."""
    classes = sorted(p for p in (data / 'test').iterdir() if p.is_dir())
    names = [p.name.partition('.')[2].replace('_', ' ') for p in classes]
    return names, [sorted(p.iterdir())[0] for p in classes[::33][:6]]


def write_folder(output: str, name: str, model: Any, add: Callable[[Path], None]) -> None:
    """Write the folder of a network: its weights, its config, and the files that ``add`` writes."""
    def save(beside: Path) -> None:
        save_network(model, beside, half=not is_small(model))
        add(beside)

    folder = Path(output) / name
    write_files(folder, save)
    print(f'{folder}: {", ".join(sorted(p.name for p in folder.iterdir()))}')
    print(f'its SHA-256 is {hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()}, for timm_stn/names/zoo.py')
