"""The fused kernels, in Triton: `why_not` tells where they cannot be used, `launch` has their calls."""
import os

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
    return _found[device]


def _try(device: torch.device) -> str:
    try:  # triton may be missing, know no such device, or find no C compiler
        from . import launch
        image = torch.arange(6.0, device=device).view(1, 1, 2, 3)  # and no random numbers, which users count
        where = torch.eye(2, 3, device=device)[None], (2, 3), 1
        same = torch.equal(launch.forward(image, *where, None), image)
        launch.theta_gradient(image, image, *where, None)
        launch.image_gradient(image, image, *where)
    except Exception as error:
        return f'{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else "no message"}'
    return '' if same else 'an identity warp came out wrong'
