"""Shared by the scripts that make cards: the head of a card, and writing its folder as a whole."""
from collections.abc import Callable
from pathlib import Path
from typing import Any

from check_dist import SMALL

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


def write_folder(output: str, name: str, model: Any, add: Callable[[Path], None]) -> None:
    """Write the folder of a network: its weights, its config, and the files that ``add`` writes.

    Weights that are too large for the wheel are in half precision.
    """
    def save(beside: Path) -> None:
        size = sum(value.numel() * value.element_size() for value in model.state_dict().values())
        save_network(model, beside, half=size > SMALL)
        add(beside)

    folder = Path(output) / name
    write_files(folder, save)
    print(f'{folder}: {", ".join(sorted(p.name for p in folder.iterdir()))}')
