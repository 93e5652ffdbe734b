"""What a call that must fail says."""

from collections.abc import Callable
from typing import Any

import pytest

import regplug


def message_of(
    call: Callable[..., Any], *arguments: Any, expected: type[Exception] = regplug.SpecError, **options: Any
) -> str:
    """The message of the error that the call raises; the test fails if it raises none, or another."""
    with pytest.raises(expected) as caught:
        call(*arguments, **options)
    return str(caught.value)
