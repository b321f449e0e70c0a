"""The examples of the README, and of pages that say so, run as they stand."""
import re
import subprocess
import sys
from pathlib import Path

import pytest

from timm_stn.network.arguments import DEFAULTS  # and registers the names

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / 'README.md').read_text()
PAGES = ('README.md', 'docs/diagnosis.md', 'docs/surgery.md', 'docs/tools.md')
EXAMPLES = [
    (page, code) for page in PAGES for code in re.findall(r'```python\n(.*?)```', (ROOT / page).read_text(), re.DOTALL)]


def test_there_are_five():
    assert len(EXAMPLES) >= 5


@pytest.mark.parametrize('page,code', EXAMPLES, ids=lambda text: (text.splitlines() * 3)[2][:30])
def test_example(page, code):
    if 'torch_pruning' in code:
        pytest.importorskip('torch_pruning')
    exec(compile(code, page, 'exec'), {})


def test_the_table_has_every_argument():
    rows = dict(re.findall(r'^\| `(stn_\w+)` \| ([^|]+) \|', README, re.MULTILINE))
    assert list(rows) == list(DEFAULTS)
    for name, default in DEFAULTS.items():
        if default is not None and not isinstance(default, tuple):
            assert rows[name].strip('`') == repr(default), name


def test_timms_own_names_alone():
    """With the filters that the page names they are those that are there without the plugin."""
    filters, = re.findall(r"timm\.list_models\('\*resnet50\*', exclude_filters=(\[.*?\])\)", README)
    code = f'''
import timm
cases = [dict(filter=f, pretrained=p) for f in ('', '*resnet50*', '*vit*') for p in (False, True)]
before = [timm.list_models(**case) for case in cases]
import timm_stn
for case, names in zip(cases, before):
    assert names == timm.list_models(**case, exclude_filters={filters}) != timm.list_models(**case), case
'''
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('path', re.findall(r'\]\((?!http)([^)]+)\)', README))
def test_what_it_shows_is_there(path):
    assert (ROOT / path).is_file()
