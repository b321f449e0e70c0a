"""What lies in model_cards/: the README's table and the wheel follow from it."""
import subprocess
import sys

import pytest
from huggingface_hub import ModelCard
from makers import ROOT

CARDS = sorted(p.name for p in (ROOT / 'model_cards').iterdir() if p.is_dir())


def test_the_tables_in_the_readme_are_up_to_date():
    subprocess.run([sys.executable, ROOT / 'scripts' / 'release' / 'readme_tables.py', '--check'], check=True)


def test_the_wheel_holds_the_small_ones():
    small = [n for n in CARDS if (ROOT / 'model_cards' / n / 'model.safetensors').stat().st_size <= 3_000_000]
    text = (ROOT / 'pyproject.toml').read_text()
    assert [n for n in CARDS if f'"model_cards/{n}" = "timm_stn/model_cards/{n}"' in text] == small


@pytest.mark.parametrize('name', CARDS)
def test_a_card_says_what_the_hub_asks(name):
    folder = ROOT / 'model_cards' / name
    card = ModelCard.load(folder / 'README.md')
    assert card.data.license and card.data.library_name == 'timm' and card.data.model_name == name
    assert 'import timm, timm_stn' in card.content and 0 < card.data.eval_results[0].metric_value < 1
    assert {p.name for p in folder.iterdir()} >= {'README.md', 'config.json', 'model.safetensors'}
