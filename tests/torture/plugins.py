"""Installed plugins that misbehave: what each does to a command or program that uses another plugin's readout."""

import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from support.distributions import write_distribution
from support.environment import clean_environment
from support.misbehaving_plugins import GOOD, GOOD_MODELS, every_kind

from torture import Figure

LIMIT_S = 120.0
SIZES = ("--num-registers", "2", "--hidden-dim", "3")
LIST = ("-m", "regplug", "list", "--json")
EXPORT = ("-m", "regplug", "export", "fine", *SIZES, "--no-programs", "-o", "made")
CREATE = (
    "-c",
    "import regplug, torch\nreadout = regplug.create('fine', num_registers=2, hidden_dim=3)\n"
    "with open('answer', 'w') as file: print(tuple(readout(torch.zeros(5, 2, 3)).shape), file=file)\n"
    # a program must end what a plugin left running
    "import os; os._exit(0)",
)


def install(folder: Path, text: str) -> Path:
    """A folder with a good plugin and this one."""
    site = folder / "site"
    site.mkdir()
    modules = {"good_plugin.py": GOOD, "good_models.py": GOOD_MODELS}
    write_distribution(site, "good", modules, {"regplug_v1": {"x": "good_plugin"}})
    write_distribution(site, "evil", {"evil.py": text}, {"regplug_v1": {"x": "evil"}})
    return site


def bad_of(folder: Path, text: str) -> dict[str, int]:
    """What must not happen, each with how often it did in a list, an export and a program."""
    site, here = install(folder, text), folder / "here"
    here.mkdir()
    env = clean_environment()
    env |= {"PYTHONPATH": str(site), "REGPLUG_CACHE_DIR": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    bad = dict.fromkeys(("hangs", "tracebacks", "stdout that is no JSON", "silent failures", "other exit codes"), 0)
    for words in (LIST, EXPORT, CREATE):
        output, errors = folder / "output", folder / "errors"
        with output.open("wb") as stdout, errors.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, *words], cwd=here, env=env, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr
            )
            try:
                code = process.wait(LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                bad["hangs"] += 1
                continue
        bad["tracebacks"] += b"Traceback" in errors.read_bytes()
        bad["other exit codes"] += code != 0
        bad["stdout that is no JSON"] += words is LIST and not _lists_the_good_one(output.read_bytes())
    bad["silent failures"] += not (here / "made" / "manifest.json").is_file()
    bad["silent failures"] += not (here / "answer").exists()
    return bad


def _lists_the_good_one(output: bytes) -> bool:
    try:
        return "fine" in [one["name"] for one in json.loads(output)["strategies"]]
    except ValueError:
        return False


def run(work: Path, share: float, seed: int, progress: Callable[[str], None]) -> list[Figure]:
    """See ``torture``; nothing is drawn."""
    kinds = every_kind()
    chosen = list(kinds)[:: max(round(1 / share), 1)]

    def one(number: int) -> dict[str, int]:
        folder = work / str(number)
        folder.mkdir()
        found = bad_of(folder, kinds[chosen[number]])
        if any(found.values()):
            print(f"plugins: {chosen[number]}: {found}", file=sys.stderr)
        progress(chosen[number])
        return found

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(one, range(len(chosen))))
    bad = {word: sum(one[word] for one in found) for word in found[0]}
    return [Figure("plugins that misbehave, in a list, an export and a program each", 3 * len(chosen), bad)]
