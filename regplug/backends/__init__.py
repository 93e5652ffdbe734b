"""From a module to programs: the export backends, and the names that a backend of yours imports.

Importing this package imports no torch: each name of ``__init__.pyi`` is loaded at its first use.
"""

from regplug.registry.public_names import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__)
