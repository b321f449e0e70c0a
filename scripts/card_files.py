"""What the scripts that make cards share: the head of a card, and a folder that is written beside and then moved."""
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from timm.models import save_for_hf

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
    """Fill the folder of a network with its weights and config, and with what ``add`` puts beside them."""
    folder = Path(output) / name
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output) as beside:
        save_for_hf(model, beside, safe_serialization=True)
        add(Path(beside))
        for file in Path(beside).iterdir():
            os.replace(file, folder / file.name)
    print(f'{folder}: {", ".join(sorted(p.name for p in folder.iterdir()))}')
