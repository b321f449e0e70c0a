"""The fused kernels, in Triton: `why_not` tells where they cannot be used, `launch` has their calls."""
import os
import warnings

import torch

__all__ = ['INTERPRETED', 'why_not']

INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'  # Triton runs kernels in Python then, on any device

_found: dict[torch.device, str] = {}


def why_not(device: torch.device) -> str:
    """Why the kernels cannot be used on a device; empty if they can. The first call tries them."""
    if device.type != 'cuda' and not INTERPRETED:
        return f'they are for CUDA, not for {device.type}'
    if device not in _found:
        if device.type == 'cuda' and torch.cuda.is_current_stream_capturing():
            return 'they were not tried before a CUDA graph was captured'
        _found[device] = _try(device)
        if _found[device]:
            warnings.warn(f'timm_stn warps by torch, not by its fused kernels: {_found[device]}', stacklevel=2)
    return _found[device]


def _try(device: torch.device) -> str:
    try:  # triton may be missing, know no such device, or find no C compiler
        from . import launch
        image = torch.arange(6.0, device=device).view(1, 1, 2, 3)  # and no random numbers, which users count
        where = torch.eye(2, 3, device=device)[None], (2, 3), 1
        same = torch.equal(launch.forward(image, *where, None), image)
        launch.theta_gradient(image, image, *where, None)
        launch.image_gradient(image, image, *where)
    except torch.OutOfMemoryError:  # says nothing of the kernels
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or ['no message']
        return f'{type(error).__name__}: {lines[0]}'
    return '' if same else 'an identity warp came out wrong'
