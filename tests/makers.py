"""What several test files make: random tensors, files in MNIST's format, networks to save and to copy."""
import copy
import csv
import gzip
import io
import os
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from timm_stn import SpatialTransformer
from timm_stn.geometry.transforms import get_transform
from timm_stn.network.attach import StageTransformer, attach
from timm_stn.network.stages import stage_layouts

ROOT = Path(__file__).resolve().parents[1]
PLANAR = ['translation', 'rotation', 'attention', 'scale_translation', 'similarity', 'affine', 'projective',
          'affine+similarity', 'tps', 'diffeomorphic', 'zoom', 'affine+tps', 'zoom+rotation']  # of images, of each kind
SIGN_COLUMNS = ('file', 'width', 'height', 'x1', 'y1', 'x2', 'y2', 'class')
PADDING_MODES = ['border', 'fill', 'reflection', 'zeros']
FILL = [0.5, -2.0, 3.0]
NETWORKS = [  # arguments of small networks with transformers of many kinds
    dict(),
    dict(stn_stages=('input', 1), stn_iterations=2),
    dict(stn_stages=('input', 2), stn_glimpses=2, stn_scale=0.5, stn_transform='similarity'),
    dict(stn_stages=('input', 1), stn_glimpses=2, stn_scale=0.5, stn_towers='separate'),
    dict(stn_stages=(2,), stn_target='input'),
]

GLIMPSES = dict(stn_glimpses=2, stn_scale=0.5, stn_size=64, img_size=128, stn_transform='translation', num_classes=3)


def needs_weights(*names):
    """A mark that skips where weights of cards are not here: releases leave out the large ones."""
    missing = [name for name in names if not (ROOT / 'model_cards' / name / 'model.safetensors').is_file()]
    return pytest.mark.skipif(bool(missing), reason=f'no weights of {", ".join(missing)} here: a checkout has them')


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def rand(*shape, seed=0, dtype=torch.float32):
    return torch.rand(*shape, generator=generator(seed), dtype=dtype)


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=generator(seed), dtype=dtype)


def fill_of(padding_mode):
    return FILL if padding_mode == 'fill' else None


def random_grid(n, size, ndim=2, dtype=torch.float32, reach=1.5):
    return torch.empty(n, *size, ndim, dtype=dtype).uniform_(-reach, reach)


