"""Where a trained network looks, beside the true boxes."""
from collections.abc import Iterable

import torch
from torch import Tensor, nn


@torch.inference_mode()
def where_it_looks(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Percentages over all true boxes, of the glimpse of each image that meets a box best.

    Args:
        model: A twin with a transformer of its input.
        batches: Images (N, C, H, W) as the network takes them, and true boxes, (N, 4) or (N, B, 4): left, top,
            right, bottom, in [-1, 1] from edge to edge.

    Returns:
        `iou`, the mean overlap of the box around the glimpse's outline with the true one; `found`, how often it is
        above one half; `inside`, how often the true box's centre lies within the glimpse's box.
    """
    model.eval()
    overlaps, inside = [], []
    for images, truth in batches:
        boxes = boxes_of_glimpses(model, images).cpu()[:, None]  # (N, 1, G, 4)
        truth = truth.reshape(len(images), -1, 1, 4)
        center = (truth[..., :2] + truth[..., 2:]) / 2
        within = ((boxes[..., :2] <= center) & (center <= boxes[..., 2:])).all(3)  # (N, B, G)
        overlaps.append(iou(boxes, truth).amax(2).flatten())
        inside.append(within.any(2).flatten())
    overlap, center_seen = torch.cat(overlaps), torch.cat(inside)
    return {'iou': 100 * float(overlap.mean()), 'found': 100 * float((overlap > 0.5).double().mean()),
            'inside': 100 * float(center_seen.double().mean())}


def boxes_of_glimpses(model: nn.Module, images: Tensor) -> Tensor:
    """Boxes (N, G, 4) around what glimpses show of images: left, top, right, bottom, in [-1, 1]."""
    stn, theta = model.stn, model.look(images)[1]
    along = torch.linspace(-1, 1, 9, device=theta.device)
    outline = torch.cat([torch.stack([torch.full_like(along, side), along], 1) for side in (-1, 1)])
    outline = torch.cat([outline, outline.flip(1)])  # of what is seen, which may be bent
    points = stn.pose_of(theta).map_points(outline)
    points = points.reshape(len(images), -1, *points.shape[-2:])
    return torch.cat([points.amin(2), points.amax(2)], 2)


def iou(one: Tensor, other: Tensor) -> Tensor:
    """Overlap (intersection over union) of boxes (..., 4)."""
    low, high = torch.maximum(one[..., :2], other[..., :2]), torch.minimum(one[..., 2:], other[..., 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    area = [(box[..., 2:] - box[..., :2]).prod(-1) for box in (one, other)]
    return shared / (area[0] + area[1] - shared).clamp(min=1e-12)
