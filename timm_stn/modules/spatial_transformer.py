"""The module of the paper: localization network, transform and sampler in one (section 3, figure 2)."""
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..geometry.functional import unwarp
from ..geometry.grid import coordinate_dtype, has_values
from ..geometry.sampler import check_options, sample_finite
from ..geometry.sizes import are_sides, is_count
from ..geometry.transforms import Transform, compose_matrices, get_transform, guard, map_points_matrix, matrix_grid
from ..geometry.transforms.compose import chain
from .glimpses import keep_inside, tile_offsets
from .gradients import COUNT, attach_penalty, hold, lattice_of_glimpse, placement_penalty
from .localization import Localization
from .scripting import trace

__all__ = ['SpatialTransformer']

Localize = Callable[[Tensor], Tensor | tuple[Tensor, Tensor]]  # parameters, or also the bases of the glimpses


class SpatialTransformer(nn.Module):
    """Looks at x, regresses where to look, and returns what it sees there.

    theta maps output to source coordinates, xy in [-1, 1], half-pixel centres (``align_corners=False``). For families
    with a matrix it is absolute, (N, 2, 3) or (N, 3, 3) ((N, 3, 4) in 3-D), as ``F.affine_grid`` takes it; for the
    others it is (N, P) increments of ``theta_transform``. With G > 1 glimpses it has a dimension G after N.

    What cannot be looked at does no harm: parameters that are not finite (of an image with a NaN in it, say) are taken
    for zero, and that sample is seen as if nothing had been regressed; an empty batch gives an empty result.

    Args:
        in_chans: Channels C of the input.
        input_size: (H, W), or (D, H, W) for volumes, that the input usually has; other sizes work, too.
        transform: Family of theta: ``translation``, ``rotation``, ``attention``, ``scale_translation``, ``similarity``,
            ``affine``, ``projective``, ``tps``, ``diffeomorphic``, ``affine3d``, or a composition ``a+b``.
        localization: ``conv``, ``fc``, ``linear``, ``timm:<arch>``, or a module that maps the input to (N, G * P).
        localization_size: Side(s) that the localization network sees.
        size: (H, W) of the output. Default: the input's.
        glimpses: Number G of transformers in parallel; they share the localization network (paper, section 4.3).
        scale: Base scale of each glimpse: theta = base o T(params), and zero parameters give the base.
        bound: Keep glimpses inside the image: centres are bounded smoothly. ``'auto'``: where ``scale`` is below 1.
        iterations: K: theta is refined K times; pixels of the output are sampled once.
        mode: ``bilinear``, ``bicubic``, ``nearest``.
        padding_mode: ``border``, ``zeros``, ``reflection``, ``fill``.
        fill: Value(s) outside the image, one or C, for ``padding_mode='fill'``.
        antialias: Prefilter where the transform minifies.
        lr_scale: Learning rate of theta relative to the rest; see :class:`timm_stn.modules.regression.ThetaRegression`.
        penalty: Keeps glimpses inside the image and from collapsing, in training mode: adds to theta's gradient that of
            a penalty, over a batch at most this many times its usual norm, which the buffer ``usual_gradient`` holds
            (see :func:`timm_stn.modules.gradients.attach_penalty`).
        freeze_steps: In the first so many backward passes in training mode, parameters of the localization network get
            gradients of zero. They are counted in the buffer ``backward_passes``.
        **localization_settings: Passed to the localization network (``channels``, ``hidden``, ``depth``).

    Shape:
        (N, C, H, W) -> (N, C, *size), or (N, G, C, *size) for G > 1 glimpses.

    Raises:
        ValueError: An argument is not one of these; the message names it.
        TypeError: The localization network has no such setting.
    """

    base: Tensor
    backward_passes: Tensor
    usual_gradient: Tensor
    recorder: Callable[[Tensor], object] | None = None  # gets every theta, with its graph
    witness: Callable[['SpatialTransformer', Tensor], object] | None = None  # of all transformers; gets every theta
    stage: int | str = 'input'  # as in ``stn_stages`` of the network around it
    rows: int = 1  # of its batch, for each image

    def __init__(
            self,
            in_chans: int,
            input_size: Sequence[int],
            transform: str = 'affine',
            localization: str | nn.Module = 'conv',
            localization_size: int | Sequence[int] | None = None,
            size: int | Sequence[int] | None = None,
            glimpses: int = 1,
            scale: float = 1.0,
            bound: bool | str = 'auto',
            iterations: int = 1,
            mode: str = 'bilinear',
            padding_mode: str = 'border',
            fill: float | Sequence[float] | None = None,
            antialias: bool = False,
            lr_scale: float = 10.0,
            penalty: float = 0.0,
            freeze_steps: int = 0,
            device: Any = None,
            dtype: Any = None,
            **localization_settings: Any,
    ) -> None:
        super().__init__()
        self.transform = get_transform(transform)
        ndim = self.transform.ndim
        accepted = f'{ndim} positive integers for transform {self.transform.name!r}'
        _check(are_sides(input_size, ndim), 'input_size', input_size, accepted)
        _check(is_count(glimpses), 'glimpses', glimpses, 'a positive integer')
        _check(is_count(iterations), 'iterations', iterations, 'a positive integer')
        _check(isinstance(scale, (int, float)) and 0 < scale < math.inf, 'scale', scale, 'a positive number')
        _check(bound in (True, False, 'auto'), 'bound', bound, "True, False or 'auto'")
        _check(isinstance(penalty, (int, float)) and 0 <= penalty < math.inf, 'penalty', penalty, 'a number, 0 or more')
        _check(freeze_steps == 0 or is_count(freeze_steps), 'freeze_steps', freeze_steps, 'an integer, 0 or more')
        check_options(torch.empty(1, in_chans, *[1] * ndim, device='meta'), mode, padding_mode, fill, antialias)
        self.in_chans, self.input_size = in_chans, tuple(input_size)
        linear = self.transform.linear
        if bound is True and not linear:
            raise ValueError(f'bound=True needs a transform with a matrix, got transform={self.transform.name!r}.')
        self.glimpses, self.scale, self.iterations = glimpses, float(scale), iterations
        self.bound = linear and (scale < 1 if bound == 'auto' else bool(bound))
        self.size = _sides(size, ndim)
        self.penalty, self.freeze_steps = float(penalty), freeze_steps
        self.sampling: dict[str, Any] = dict(mode=mode, padding_mode=padding_mode, fill=fill, antialias=antialias)
        if isinstance(localization, nn.Module):
            if localization_settings:
                raise TypeError(f'a module as localization takes no settings, got {sorted(localization_settings)}.')
            self.localization = localization
        else:
            self.localization = Localization(
                localization, in_chans, tuple(input_size), self.glimpses * self.transform.num_params,
                size=localization_size, lr_scale=lr_scale, device=device, dtype=dtype, **localization_settings,
            )
        self.register_buffer('base', self._make_base(device), persistent=False)
        if freeze_steps:
            self.register_buffer(COUNT, torch.zeros((), dtype=torch.long, device=device))
        if penalty:
            usual = torch.zeros((), dtype=torch.float32, device=device)
            self.register_buffer('usual_gradient', usual, persistent=False)
        self._chains = self._make_chains()
        self.last_theta: Tensor | None = None

    def _make_base(self, device: Any = None) -> Tensor:
        """(G, d, d + 1) in float32, whatever the default: scale and tile offset of each glimpse."""
        ndim = self.transform.ndim
        base = torch.zeros(self.glimpses, ndim, ndim + 1, dtype=torch.float32, device=device)
        base[:, range(ndim), range(ndim)] = self.scale
        base[:, :2, -1] = self.tiles
        return base

    def _make_chains(self) -> dict[int, Transform]:
        """By number of parameters: what theta holds after each iteration where there is no matrix, base first."""
        if self.transform.linear:
            return {self.transform.num_params: self.transform}
        base = [get_transform('scale_translation')] if self.glimpses > 1 or self.scale != 1 else []
        chains = [chain([*base, *[self.transform] * k]) for k in range(1, self.iterations + 1)]
        return {c.num_params: c for c in chains}

    def _apply(self, fn: Callable, recurse: bool = True) -> 'SpatialTransformer':
        """Moves and casts as any module, but for the base and the usual gradient: float32 whatever the dtype."""
        usual = self._buffers.get('usual_gradient')
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.base = self._make_base(self.base.device)
        if usual is not None:
            self.usual_gradient = torch.zeros_like(self.base[0, 0, 0]) if usual.is_meta else usual.to(self.base.device)
        return self

    def init_non_persistent_buffers(self) -> None:
        """Restore the base after the module left the meta device, and forget how large gradients were."""
        with torch.no_grad():
            self.base.copy_(self._make_base(self.base.device))
            if self.penalty:
                self.usual_gradient.zero_()

    def reset_parameters(self) -> None:
        """Start counting backward passes anew; the localization network has its own."""
        if self.freeze_steps:
            self.backward_passes.zero_()

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        """Checkpoints with and without a count of backward passes load, whether or not there is one here."""
        if self.freeze_steps:
            state_dict.setdefault(prefix + COUNT, self.backward_passes)
        else:
            state_dict.pop(prefix + COUNT, None)
        super()._load_from_state_dict(state_dict, prefix, *args)

    @property
    def tiles(self) -> Tensor:
        """(G, 2): centres of the glimpses over the image, before anything is looked at."""
        return tile_offsets(self.glimpses, self.scale, self.bound)

    @property
    def theta_transform(self) -> Transform:
        """The transform whose increments theta of shape (N, P) holds; ``transform`` itself for absolute matrices."""
        return list(self._chains.values())[-1]

    def regress(self, x: Tensor, localize: Localize | None = None) -> Tensor:
        """Where to look in x: theta, (N, ...) or (N, G, ...), differentiable."""
        return self._unflatten(self._refine(x, self.localization if localize is None else localize))

    def look(self, x: Tensor, localize: Localize | None = None) -> tuple[Tensor, Tensor]:
        """What is seen, (N, C, *size) or (N, G, C, *size), and the theta that made it.

        Args:
            x: (N, C, H, W) or (N, C, D, H, W).
            localize: From x to the parameters (N, G * P). Default: the localization network.

        Raises:
            ValueError: x is no such batch, but patches or tokens of one, say.
        """
        if not isinstance(x, Tensor) or x.ndim != self.transform.ndim + 2:
            expected = '(N, C, H, W)' if self.transform.ndim == 2 else '(N, C, D, H, W)'
            got = f'shape {tuple(x.shape)}' if isinstance(x, Tensor) else f'a {type(x).__name__}'
            raise ValueError(f'a spatial transformer looks at {expected}, got {got}')
        theta = self._refine(x, self.localization if localize is None else localize)
        return self._sample(x, theta), self._unflatten(theta)

    def forward(self, x: Tensor) -> Tensor:
        seen, theta = self.look(x)
        self.remember(theta)
        return seen

    def remember(self, theta: Tensor) -> None:
        """Keep theta for pictures and logs in ``last_theta``: detached, only in eager mode outside ``torch.func``."""
        if has_values(theta):
            self.last_theta = theta.detach()
            if self.recorder is not None:
                self.recorder(theta)
            if self.witness is not None:
                self.witness(self, self.last_theta)

    def placement_penalty(self, theta: Tensor) -> Tensor:
        """How far theta, of ``regress``, is outside the image or collapsed: (N,), differentiable, 0 on the tiles."""
        return self._placement_penalty(theta.flatten(0, 1) if self.glimpses > 1 else theta)

    def _placement_penalty(self, theta: Tensor) -> Tensor:
        lattice = lattice_of_glimpse(self.transform.ndim, theta)
        start = map_points_matrix(self.base.to(theta.dtype), lattice)
        points = self.map_points(theta, lattice)
        return placement_penalty(points.reshape(len(theta) // self.glimpses, *start.shape), start)

    def unwarp(self, features: Tensor, theta: Tensor, size: Sequence[int], **sampling: Any) -> Tensor:
        """Bring (N, C, h, w) seen through theta (without glimpse dimension) back to the input's frame of ``size``."""
        return unwarp(features, theta, size, transform=self.theta_transform, **sampling)

    def map_points(self, theta: Tensor, points: Tensor) -> Tensor:
        """Output points (N, ..., 2), xy in [-1, 1], to the input's coordinates."""
        if self.transform.linear:
            return map_points_matrix(theta, points)
        return self.theta_transform.map_points(theta, points)

    def _refine(self, x: Tensor, localize: Localize) -> Tensor:
        """theta, (N * G, ...); each iteration after the first looks through the theta so far."""
        n = x.shape[0]
        params, bases = _with_bases(localize(x))
        params = self._held(params).reshape(n * self.glimpses, self.transform.num_params)
        base = self.base.to(coordinate_dtype(params.dtype)).repeat(n, 1, 1)
        if bases is not None:
            found = bases.flatten(0, 1).to(base.dtype)
            base = torch.where((found == found).flatten(1).all(1)[:, None, None], found, base)  # NaN is not itself
        theta = self._compose(self._start(base), params)
        for _ in range(self.iterations - 1):
            params = self._look_again(x, self._keep_inside(theta, base), localize)
            theta = self._compose(theta, params)
        return self._penalised(self._keep_inside(theta, base))

    def _held(self, params: Tensor) -> Tensor:
        if not (self.freeze_steps and self.training and params.requires_grad):
            return params
        return hold(params, self.backward_passes, self.freeze_steps)

    def _penalised(self, theta: Tensor) -> Tensor:
        if not (self.penalty and self.training and theta.requires_grad):
            return theta
        return attach_penalty(theta, self._placement_penalty, self.penalty, self.usual_gradient, self.glimpses)

    def _start(self, base: Tensor) -> Tensor:
        """The base as theta: a matrix, or for families without one its parameters, none if it is the identity."""
        if self.transform.linear:
            return base
        if self.theta_transform.num_params == self.iterations * self.transform.num_params:
            return base[:, 0, :0]
        return torch.cat([base[:, [0, 1], [0, 1]] - 1, base[:, :, 2]], 1)

    def _compose(self, theta: Tensor, params: Tensor) -> Tensor:
        """theta o T(params); for families without a matrix all parameters so far, side by side."""
        if self.transform.linear:
            return compose_matrices(theta, self.transform.matrix(params))  # type: ignore[attr-defined]
        params = guard(params)
        return torch.cat([theta, params], 1) if theta.shape[1] else params

    def _keep_inside(self, theta: Tensor, base: Tensor) -> Tensor:
        return keep_inside(theta, base) if self.bound else theta

    def _look_again(self, x: Tensor, theta: Tensor, localize: Localize) -> Tensor:
        """Each glimpse is looked at by itself, and moved by its own part of what that gives."""
        seen = self._sample(x, theta).reshape(-1, x.shape[1], *(self.size or x.shape[2:]))
        params = self._held(_with_bases(localize(seen))[0])
        params = params.reshape(-1, self.glimpses, self.glimpses, self.transform.num_params)
        return torch.diagonal(params, dim1=1, dim2=2).transpose(1, 2).flatten(0, 1)

    def _sample(self, x: Tensor, theta: Tensor) -> Tensor:
        """One pass over x for all glimpses, whose grids lie side by side in the first spatial dimension."""
        size = self.size or tuple(x.shape[2:])
        linear = self.transform.linear
        grid = matrix_grid(theta, size) if linear else self._chains[int(theta.shape[1])].grid(theta, size)
        if self.glimpses == 1:
            return sample_finite(x, grid, **self.sampling)
        grid = grid.reshape(x.shape[0], self.glimpses * size[0], *size[1:], grid.shape[-1])
        seen = sample_finite(x, grid, **self.sampling)
        return seen.reshape(*x.shape[:2], self.glimpses, *size).transpose(1, 2)

    def _unflatten(self, theta: Tensor) -> Tensor:
        return theta if self.glimpses == 1 else theta.reshape(-1, self.glimpses, *theta.shape[1:])

    def __prepare_scriptable__(self) -> Any:
        """What torch.jit.script takes in its place: a trace, which holds for batches and sizes of any kind."""
        return trace(self, self._example_shape())

    def _example_shape(self) -> tuple[int, ...]:
        """Of an image that is neither of the usual size nor of the localization network's: nothing is left out."""
        taken = getattr(self.localization, 'size', None)
        larger = [tuple(side + more for side in self.input_size) for more in (1, 2)]
        return (self.in_chans, *(larger[0] if larger[0] != taken else larger[1]))

    def extra_repr(self) -> str:
        settings = dict(size=self.size, glimpses=self.glimpses, scale=self.scale, bound=self.bound)
        return ', '.join([f'transform={self.transform.name}', *(f'{k}={v}' for k, v in settings.items())])


def _with_bases(found: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor | None]:
    """What a localization network gives: parameters, and where it says so, the bases (N, G, d, d + 1) of glimpses."""
    return (found, None) if isinstance(found, Tensor) else found


def _check(ok: Any, name: str, value: Any, accepted: str) -> None:
    if not ok:
        raise ValueError(f'{name} must be {accepted}, got {value!r}.')


def _sides(size: Any, ndim: int) -> tuple[int, ...] | None:
    if size is None:
        return None
    sides = (size,) * ndim if isinstance(size, int) else size
    _check(are_sides(sides, ndim), 'size', size, f'{ndim} positive integers, or one')
    return tuple(sides)
