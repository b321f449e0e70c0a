"""The examples of the README, and of pages that say so, run as they stand."""
import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm

from timm_stn.network.arguments import DEFAULTS  # and registers the names

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


def test_timms_own_names_alone():
    """With the filters that the page names they are those that are there without the plugin."""
    filters, = re.findall(r"timm\.list_models\('\*resnet50\*', exclude_filters=(\[.*?\])\)", README)
    code = 'import json, timm; print(json.dumps([timm.list_models(**given) for given in {}]))'
    cases = [dict(filter=pattern, pretrained=pretrained) for pattern in ('', '*resnet50*', '*vit*', '*.a1_in1k')
             for pretrained in (False, True)]
    done = subprocess.run([sys.executable, '-c', code.format(cases)], capture_output=True, text=True, check=True)
    for case, theirs in zip(cases, json.loads(done.stdout), strict=True):
        assert timm.list_models(**case, exclude_filters=ast.literal_eval(filters)) == theirs


@pytest.mark.parametrize('path', re.findall(r'\]\((?!http)([^)]+)\)', README))
def test_what_it_shows_is_there(path):
    assert (ROOT / path).is_file()
