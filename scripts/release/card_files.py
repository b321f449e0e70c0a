"""Shared by the scripts that make cards: the head of a card, and writing its folder as a whole."""
from collections.abc import Callable
from pathlib import Path
from typing import Any

from timm_stn.publish.save import save_network
from timm_stn.whole_file import write_files

CARDS = str(Path(__file__).resolve().parents[2] / 'model_cards')
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
    """Write the folder of a network: its weights, its config, and the files that ``add`` writes."""
    def save(beside: Path) -> None:
        save_network(model, beside)
        add(beside)

    folder = Path(output) / name
    write_files(folder, save)
    print(f'{folder}: {", ".join(sorted(p.name for p in folder.iterdir()))}')
