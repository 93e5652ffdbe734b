"""What this CPU has, and whether that is enough for a program."""

from __future__ import annotations

import functools
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from regplug.errors import BundleError
from regplug.format.manifest import CPU_FLAGS

T = TypeVar("T")
MACHINES = {"x86_64": "x86-64", "AMD64": "x86-64", "aarch64": "aarch64"}  # as Python names them, and as we do
DEFAULT_ISA = {"x86-64": "x86-64-v3", "aarch64": "armv8-a"}
UNKNOWN = (
    "CPU: expected its flags in /proc/cpuinfo, got none, and none from the C library; mount /proc, or use a program "
    "that needs none, as torchscript."
)
CPUINFO = Path("/proc/cpuinfo")
# Where there is no /proc: a function of glibc 2.33, <sys/platform/x86.h>. Unlike the CPU's own answer (cpuid), it
# leaves out what the system does not let programs use.
C_FUNCTION = "__x86_get_cpuid_feature_leaf"
# by leaf and register, as that function counts them: the bit of each word of /proc/cpuinfo
BITS = {
    (0, 2): {"pni": 0, "ssse3": 9, "fma": 12, "sse4_1": 19, "sse4_2": 20, "movbe": 22, "popcnt": 23, "avx": 28,
             "f16c": 29},
    (1, 1): {"bmi1": 3, "avx2": 5, "bmi2": 8, "avx512f": 16, "avx512dq": 17, "avx512ifma": 21, "avx512pf": 26,
             "avx512er": 27, "avx512cd": 28, "avx512bw": 30, "avx512vl": 31},
    (1, 2): {"avx512vbmi": 1, "avx512_vbmi2": 6, "avx512_vnni": 11, "avx512_bitalg": 12, "avx512_vpopcntdq": 14},
    (1, 3): {"amx_bf16": 22, "avx512_fp16": 23, "amx_tile": 24, "amx_int8": 25},
    (2, 2): {"abm": 5, "sse4a": 6, "xop": 11, "fma4": 16, "tbm": 21},
    (6, 0): {"avx_vnni": 4, "avx512_bf16": 5, "avx_ifma": 23},
}  # fmt: skip
# The same on aarch64: getauxval(16), AT_HWCAP, and getauxval(26), AT_HWCAP2; the words in the order of the bits.
HWCAP = {
    16: "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm jscvt fcma lrcpc dcpop sha3 "
    "sm3 sm4 asimddp sha512 sve asimdfhm dit uscat ilrcpc flagm ssbs sb paca pacg",
    26: "dcpodp sve2 sveaes svepmull svebitperm svesha3 svesm4 flagm2 frint svei8mm svef32mm svef64mm svebf16 "
    "i8mm bf16",
}


def this_machine() -> str:
    """The kind of this CPU, ``x86-64`` or ``aarch64``; Python's name for another."""
    found = platform.machine()
    return MACHINES.get(found, found)


def machine_of(isa: str) -> str:
    """The kind of CPU that an instruction set belongs to, by the compilers' names."""
    if isa == "native":
        return this_machine()
    return "aarch64" if isa.startswith("armv") else "x86-64"


def default_isa() -> str:
    """The instruction set that programs are made for, if nobody chooses one."""
    return DEFAULT_ISA.get(this_machine(), DEFAULT_ISA["x86-64"])


@dataclass(frozen=True)
class CpuFlags:
    """What is known of this CPU.

    Args:
        present: The flags that the system lets programs use, in the words of ``/proc/cpuinfo``.
        known: The words that could be looked up; None for all.
    """

    present: frozenset[str]
    known: frozenset[str] | None

    def missing(self, needed: Iterable[str]) -> list[str] | None:
        """The needed flags that the CPU lacks, sorted; None if one of them could not be looked up."""
        lacking = sorted(set(needed) - self.present)
        return None if self.known is not None and not self.known.issuperset(lacking) else lacking


@functools.cache
def cpu_flags() -> CpuFlags:
    """The flags of this CPU, from ``/proc/cpuinfo``, or from the C library where there is none."""
    flags = _cpuinfo_flags()
    if flags is not None:
        return CpuFlags(flags, None)
    found = _c_library_flags()
    return CpuFlags(frozenset(word for word, present in found.items() if present), frozenset(found))


def _cpuinfo_flags() -> frozenset[str] | None:
    try:
        with CPUINFO.open(encoding="utf-8") as file:
            for line in file:  # all processors have the same
                name, _, value = line.partition(":")
                if name.strip() == ("Features" if this_machine() == "aarch64" else "flags"):
                    return frozenset(value.split())
    except (OSError, UnicodeDecodeError):
        pass
    return None


def _c_library_flags() -> dict[str, bool]:
    """Each word of ``BITS``, and whether programs may use it; empty if the C library lacks the function."""
    import ctypes

    if this_machine() == "aarch64":
        bits_of = ctypes.CDLL(None).getauxval
        bits_of.restype = ctypes.c_ulong
        return {word: bool(bits_of(one) >> bit & 1) for one in HWCAP for bit, word in enumerate(HWCAP[one].split())}
    try:
        leaf_of = getattr(ctypes.CDLL(None), C_FUNCTION)
    except AttributeError:
        return {}
    # four registers as the CPU gives them, then the same without what the system does not let programs use
    leaf_of.restype = ctypes.POINTER(ctypes.c_uint32 * 8)
    return {
        word: bool(leaf_of(leaf).contents[4 + register] >> bit & 1)
        for (leaf, register), bits in BITS.items()
        for word, bit in bits.items()
    }


def missing_flags(properties: Mapping[str, str]) -> list[str]:
    """The flags that a program with these properties needs and this CPU lacks.

    Raises:
        BundleError: The program needs some, and what this CPU has cannot be looked up.
    """
    needed = properties.get(CPU_FLAGS, "").split()
    if not needed:
        return []
    missing = cpu_flags().missing(needed)
    if missing is None:
        raise BundleError(UNKNOWN)
    return missing


def best_for_this_cpu(owner: str, programs: Sequence[T], properties: Sequence[Mapping[str, str]]) -> T:
    """Of the programs that this CPU can run, the one that needs the most flags.

    Args:
        owner: The program, for messages.
        programs: At least one.
        properties: The properties of each program.

    Raises:
        BundleError: This CPU can run none of them, or what it has cannot be looked up.
    """
    missing = [missing_flags(one) for one in properties]
    runnable = [index for index, lacking in enumerate(missing) if not lacking]
    if not runnable:
        nearest = min(missing, key=len)
        raise BundleError(
            f"{owner}: expected a CPU with {' '.join(nearest)}, got one without; export with --isa {default_isa()}."
        )
    return programs[max(runnable, key=lambda index: len(properties[index].get(CPU_FLAGS, "").split()))]
