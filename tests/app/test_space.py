"""The folder of a Hugging Face Space: its header, and that it starts as there."""
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import urllib.request

import pytest
import yaml
from makers import ROOT

SPACE = ROOT / 'spaces'


def test_its_header_is_that_of_a_gradio_space():
    header = yaml.safe_load((SPACE / 'README.md').read_text().split('---')[1])
    assert header['sdk'] == 'gradio' and header['license'] == 'apache-2.0' and len(header['short_description']) <= 60
    assert (SPACE / header['app_file']).is_file()
    least = re.search(r'gradio>=([\d.]+)', (ROOT / 'pyproject.toml').read_text())[1]
    version, least = ([int(part) for part in text.split('.')] for text in (header['sdk_version'], least))
    assert version >= least


def test_it_needs_this_package_with_its_page():
    assert 'timm-stn[app]' in (SPACE / 'requirements.txt').read_text().splitlines()


@pytest.mark.skipif(importlib.util.find_spec('gradio') is None, reason='needs gradio')
def test_it_starts_where_a_space_starts(tmp_path):
    folder = shutil.copytree(SPACE, tmp_path / 'app')
    (folder / 'timm_stn').symlink_to(ROOT / 'timm_stn')  # not ROOT: Gradio asks there for a package `spaces`
    (folder / 'spaces.py').write_text('raise ImportError')  # ROOT may be on the path, where our folder has that name
    env = {**os.environ, 'SYSTEM': 'spaces', 'SPACE_ID': 'somebody/where-it-looks',
           'SPACE_HOST': 'somebody-where-it-looks.hf.space', 'GRADIO_SERVER_NAME': '0.0.0.0', 'PYTHONPATH': '',
           'PYTHONUNBUFFERED': '1'}
    process = subprocess.Popen([sys.executable, 'app.py'], cwd=folder, env=env, text=True, start_new_session=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        address = next((re.search(r'http://\S+', line) for line in process.stdout if 'http://' in line), None)
        assert address, process.stderr.read()
        with urllib.request.urlopen(address[0], timeout=30) as page:
            assert 'Where does the network look?' in page.read().decode()
    finally:
        process.kill()
        process.communicate()
