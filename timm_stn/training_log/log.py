"""Sees a training from outside, by hooks that torch offers, and writes what the transformers of its network do.

A log is begun by the script's own call of ``timm.utils.get_outdir``, which says where the run's files go: a process
that makes no folder, as all but the first of a distributed training, has no hooks at all. The network is the one with
transformers whose first forward pass in training mode it sees. Nothing of the training is changed.
"""
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

from timm import utils
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from ..view.dependence import tell
from ..view.history import LINES, append_line, last_step, pictures_of, scalars
from .gradient import Gradients
from .pictures import Sitters, due, find_sitters, options_of, save_picture
from .targets import Target, targets_of

__all__ = ['TrainingLog', 'logging_training']

COMPILED = '--stn-log: compiled code does not say where it looks: there are pictures, but no lines'
NO_FOLDER = '--stn-log: nothing is logged, as the script made no folder for its run (timm.utils.get_outdir)'
NO_NETWORK = '--stn-log: nothing is logged, as no network with spatial transformers is trained'


@contextmanager
def logging_training(every: int) -> Iterator[None]:
    """Within it, a script that asks for its folder and trains has a log, with a line every so many optimizer steps."""
    theirs, logs = utils.get_outdir, list[TrainingLog]()

    @wraps(theirs)
    def get_outdir(*args: Any, **kwargs: Any) -> str:
        folder: str = theirs(*args, **kwargs)
        if not logs:
            logs.append(TrainingLog(Path(folder), every))
        return folder

    utils.get_outdir = get_outdir
    try:
        yield
        for log in logs:
            log.finish()
        if not logs:
            tell([NO_FOLDER])
    finally:
        utils.get_outdir = theirs
        for log in logs:
            log.close()


def network_in(module: nn.Module) -> Any:
    """The first module of it in training mode that has spatial transformers; None if there is none."""
    return next((m for m in module.modules() if m.training and hasattr(type(m), 'spatial_transformers')), None)


class TrainingLog:
    """The log of one run; it begins when it is made, and goes on after what is in the folder.

    Whatever goes wrong in it (a full disk, say) ends the log, with one line on stderr, and not the training.

    Args:
        folder: The run's.
        every: Optimizer steps between lines.
    """

    def __init__(self, folder: Path, every: int) -> None:
        self.folder, self.every, self.step, self.last = folder, every, 0, -1
        self._network: Any = None
        self._gradients: Gradients | None = None
        self._sitters: Sitters | None = None
        self._targets: list[Target] = []
        self._open = 0  # steps of optimizers within steps of others
        self._blind = False
        self._handles: dict[str, Any] = {}
        self._guarded(self._begin)()

    def _begin(self) -> None:
        self.step = last_step(self.folder)
        self.last = max((step for step, _ in pictures_of(self.folder)), default=-1)
        self._handles = dict(
            find=register_module_forward_pre_hook(self._guarded(self._find)),
            before=register_optimizer_step_pre_hook(self._guarded(self._before_step)),
            after=register_optimizer_step_post_hook(self._guarded(self._after_step)))

    def finish(self) -> None:
        """Draw how it ended."""
        if self._handles and self._sitters is not None and self.step > self.last:
            self._guarded(self._draw)()

    def close(self) -> None:
        """Leave torch and the network as they were."""
        for handle in self._handles.values():
            handle.remove()
        if self._gradients is not None:
            self._gradients.detach()
        targets, self._handles, self._gradients, self._targets = self._targets, {}, None, []
        for target in targets:
            target.close()

    def _guarded(self, run: Callable[..., None]) -> Callable[..., None]:
        """``run``, whose errors end the log alone."""
        def guarded(*args: Any) -> None:
            try:
                run(*args)
            except Exception as error:
                tell([f'--stn-log: no more is logged: {type(error).__name__}: {error}'])
                self._guarded_close()

        return guarded

    def _guarded_close(self) -> None:
        try:
            self.close()
        except Exception:  # of what failed already
            self._targets = []

    def _find(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        network = network_in(module)
        if network is None:
            return
        self._handles.pop('find').remove()
        self._network = network
        self._gradients = Gradients(network, self._wants, self._guarded)
        self._targets = targets_of(self.folder, self.folder / LINES)
        self._seat(args[0] if args else None)
        if self._sitters is not None and self.step > self.last:
            self._draw()

    def _seat(self, batch: Any) -> None:
        if not (isinstance(batch, Tensor) and batch.ndim == 4):
            tell(['--stn-log: there are no pictures, as this is no training with images (N, C, H, W)'])
            return
        try:
            self._sitters, note = find_sitters(self._network, options_of(self.folder), batch)
        except ValueError as error:
            note = f'there are no pictures: {error}'
        tell([] if note is None else [f'--stn-log: {note}'])

    def _wants(self) -> bool:
        """Whether the step to come gets a line."""
        return (self.step + 1) % self.every == 0

    def _before_step(self, *_: Any) -> None:
        self._open += 1

    def _after_step(self, *_: Any) -> None:
        self._open -= 1
        if self._open:
            return
        if self._gradients is None:
            tell([NO_NETWORK])
            self.close()
            return
        self.step += 1
        if self.step % self.every:
            return
        self._write(self._gradients)
        self._gradients.clear()
        if self._sitters is not None and due(self.last, self.step):
            self._draw()

    def _write(self, gradients: Gradients) -> None:
        said: dict[str, dict[str, float]] = {}
        for name, theta in gradients.thetas().items():
            parts, ratios = scalars(gradients.named[name], theta), gradients.ratios(name)
            for k, part in enumerate(parts):
                if ratios is not None and math.isfinite(ratios[k]):
                    part['gradient_ratio'] = float(f'{ratios[k]:.6g}')
                said[name if len(parts) == 1 else f'{name}/{k + 1}'] = part
        if not said:
            tell([] if self._blind else [COMPILED])
            self._blind = True
            return
        append_line(self.folder, {'step': self.step, 'transformers': said})
        numbers = {f'{name}/{key}': value for name, part in said.items() for key, value in part.items()}
        for target in self._targets:
            target.numbers(self.step, numbers)

    def _draw(self) -> None:
        picture = self._sitters.draw(self._network)  # type: ignore[union-attr]
        save_picture(self.folder, self.step, picture)
        self.last = self.step
        for target in self._targets:
            target.picture(self.step, picture)
