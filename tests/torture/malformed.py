"""Named malformed files and manifests: the verdict of each reader, compared with the reference's."""

from collections.abc import Callable, Mapping
from pathlib import Path

from support import malformed_files, malformed_manifests
from support.cpp_build import compiled

from torture import Figure
from torture.verdicts import ACCEPTED, FILE, MANIFEST, by_the_reference, in_cpp, in_python

Expected = Mapping[str, tuple[bytes, Callable[[str], bool]]]


def files() -> Expected:
    """Each file, with a test of whether a verdict is exactly the one of its rule."""
    found = {}
    for name, (data, said) in malformed_files.cases().items():
        wanted = ACCEPTED if said is None else f"file: {said}."
        found[name] = data, wanted.__eq__
    return found


def manifests() -> Expected:
    """Each manifest, with a test of whether a verdict begins as it must."""
    found = {}
    for name, (data, said) in malformed_manifests.cases().items():
        wanted = ACCEPTED if said is None else f"bundle DIR: manifest.json: {said}"
        found[name] = data, (lambda verdict, wanted=wanted: verdict.startswith(wanted))
    return found


def faults(kind: str, cases: Expected, program: Path) -> dict[str, list[str]]:
    """What must not happen, each with the cases in which it did."""
    verdicts = in_cpp(program, [(kind, data) for data, _ in cases.values()])
    found: dict[str, list[str]] = {"another verdict": [], "different messages": [], "looser than the reference": []}
    for (name, (data, as_it_must)), cpp in zip(cases.items(), verdicts, strict=True):
        python = in_python(kind, data)
        if not as_it_must(python):
            found["another verdict"].append(f"{name}: {python}")
        if python != cpp:
            found["different messages"].append(f"{name}: Python {python}, C++ {cpp}")
        if ACCEPTED in (python, cpp) and not by_the_reference(kind, data):
            found["looser than the reference"].append(name)
    return found


def run(work: Path, share: float, seed: int, progress: Callable[[str], None]) -> list[Figure]:
    """See ``torture``; it runs in full for every share, because the cases are few."""
    progress("C++")
    return figures(compiled("verdict.cpp", "-O1"))


def figures(program: Path) -> list[Figure]:
    """The figures of a program that gives the C++ reader's verdicts."""
    made = []
    for what, kind, cases in (("safetensors files", FILE, files()), ("manifests", MANIFEST, manifests())):
        found = faults(kind, cases, program)
        accepted = sum(as_it_must(ACCEPTED) for _, as_it_must in cases.values())
        first = next((names[0] for names in found.values() if names), "")
        made.append(
            Figure(
                f"named {what}, malformed and their accepted twins",
                len(cases),
                {word: len(names) for word, names in found.items()},
                note=first or f"{len(cases) - accepted:,} refused, {accepted} accepted",
            )
        )
    return made
