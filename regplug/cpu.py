"""What this CPU can do, and whether that is enough for a program."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from regplug.errors import BundleError

CPU_FLAGS = "cpu_flags"  # the property of a program that says what the CPU must have

T = TypeVar("T")


@functools.cache
def cpu_flags() -> frozenset[str]:
    """The instruction sets of this CPU that the system lets programs use, in the words of ``/proc/cpuinfo``."""
    with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
        for line in file:  # the first processor speaks for all
            name, _, value = line.partition(":")
            if name.strip() == "flags":
                return frozenset(value.split())
    return frozenset()


def missing_flags(properties: Mapping[str, str]) -> list[str]:
    """What a program with these properties needs and this CPU has not."""
    return sorted(set(properties.get(CPU_FLAGS, "").split()) - cpu_flags())


def fitting(owner: str, programs: Sequence[T], properties: Sequence[Mapping[str, str]]) -> T:
    """Of the programs that this CPU can run, the one that makes most of it.

    Args:
        owner: The program, for messages.
        programs: At least one.
        properties: Those of each.

    Raises:
        BundleError: This CPU can run none of them.
    """
    missing = [missing_flags(one) for one in properties]
    runnable = [index for index, lacking in enumerate(missing) if not lacking]
    if not runnable:
        nearest = min(missing, key=len)
        raise BundleError(
            f"{owner}: expected a CPU with {' '.join(nearest)}, got one without; export with --isa x86-64-v3."
        )
    return programs[max(runnable, key=lambda index: len(properties[index].get(CPU_FLAGS, "").split()))]
