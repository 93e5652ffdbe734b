"""regplug: pick a register readout by name, get the matching FiLM width, ship it to Python and C++.

Importing this package imports neither torch nor a plugin: each name of ``__init__.pyi`` is loaded at its first use.
"""

import sys

from regplug.registry.old_modules import OldModules
from regplug.registry.public_names import lazy_names

sys.meta_path.insert(0, OldModules())  # type: ignore[arg-type]  # before the finder of files, for regplug.readouts.*
_load_name, __dir__, __all__ = lazy_names(__name__)


def __getattr__(name: str) -> object:
    if name == "__version__":
        from regplug.registry.version import own_version

        return own_version()
    return _load_name(name)
