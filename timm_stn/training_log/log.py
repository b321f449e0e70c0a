"""Sees a training from outside, by hooks that torch offers, and writes what the transformers of its network do.

A log is begun by the script's own call of ``timm.utils.get_outdir``, which says where the run's files go: a process
that makes no folder, as all but the first of a distributed training, has no hooks at all. The network is the one with
transformers whose first forward pass in training mode it sees. Nothing of the training is changed.
"""
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Any

from timm import utils
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from ..modules.spatial_transformer import SpatialTransformer
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
    has_ended = False
    try:
        yield
        has_ended = True
    except SystemExit:
        has_ended = True
        raise
    finally:
        utils.get_outdir = theirs
        if has_ended:
            for log in logs:
                log.finish()
            tell([] if logs else [NO_FOLDER])
        for log in logs:
            log.close()


def network_in(module: nn.Module) -> Any:
    """The first module of it in training mode that has spatial transformers; None if there is none.

    The network in it is preferred to what is around it; a module of somebody's own is taken as it is.
    """
    found = next((m for m in module.modules() if m.training and hasattr(type(m), 'spatial_transformers')), None)
    if found is None and any(isinstance(m, SpatialTransformer) and m.training for m in module.modules()):
        return module
    return found


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
        self._blind = self._has_ended = self._has_closure = False
        self._own: set[int] = set()  # parameters of the network
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
        if self._network is None and not self._has_ended:
            tell([NO_NETWORK])
        if self._sitters is not None and self.step > self.last:
            self._guarded(self._draw)()

    def close(self) -> None:
        """Leave torch and the network as they were. Not within a hook: torch is running through them."""
        for handle in self._handles.values():
            handle.remove()
        self._handles = {}
        self._end()

    def _end(self) -> None:
        """See and write no more."""
        self._has_ended = True
        if self._gradients is not None:
            self._gradients.detach()
        targets, self._gradients, self._targets = self._targets, None, []
        for target in targets:
            target.close()

    def _guarded(self, run: Callable[..., None]) -> Callable[..., None]:
        """``run``, whose errors end the log alone."""
        def guarded(*args: Any) -> None:
            if self._has_ended:
                return
            try:
                run(*args)
            except Exception as error:
                tell([f'--stn-log: no more is logged: {type(error).__name__}: {error}'])
                with suppress(Exception):  # of what failed already
                    self._end()

        return guarded

    def _find(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        network = network_in(module)
        if network is None:
            return
        self._handles.pop('find').remove()
        self._network, self._own = network, {id(p) for p in network.parameters()}
        self._gradients = Gradients(network, self._wants, self._guarded)
        self._targets = targets_of(self.folder, self.folder / LINES)
        self._seat(args[0] if args else None)
        if self._sitters is not None and self.step > self.last:
            self._draw()

    def _seat(self, batch: Any) -> None:
        if not (isinstance(batch, Tensor) and batch.ndim == 4):
            tell(['--stn-log: there are no pictures, as this is no training with images (N, C, H, W)'])
            return
        if not hasattr(self._network, 'spatial_transformers'):
            tell(['--stn-log: there are no pictures, as they are of networks of timm.create_model and timm_stn.wrap'])
            return
        try:
            self._sitters, note = find_sitters(self._network, options_of(self.folder), batch)
        except ValueError as error:
            note = f'there are no pictures: {error}'
        tell([] if note is None else [f'--stn-log: {note}'])

    def _wants(self) -> bool:
        """Whether the step to come gets a line."""
        return (self.step + 1) % self.every == 0

    def _before_step(self, optimizer: Optimizer, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self._open += 1
        self._has_closure = any(value is not None for value in (*args[1:], kwargs.get('closure')))

    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        self._open -= 1
        params = (p for group in optimizer.param_groups for p in group['params'])
        if self._open or self._gradients is None or not any(id(p) in self._own for p in params):
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
            ratios = None if self._has_closure else gradients.ratios(name)  # whose passes are no parts of a batch
            for k, part in enumerate(_parts(gradients, name, theta)):
                if ratios is not None and math.isfinite(ratios[k]):
                    part['gradient_ratio'] = float(f'{ratios[k]:.6g}')
                said[name if gradients.columns(name) == 1 else f'{name}/{k + 1}'] = part
        if not said:
            tell([] if self._blind else [COMPILED])
            self._blind = True
            return
        append_line(self.folder, {'step': self.step, 'transformers': said})
        numbers = {f'{name}/{key}': value for name, part in said.items() for key, value in part.items()}
        for target in self._targets:
            target.numbers(self.step, numbers)

    def _draw(self) -> None:
        try:
            picture = self._sitters.draw(self._network)  # type: ignore[union-attr]
        except ValueError as error:  # of logits that are not finite, in a training that explodes
            tell([f'--stn-log: no picture after step {self.step:,}: {error}'])
            self.last = self.step
            return
        save_picture(self.folder, self.step, picture)
        self.last = self.step
        for target in self._targets:
            target.picture(self.step, picture)


def _parts(gradients: Gradients, name: str, theta: Tensor) -> list[dict[str, float]]:
    """The scalars of each glimpse or stream, of the images for which all parameters were finite."""
    finite = gradients.finite(name)
    share = float((~finite).double().mean())
    few = [{} for _ in range(gradients.columns(name))] if share == 1 else scalars(gradients.named[name], theta[finite])
    return [{'infinite': float(f'{share:.6g}'), **part} for part in few] if share else few
