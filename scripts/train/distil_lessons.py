"""Of distil.py: what teacher and student see of a photograph, what they are compared by, and an epoch of it.

Student and teacher see the same crop, mirrored alike, mixed alike with another photograph's (Beyer et al. 2022,
"Knowledge distillation: a good teacher is patient and consistent", arXiv:2106.05237); each at its own size and with its
own mean and standard deviation. They are compared by their answers, and by the direction of their features: the
student's first 1,280 are to be the teacher's, without a layer between.
"""
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from timm_stn.data.birds import CROP_DRAWS, crops
from timm_stn.data.distortions import as_float
from timm_stn.geometry.sampler import sample
from timm_stn.geometry.shrink import shrink
from timm_stn.geometry.transforms import matrix_grid

TEACHER_SIDE = 224  # pixels that the teacher sees; the photographs have as many
DRAWS = CROP_DRAWS + 1  # uniform numbers of a photograph in an epoch
FEATURES = 1.0  # weight of the features beside the answers
CLIP = 1.0  # largest norm of the gradient

Photos = tuple[Tensor, Tensor]  # (N, 3, 224, 224) of bytes, and their classes (N,)


class Lesson(NamedTuple):
    """How one network is taught."""
    side: int  # pixels that it sees
    batch_size: int
    least: float = 0.35  # the smallest share of a photograph's area that a crop takes
    mixed: bool = False  # whether photographs are mixed
    features: bool = False  # whether features are compared, too
    smoothing: float = 0.0  # of labels, where there is no teacher
    temperature: float = 1.0  # of the answers that are compared


def views(photos: Tensor, u: Tensor, lesson: Lesson) -> tuple[Tensor, Tensor]:
    """Crops of photographs (N, 3, 224, 224), for the student and for the teacher, in [0, 1].

    The student's are enlarged by interpolation, or shrunk from the teacher's with an anti-aliasing filter.

    Args:
        photos: Floating point, or uint8.
        u: Uniform numbers (N, 6): a crop's, and the share of the next photograph in a mixture.
        lesson: Its side, the least area, and whether to mix.
    """
    images, theta = as_float(photos), crops(u[:, :CROP_DRAWS], lesson.least)

    def at(side: int) -> Tensor:
        seen = sample(images, matrix_grid(theta, (side, side)), padding_mode='border')
        return torch.lerp(seen, seen.roll(1, 0), u[:, CROP_DRAWS, None, None, None]) if lesson.mixed else seen

    for_teacher = at(TEACHER_SIDE)
    for_student = at(lesson.side) if lesson.side > TEACHER_SIDE else shrink(for_teacher, (lesson.side, lesson.side))
    return for_student, for_teacher


def normalized(model: nn.Module, images: Tensor) -> Tensor:
    """Pixels in [0, 1] less the mean of the network's configuration, in its standard deviation."""
    mean, std = (constant(tuple(model.pretrained_cfg[name]), images.device) for name in ('mean', 'std'))
    return (images - mean) / std


@lru_cache
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """(C, 1, 1), made once: a copy to a GPU would wait for all that it has to do."""
    return torch.tensor(values, device=device)[:, None, None]


