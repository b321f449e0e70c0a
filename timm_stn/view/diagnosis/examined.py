"""What a transformer did with images, as tensors."""
from collections import defaultdict

import torch
from torch import Tensor

from ..geometry_of_looks import looks
from .watch import Passed, Watch

__all__ = ['Examined']


class Examined:
    """What one transformer did with N images, part by part, on the CPU.

    | part | what | shape |
    | --- | --- | --- |
    | points | where a lattice of K points of each of the V views of an image lay | (N, V, K, d) |
    | start, noisy | the same, with nothing regressed, and of noisy images | (N, V, K, d) |
    | scale, angle, shear, center, outside | :class:`timm_stn.view.geometry_of_looks.Looks` of views | (N, V, ...) |
    | start_scale | the scale, with nothing regressed | (N * V,) |
    | finite | whether all parameters were finite | (N,) |
    | contrast | standard deviation of what was seen, in that of the input | (N, V) |
    | right, right_start, right_shuffled | whether answers were right, where targets are known | (N,) |
    | loss, loss_start, loss_shuffled | cross-entropy of answers, where targets are classes | (N,) |
    | class | targets that are known | (N,) |
    | answer, answer_start, answer_shuffled | classes | (N,) |
    | boxes | true boxes | (N, B, 4) |
    """

    def __init__(self, watch: Watch, classifies: bool = True) -> None:
        self.watch, self.classifies = watch, classifies
        self.looks_at_images = False  # its input is the network's
        self.parts: dict[str, list[Tensor]] = defaultdict(list)
        self.calls: dict[str, list[Tensor]] = defaultdict(list)  # parts of a batch, of each call of a forward pass
        self.thetas: list[Tensor] = []  # (n, V, ...) of each batch
        self.views: list[int] = []  # of each image, in each call
        self.gradient: float | None = None  # norm of the loss's to theta, in that to the parameters of the backbone
        self.size: tuple[int, ...] = ()  # of its input, (H, W) or (D, H, W)
        self.seen_size: tuple[int, ...] = ()  # of its output
        self.sum_input = self.sum_seen = torch.zeros(())  # of all images, (C, *size) and (G, C, *seen_size)

    def all(self, part: str) -> Tensor:
        """A part, of all images; empty where it is not known."""
        return torch.cat(self.parts[part]) if self.parts[part] else torch.empty(0)

    def take(self, images: Tensor, thetas: list[Tensor], found: Passed) -> None:
        """What it did with a batch (n, C, H, W), and what it saw, in the calls of one forward pass."""
        n, watch = len(images), self.watch
        pictures = watch.pictures(images, found, thetas)
        self.views = [watch.flat(theta).shape[0] // n for theta in thetas]
        self.thetas.append(watch.views(thetas, n).cpu())
        self.size, self.seen_size = (tuple(picture.shape[2:]) for picture in pictures[-1])
        for theta in thetas:
            for part, values in looks(watch.stn, theta, self.size)._asdict().items():
                if values is not None:
                    self.calls[part].append(values.flatten(0, 1).reshape(n, -1, *values.shape[2:]).cpu())
        self.looks_at_images = all(p.shape == images.shape and torch.equal(p, images) for p, _ in pictures)
        for before, seen in pictures:
            own = _contrast(before).clamp_min(1e-12).repeat_interleave(len(seen) // len(before))
            self.calls['contrast'].append((_contrast(seen) / own).reshape(n, -1).cpu())
        for part, values in self.calls.items():
            self.parts[part].append(torch.cat(values, 1))
        self.calls.clear()
        self.parts['points'].append(watch.points(thetas, n).cpu())
        finite = torch.cat([params.reshape(n, -1) for params in found.params], 1).isfinite().all(1)
        self.parts['finite'].append(finite.cpu())
        before, seen = pictures[-1]
        glimpses = seen.reshape(len(before), -1, *seen.shape[1:])  # (n * rows, G, C, h, w)
        self.sum_input = _added(self.sum_input, before.float().mean(0).cpu() * n)
        self.sum_seen = _added(self.sum_seen, glimpses.float().mean(0).cpu() * n)


def _contrast(images: Tensor) -> Tensor:
    """Largest standard deviation of a channel of each image (M, C, *size): (M,)."""
    return images.float().flatten(2).std(2, unbiased=False).amax(1)


def _added(total: Tensor, batch: Tensor) -> Tensor:
    """Their sum; images of another size than the first ones are left out."""
    return batch if not total.ndim else total + batch if total.shape == batch.shape else total
