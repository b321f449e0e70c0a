"""Fuzz `local-dir:` loads with malformed config.json and model.safetensors, guided by coverage (atheris).

    pip install atheris && python scripts/check/fuzz.py config -max_total_time=300 -rss_limit_mb=4096 -timeout=60
    python scripts/check/fuzz.py weights -max_total_time=300 -rss_limit_mb=4096 -timeout=60

A finding is a crash, a hang, memory beyond the limit, or an error in timm_stn that does not name the folder or is not a
TypeError, ValueError or RuntimeError. Errors that timm raises before it calls timm_stn do not count: see
docs/loading.md.
"""
import json
import logging
import struct
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path

import atheris
import torch

LOADING = ['timm_stn', 'timm.models._hub', 'timm.models._builder', 'timm.models._factory']
with atheris.instrument_imports(include=LOADING):
    import timm
    import timm.models

    import timm_stn

NAME, ARGUMENTS = 'stn_mnist_cnn_rts', dict(
    channels=(1, 2), num_classes=2, stn_localization='linear', stn_localization_size=4, stn_freeze_steps=1)
NUMBERS = (
    0, 1, -1, 2, 3, 7, 24, 64, 65, 10 ** 4, 2 ** 20, 2 ** 31, 2 ** 63, 10 ** 9, 10 ** 12, 10 ** 30, 0.5, -0.0, 1e-300,
    1e308, float('nan'), float('inf'))
TEXTS = (
    '', 'input', 'affine', 'tps', 'tps:1000x1000', 'tps:5x5', 'affine+' * 40, 'conv', 'linear', 'timm:test_resnet',
    'timm:resnet18', 'timm:vit_7b_patch16_dinov3', 'timm:hf-hub:a/b', 'timm:stn_test_resnet', 'shared:0', 'shared:²',
    'shared:--1', 'shared:layer1', 'layer1', 'fc', '-1', '../../etc/passwd', '/etc/passwd',
    '__import__("os").system("id")', '{0.__class__}', '\x00', '9' * 5000, 'separate', 'mean', 'fill', 'nearest',
    'auto', 'cpu', 'cuda', 'float16', 'relu', 'flatten', 'avg', 'fx', 'getter')
ARCHITECTURES = (
    'stn_mnist_cnn_tc', 'stn_mnist_fcn', 'stn_test_resnet', 'stn_test_vit', 'stn_resnet18', 'stn_resnet50_cub',
    'resnet18')
KEYS = (
    'file', 'url', 'hf_hub_id', 'hf_hub_filename', 'state_dict', 'source', 'custom_load', 'checkpoint_path',
    'pretrained', 'name', 'base', 'pretrained_cfg', 'pretrained_strict', 'cache_dir', 'features_only', 'out_indices',
    'feature_cls', 'device', 'dtype', 'img_size', 'drop_rate', 'channels', 'pool_input', 'label_offset',
    'stn_nothing', 'depths', 'model_name', 'pruned', 'scriptable', 'self', 'x')
outcomes: Counter = Counter()


def attempt(folder: Path) -> None:
    """Load the folder; only errors that break the rules above are raised."""
    try:
        model = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
        size = model.pretrained_cfg['input_size']
        if isinstance(model, timm_stn.SpatialTransformerNetwork) and size[1] * size[2] <= 128 ** 2:
            with torch.no_grad():
                model(torch.zeros(1, *model._input_size))
        outcomes['loaded'] += 1
    except Exception as error:
        ours = any('/timm_stn/' in frame.filename for frame in traceback.extract_tb(error.__traceback__))
        named = isinstance(error, (TypeError, ValueError, RuntimeError)) and str(folder) in str(error)
        outcomes['refused' if ours else 'refused by timm'] += 1
        if ours and not named:
            raise


def value(data: atheris.FuzzedDataProvider, depth: int = 0) -> object:
    kind = data.ConsumeIntInRange(0, 9)
    if kind <= 2:
        return data.PickValueInList([*NUMBERS])
    if kind <= 5:
        return data.PickValueInList([*TEXTS])
    if kind == 6:
        return data.PickValueInList([None, True, False, [], {}])
    if kind == 7:
        return data.ConsumeInt(4)
    if kind == 8 and depth < 3:
        return [value(data, depth + 1) for _ in range(data.ConsumeIntInRange(0, 4))]
    if depth < 3:
        keys = [data.PickValueInList([*KEYS, *TEXTS]) for _ in range(data.ConsumeIntInRange(0, 3))]
        return {key: value(data, depth + 1) for key in keys}
    nested: object = []
    for _ in range(data.ConsumeIntInRange(0, 900)):
        nested = [nested]
    return nested


