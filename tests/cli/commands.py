"""A model for commands, and what they print and draw."""
import numpy as np
import pytest
from PIL import Image, ImageColor

from timm_stn import cli

MODEL = ['--model', 'stn_test_resnet', '--no-pretrained']


def refused(capsys, *argv):
    """The one line that a wrong argument gives."""
    with pytest.raises(SystemExit) as stop:
        cli.main(list(map(str, argv)))
    output = capsys.readouterr()
    assert stop.value.code == 2 and not output.out
    assert output.err.count('\n') == 1 and output.err.startswith('timm-stn')
    return output.err


def has_color(path, color):
    return bool((np.asarray(Image.open(path)) == ImageColor.getrgb(color)).all(-1).any())
