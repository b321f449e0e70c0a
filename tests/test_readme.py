"""The examples of the README, and of pages that say so, run as they stand."""
import re
from pathlib import Path

import pytest

from timm_stn.network.arguments import DEFAULTS

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / 'README.md').read_text()
PAGES = ('README.md', 'docs/surgery.md')
EXAMPLES = [
    (page, code) for page in PAGES for code in re.findall(r'```python\n(.*?)```', (ROOT / page).read_text(), re.DOTALL)]


def test_there_are_five():
    assert len(EXAMPLES) >= 5


@pytest.mark.parametrize('page,code', EXAMPLES, ids=lambda text: (text.splitlines() * 3)[2][:30])
def test_example(page, code):
    exec(compile(code, page, 'exec'), {})


def test_the_table_has_every_argument():
    rows = dict(re.findall(r'^\| `(stn_\w+)` \| ([^|]+) \|', README, re.MULTILINE))
    assert list(rows) == list(DEFAULTS)
    for name, default in DEFAULTS.items():
        if default is not None and not isinstance(default, tuple):
            assert rows[name].strip('`') == repr(default), name


@pytest.mark.parametrize('path', re.findall(r'\]\((?!http)([^)]+)\)', README))
def test_what_it_shows_is_there(path):
    assert (ROOT / path).is_file()
