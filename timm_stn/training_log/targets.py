"""Where a log goes beside its own files: TensorBoard, and Weights & Biases if the script uses it."""
import sys
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image

from ..view.dependence import tell

__all__ = ['Target', 'TensorBoard', 'WandB', 'targets_of']

NO_BOARD = ("--stn-log: TensorBoard is not installed, and gets nothing (pip install 'timm-stn[tensorboard]'); the log "
            'is in {file}')


class Target(Protocol):
    """Takes numbers by name, and pictures."""

    def numbers(self, step: int, values: dict[str, float]) -> None: ...

    def picture(self, step: int, picture: Image.Image) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Events in a folder, as `tensorboard --logdir` reads them.

    Raises:
        ImportError: It is not installed.
    """

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter  # a second
        self._writer: Any = SummaryWriter(str(folder))  # type: ignore[no-untyped-call]

    def numbers(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f'stn/{name}', value, step)

    def picture(self, step: int, picture: Image.Image) -> None:
        small = picture.reduce(2)  # it is written as PNG, which takes a while
        pixels = torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8)
        self._writer.add_image('stn/look', pixels.reshape(small.height, small.width, 3), step, dataformats='HWC')

    def close(self) -> None:
        self._writer.close()


class WandB:
    """The run of Weights & Biases that the script has begun, if it has; it is never imported here.

    Numbers have an axis of their own, ``stn/step``: the script's calls of ``wandb.log`` count theirs.
    """
    _ready = False

    def numbers(self, step: int, values: dict[str, float]) -> None:
        self._log(step, {f'stn/{name}': value for name, value in values.items()})

    def picture(self, step: int, picture: Image.Image) -> None:
        wandb = self._used()
        if wandb is not None:
            self._log(step, {'stn/look': wandb.Image(picture)})

    def close(self) -> None:
        """The script ends its run itself."""

    def _log(self, step: int, values: dict[str, Any]) -> None:
        wandb = self._used()
        if wandb is None:
            return
        if not self._ready:
            wandb.define_metric('stn/step')
            wandb.define_metric('stn/*', step_metric='stn/step')
            self._ready = True
        wandb.log({'stn/step': step, **values})

    @staticmethod
    def _used() -> Any:
        wandb = sys.modules.get('wandb')
        return wandb if getattr(wandb, 'run', None) is not None else None


def targets_of(folder: Path, file: Path) -> list[Target]:
    """All that there are; where TensorBoard is not installed, one line says so."""
    targets: list[Target] = [WandB()]
    try:
        targets.append(TensorBoard(folder))
    except ImportError:
        tell([NO_BOARD.format(file=file)])
    return targets