def mutate_config(data: atheris.FuzzedDataProvider, config: dict) -> bytes:
    if data.ConsumeIntInRange(0, 19) == 0:
        return data.ConsumeBytes(4096)
    for _ in range(data.ConsumeIntInRange(1, 4)):
        place = data.PickValueInList([config, config['model_args'], config['model_args'], config['pretrained_cfg']])
        kind = data.ConsumeIntInRange(0, 9)
        if kind == 0 and len(place) > 1 and place is not config:
            place.pop(data.PickValueInList(list(place)))
        elif kind == 1:
            config['architecture'] = data.PickValueInList([*ARCHITECTURES])
        elif kind <= 3:
            place[data.PickValueInList([*KEYS])] = value(data)
        else:
            key = data.PickValueInList([k for k in place if k not in ('model_args', 'pretrained_cfg', 'architecture')])
            place[key] = value(data)
    return json.dumps(config).encode()


def mutate_weights(data: atheris.FuzzedDataProvider, content: bytes) -> bytes:
    kind = data.ConsumeIntInRange(0, 9)
    if kind == 0:
        return data.ConsumeBytes(8192)
    length, = struct.unpack('<Q', content[:8])
    header, body = json.loads(content[8:8 + length]), bytearray(content[8 + length:])
    if kind <= 2:
        changed = bytearray(content)
        for _ in range(data.ConsumeIntInRange(1, 8)):
            changed[data.ConsumeIntInRange(0, len(changed) - 1)] = data.ConsumeIntInRange(0, 255)
        return bytes(changed[:data.ConsumeIntInRange(0, len(changed))] if kind == 2 else changed)
    if kind <= 5:
        for _ in range(data.ConsumeIntInRange(1, 16)):
            body[data.ConsumeIntInRange(0, len(body) - 1)] = data.PickValueInList([0, 255, 127, 128, 63, 192])
    for _ in range(data.ConsumeIntInRange(0, 3) if kind > 4 else 0):
        key = data.PickValueInList(list(header))
        part = data.PickValueInList(['dtype', 'shape', 'data_offsets', 'name', 'none', 'any', 'swap'])
        if part == 'dtype':
            header[key]['dtype'] = data.PickValueInList(
                ['F32', 'I32', 'U32', 'F16', 'BF16', 'F64', 'I64', 'U64', 'BOOL', 'F8_E4M3', 'F4', 'C64', 'X', ''])
        elif part in ('shape', 'data_offsets'):
            header[key][part] = [data.PickValueInList([0, 1, 2, 4, 64, 400, 2 ** 31, 2 ** 63, -1]) for _ in range(
                data.ConsumeIntInRange(0, 4))]
        elif part == 'name':
            header[data.PickValueInList(['x', 'backbone.x', 'stn.x', '', 'fc.weight', *header])] = header.pop(key)
        elif part == 'none':
            header.pop(key)
        elif part == 'any':
            header[key] = value(data)
        elif part == 'swap':
            other = data.PickValueInList(list(header))
            header[key], header[other] = header[other], header[key]
        if not header or not all(isinstance(v, dict) and 'dtype' in v for v in header.values()):
            break
    text = json.dumps(header).encode()
    return struct.pack('<Q', len(text)) + text + bytes(body)


def main() -> None:
    if sys.argv[1:2] not in (['config'], ['weights']):
        raise SystemExit(__doc__)
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    target = sys.argv.pop(1)
    folder = Path(tempfile.mkdtemp()) / 'network'
    model = timm.create_model(NAME, **ARGUMENTS)
    timm.models.save_for_hf(model, folder, safe_serialization=True)
    config, weights = folder / 'config.json', folder / 'model.safetensors'
    text, content = config.read_text(), weights.read_bytes()

    def run(given: bytes) -> None:
        data = atheris.FuzzedDataProvider(given)
        if target == 'config':
            config.write_bytes(mutate_config(data, json.loads(text)))
        else:
            weights.write_bytes(mutate_weights(data, content))
        attempt(folder)
        if sum(outcomes.values()) % 1000 == 0:
            print(dict(outcomes), flush=True)

    atheris.Setup(sys.argv, run)
    atheris.Fuzz()


if __name__ == '__main__':
    main()
