"""What is known while a program is made that runs later, elsewhere, and maybe on other sizes."""
import torch
from torch import Tensor

from .grid import is_traced

__all__ = ['is_always', 'is_exporting', 'of_one_size']

# torch 2.6 cannot tell export from compilation: both are taken for export there.
_is_exporting = getattr(torch.compiler, 'is_exporting', lambda: True)


def is_exporting() -> bool:
    """Whether `torch.export`, an exporter to ONNX or `torch.jit.trace` is making a program; not in `torch.compile`."""
    return is_traced() or (torch.compiler.is_compiling() and bool(_is_exporting()))


def is_always(side: int, value: int) -> bool:
    """Whether a side, of a shape, has this value in every run of the program that is being made.

    A side that may vary is no int, except in Dynamo, which tells nothing but by a comparison that fixes it.
    """
    return isinstance(side, int) and not torch.compiler.is_dynamo_compiling() and side == value


def of_one_size(image: Tensor, why: str) -> Tensor:
    """An image (N, C, *size) that has the same sides in every run of the program that is being made, which needs that.

    A trace refuses other sides when it runs: ``expand`` fails.

    Raises:
        ValueError: A side may vary; or nobody knows, in strict export, on which torch's exporter to ONNX falls back
            without checks of what is taken for constant. The message starts with ``why``.
    """
    if not torch.compiler.is_compiling():
        return image.expand(*image.shape[:2], *map(int, image.shape[2:]))
    if torch.compiler.is_dynamo_compiling() and hasattr(torch.compiler, 'is_exporting'):
        raise ValueError(f'{why}: a program is for images of one size; torch.export knows it only with strict=False.')
    varying = [axis for axis, side in enumerate(image.shape[2:], 2) if isinstance(side, torch.SymInt)]
    if varying:
        raise ValueError(f'{why}: a program is for images of one size, but dimensions {varying} may vary; leave them '
                         'out of dynamic_shapes.')
    return image
