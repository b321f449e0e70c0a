"""The README's examples run as they stand."""
import re
from pathlib import Path

import pytest

from timm_stn.network.arguments import DEFAULTS

README = (Path(__file__).resolve().parents[1] / 'README.md').read_text()
EXAMPLES = re.findall(r'```python\n(.*?)```', README, re.DOTALL)


def test_there_are_five():
    assert len(EXAMPLES) >= 5


@pytest.mark.parametrize('code', EXAMPLES, ids=lambda code: code.splitlines()[2][:30])
def test_example(code):
    exec(compile(code, 'README.md', 'exec'), {})


def test_the_table_has_every_argument():
    rows = dict(re.findall(r'^\| `(stn_\w+)` \| ([^|]+) \|', README, re.MULTILINE))
    assert list(rows) == list(DEFAULTS)
    for name, default in DEFAULTS.items():
        if default is not None and not isinstance(default, tuple):
            assert rows[name].strip('`') == repr(default), name


@pytest.mark.parametrize('path', re.findall(r'\]\((?!http)([^)]+)\)', README))
def test_what_it_shows_is_there(path):
    assert (Path(__file__).resolve().parents[1] / path).is_file()
