"""Mutants of our own Python readers, made by cosmic-ray: at least one named case must show each mutant.

The oracle is the exact message of the C++ reader for every named case. Only copies of the package are changed.
"""

import random
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import attrs
import cosmic_ray.commands
from cosmic_ray.mutating import mutate_and_test
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import MutationSpec, WorkResult
from support.cpp_build import compiled

import regplug
from torture import Figure
from torture.oracle import expect

PACKAGE = Path(regplug.__file__).parent
TESTS = Path(__file__).resolve().parent.parent
# module: the kinds of named cases that judge it, and its functions that no case calls. Not format/limits: the limits of
# files and folders judge no bytes, and tests/format/test_format_limits.py compares all of them with C++. Not the checks
# of a call's inputs, which need torch: see tests/bundle/test_mask_rules.py and test_wrong_inputs.py.
MODULES: dict[str, tuple[str, set[str]]] = {
    "format/safetensors_header": ("s", set()),
    "registry/json_text": ("sm", set()),
    "format/strict_json": ("sm", {"to_ascii"}),
    "format/manifest": ("m", {"token_layout", "made_with", "to_bytes", "describe", "as_dict", "name", "needs"}),
    "format/manifest_rules": ("m", set()),
    "format/more_inputs": ("m", set()),
}
# `X | None` in annotations, which are not evaluated; these modules have no other `|`
ANNOTATIONS = re.compile(r"core/ReplaceBinaryOperator_BitOr_")
TIMEOUT = 30.0


def mutations(module: Path, session: Path, left_out: set[str]) -> list[MutationSpec]:
    """All changes that cosmic-ray can make in the module, except in some functions, in a fixed order."""
    with use_db(str(session), WorkDB.Mode.create) as database:
        cosmic_ray.commands.init([module], database, {})
        found = [mutation for item in database.work_items for mutation in item.mutations]
    found = [one for one in found if not ANNOTATIONS.match(one.operator_name)]
    lines = module.read_text().splitlines()
    # whether a dataclass is frozen, and whether a method is a property, changes no verdict
    decorators = ("@dataclass", "@property")
    found = [one for one in found if not lines[one.start_pos[0] - 1].strip().startswith(decorators)]
    found = [one for one in found if one.definition_name not in left_out]
    return sorted(found, key=lambda one: (one.start_pos, one.operator_name, one.occurrence))


def command_of(copy: Path, expected: Path) -> str:
    code = f"import sys; sys.path[:0] = {[str(copy), str(TESTS)]!r}; from torture.oracle import main; main()"
    return shlex.join([sys.executable, "-c", code, str(copy), str(expected)])


def copy_of(folder: Path) -> Path:
    shutil.copytree(PACKAGE, folder / "regplug", ignore=shutil.ignore_patterns("__pycache__", "include"))
    return folder


def try_all(module: Path, todo: list[MutationSpec], command: str, count_one: Callable[[], None]) -> list[WorkResult]:
    """Make the mutations one after another; gives the result of each."""
    results = []
    for mutation in todo:
        results.append(mutate_and_test([attrs.evolve(mutation, module_path=module)], command, TIMEOUT))
        count_one()
    return results


def run(work: Path, share: float, seed: int, progress: Callable[[str], None]) -> list[Figure]:
    program = compiled("verdict.cpp", "-O1")
    copies = [copy_of(work / name) for name in ("one", "two")]
    figures = []
    for module, (kinds, left_out) in MODULES.items():
        expected = expect(program, kinds, work / f"{Path(module).name}.pickle")
        # an oracle that refuses unchanged code would kill every mutant
        subprocess.run(shlex.split(command_of(copies[0], expected)), check=True, timeout=120)
        whole = mutations(PACKAGE / f"{module}.py", work / f"{Path(module).name}.sqlite", left_out)
        todo = random.Random(seed).sample(whole, max(int(len(whole) * share), 1)) if share < 1 else whole
        done = [0]

        def count_one(done: list[int] = done, module: str = module, count: int = len(todo)) -> None:
            done[0] += 1
            progress(f"{module}: {done[0]} of {count}")

        with ThreadPoolExecutor(len(copies)) as pool:
            halves = [
                pool.submit(
                    try_all,
                    copy / "regplug" / f"{module}.py",
                    todo[index :: len(copies)],
                    command_of(copy, expected),
                    count_one,
                )
                for index, copy in enumerate(copies)
            ]
            results = [result for half in halves for result in half.result()]
        survivors = [result.diff or "" for result in results if not result.is_killed]
        unmade = [result for result in results if result.worker_outcome != "normal"]
        shown = [" ".join(line for line in diff.splitlines() if re.match(r"[-+][^-+]", line)) for diff in survivors]
        figures.append(
            Figure(
                f"mutants of regplug/{module}.py",
                len(results),
                {"survivors": len(survivors)} | ({"not made": len(unmade)} if unmade else {}),
                allowed=len(results) // 20,
                seed=seed if share < 1 else None,
                note=f"{100 * (1 - len(survivors) / len(results)):.1f} % killed" + "".join(f"\n{one}" for one in shown),
            )
        )
    return figures
