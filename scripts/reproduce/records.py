"""Records of runs: one JSON line per run. Needs no torch, because gpu.py needs only Python."""
import json
from pathlib import Path
from typing import Any

from checkout import write_text

Line = dict[str, Any]


def read(path: Path) -> list[Line]:
    """All records of a file; [] if it is missing. An incomplete last line is skipped."""
    if not path.is_file():
        return []
    whole, _, _ = path.read_text().rpartition('\n')
    return [json.loads(line) for line in whole.splitlines()]


def replace(path: Path, lines: list[Line]) -> None:
    """Replace the file as a whole; on failure it stays unchanged."""
    write_text(path, ''.join(json.dumps(line) + '\n' for line in lines))


def key(line: Line) -> tuple[str, int, bool, str]:
    """The key that identifies a run of measure_learning.py."""
    return line['name'], line['seed'], line['tune'], json.dumps(line['model_kwargs'], sort_keys=True)
