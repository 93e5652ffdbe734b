"""How an image file becomes a backbone's input: as its plugin states, or by a function of the user's."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from regplug.errors import SpecError, class_name, one_line
from regplug.nn.image_input import apply_preprocess
from regplug.registry.image_preprocess import ImagePreprocess
from regplug.registry.references import import_named_by_user, reference_of

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Pipeline:
    """From a Pillow image to the input ``[C, H, W]``.

    Args:
        text: What it does, on one line, for reports and for the cache's key.
        function: The function.
    """

    text: str
    function: Callable[[Image], Tensor]

    def __call__(self, image: Image, owner: str) -> Tensor:
        """The input that an image becomes; ``owner`` names it in messages.

        Raises:
            SpecError: The function raises, or does not give a tensor ``[C, H, W]`` of floats.
        """
        try:
            found = self.function(image)
        except (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
            raise SpecError(f"{owner}: expected an image that can be read, got {one_line(error)}.") from error
        if not (isinstance(found, Tensor) and found.ndim == 3 and found.is_floating_point()):
            got = f"{found.dtype} {list(found.shape)}" if isinstance(found, Tensor) else class_name(found)
            raise SpecError(f"preprocessing of {owner}: expected a tensor [C, H, W] of floats, got {got}.")
        return found


def published_pipeline(how: ImagePreprocess) -> Pipeline:
    """The pipeline that a backbone's plugin states."""
    return Pipeline(str(how), lambda image: apply_preprocess(image, how))


def own_pipeline(preprocess: str | Callable[..., Any]) -> Pipeline:
    """The user's function, given as itself or as ``MODULE:FUNCTION``; its text has a digest of its source.

    Raises:
        SpecError: It cannot be imported.
    """
    if isinstance(preprocess, str):
        function = import_named_by_user("--preprocess", preprocess)
        name = preprocess
    else:
        function, name = preprocess, _name_of(preprocess)
    try:
        # of the whole file: the function may call others there
        source = Path(inspect.getsourcefile(inspect.unwrap(function)) or "").read_bytes()
    except (TypeError, OSError):  # an object, or a function without a file
        source = repr(function).encode()
    return Pipeline(f"{name} (sha256 {hashlib.sha256(source).hexdigest()[:16]})", function)


def _name_of(function: Callable[..., Any]) -> str:
    try:
        return reference_of(function)
    except AttributeError:
        return class_name(function)
