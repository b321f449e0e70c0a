"""Numbers on what spatial transformers do, and on whether this installation is sound."""
import importlib.util
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import safetensors
import timm
import torch
import torchvision
from torch import Tensor, nn

from .functional import warp
from .spatial_transformer import SpatialTransformer
from .version import __version__
from .visualize import outline
from .zoo import zoo_names

__all__ = ['Look', 'observe', 'report', 'self_check', 'weights_of', 'wrong_answers']

Facts = dict[str, dict[str, str]]
IDENTITY_ERROR = 1e-5  # most that an identity warp may change a pixel in [0, 1]


@dataclass(frozen=True)
class Look:
    """What the transformer of one stage did with images (N, C, H, W).

    ``theta`` is (N, G, ...), ``outlines`` (N, G, K, 2) lie in the coordinates of the images, ``logits`` (N, classes)
    are the network's. ``seen`` (N, G, C, h, w) is what the transformer gave, ``before`` what came to it: of the same
    shape at a stage, None at the input.
    """
    stage: int | str
    theta: Tensor
    outlines: Tensor
    seen: Tensor
    before: Tensor | None
    logits: Tensor


@torch.inference_mode()
def observe(model: Any, images: Tensor, stage: int | str | None = None) -> Look:
    """Run a network with spatial transformers, and tell where one of them looked.

    Features of a stage are taken to lie evenly over the image, as those of padded convolutions and of patches do.

    Args:
        model: A network with ``spatial_transformers()``; it runs in the mode that it is in.
        images: (N, C, H, W), as they enter the network.
        stage: One of ``model.spatial_transformers()``. Default: the first, which is the input's if there is one.

    Raises:
        ValueError: There is no transformer at that stage.
    """
    transformers = model.spatial_transformers()
    stage = next(iter(transformers)) if stage is None else stage
    if stage not in transformers:
        raise ValueError(f'stage must be one of {", ".join(map(repr, transformers))}, got {stage!r}.')
    if stage == 'input':
        seen, theta = model.look(images)
        if model.glimpses == 1:
            seen, theta = seen[:, None], theta[:, None]
        return Look(stage, theta, outline(model.stn, theta), seen, None, model(images))
    return _observe_stage(model, transformers[stage], images, stage)


def _observe_stage(model: Any, stn: Any, images: Tensor, stage: int | str) -> Look:
    """theta of the stage maps what came to it; its outline goes back through the transformers that ran before it."""
    ran: list[tuple[Any, Tensor, Tensor]] = []
    stages = [t for t in model.spatial_transformers().values() if t is not model.stn]
    handles = [t.register_forward_hook(lambda m, args, out: ran.append((m, args[0], out))) for t in stages]
    try:
        logits = model(images)
    finally:
        for handle in handles:
            handle.remove()
    ran = ran[-len(stages):]  # not when the backbone was only asked where to look
    last = [t for t, _, _ in ran].index(stn)
    points = outline(stn, stn.last_theta)[:, 0]
    for earlier, _, _ in reversed(ran[:last]):
        points = earlier.map_points(earlier.last_theta, points)
    before, seen = (stn.layout.maps(x) for x in ran[last][1:])
    parts = (stn.last_theta, points, before, seen)
    theta, points, before, seen = (t.reshape(len(images), -1, *t.shape[1:]) for t in parts)
    return Look(stage, theta, points if model.stn is None else _through_input(model, points), seen, before, logits)


def _through_input(model: Any, points: Tensor) -> Tensor:
    """Points (N, S, K, 2) in what the backbone saw to points in the images; a whole image comes first, as it is."""
    first = points.shape[1] - model.glimpses
    whole, seen = points[:, :first], points[:, first:]
    theta = model.stn.last_theta
    theta = theta[:, :seen.shape[1]].flatten(0, 1) if model.glimpses > 1 else theta
    return torch.cat([whole, model.stn.map_points(theta, seen.flatten(0, 1)).reshape(seen.shape)], 1)


@torch.inference_mode()
def wrong_answers(model: nn.Module, images: Tensor, labels: Tensor, device: str = 'cpu') -> int:
    """How many of the images (N, C, H, W) get another answer than their label (N,)."""
    model.eval()
    batches = zip(torch.split(images, 500), torch.split(labels, 500))
    return sum(int((model(x.to(device)).argmax(1).cpu() != y).sum()) for x, y in batches)


def weights_of(model: str | nn.Module) -> str | None:
    """Where the trained weights of a registered name, or of a model that was made with them, are; None: nowhere."""
    cfg = timm.get_pretrained_cfg(model) if isinstance(model, str) else getattr(model, 'pretrained_cfg', None)
    cfg = cfg if isinstance(cfg, dict) else vars(cfg) if cfg else {}
    if cfg.get('file'):
        return str(Path(cfg['file']).expanduser())
    if cfg.get('hf_hub_id'):
        return f'Hugging Face Hub, {cfg["hf_hub_id"]}'
    return cfg.get('url') or None


def report() -> Facts:
    """Facts on this installation, by group: versions, devices, timm's interface, kernels, weights."""
    return {
        'versions': _versions(),
        'devices': _devices(),
        'timm': _timm_interface(),
        'kernels': _kernels(),
        'weights': {name: weights_of(name) or 'not trained yet' for name in zoo_names()},
    }


def self_check() -> dict[str, tuple[bool, str]]:
    """Checks of about a second: name to (passed, what was found)."""
    devices = ['cpu', *(['cuda'] if torch.cuda.is_available() else [])]
    return {f'{name} on {device}': check(device) for device in devices for name, check in _CHECKS.items()}


def _versions() -> dict[str, str]:
    modules = (torch, torchvision, timm, huggingface_hub, safetensors)
    versions = {module.__name__: str(module.__version__) for module in modules}
    return {'timm_stn': f'{__version__} ({Path(__file__).parent})', 'python': platform.python_version(), **versions}


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
        'eager, exported': 'aten.grid_sampler',
        'compiled for the CPU': 'timm_stn::grid_sampler, kept whole' if opaque else 'aten.grid_sampler, decomposed',
        'compiled for other devices': 'aten.grid_sampler, by the compiler',
    }


def _identity(device: str) -> tuple[bool, str]:
    image = torch.rand(2, 3, 31, 40, generator=torch.Generator().manual_seed(0)).to(device)
    error = float((warp(image, torch.eye(2, 3, device=device)[None]) - image).abs().max())
    return error <= IDENTITY_ERROR, f'largest difference {error:.1e}, accepted {IDENTITY_ERROR:.0e}'


def _gradient(device: str) -> tuple[bool, str]:
    """Of an untouched transformer's last layer, whose weights are zero."""
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


def _has(module: str, name: str) -> bool:
    try:
        return hasattr(importlib.import_module(module), name)
    except ImportError:
        return False


def _yes(found: bool) -> str:
    return 'yes' if found else 'no'
