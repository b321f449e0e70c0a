"""The training step of train_task.py as a CUDA graph: for such small networks, launch time dominates."""
import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from timm.optim import get_optimizer_class
from timm.utils import ModelEmaV3
from torch import Tensor, nn

EAGER = 3  # steps before the graph, which also make what is made only once: state of the optimizer, constants, handles

Step = Callable[[Any, tuple[Tensor, Tensor], Tensor, Tensor], None]  # of (run, digits, index, uniform numbers)


@contextmanager
def work_on(device: str) -> Iterator[None]:
    """Run all work of a CUDA device on one stream that, unlike the default stream, can be captured."""
    if torch.device(device).type != 'cuda':
        yield
        return
    torch.backends.cudnn.benchmark = True  # shapes are the same in all steps
    with torch.cuda.device(device), torch.cuda.stream(torch.cuda.Stream()):
        yield


def capture_arguments(opt: str, device: str) -> dict[str, bool]:
    """Arguments that make a timm optimizer's step capturable in a CUDA graph; empty if it cannot be."""
    if torch.device(device).type != 'cuda':
        return {}
    try:
        known = set(inspect.signature(get_optimizer_class(opt.lower())).parameters)
    except ValueError:  # lookahead, which has no class of its own
        known = set()
    if 'capturable' not in known:
        print(f'A CUDA graph cannot hold steps of {opt}: operations are launched one after another, which is slower.')
        return {}
    warnings.filterwarnings('ignore', 'This instance was constructed with capturable=True')  # in steps before the graph
    return {name: True for name in ('capturable', 'fused') if name in known}


class CapturedStep:
    """A training step as one launch instead of hundreds.

    The first batch sets the size of all that are trained on so; others, as the last of an epoch may be, are trained on
    operation by operation, as are the first `EAGER`. What changes from step to step is in tensors that are filled
    before: digits, uniform numbers, learning rates (by the scheduler), the weight of the model in the average.
    """

    def __init__(self, step: Step, eager: Step) -> None:
        """
        Args:
            step: What is captured; no number in Python that it depends on may change.
            eager: The same, and then the steps of scheduler and average.
        """
        self.step, self.eager = step, eager
        self.before = 0  # full batches before the graph
        self.graph: torch.cuda.CUDAGraph | None = None
        self.index = self.u = self.weight = torch.empty(0)

    def __call__(self, run: Any, digits: tuple[Tensor, Tensor], index: Tensor, u: Tensor) -> None:
        if self.before == 0:
            self.index, self.u, self.weight = index.clone(), u.clone(), torch.zeros_like(run.total)
        full = len(index) == len(self.index)
        if not full or self.before < EAGER:
            self.before += full
            self.eager(run, digits, index, u)
            return
        self.index.copy_(index)
        self.u.copy_(u)
        if run.ema:
            self.weight.fill_(1 - run.ema.get_decay(run.scheduler.last_epoch + 1))
        if self.graph is None:
            self.graph = self.capture(run, digits)
        self.graph.replay()
        run.scheduler.step()

    def capture(self, run: Any, digits: tuple[Tensor, Tensor]) -> torch.cuda.CUDAGraph:
        """Capture a step without executing it."""
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
                self.step(run, digits, self.index, self.u)
                if run.ema:
                    average(run.ema, run.model, self.weight)
        except RuntimeError as error:
            raise RuntimeError('A CUDA graph cannot hold this step; train with --no-cuda-graph.') from error
        return graph


@torch.no_grad()
def average(ema: ModelEmaV3, model: nn.Module, weight: Tensor) -> None:
    """`ema.update` with the decay in a tensor."""
    for old, new in zip(ema.module.state_dict().values(), model.state_dict().values(), strict=True):
        if old.is_floating_point():
            old.lerp_(new, weight)
        else:
            old.copy_(new)
