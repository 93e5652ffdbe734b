"""From a module to programs: the export backends, and the names that a backend of yours imports.

Importing this package imports no torch: each name of ``__init__.pyi`` is loaded at its first use.
"""

from regplug.registry.public_names import load_name, read_names

_modules = read_names(__name__)
__all__ = sorted(_modules)


def __getattr__(name: str) -> object:
    return load_name(__name__, _modules, name)


def __dir__() -> list[str]:
    return [*globals(), *_modules]
