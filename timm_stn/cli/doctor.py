"""`timm-stn doctor`: versions, devices, features of the installed timm, and a self-check."""
import argparse
import importlib
import importlib.util
import platform
from importlib import metadata
from pathlib import Path

import huggingface_hub
import safetensors
import timm
import torch

from ..geometry.functional import warp
from ..geometry.kernels import fused
from ..modules.spatial_transformer import SpatialTransformer
from ..names.zoo import weights_of, zoo_names
from ..version import __version__

__all__ = ['doctor', 'report', 'self_check']

Facts = dict[str, dict[str, str]]
IDENTITY_ERROR = 1e-5  # largest accepted change of a pixel in [0, 1] by an identity warp


def doctor(args: argparse.Namespace) -> int:
    for group, facts in report().items():
        print(group)
        for name, fact in facts.items():
            print(f'  {name:<27} {fact}')
    print('self-check')
    checks = self_check()
    for name, (passed, found) in checks.items():
        print(f'  {name:<27} {"passed" if passed else "FAILED"}: {found}')
    return 0 if all(passed for passed, _ in checks.values()) else 1


def report() -> Facts:
    """Facts about this installation by group: versions, devices, timm's interface, kernels, weights."""
    return {
        'versions': _versions(),
        'devices': _devices(),
        'timm': _timm_interface(),
        'kernels': _kernels(),
        'weights': {name: weights_of(name) or 'not trained yet' for name in zoo_names()},
    }


def self_check() -> dict[str, tuple[bool, str]]:
    """Results of the checks, from name to (passed, finding); they take about a second."""
    devices = ['cpu', *(['cuda'] if torch.cuda.is_available() else [])]
    return {f'{name} on {device}': check(device) for device in devices for name, check in _CHECKS.items()}


def _versions() -> dict[str, str]:
    versions = {module.__name__: str(module.__version__) for module in (torch, timm, huggingface_hub, safetensors)}
    return {'timm_stn': f'{__version__} ({Path(__file__).parents[1]})', 'python': platform.python_version(), **versions,
            'torchvision': _installed('torchvision')}


def _devices() -> dict[str, str]:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    cuda = [torch.cuda.get_device_name(i) for i in range(count)]
    return {
        'cpu': f'{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}',
        'cuda': ', '.join(cuda) or 'no',
        'mps': _yes(torch.backends.mps.is_available()),
    }


def _timm_interface() -> dict[str, str]:
    public = ('register_model', 'get_arch_pretrained_cfgs', 'get_model_args', 'get_model_traits')
    plain = [name for name in timm.list_models() if not name.startswith('stn_')]
    twins = sum(timm.is_model(f'stn_{name}') for name in plain)
    return {
        **{name: _yes(hasattr(timm.models, name)) for name in public},
        'FeatureGetterNet': _yes(_has('timm_stn._timm', 'FeatureGetterNet')),
        'timm.task (train.py)': _yes(importlib.util.find_spec('timm.task') is not None),
        'pandas (inference.py)': _yes(importlib.util.find_spec('pandas') is not None),
        'architectures': f'{len(plain)}, of which {twins} have a stn_ twin',
    }


def _kernels() -> dict[str, str]:
    opaque = hasattr(torch.ops.timm_stn, 'grid_sampler')
    return {
        'CPU, exported': 'aten.grid_sampler',
        'compiled for the CPU': 'timm_stn::grid_sampler, one operator' if opaque else 'aten.grid_sampler, decomposed',
        'on a GPU': _fused(),
    }


def _fused() -> str:
    """By what way the warp of images on a GPU is computed, and why not by the fused kernels."""
    reason = fused.why_not(torch.device('cuda')) if torch.cuda.is_available() else 'there is no CUDA device'
    if reason:
        return f'timm_stn::warp by aten.grid_sampler, not by the fused kernels: {reason}'
    return f'timm_stn::warp by the fused kernels (triton {_installed("triton")}); not: float64, bicubic, antialias, 3-D'


def _identity(device: str) -> tuple[bool, str]:
    image = torch.rand(2, 3, 31, 40, generator=torch.Generator().manual_seed(0)).to(device)
    error = float((warp(image, torch.eye(2, 3, device=device)[None]) - image).abs().max())
    return error <= IDENTITY_ERROR, f'largest difference {error:.1e}, accepted {IDENTITY_ERROR:.0e}'


def _gradient(device: str) -> tuple[bool, str]:
    """Check the gradient of a new transformer's last layer, whose weights are zero."""
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        stn = SpatialTransformer(3, (32, 32), 'similarity').to(device)
    stn(image).square().mean().backward()
    gradients = [p.grad for p in stn.localization.regression.parameters() if p.grad is not None]  # type: ignore[union-attr]
    size = max((float(g.abs().max()) for g in gradients), default=0.0)
    finite = all(bool(g.isfinite().all()) for g in gradients)
    return finite and size > 0, f'largest entry {size:.1e}'


_CHECKS = {'identity warp': _identity, 'gradient of theta': _gradient}


def _installed(package: str) -> str:
    """The version of a package that this one does not require itself."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return 'not found'


def _has(module: str, name: str) -> bool:
    try:
        return hasattr(importlib.import_module(module), name)
    except ImportError:
        return False


def _yes(found: bool) -> str:
    return 'yes' if found else 'no'