def idx(array, magic=0x800):
    """An array as a file of MNIST."""
    return struct.pack(f'>{array.ndim + 1}I', magic + array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_mnist(folder, train=30, test=20, compress=True):
    """Random files in MNIST's format; returns the arrays."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    arrays = {}
    for prefix, count in (('train', train), ('t10k', test)):
        arrays[prefix] = rng.integers(0, 256, (count, 28, 28)), rng.integers(0, 10, count)
        for name, array in zip(('images-idx3', 'labels-idx1'), arrays[prefix], strict=True):
            content = gzip.compress(idx(array)) if compress else idx(array)
            (folder / f'{prefix}-{name}-ubyte{".gz" if compress else ""}').write_bytes(content)
    return arrays


def save_for_hf(model, path, **kwargs):
    """As a repository on the Hub holds it, without pickles."""
    if not hasattr(timm.models, 'get_model_args'):  # timm 1.0.29 does not save them by itself, nor know the backbone's
        args = dict(getattr(model, '_model_args', {}), num_classes=model.num_classes)
        args['in_chans'] = getattr(model, 'in_chans', 3)
        convs = [getattr(getattr(model, f'layer{i}', None), 'conv', None) for i in (1, 2)]
        kwargs.update(model_args=dict(args, channels=[c.out_channels for c in convs]) if all(convs) else args)
    timm.models.save_for_hf(model, path, **{'safe_serialization': True, **kwargs})


def copies(module):
    """The ways to copy a module, each taken once."""
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return copy.deepcopy(module), pickle.loads(pickle.dumps(module)), torch.load(file, weights_only=False)


def move_theta(model, scale=0.3, seed=2):
    """Give every transformer something else than the identity to do."""
    random = generator(seed)
    for name, p in model.named_parameters():
        if 'regression' in name:
            p.data = torch.randn(p.shape, generator=random).to(p.dtype) * scale
    return model


def create(name='stn_test_resnet', seed=0, **kwargs):
    """A network in evaluation mode."""
    torch.manual_seed(seed)
    return timm.create_model(name, **kwargs).eval()


def images(n=2, size=64, chans=3, seed=1):
    return rand(n, chans, size, size, seed=seed)


def transformer(transform='affine', input_size=(12, 10), channels=2, localization='linear', std=0.0, **arguments):
    """A transformer whose theta depends on the image, if `std` is not zero."""
    stn = SpatialTransformer(channels, input_size, transform, localization, **arguments)
    if std:
        regression = stn.localization.regression
        with torch.no_grad():
            regression.weight.copy_(std * randn(*regression.weight.shape, seed=5))
            regression.bias.copy_(std * randn(*regression.bias.shape, seed=6))
    return stn


def constant(params):
    """A localization that gives every image the same parameters."""
    return lambda x: torch.as_tensor(params, dtype=torch.float32).reshape(1, -1).expand(len(x), -1)


def num_params(transform):
    return get_transform(transform).num_params


def in_training(name='stn_test_resnet', move=0.3, **kwargs):
    """A network in training mode, but for the statistics of its batch norms, with transformers off the identity."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10, **kwargs).train()
    for n, p in model.named_parameters():
        if 'regression' in n:
            p.data = move * randn(*p.shape, seed=2)
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            m.eval()
    return model


def transformers(model):
    return [m for m in model.modules() if isinstance(m, SpatialTransformer)]


def put_transformer(backbone, stage, input_size=(3, 64, 64), shift=0.0, **arguments):
    """A transformer at a stage; `shift` moves what is seen there to the right by that part of the width."""
    (name, layout), = stage_layouts(backbone, [stage], input_size).values()
    stn = StageTransformer(layout, transform='translation', localization='linear', **arguments)
    with torch.no_grad():
        stn.localization.regression.bias[0] = shift / stn.localization.regression.lr_scale
    return stn.eval(), attach(backbone, {name: stn}, input_size)[name]


def environment_of(hub, home, token):
    """Of a fresh process: all that points it to a Hub of hub_server.py."""
    kept = {k: v for k, v in os.environ.items() if not k.lower().endswith('_proxy')}
    return dict(kept, HF_ENDPOINT=hub.url, HF_HOME=str(home), HF_HUB_DISABLE_XET='1', HF_HUB_DISABLE_TELEMETRY='1',
                HF_HUB_DISABLE_PROGRESS_BARS='1', HF_TOKEN=token)


def write_tar(path, files):
    """A tar of files, contents by name."""
    with tarfile.open(path, 'w') as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def write_table(path, rows):
    """The table of the boxes of signs."""
    with path.open('w', newline='') as file:
        csv.writer(file, lineterminator='\n').writerows([SIGN_COLUMNS, *rows])


def png(pixels):
    """The bytes of a PNG of pixels (H, W, 3)."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, 'PNG')
    return file.getvalue()


def write_signs(folder, tracks=5, frames=3, tests=4, classes=3):
    """A small benchmark of traffic signs; the pixels of each image, by split and name."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = np.random.default_rng(0)
    names = dict(train=[f'{t % 2:05}/{t:05}_{f:05}.png' for t in range(tracks) for f in range(frames)],
                 test=[f'{i % classes:05}/{i:05}.png' for i in reversed(range(tests))])
    written = {}
    for split, files in names.items():
        pixels = {name: numbers.integers(0, 256, (32, 32, 3), np.uint8) for name in files}
        write_tar(folder / f'{split}.tar', {name: png(each) for name, each in pixels.items()})
        rows = [(name, 40, 50, 4, 5, 36, 40 + i % 10, int(name[:5])) for i, name in enumerate(files)]
        write_table(folder / f'{split}-boxes.csv', rows)
        written[split] = pixels
    return written