def answers(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Pooled features (N, F) and logits (N, K) of images in [0, 1], as float32."""
    features = model.forward_head(model.forward_features(normalized(model, images)), pre_logits=True)
    return features.float(), model.get_classifier()(features).float()


def divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Kullback-Leibler divergence of the student's answers from the teacher's, of logits (N, K), in nats.

    Both are divided by a temperature, and the divergence is multiplied by its square, so that gradients keep their size
    (Hinton et al. 2015, arXiv:1503.02531).
    """
    student, teacher = ((logits / temperature).log_softmax(1) for logits in (student, teacher))
    return temperature ** 2 * F.kl_div(student, teacher, reduction='batchmean', log_target=True)


def apart(student: Tensor, teacher: Tensor) -> Tensor:
    """One less the cosine between features, of which the student (N, F) may have more than the teacher (N, E)."""
    return 1 - F.cosine_similarity(student[:, :teacher.shape[1]], teacher).mean()


def precision(device: str) -> AbstractContextManager[object]:
    """bfloat16 on a GPU, by autocast."""
    return torch.autocast('cuda', torch.bfloat16) if torch.device(device).type == 'cuda' else nullcontext()


def compared(
        student: nn.Module,
        teacher: nn.Module,
        seen: tuple[Tensor, Tensor],
        lesson: Lesson,
) -> tuple[Tensor, Tensor]:
    """What a lesson is learned by, and the divergence of the answers at a temperature of 1."""
    with torch.no_grad():
        features, logits = answers(teacher, seen[1])
    if not lesson.features:
        own_logits, loss = student(normalized(student, seen[0])).float(), 0.0
    else:
        own_features, own_logits = answers(student, seen[0])
        loss = FEATURES * apart(own_features, features)
    loss = loss + divergence(own_logits, logits, lesson.temperature)
    return loss, divergence(own_logits.detach(), logits)


def batches(count: int, size: int, seed: int, device: str) -> Iterator[tuple[Tensor, Tensor]]:
    """The order of an epoch's photographs and their uniform numbers, batch by batch; `seed` determines both.

    All batches are of one size, and what is left over is left out: other photographs in each epoch.
    """
    generator = torch.Generator().manual_seed(seed)
    order, u = torch.randperm(count, generator=generator), torch.rand(count, DRAWS, generator=generator)
    order, u = order.to(device), u.to(device)
    for step in range(steps_of(count, size)):
        part = slice(step * size, (step + 1) * size)
        yield order[part], u[part]


def steps_of(count: int, size: int) -> int:
    """Batches of an epoch."""
    return max(count // size, 1)


class Pace:
    """Learning rates of an optimizer, step by step: a linear warm-up, then a cosine; layers by their `lr_scale`."""

    def __init__(self, optimizer: torch.optim.Optimizer, lr: float, warmup: int, total: int, begun: int = 0) -> None:
        """
        Args:
            optimizer: Its parameter groups.
            lr: Highest rate.
            warmup: Steps until there.
            total: Steps in all.
            begun: Steps that were done with another optimizer, whose averages are lost: there is a warm-up after them.
        """
        self.optimizer, self.lr, self.warmup, self.total, self.begun = optimizer, lr, warmup, total, begun

    def rate(self, step: int) -> float:
        rise = min((step - self.begun + 1) / (self.warmup + 1), 1)
        return self.lr * rise * 0.5 * (1 + math.cos(math.pi * min(step / self.total, 1)))

    def set(self, step: int) -> float:
        rate = self.rate(step)
        for group in self.optimizer.param_groups:
            group['lr'] = rate * group.get('lr_scale', 1.0)
        return rate


def epoch(
        network: nn.Module,
        teacher: nn.Module | None,
        pace: Pace,
        first_step: int,
        photos: Photos,
        lesson: Lesson,
        seed: int,
        device: str,
) -> dict[str, float]:
    """One pass over the photographs; the mean losses. Without a teacher, the labels teach."""
    network.train()
    torch.manual_seed(seed)
    total, seen = torch.zeros(2, device=device), 0
    for step, (index, u) in enumerate(batches(len(photos[0]), lesson.batch_size, seed, device), first_step):
        rate = pace.set(step)
        for_student, for_teacher = (
            x.contiguous(memory_format=torch.channels_last) for x in views(photos[0][index], u, lesson))
        with precision(device):
            if teacher is None:
                logits = network(normalized(network, for_student)).float()
                loss = distance = F.cross_entropy(logits, photos[1][index], label_smoothing=lesson.smoothing)
            else:
                loss, distance = compared(network, teacher, (for_student, for_teacher), lesson)
        pace.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        pace.optimizer.step()
        total += torch.stack((loss.detach(), distance.detach())) * len(index)
        seen += len(index)
    mean, distance = (total / seen).tolist()
    if not math.isfinite(mean):
        raise RuntimeError(f'The loss is {mean}.')
    return {'lr': rate, 'loss': mean, 'divergence': distance}
