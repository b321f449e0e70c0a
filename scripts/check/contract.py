"""Checks that must hold for every architecture of timm, shared by the tests and `sweep.py`."""
import copy
from collections.abc import Iterable, Mapping

import timm
import torch
from timm.models import get_pretrained_cfg
from torch import Tensor, nn

from timm_stn.geometry.layout import Layout
from timm_stn.network.attach import StageTransformer, detach
from timm_stn.network.stages import feature_infos, stage_layouts

RELATIVE = 1e-4  # of the logits' range: what identity logits may differ by
SMALL = 2  # on maps of 2 x 2 every sample of the identity lies on the border, where clamping leaves theta no gradient

Holding = dict[int, tuple[str, Layout]]


def input_size(arch: str, side: int | None = None) -> tuple[int, int, int]:
    """(C, H, W) of an architecture's images, with another side if given."""
    channels, height, width = get_pretrained_cfg(arch).input_size
    return (channels, side, side) if side else (channels, height, width)


def make(name: str, size: tuple[int, int, int], **kwargs) -> nn.Module:
    """A network (plain or twin) for images of a given size, in eval mode."""
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained_cfg_overlay=dict(input_size=size), **kwargs)
    made_for = getattr(model, '_traits', {}).get('img_size')
    if made_for and made_for[0] * size[2] != made_for[1] * size[1]:  # of tokens, which tell no aspect ratio
        return make(name, size, img_size=size[1:], **kwargs)
    return model.eval()


def images(size: tuple[int, int, int]) -> Tensor:
    return torch.rand(2, *size, generator=torch.Generator().manual_seed(1))


def first(out) -> Tensor:
    """Logits as one tensor, also for networks with several outputs."""
    while not isinstance(out, Tensor):
        out = next(iter(out.values())) if isinstance(out, Mapping) else out[0]
    return out


def survey(plain: nn.Module, size: tuple[int, int, int]) -> tuple[Holding, dict[int, str]]:
    """Stages that can have transformers, all at once, and the reasons for the others."""
    everything = list(range(len(feature_infos(plain))))
    try:
        return stage_layouts(plain, everything, size), {}
    except ValueError:
        pass
    holding, refused = {}, {}
    for stage in everything:
        try:
            holding = stage_layouts(plain, [*holding, stage], size)
        except ValueError as error:
            refused[stage] = str(error)
    return holding, refused


@torch.no_grad()
@torch.no_grad()
def wake(model: nn.Module, x: Tensor) -> None:
    """Make the logits tell of the image x, and of little else.

    Some networks start with zero logits, which would tell nothing and let no gradient through; in others, with random
    weights, the classifier's bias drowns what comes of the image, or what is rounded grows to half of the logits'
    range, unless batch norms take the statistics of what they are shown.
    """
    classifier = getattr(model, 'get_classifier', nn.Identity)()
    modules = classifier if isinstance(classifier, (tuple, list)) else [classifier]
    for name, p in (found for m in modules if isinstance(m, nn.Module) for found in m.named_parameters()):
        if name.endswith('bias'):
            nn.init.zeros_(p)
        elif p.abs().max() == 0:
            nn.init.normal_(p, std=0.02)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum, norm.training = 1.0, True
    if norms:
        model(x)
    for norm in norms:
        norm.training = False


def check_keys(plain_keys: Iterable[str], twin: nn.Module) -> None:
    """Check that keys are those of the backbone under ``backbone.``, and those of transformers."""
    kept = {k for k in twin.state_dict() if 'stn.' not in k}
    assert kept == {'backbone.' + k for k in plain_keys}, sorted(kept ^ {'backbone.' + k for k in plain_keys})[:4]


def check_loads(plain: nn.Module, twin: nn.Module) -> None:
    """Check that a plain checkpoint loads, strictly."""
    result = twin.load_state_dict(plain.state_dict())
    assert not result.missing_keys and not result.unexpected_keys


@torch.no_grad()
def identity_error(expected: Tensor, twin: nn.Module, x: Tensor) -> float:
    """The change of the logits by new transformers, as a share of the logits' range.

    At most ``RELATIVE``; in float64, where with float32 it is more.
    """
    error = _difference(expected, first(twin(x)))
    if not error <= RELATIVE:
        twin.double()
        try:
            error = _difference(first(_plain(twin)(x.double())), first(twin(x.double())))
        finally:
            twin.float()
        assert error <= RELATIVE, f'identity logits differ by {error:.1e} of their range, in float64'
    return error


def _difference(expected: Tensor, logits: Tensor) -> float:
    span = float(expected.max() - expected.min())
    assert expected.isfinite().all() and span > 0, 'the plain logits are not finite, or all the same'
    return float((logits - expected).abs().max()) / span


def _plain(twin: nn.Module) -> nn.Module:
    """A copy of the backbone without transformers."""
    backbone = copy.deepcopy(twin.backbone)
    for name in [n for n, m in backbone.named_modules() if isinstance(m, StageTransformer)]:
        detach(backbone, name)
    return backbone


@torch.no_grad()
def response(expected: Tensor, twin: nn.Module, x: Tensor) -> float:
    """The change of the logits by transformers that look elsewhere, as a share of their range.

    If it is not well above the change at the identity, the check of the identity says little."""
    biases = [t.localization.regression.bias for t in twin.spatial_transformers().values()]
    for bias in biases:
        bias.fill_(0.2)
    moved = first(twin(x))
    for bias in biases:
        bias.zero_()
    return float((moved - expected).abs().max() / (expected.max() - expected.min()))


def check_gradients(twin: nn.Module, x: Tensor) -> list[int | str]:
    """Check that all parameters of transformers get finite gradients, and that the last layers' are not zero at step 0.

    Only the last block of a class-token network may leave its transformer without: the class token passes by. Returns
    the stages where that is so.
    """
    transformers = twin.spatial_transformers()
    own = {id(p) for t in transformers.values() for p in t.parameters()}
    for p in twin.parameters():
        p.requires_grad_(id(p) in own)
    out = first(twin.train()(x))
    (out / out.detach().abs().max()).square().mean().backward()
    silent = []
    for stage, transformer in transformers.items():
        for name, p in transformer.named_parameters():
            assert p.grad is not None and p.grad.isfinite().all(), f'stage {stage!r}: {name} has no finite gradient'
        moves = transformer.localization.regression.weight.grad.abs().max() > 0
        if not moves and (stage == 'input' or min(transformer.layout.size) > SMALL):
            silent.append(stage)
    last = next((s for s in reversed(transformers) if s != 'input'), None)
    assert silent in ([], [last]), f'no gradient for the transformers at {silent}'
    tokens = getattr(twin.backbone, 'num_prefix_tokens', 0) or hasattr(twin.backbone, 'cls_token')
    assert not silent or tokens, f'no gradient for the transformer at {silent}, in a network without class token'
    return silent
