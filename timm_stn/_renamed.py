"""Names that modules had in version 0.1, before they were in folders: others may import them until version 0.3."""
import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ['RENAMED']

RENAMED: dict[str, tuple[str, ...]] = {  # module -> where what was in it is now
    **{name: (f'geometry.{name}',) for name in (
        'functional', 'grid', 'kernels', 'layout', 'pyramid', 'sampler', 'transforms')},
    **{name: (f'modules.{name}',) for name in ('saliency', 'standardize', 'steps')},
    **{name: (f'network.{name}',) for name in ('features', 'stages')},
    **{name: (f'names.{name}',) for name in ('registry', 'untrusted', 'weights')},
    'arguments': ('network.arguments', 'modules.settings'),
    'attach': ('network.attach', 'network.stages'),
    'build': ('names.build', 'names.registry'),
    'card': ('publish.card', 'publish.run_record'),
    'dependence': ('view.dependence',),
    'diagnostics': ('view.observe', 'names.zoo', 'cli.doctor', 'cli.digits'),
    'dry': ('modules.trial',),
    'hub': ('publish.push',),
    'hub_errors': ('publish.errors',),
    'localization': (
        'modules.localization', 'modules.regression', 'modules.moments', 'modules.timm_body', 'geometry.shrink'),
    'model': ('network.model', 'network.wrapper', 'network.streams'),
    'optional': ('network.wrapper',),
    'picture': ('view.sheet',),
    'precision': ('geometry.autocast',),
    'spatial_transformer': ('modules.spatial_transformer', 'modules.glimpses'),
    'tracing': ('network.scripting', 'modules.scripting'),
    'training': ('modules.gradients',),
    'visualize': ('view.draw', 'view.caption'),
    'zoo': ('names.zoo', 'names.registry'),
}
PACKAGES = ('kernels', 'transforms')
GONE = '0.3'  # version without them
BETWEEN = ('importlib', 'pickle', 'pkgutil', 'timm_stn', 'torch')  # whose lines are not those of who imports
OTHERWISE = {'picture_of': 'sheet_of', 'dry_forward': 'trial_forward'}  # names of functions that are others now


class _Finder(MetaPathFinder, Loader):
    """Finds a module by its old name: one that has all that is where its parts are now."""

    def find_spec(
            self,
            fullname: str,
            path: Sequence[str] | None = None,
            target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        _, _, name = fullname.partition('.')
        return ModuleSpec(fullname, self, is_package=name in PACKAGES) if _places(fullname) else None

    def exec_module(self, module: ModuleType) -> None:
        places = _places(module.__name__)
        _warn(f"{module.__name__} is now {', '.join(f'timm_stn.{place}' for place in places)}; the old name goes in "
              f'version {GONE} of timm_stn.')

        def get(name: str) -> Any:
            found = [importlib.import_module(f'timm_stn.{place}') for place in places]
            if name == '__all__':
                return [public for part in found for public in part.__all__]
            for part in () if name.startswith('__') else found:
                if hasattr(part, OTHERWISE.get(name, name)):
                    return getattr(part, OTHERWISE.get(name, name))
            raise AttributeError(f'module {module.__name__!r} has no attribute {name!r}; what was in it is now in '
                                 f"{', '.join(part.__name__ for part in found)}")

        module.__getattr__ = get  # type: ignore[method-assign]


def _places(fullname: str) -> list[str]:
    package, _, rest = fullname.partition('.')
    old, dot, inner = rest.partition('.')
    return [place + dot + inner for place in RENAMED.get(old, ())] if package == 'timm_stn' else []


def _warn(message: str) -> None:
    """A DeprecationWarning that points at the line that imports the old name."""
    frame = sys._getframe(1)
    while frame.f_back and frame.f_globals.get('__name__', '').partition('.')[0] in BETWEEN:
        frame = frame.f_back
    registry = frame.f_globals.setdefault('__warningregistry__', {})
    warnings.warn_explicit(message, DeprecationWarning, frame.f_code.co_filename, frame.f_lineno,
                           frame.f_globals.get('__name__', ''), registry)


sys.meta_path.insert(0, _Finder())
