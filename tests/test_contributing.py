"""What CONTRIBUTING.md says is so: each of its recipes is followed here, and the files that it names are there."""
import os
import re
import subprocess
import sys
from pathlib import Path

import timm
import torch
from makers import ROOT
from torch import nn

import timm_stn
from timm_stn.geometry import transforms
from timm_stn.geometry.transforms.linear import LinearTransform
from timm_stn.modules import localization
from timm_stn.names import zoo
from timm_stn.network.arguments import argument_table
from timm_stn.publish.save import save_network

PACKAGE, TEXT = Path(timm_stn.__file__).parent, (ROOT / 'CONTRIBUTING.md').read_text()


class Shear(LinearTransform):
    """Parameters (s,): x moves by s times y."""
    name = 'shear'
    num_params = 1

    def matrix(self, params):
        s = self.prepare(params)[:, 0]
        one, zero = torch.ones_like(s), torch.zeros_like(s)
        return torch.stack([one, s, zero, zero, one, zero], 1).reshape(-1, 2, 3)


def answer(**arguments):
    """A network with these arguments learns from an image, and answers."""
    model = timm.create_model('stn_test_resnet', num_classes=3, **arguments)
    logits = model(torch.randn(4, 3, 32, 32))
    logits.square().sum().backward()
    assert logits.shape == (4, 3) and model.stn.localization.regression.bias.grad.isfinite().all()
    return model


def test_add_a_transform(monkeypatch):
    monkeypatch.setitem(transforms._FAMILIES, 'shear', Shear)
    assert 'shear' in timm_stn.geometry.transforms.transform_names()
    assert answer(stn_transform='shear').stn.last_theta.shape == (4, 2, 3)
    assert answer(stn_transform='shear+tps', stn_localization='fc').stn.theta_transform.name == 'shear+tps'
    code = """import sys, pytest
from test_contributing import Shear
from timm_stn.geometry import transforms
transforms._FAMILIES['shear'] = Shear
sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', '-k', 'shear', 'tests/geometry/test_transforms_property.py']))"""
    paths = os.pathsep.join([str(ROOT), str(ROOT / 'tests'), os.environ.get('PYTHONPATH', '')])
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, env={**os.environ, 'PYTHONPATH': paths}, text=True,
                          capture_output=True)
    assert done.returncode == 0 and ' passed' in done.stdout, done.stdout


def test_add_a_localization_network(monkeypatch):
    def mean(in_chans, size, width=5, **dd):
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(in_chans, width, bias=False, **dd)), width

    monkeypatch.setitem(localization._BODIES, 'mean', localization.Body(mean, 32, settings=('width',)))
    assert answer(stn_localization='mean')._model_args['stn_localization'] == 'mean'
    assert answer(stn_stages={'input': dict(localization='mean')}).stn.localization.regression.in_features == 5


def test_add_a_trained_model(monkeypatch, tmp_path):
    own = zoo._ZOO['stn_mnist_cnn_tc']._replace(arguments=dict(stn_size=28, stn_transform='rotation'))
    trained = timm.create_model('stn_mnist_cnn', in_chans=1, img_size=60, **own.arguments).eval()
    (tmp_path / 'stn_mnist_cnn_new').mkdir()
    save_network(trained, tmp_path / 'stn_mnist_cnn_new')
    monkeypatch.setattr(zoo, 'card_folder', lambda name: tmp_path / name)
    monkeypatch.setitem(zoo._ZOO, 'stn_mnist_cnn_new', own)
    zoo._register('stn_mnist_cnn_new')
    try:
        model = timm.create_model('stn_mnist_cnn_new', pretrained=True).eval()
        x = torch.rand(2, 1, 60, 60)
        assert model.stn.transform.name == 'rotation' and torch.equal(model(x), trained(x))
    finally:
        registry = timm.models._registry
        for names in (registry._model_entrypoints, registry._model_default_cfgs):
            names.pop('stn_mnist_cnn_new', None)
        for names in (*registry._module_to_models.values(), registry._model_has_pretrained):
            names.discard('stn_mnist_cnn_new')
    for file in ('tests/test_cards.py', 'tests/names/test_zoo.py', 'scripts/release/readme_tables.py'):
        assert (ROOT / file).is_file() and file in TEXT


def test_add_an_argument():
    files = {p.relative_to(PACKAGE).as_posix() for p in PACKAGE.rglob('*.py') if 'freeze_steps' in p.read_text()}
    knobs = {'view/diagnosis/verdict.py'}  # advice names some arguments
    assert files - knobs == {'modules/settings.py', 'modules/spatial_transformer.py'}
    assert '| `stn_freeze_steps` | `0` |' in argument_table()
    assert 'stn_freeze_steps=' in (ROOT / 'tests' / 'names' / 'test_loading.py').read_text()


def test_the_files_that_are_named_are_there():
    table = TEXT[TEXT.index('| folder |'):TEXT.index('`_timm.py`')]
    rows = [row.split('|') for row in table.splitlines()[2:] if row.startswith('|')]
    assert len(rows) == 11
    for _, folders, _, files, _ in rows:
        folder = re.findall(r'`([^`]+)`', folders)[0]
        for name in re.findall(r'`([\w]+(?:\.py|/))`', files):
            assert (PACKAGE / folder / name).exists(), f'{folder}{name}'
    for name in re.findall(r'`((?:timm_stn|tests|scripts|model_cards)/[\w/.]+)`', TEXT):
        assert (ROOT / name).exists(), name


def test_every_file_of_the_package_is_named():
    for file in PACKAGE.rglob('*.py'):
        parts = file.relative_to(PACKAGE).parts
        if parts[0] in ('data', 'cli') or file.name in ('__init__.py', '__main__.py', 'version.py'):
            continue
        named = parts[1] if len(parts) > 1 else parts[0]
        assert f'`{named}`' in TEXT or f'`{named}/`' in TEXT, f'{"/".join(parts)} is not in CONTRIBUTING.md'
