"""Pose search: the network itself says in which pose of the image it is most certain of its answer."""
import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ..geometry.grid import coordinate_dtype, has_values
from ..geometry.reading import read_at
from ..geometry.sampler import Sampling
from ..geometry.shrink import shrink
from ..geometry.sizes import Kind, is_number, plain, sides_of
from .evaluation import as_in_evaluation
from .localization import Regressed
from .poses import Poses, check_poses, matrices_of
from .settings import check_kind, one_of

__all__ = ['Orbit', 'canonicalize']

PRIOR = 1.0  # by how much the largest logit of another pose must exceed that of the identity

Answer = Callable[[Tensor], Tensor]  # from images (N, C, h, w) to logits (N, classes)


class Orbit(nn.Module):
    """In evaluation, images to the pose in which a network is most certain of its answer; in training to the identity.

    The network answers a picture of each of M poses. The pose with the largest logit wins (the certainty of Hendrycks
    et al. 2022, arXiv:1911.11132; on turned birds and digits it finds the pose more often than the logsumexp and the
    largest probability do); to that of the identity a prior is added. After ITS (Schmidt and Stober 2024,
    arXiv:2405.03730) and FoCal (Singhal et al. 2025). Nothing is learned.

    Args:
        poses: Number of rotations, evenly spaced over the full turn, in pixels; or matrices (2, 3) in [-1, 1].
        num_params: Of the transformer's family.
        size: (h, w) of the small pictures. Default: as large as what the network sees.
    """

    kind = 'orbit'

    def __init__(self, poses: Poses, num_params: int, size: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.poses, self.num_params, self.size = poses, num_params, size

    def forward(
            self,
            x: Tensor,
            answer: Answer | None = None,
            sampling: Sampling | None = None,
            look_size: tuple[int, int] | None = None,
    ) -> Regressed:
        """Parameters of zero and, in evaluation, where N images start: (N, 2, 3).

        Args:
            x: (N, C, H, W).
            answer: Of the network, without gradients; None: it looks as in training.
            sampling: How it samples images.
            look_size: (h, w) of what it sees. Default: the image's.
        """
        params = torch.zeros(x.shape[0], self.num_params, device=x.device, dtype=coordinate_dtype(x.dtype))
        if self.training or answer is None:
            return Regressed(params)
        look_size = look_size or (x.shape[2], x.shape[3])
        return Regressed(params, start=most_certain(
            answer, x, self.poses, sampling or Sampling(), look_size, self.size))


def most_certain(
        answer: Answer,
        x: Tensor,
        poses: Poses,
        sampling: Sampling,
        look_size: tuple[int, int],
        size: tuple[int, int] | None = None,
        prior: float = PRIOR,
) -> Tensor:
    """The matrix of the pose of each image x (N, C, H, W) in which the answer is most certain: (N, 2, 3).

    The identity for images whose answers are not finite. One pose is asked after the other, so that it takes no more
    memory than an answer does; in programs all at once, so that the network is in them once.
    """
    x, thetas, n = x.detach(), matrices_of(poses, x), x.shape[0]
    certainty = []
    for some in torch.split(thetas, 1) if has_values(x) else [thetas]:
        pictures = [
            shrink(read_at(x, theta.expand(n, 2, 3), look_size, sampling), size or look_size)
            for theta in torch.split(some, 1)]  # (N, C, h, w) each
        logits = answer(torch.stack(pictures, 1).flatten(0, 1))  # (N * m, classes)
        certainty.append(logits.to(thetas.dtype).amax(-1).reshape(n, len(pictures)))
    found = torch.cat(certainty, 1)  # (N, M)
    eye = torch.eye(2, 3, device=x.device, dtype=thetas.dtype)
    upright = (thetas - eye).abs().amax((1, 2)) < 1e-5
    known = (found.abs() < math.inf).all(1)[:, None, None]
    return torch.where(known, thetas[(found + prior * upright).argmax(1)], eye)


def canonicalize(
        model: nn.Module,
        images: Tensor,
        thetas: Poses | Tensor = 8,
        size: int | Sequence[int] | None = None,
        prior: float = PRIOR,
        padding_mode: str = 'reflection',
) -> tuple[Tensor, Tensor]:
    """Images in the pose in which a classifier is most certain of its answer, and the transforms that made them.

    The model answers a picture of each pose, in evaluation mode and without gradients; the pose with the largest logit
    wins (see :class:`timm_stn.modules.orbit.Orbit` for the sources).

    Args:
        model: From images (N, C, H, W) to logits (N, classes): any timm model.
        images: (N, C, H, W), normalised as the model takes them.
        thetas: Number of rotations, evenly spaced over the full turn; or matrices (M, 2, 3), from output to source
            coordinates, xy in [-1, 1] (``align_corners=False``).
        size: Side(s) of the pictures that are compared. Default: those of the images.
        prior: The identity wins, if it is among the poses, unless another pose's largest logit is larger by more.
        padding_mode: What is outside an image: ``border``, ``zeros``, ``reflection``.

    Returns:
        Images (N, C, H, W), and theta (N, 2, 3).

    Raises:
        ValueError: An argument is none of these.
        TypeError: The images are no tensor, or of integers.
    """
    prior = plain(prior)
    check_kind('padding_mode', padding_mode, one_of('border', 'zeros', 'reflection'))
    check_kind('prior', prior, Kind(is_number, 'a number'))
    sampling = Sampling('bilinear', padding_mode)
    sampling.check(images)
    if images.ndim != 4:
        raise ValueError(f'images must be (N, C, H, W), got shape {tuple(images.shape)}')
    poses = check_poses(thetas.tolist() if isinstance(thetas, Tensor) else thetas, 'thetas')
    look_size = int(images.shape[2]), int(images.shape[3])
    shown = None if size is None else cast('tuple[int, int]', sides_of(size, 2, 'size'))

    def ask(x: Tensor) -> Tensor:
        logits = as_in_evaluation(model, x, lambda: model(x))
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            got = f'shape {tuple(logits.shape)}' if isinstance(logits, Tensor) else f'a {type(logits).__name__}'
            raise ValueError(f'model must be a classifier, which gives logits (N, classes), got {got}')
        return logits

    theta = most_certain(ask, images, poses, sampling, look_size, shown, prior)
    return read_at(images, theta, look_size, sampling), theta
