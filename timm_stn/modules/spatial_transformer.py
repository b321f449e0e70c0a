"""The module of the paper: localization network, transform and sampler in one (section 3, figure 2)."""
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ..geometry.functional import unwarp
from ..geometry.grid import coordinate_dtype, has_values
from ..geometry.pose import Pose, as_scale_translation, family_of_theta, pose_at, pose_of
from ..geometry.reading import read_at
from ..geometry.sampler import Sampling
from ..geometry.sizes import Kind, are_sides, as_sides, is_number, plain, sides_of
from ..geometry.symbolic import Recorded, recorded_method
from ..geometry.transforms import Transform, get_transform, map_points_matrix
from .glimpses import jittered, keep_inside, squares, tile_offsets, within_reach
from .gradients import COUNT, attach_penalty, hold, lattice_of_glimpse, placement_penalty
from .localization import Localization, Regressed
from .record import RECORD, Doubts, adapt, describe, explain, record, settings_of
from .saliency import left_by_others, places
from .scripting import ScriptableTransformer
from .settings import POSITIVE_INTEGER, TransformerSettings, check_jitter, check_kind, check_settings

__all__ = ['SpatialTransformer']

Localize = Callable[[Tensor], Any]  # from images to parameters (N, G * P), or to `Regressed`


class SpatialTransformer(Recorded):
    """Looks at x, regresses where to look, and returns what it sees there.

    theta maps output to source coordinates, xy in [-1, 1], half-pixel centres (``align_corners=False``). For families
    with a matrix it is absolute, (N, 2, 3) or (N, 3, 3) ((N, 3, 4) in 3-D), as ``F.affine_grid`` takes it; for the
    others it is (N, P) increments of ``theta_transform``. With G > 1 glimpses it has a dimension G after N.

    What cannot be looked at does no harm: parameters that are not finite (of an image with a NaN in it, say) are taken
    for zero, and that sample is seen as if nothing had been regressed; an empty batch gives an empty result.

    Args:
        in_chans: Channels C of the input.
        input_size: (H, W), or (D, H, W) for volumes, or one for all sides, that the input usually has; other sizes
            work, too.
        transform: Family of theta, one of :func:`timm_stn.geometry.transforms.transform_names` (``affine``, ``tps``,
            ...), or a composition ``a+b``.
        localization: ``conv``, ``fc``, ``linear``, ``moments``, ``timm:<arch>``, or a module that maps the input to
            (N, G * P).
        localization_size: Side(s) that the localization network sees.
        size: (H, W) of the output. Default: the input's.
        glimpses: Number G of transformers in parallel; they share the localization network (paper, section 4.3).
        scale: Base scale of each glimpse: theta = base o T(params), and zero parameters give the base.
        bound: Keep glimpses inside the image: centres are bounded smoothly. ``'auto'``: where ``scale`` is below 1.
        iterations: K: theta is refined K times; pixels of the output are sampled once.
        mode: ``bilinear``, ``bicubic``, ``nearest``.
        padding_mode: ``border``, ``zeros``, ``reflection``, ``fill``.
        fill: Value(s) outside the image, one or C, for ``padding_mode='fill'``.
        antialias: Average over the footprint of each output pixel where the transform minifies.
        lr_scale: Learning rate of theta relative to the rest; see :class:`timm_stn.modules.regression.ThetaRegression`.
        penalty: Keeps glimpses inside the image and from collapsing, in training mode: adds to theta's gradient that of
            a penalty, over a batch at most this many times its usual norm, which the buffer ``usual_gradient`` holds
            (see :func:`timm_stn.modules.gradients.attach_penalty`).
        jitter: In training mode, glimpses start at random places near where they would: moved along each axis by at
            most this share of their half-width, and enlarged or shrunk by a factor of at most 1 plus this share.
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
    argument: str = ''  # what its settings' names begin with, as arguments of the network around it
    of_network: Mapping[str, object] = MappingProxyType({})  # what that knows of them
    recorder: Callable[[Tensor], object] | None = None  # gets every theta, with its graph
    witness: Callable[['SpatialTransformer', Tensor], object] | None = None  # of all transformers; gets every theta
    editor: Callable[[Tensor], Tensor] | None = None  # from theta (N * G, ...) to what takes its place
    stage: int | str = 'input'  # as in ``stn_stages`` of the network around it
    rows: int = 1  # of its batch, for each image
    doubts: Doubts | None = None  # while weights are loaded

    def __init__(
            self,
            in_chans: int,
            input_size: int | Sequence[int],
            transform: str = TransformerSettings.transform,
            localization: str | nn.Module = 'conv',
            localization_size: int | Sequence[int] | None = TransformerSettings.localization_size,
            size: int | Sequence[int] | None = None,
            glimpses: int = 1,
            scale: float = 1.0,
            bound: bool | str = TransformerSettings.bound,
            iterations: int = TransformerSettings.iterations,
            mode: str = TransformerSettings.mode,
            padding_mode: str = TransformerSettings.padding_mode,
            fill: float | Sequence[float] | None = TransformerSettings.fill,
            antialias: bool = TransformerSettings.antialias,
            lr_scale: float = TransformerSettings.lr_scale,
            penalty: float = TransformerSettings.penalty,
            jitter: float = TransformerSettings.jitter,
            freeze_steps: int = TransformerSettings.freeze_steps,
            device: Any = None,
            dtype: Any = None,
            **localization_settings: Any,
    ) -> None:
        super().__init__()
        self.transform = get_transform(transform)
        ndim = self.transform.ndim
        in_chans, input_size, glimpses, scale, bound, iterations, fill, antialias = map(plain, (
            in_chans, input_size, glimpses, scale, bound, iterations, fill, antialias))
        penalty, jitter, freeze_steps = map(plain, (penalty, jitter, freeze_steps))
        accepted = f'{ndim} positive integers, or one, for transform {self.transform.name!r}'
        check_kind('input_size', input_size, Kind(lambda value: are_sides(as_sides(value, ndim), ndim), accepted))
        check_kind('glimpses', glimpses, POSITIVE_INTEGER)
        check_kind('scale', scale, Kind(lambda value: is_number(value) and value > 0, 'a positive number'))
        check_settings(
            iterations=iterations, bound=bound, antialias=antialias, penalty=penalty, jitter=jitter,
            freeze_steps=freeze_steps)
        check_jitter(jitter, scale)
        self.sampling = Sampling(mode, padding_mode, fill, antialias)
        self.sampling.check(torch.empty(1, in_chans, *[1] * ndim, device='meta'))
        self.in_chans, self.input_size = in_chans, tuple(as_sides(input_size, ndim))
        linear = self.transform.linear
        if bound is True and not linear:
            raise ValueError(f'bound=True needs a transform with a matrix, got transform={self.transform.name!r}.')
        self.glimpses, self.scale, self.iterations = glimpses, float(scale), iterations
        self.scales = self.scale, self.scale
        self.bound = linear and (scale < 1 if bound == 'auto' else bool(bound))
        self.size = None if size is None else sides_of(size, ndim, 'size')
        self.penalty, self.jitter, self.freeze_steps = float(penalty), float(jitter), freeze_steps
        if isinstance(localization, nn.Module):
            if localization_settings:
                raise TypeError(f'a module as localization takes no settings, got {sorted(localization_settings)}.')
            self.localization = localization
        else:
            self.localization = Localization(
                localization, in_chans, self.input_size, self.glimpses * self.transform.num_params,
                size=localization_size, lr_scale=lr_scale, device=device, dtype=dtype, **localization_settings,
            )
        self.register_buffer('base', self._make_base(device), persistent=False)
        if freeze_steps:
            self.register_buffer(COUNT, torch.zeros((), dtype=torch.long, device=device))
        if penalty:
            usual = torch.zeros((), dtype=torch.float32, device=device)
            self.register_buffer('usual_gradient', usual, persistent=False)
        self.last_theta: Tensor | None = None
        self.register_buffer(RECORD, record(settings_of(self), device))
        self.register_load_state_dict_post_hook(_loaded)  # type: ignore[no-untyped-call]

    def _make_base(self, device: Any = None) -> Tensor:
        """(G, d, d + 1) in float32, whatever the default: scale and tile offset of each glimpse."""
        ndim = self.transform.ndim
        base = torch.zeros(self.glimpses, ndim, ndim + 1, dtype=torch.float32, device=device)
        base[:, range(ndim), range(ndim)] = self.scale
        base[:, :2, -1] = self.tiles
        return base

    def _apply(self, fn: Callable, recurse: bool = True) -> 'SpatialTransformer':
        """Moves and casts as any module, but for the base and the usual gradient: float32 whatever the dtype."""
        _leave_meta(self)  # accelerate puts parameters elsewhere one by one
        usual = self._buffers.get('usual_gradient')
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.base = self._make_base(self.base.device)
        if usual is not None:
            self.usual_gradient = torch.zeros_like(self.base[0, 0, 0]) if usual.is_meta else usual.to(self.base.device)
        return self

    def init_non_persistent_buffers(self, device: Any = None) -> None:
        """Restore the base after the module left the meta device, and forget how large gradients were.

        Args:
            device: Where they are then. Default: where they are.
        """
        self.base = self._make_base(device or self.base.device)
        if self.penalty:
            self.usual_gradient = torch.zeros_like(self.base[0, 0, 0])

    def reset_parameters(self) -> None:
        """Start counting backward passes anew; the localization network has its own."""
        describe(self)
        if self.freeze_steps:
            self.backward_passes.zero_()

    def __setstate__(self, state: dict[str, Any]) -> None:  # of a copy or a pickle
        if not isinstance(state.get('sampling'), Sampling):
            raise ValueError('This network was pickled by timm_stn 0.1, whose objects were others: save its state_dict '
                             'there, and load that here.')
        super().__setstate__(state)  # type: ignore[no-untyped-call]

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        adapt(self, state_dict, prefix, args[-1])
        super()._load_from_state_dict(state_dict, prefix, *args)

    @property
    def tiles(self) -> Tensor:
        """(G, 2): centres of the glimpses over the image, before anything is looked at."""
        return tile_offsets(self.glimpses, self.scale, self.bound)

    @property
    def theta_transform(self) -> Transform:
        """The transform whose increments theta of shape (N, P) holds; ``transform`` itself for absolute matrices."""
        return family_of_theta(self.transform, self.iterations, self._base_is_identity, self._finds_places)

    @property
    def _base_is_identity(self) -> bool:
        return self.glimpses == 1 and self.scale == 1

    @property
    def _finds_places(self) -> bool:
        """Whether each look starts at a place of its own."""
        return getattr(self.localization, 'finds', False) and not self.transform.has_density

    @recorded_method
    def regress(self, x: Tensor, localize: Localize | None = None) -> Tensor:
        """Where to look in x: theta, (N, ...) or (N, G, ...), differentiable."""
        return self._unflatten(self._refine(x, self.localization if localize is None else localize).theta)

    @recorded_method
    def look(self, x: Tensor, localize: Localize | None = None) -> tuple[Tensor, Tensor]:
        """What is seen, (N, C, *size) or (N, G, C, *size), and the theta that made it.

        Args:
            x: (N, C, H, W) or (N, C, D, H, W).
            localize: From x to the parameters (N, G * P), or to :class:`Regressed`. Default: the localization network.

        Raises:
            ValueError: x is no such batch, but patches or tokens of one, say.
        """
        if not isinstance(x, Tensor) or x.ndim != self.transform.ndim + 2:
            expected = '(N, C, H, W)' if self.transform.ndim == 2 else '(N, C, D, H, W)'
            got = f'shape {tuple(x.shape)}' if isinstance(x, Tensor) else f'a {type(x).__name__}'
            raise ValueError(f'a spatial transformer looks at {expected}, got {got}')
        pose = self._refine(x, self.localization if localize is None else localize)
        theta = self._unflatten(pose.theta)
        if self.glimpses > 1:  # the theta that is returned has the gradient of what was seen through it
            pose = pose.replace(theta.flatten(0, 1))
        return self._sample(x, pose), theta

    @recorded_method
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

    @recorded_method
    def placement_penalty(self, theta: Tensor) -> Tensor:
        """How far theta, of ``regress``, is outside the image or collapsed: (N,), differentiable, 0 on the tiles."""
        return self._placement_penalty(self.pose_of(theta))

    def _placement_penalty(self, pose: Pose) -> Tensor:
        lattice = lattice_of_glimpse(self.transform.ndim, pose.theta)
        start = map_points_matrix(self.base.to(pose.theta.dtype), lattice)  # (G, points, d)
        points = pose.map_points(lattice)  # (N * G, points, d)
        return placement_penalty(points.reshape(len(points) // self.glimpses, *start.shape), start)

    @recorded_method
    def unwarp(self, features: Tensor, theta: Tensor, size: Sequence[int], **sampling: Any) -> Tensor:
        """Bring (N, C, h, w) seen through theta (without glimpse dimension) back to the input's frame of ``size``."""
        return unwarp(features, theta, size, transform=self.theta_transform, **sampling)

    @recorded_method
    def map_points(self, theta: Tensor, points: Tensor) -> Tensor:
        """Output points (N, ..., 2), xy in [-1, 1], to the input's coordinates; theta without glimpse dimension."""
        return pose_of(theta, self.theta_transform).map_points(points)

    def pose_of(self, theta: Tensor) -> Pose:
        """The pose of N * G samples of theta, (N, ...) or (N, G, ...), as ``regress`` and ``look`` give it."""
        flat = theta.flatten(0, 1) if self.glimpses > 1 else theta
        return pose_of(flat, self.theta_transform)

    def _refine(self, x: Tensor, localize: Localize) -> Pose:
        """Where to look in x (N, C, H, W): the pose of N * G samples.

        Each iteration after the first looks through the pose so far, and moves it by what it sees there.
        """
        found = self._regress(x, localize)
        if found.energy is not None and self.transform.has_density:
            found = found._replace(params=found.params + self.transform.params_of(found.energy).unsqueeze(1))
        base = self._start(found)
        start = pose_at(base, self.transform, self._base_is_identity)
        pose = start.then(self.transform, found.params.flatten(0, 1))
        half = base[:, :1, 0]  # (N * G, 1)
        for _ in range(self.iterations - 1):
            pose, start, half = self._look_again(x, pose, start, half, localize)
        pose = self._penalised(self._keep_inside(pose, start))
        return pose if self.editor is None else pose.replace(self.editor(pose.theta))

    def _regress(self, x: Tensor, localize: Localize) -> Regressed:
        """Parameters (N, G, P) for N images, and where there is something to look at."""
        params, energy, start = _regressed(localize(x))
        params = self._held(params).reshape(-1, self.glimpses, self.transform.num_params)
        params = params.to(coordinate_dtype(params.dtype))
        if start is not None and not self.transform.linear:
            raise ValueError(f'a start is for families with a matrix, got one for {self.transform.name!r}')
        if energy is not None:
            self._check_energy()
            energy = energy.detach().to(params.dtype)
        return Regressed(params, energy, start)

    def _check_energy(self) -> None:
        can_start = self.transform.linear or not self._base_is_identity
        if self.transform.ndim != 2 or not (can_start or self.transform.has_density):
            raise ValueError('an energy is for images, and for families with a matrix, a scale below 1, or a density; '
                             f'got one for {self.transform.name!r} of scale {self.scale}')

    def _start(self, found: Regressed) -> Tensor:
        """Where glimpses start: (N * G, d, d + 1)."""
        params, energy, start = found
        if start is not None:
            return start.detach().to(params.dtype)
        if energy is None or self.transform.has_density:
            base = self.base.to(params.dtype).repeat(params.shape[0], 1, 1)
        else:
            center, half = places(energy, self.base[:, :2, -1], self.scales, self.training)
            base = squares(within_reach(center, half, self.bound), half)
        return jittered(base, self.jitter, self.bound) if self.jitter and self.training else base

    def _held(self, params: Tensor) -> Tensor:
        if not (self.freeze_steps and self.training and params.requires_grad):
            return params
        return hold(params, self.backward_passes, self.freeze_steps)

    def _penalised(self, pose: Pose) -> Pose:
        theta = pose.theta
        if not (self.penalty and self.training and theta.requires_grad):
            return pose

        def penalty(theta: Tensor) -> Tensor:
            return self._placement_penalty(pose.replace(theta))

        return pose.replace(attach_penalty(theta, penalty, self.penalty, self.usual_gradient, self.glimpses))

    def _keep_inside(self, pose: Pose, start: Pose) -> Pose:
        return pose.replace(keep_inside(pose.theta, start.theta)) if self.bound else pose

    def _look_again(
            self,
            x: Tensor,
            pose: Pose,
            start: Pose,
            half: Tensor,
            localize: Localize,
    ) -> tuple[Pose, Pose, Tensor]:
        """The next pose, its start and the half-width (N * G, 1) of that.

        Each glimpse is looked at by itself, and moved by its own part of the result.
        """
        inside = self._keep_inside(pose, start)
        seen = self._sample(x, inside).reshape(-1, x.shape[1], *(self.size or x.shape[2:]))  # (N * G, C, h, w)
        params, energy, _ = self._regress(seen, localize)  # (N * G, G, P)
        own = params.reshape(-1, self.glimpses, *params.shape[1:])
        own = torch.stack([own[:, g, g] for g in range(self.glimpses)], 1).flatten(0, 1)  # (N * G, P)
        if energy is not None and self._finds_places:
            least, most = self.scales
            middle = torch.zeros_like(self.base[:1, :2, -1])
            centers = inside.map_points(middle).reshape(-1, self.glimpses, 2)
            energy = left_by_others(energy, centers.detach(), half.reshape(-1, self.glimpses, 1))
            center, share = places(energy, middle, (least / most, 1.0), self.training)
            share = torch.maximum(share[:, 0], (least / half).clamp(max=1))  # (N * G, 1): together not below the least
            half = half * share
            start = pose = inside.then(*as_scale_translation(squares(center, share.unsqueeze(1))))
        return pose.then(self.transform, own), start, half

    def _sample(self, x: Tensor, pose: Pose) -> Tensor:
        """What x (N, C, H, W) shows at a pose of N * G samples: (N, C, h, w), or (N, G, C, h, w) with G > 1."""
        size = self.size or tuple(x.shape[2:])
        return read_at(x, pose.at(size), size, self.sampling, self.glimpses)

    def _unflatten(self, theta: Tensor) -> Tensor:
        return theta if self.glimpses == 1 else theta.reshape(-1, self.glimpses, *theta.shape[1:])

    def act_in_forward_passes_alone(self) -> None:
        self.penalty, self.freeze_steps = 0.0, 0

    def __prepare_scriptable__(self) -> nn.Module:
        """What torch.jit.script takes in its place: traces, which hold for batches of any size.

        Also for images of any size, but with ``antialias``: the levels of the pyramid follow the size.
        """
        return ScriptableTransformer(self, self._example_shape(), fixed=self.sampling.antialias)

    def _example_shape(self) -> tuple[int, ...]:
        """Of an image that is neither of the usual size nor of the localization network's: nothing is left out.

        Of the usual size with ``antialias``, which has a trace take no other.
        """
        taken = getattr(self.localization, 'size', None)
        if self.sampling.antialias:
            return self.in_chans, *self.input_size
        larger = [tuple(side + more for side in self.input_size) for more in (1, 2)]
        return (self.in_chans, *(larger[0] if larger[0] != taken else larger[1]))

    def extra_repr(self) -> str:
        settings = dict(size=self.size, glimpses=self.glimpses, scale=self.scale, bound=self.bound)
        return ', '.join([f'transform={self.transform.name}', *(f'{k}={v}' for k, v in settings.items())])


def _loaded(module: SpatialTransformer, keys: object) -> None:
    _leave_meta(module)
    explain(module)


def _leave_meta(module: SpatialTransformer) -> None:
    """What is in no state dict follows from the meta device, as after one is loaded with ``assign=True``."""
    if not module.base.is_meta:
        return
    devices = [t.device for t in (*module.parameters(), *module.buffers()) if not t.is_meta]
    if devices:
        module.init_non_persistent_buffers(devices[0])


def _regressed(found: Any) -> Regressed:
    """What a localization network gives; one of somebody else's may give the parameters alone."""
    if isinstance(found, Regressed):
        return found
    if isinstance(found, Tensor):
        return Regressed(found)
    raise TypeError('a localization network must give parameters (N, G * P), or a Regressed of '
                    f'timm_stn.modules.localization, got {type(found).__name__}.')
