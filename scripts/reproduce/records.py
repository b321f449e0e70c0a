"""Records of runs: JSON, a line a run. Without torch: gpu.py wants no more than Python itself."""
import json
from pathlib import Path
from typing import Any

from checkout import write_text

Line = dict[str, Any]


def read(path: Path) -> list[Line]:
    """All lines; none where there is no file. A last line that was not written to its end is left out."""
    if not path.is_file():
        return []
    whole, _, _ = path.read_text().rpartition('\n')
    return [json.loads(line) for line in whole.splitlines()]


def replace(path: Path, lines: list[Line]) -> None:
    """All of it, or it stays as it was."""
    write_text(path, ''.join(json.dumps(line) + '\n' for line in lines))


def key(line: Line) -> tuple[str, int, bool, str]:
    """What makes a run of measure_learning.py one of its kind."""
    return line['name'], line['seed'], line['tune'], json.dumps(line['model_kwargs'], sort_keys=True)
