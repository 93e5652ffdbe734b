"""The checks that every readout and every backbone must pass: in Python, under pytest, and as ``regplug check``.

Importing this package imports no torch: each name of ``__init__.pyi`` is loaded at its first use.
"""

from regplug.registry.public_names import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__)
