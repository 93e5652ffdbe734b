"""A thousand damaged bundles, each opened by every loader: none may crash, hang or accept a wrong number.

As a program, ``python -m torture.damaged LOADER ORIGINAL`` opens the folders that stdin names, one per line, and prints
the outcome of each as a line of JSON, as ``regplug_damaged`` does in C++.
"""

import functools
import hashlib
import json
import os
import random
import re
import selectors
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

import torch
from support.consumer import build, conditioner, installed, readout
from support.damage import repin

import regplug
import regplug_runtime
from regplug.bundle.contents import BundleContents
from regplug.bundle.golden import Run, compare
from regplug.bundle.load import module_run
from regplug.format.read_bundle import read_bundle
from regplug.format.weights import load_tensors, save_tensors
from torture import Figure

TRIED = 1000
ANSWER_LIMIT_S = 60  # an open takes milliseconds
DATA = ("weights.safetensors", "golden.safetensors")
MANIFEST = "manifest.json"
TESTS = Path(__file__).resolve().parent.parent
MEASURED = re.compile(r"error \S+ is above")  # its last digits differ
# two loaders of one format: if both refuse, their first lines are the same
PAIRS = {
    "C++ bundle": "Python data",
    "C++ torchscript": "Python torchscript",
    "C++ aotinductor": "Python aotinductor",
    "regplug_runtime": "Python aotinductor",
}
DEATH, HANG, WRONG, UNTIDY, APART = "process deaths", "hangs", "wrong numbers", "untidy refusals", "other first lines"


@dataclass(frozen=True)
class Damaged:
    """A damaged bundle: its folder, what was done, and whether the manifest got new sizes and digests after that."""

    folder: Path
    original: Path
    how: str
    repinned: bool


# ---- kinds of damage: each changes the folder at random, and says what it did


def _some_file(folder: Path, draw: random.Random) -> Path:
    return draw.choice(sorted(one for one in folder.iterdir() if one.is_file()))


def _bytes_changed(path: Path, draw: random.Random) -> str:
    data = bytearray(path.read_bytes())
    place = draw.randrange(len(data))
    way = draw.choice(("truncated", "longer", "one bit", "zeroed", "noise"))
    if way == "truncated":
        del data[place:]
    elif way == "longer":
        data += draw.randbytes(draw.choice((1, 8, 4096)))
    elif way == "one bit":
        data[place] ^= 1 << draw.randrange(8)
    else:
        many = min(draw.choice((8, 512, 4096)), len(data) - place)
        data[place : place + many] = bytes(many) if way == "zeroed" else draw.randbytes(many)
    path.write_bytes(data)
    return f"{path.name}: {way}"


def _bytes(folder: Path, other: Path, draw: random.Random) -> str:
    return _bytes_changed(_some_file(folder, draw), draw)


def _data_repinned(folder: Path, other: Path, draw: random.Random) -> str:
    how = _bytes_changed(folder / draw.choice(DATA), draw)
    repin(folder)
    return how


def _value_of_manifest(folder: Path, other: Path, draw: random.Random) -> str:
    values = json.loads((folder / MANIFEST).read_bytes())
    inside, path = values, []
    while isinstance(inside, (dict, list)) and inside:
        keys = sorted(inside) if isinstance(inside, dict) else range(len(inside))
        holder, key = inside, draw.choice(list(keys))
        inside, path = inside[key], [*path, str(key)]
    if draw.random() < 0.2:
        del holder[key]
    else:
        news = [None, True, -1, 0, 1, 2**53, 1e308, 0.5, "", "x", "../x", [], {}, [[]], "B", inside]
        holder[key] = draw.choice(news)
    (folder / MANIFEST).write_text(json.dumps(values))
    return f"manifest: {'.'.join(path)}"


def _text_of_manifest(folder: Path, other: Path, draw: random.Random) -> str:
    return _bytes_changed(folder / MANIFEST, draw)


def _swapped(folder: Path, other: Path, draw: random.Random) -> str:
    one, two = draw.sample(sorted(one for one in folder.iterdir() if one.is_file()), 2)
    one.rename(folder / "between")
    two.rename(one)
    (folder / "between").rename(two)
    return f"{one.name} and {two.name} swapped"


def _of_another(folder: Path, other: Path, draw: random.Random) -> str:
    name = _some_file(folder, draw).name
    shutil.copyfile(other / name, folder / name)
    return f"{name} of another"


def _weights_of_another_repinned(folder: Path, other: Path, draw: random.Random) -> str:
    name = draw.choice(DATA)
    shutil.copyfile(other / name, folder / name)
    repin(folder)
    return f"{name} of another"


def _other_numbers_repinned(folder: Path, other: Path, draw: random.Random) -> str:
    """A valid file that contradicts the manifest or the golden cases: another shape, number or name."""
    name = draw.choice(DATA)
    tensors = load_tensors(name, (folder / name).read_bytes())
    metadata = read_bundle(folder).manifest.describe() if name == "weights.safetensors" else None
    key = draw.choice(sorted(tensors))
    way = draw.choice(("one more", "scaled", "renamed", "double", "nan", "gone"))
    tensor = tensors.pop(key)
    if way in ("one more", "scaled", "double", "nan"):
        changed = {"one more": tensor.repeat(2, *[1] * (tensor.dim() - 1)), "scaled": tensor * 1.5}
        changed |= {"double": tensor.double() + 1, "nan": tensor * float("nan")}
        tensors[key] = changed[way].contiguous()
    elif way == "renamed":
        tensors[f"{key}.x"] = tensor
    data = save_tensors(tensors, metadata) if metadata else save_tensors(tensors)
    (folder / name).write_bytes(data)
    repin(folder)
    return f"{name}: {key} {way}"


def _entry(folder: Path, other: Path, draw: random.Random) -> str:
    path = _some_file(folder, draw)
    way = draw.choice(("removed", "added", "renamed", "fifo", "folder", "link", "dangling link", "socket's name"))
    if way == "added":
        (folder / draw.choice(("extra", "program.bin", "weights.safetensors~", "a b", "\u00e9"))).write_bytes(b"x")
    elif way == "socket's name":
        (folder / "x\ny").write_bytes(b"x")
    else:
        path.rename(folder / "renamed" if way == "renamed" else folder.with_suffix(".moved"))
    if way == "fifo":
        os.mkfifo(path)
    elif way == "folder":
        path.mkdir()
    elif "link" in way:
        path.symlink_to(folder.with_suffix(".moved") if way == "link" else folder / "nowhere")
    return f"{path.name}: {way}"


Way = Callable[[Path, Path, random.Random], str]
WAYS: Sequence[tuple[Way, bool]] = (
    (_bytes, False),
    (_swapped, False),
    (_of_another, False),
    (_entry, False),
    (_text_of_manifest, True),
    (_value_of_manifest, True),
    (_data_repinned, True),
    (_weights_of_another_repinned, True),
    (_other_numbers_repinned, True),
)


def originals(work: Path, backends: Sequence[str]) -> list[tuple[Path, Path]]:
    """Pairs of undamaged bundles of one spec with different weights."""
    pairs = []
    for name, (spec, module) in {"readout": readout("compress-concat"), "film": conditioner("prefix")}.items():
        regplug.export(spec, module, work / name, backends=backends)
        for parameter in module.parameters():
            parameter.data += 0.25
        regplug.export(spec, module, work / f"{name}-other", backends=backends)
        pairs.append((work / name, work / f"{name}-other"))
    return pairs


def damage(work: Path, bundles: Sequence[tuple[Path, Path]], count: int, seed: int) -> list[Damaged]:
    """This many damaged copies, each kind of damage in turn."""
    made = []
    for number in range(count):
        draw = random.Random(f"{seed} {number}")
        change, repinned = WAYS[number % len(WAYS)]
        original, other = bundles[number // len(WAYS) % len(bundles)]
        folder = shutil.copytree(original, work / f"damaged-{number}")
        how = change(folder, other, draw)
        made.append(Damaged(folder, original, how, repinned))
    return made


# ---- the loaders


class Loader:
    """A process that opens the folders it is given; started again after it died or hung."""

    def __init__(self, command: Sequence[object]) -> None:
        self._command = [str(word) for word in command]
        self._process: subprocess.Popen[str] | None = None

    def open(self, folder: Path) -> dict[str, object]:
        """The answer of the process for a folder; ``{"bad": DEATH}`` or ``{"bad": HANG}`` if it gives none."""
        if self._process is None:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            self._process = subprocess.Popen(self._command, text=True, cwd=TESTS, **pipes)
        self._process.stdin.write(f"{folder}\n")
        self._process.stdin.flush()
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            line = self._process.stdout.readline() if selector.select(ANSWER_LIMIT_S) else None
        if line:
            return json.loads(line)
        self.close()
        return {"bad": HANG if line is None else DEATH}

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


class RunProgram:
    """``regplug-run``: a process for every bundle; its outputs for the original's inputs are read from a file."""

    def __init__(self, program: Path, original: Path, work: Path) -> None:
        self._files = read_bundle(original)
        self._golden = BundleContents(self._files).golden
        self._input, self._output = work / "run-in.safetensors", work / "run-out.safetensors"
        self._program = program
        case = next(case for case in self._golden.golden.cases if case.case == "batch_1")
        self._case = case
        self._input.write_bytes(save_tensors({self._files.manifest.input.name: self._golden.inputs(case)[0]}))

    def open(self, folder: Path) -> dict[str, object]:
        """As ``Loader.open``, for case ``batch_1``."""
        self._output.unlink(missing_ok=True)
        command = [self._program, folder, self._input, self._output]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_LIMIT_S, check=False)
        except subprocess.TimeoutExpired:
            return {"bad": HANG}
        if done.returncode == 1 and done.stderr.startswith("error: "):
            return {"refused": done.stderr.removeprefix("error: ").removesuffix("\n")}
        if done.returncode:
            return {"bad": DEATH}
        tensors = load_tensors("out", self._output.read_bytes())
        outputs = [tensors[output.name] for output in self._files.manifest.outputs]
        result = compare(lambda _: outputs, self._golden, self._case, self._files.manifest.outputs)
        return {"errors": {"batch_1": str(result.error)}}

    def close(self) -> None:
        """Nothing is left running."""


def loaders(programs: Path, original: Path, work: Path) -> dict[str, Loader | RunProgram]:
    """Every loader there is, by name."""
    kinds = ["data", "torchscript", "aotinductor", "verify", *(["onnx"] if find_spec("regplug_onnx") else [])]
    python = {f"Python {kind}": Loader([sys.executable, "-m", "torture.damaged", kind, original]) for kind in kinds}
    cpp = {
        f"C++ {kind}": Loader([programs / "regplug_damaged", kind, original])
        for kind in ("bundle", "torchscript", "aotinductor")
    }
    return {
        **python,
        **cpp,
        "regplug_runtime": Loader([sys.executable, "-m", "torture.damaged", "runtime", original]),
        "regplug-run": RunProgram(programs / "regplug-run" / "regplug-run", original, work),
    }


# ---- the verdict


def wrong(damaged: Damaged, answer: Mapping[str, object], tolerances: Mapping[str, float], weights: str) -> str | None:
    """What is bad about an answer, or None.

    A bundle with new digests is another bundle; of it, a loader promises only its case ``batch_1``.
    """
    if "bad" in answer:
        return str(answer["bad"])
    if "refused" in answer:
        line = str(answer["refused"])
        return None if line and "\n" not in line and "Traceback" not in line else UNTIDY
    if "errors" not in answer:  # data alone
        return None if damaged.repinned or answer["weights"] == weights else WRONG
    errors = {case: float(error) for case, error in answer["errors"].items()}
    judged = {"batch_1"} & errors.keys() if damaged.repinned else errors.keys()
    return None if all(errors[case] <= 2 * tolerances[case] for case in judged) else WRONG


def tolerances_of(original: Path) -> dict[str, float]:
    """Twice the tolerance of the least exact program, by case: ATen may use other instructions here."""
    manifest = read_bundle(original).manifest
    return {case.case: case.tolerance for case in manifest.golden.cases}


def try_all(
    damaged: Sequence[Damaged],
    make: Callable[[Path], Mapping[str, Loader | RunProgram]],
    progress: Callable[[str], None],
) -> tuple[dict[str, Counter[str]], dict[str, list[str]]]:
    """Open every bundle with every loader; gives the outcomes counted by loader, and the bad ones in full."""
    counts: dict[str, Counter[str]] = {}
    described: dict[str, list[str]] = {}
    lock = threading.Lock()

    def of_one_loader(name: str, loader: Loader | RunProgram, mine: Sequence[Damaged], facts: tuple) -> dict[Path, str]:
        refused = {}
        for one in mine:
            answer = loader.open(one.folder)
            bad = wrong(one, answer, *facts)
            with lock:
                counts.setdefault(name, Counter())[bad or ("refused" if "refused" in answer else "accepted")] += 1
                if bad:
                    described.setdefault(name, []).append(f"{one.how}: {bad}: {answer}")
            if "refused" in answer:
                refused[one.folder] = MEASURED.sub("error is above", str(answer["refused"]))
        loader.close()
        progress(name)
        return refused

    for original in sorted({one.original for one in damaged}):
        mine = [one for one in damaged if one.original == original]
        facts = (tolerances_of(original), hashlib.sha256((original / DATA[0]).read_bytes()).hexdigest())
        with ThreadPoolExecutor(2) as pool:
            under_way = {
                name: pool.submit(of_one_loader, name, loader, mine, facts) for name, loader in make(original).items()
            }
        refused = {name: future.result() for name, future in under_way.items()}
        for cpp, python in PAIRS.items():
            both = refused.get(cpp, {}).keys() & refused.get(python, {}).keys()
            for folder in sorted(both):
                if refused[cpp][folder] != refused[python][folder]:
                    counts[cpp][APART] += 1
                    how = next(one.how for one in mine if one.folder == folder)
                    lines = f"{refused[python][folder]!r} and {refused[cpp][folder]!r}"
                    described.setdefault(cpp, []).append(f"{how}: {APART}: {lines}")
    return counts, described


def figures(counts: Mapping[str, Counter[str]], described: Mapping[str, Sequence[str]], seed: int) -> list[Figure]:
    """A row for each loader."""
    rows = []
    for name, found in counts.items():
        bad = {word: found[word] for word in (DEATH, HANG, WRONG, UNTIDY)}
        if name in PAIRS:
            bad[APART] = found[APART]
        tried = sum(found.values()) - found[APART]
        note = f"{found['refused']:,} refused, {found['accepted']:,} accepted"
        note = "; ".join([note, *described.get(name, [])[:3]])
        rows.append(Figure(f"damaged bundles, {name}", tried, bad, seed=seed, note=note))
    return rows


def run(work: Path, share: float, seed: int, progress: Callable[[str], None]) -> list[Figure]:
    """See ``torture``."""
    progress("C++ programs")
    settings = {"CMAKE_CXX_STANDARD": 17, "CMAKE_PREFIX_PATH": installed()}
    programs = build(work / "build", settings=settings, target="regplug_damaged regplug-run")
    progress("bundles")
    backends = ["torchscript", "aotinductor", *(["onnx"] if find_spec("regplug_onnx") else [])]
    damaged = damage(work, originals(work, backends), max(round(TRIED * share), len(WAYS) * 2), seed)
    counts, described = try_all(damaged, lambda original: loaders(programs, original, work), progress)
    return figures(counts, described, seed)


# ---- the Python loaders' process


def _answer(kind: str, folder: str, original: Path) -> dict[str, object]:
    golden, manifest = _golden_of(original)
    if kind == "verify":
        checks = regplug.verify(folder).checks
        if bad := next((check for check in checks if not check.ok), None):
            return {"refused": f"{bad.program}: {bad.case}: {bad.verdict}"}
        return {"weights": read_bundle(folder).manifest.files[DATA[0]].sha256}
    flat = _opened(kind, folder)
    cases = golden.golden.cases
    return {"errors": {case.case: str(compare(flat, golden, case, manifest.outputs).error) for case in cases}}


def _opened(kind: str, folder: str) -> Run:
    if kind == "data":
        return module_run(f"bundle {folder}", regplug.load(folder))
    if kind != "runtime":
        return regplug.load(folder, program=kind).run_flat
    opened = regplug_runtime.open(folder)

    def run_flat(given: torch.Tensor) -> list[torch.Tensor]:
        arrays = [opened.run(given.numpy())] if opened.holds == "readout" else chain(*opened.run_film(given.numpy()))
        return [torch.from_numpy(array) for array in arrays]

    return run_flat


@functools.cache
def _golden_of(original: Path) -> tuple:
    files = read_bundle(original)
    return BundleContents(files).golden, files.manifest


def main(kind: str, original: str) -> None:
    """Answer for every folder on stdin. Any error but the packages' own ends the process, which the test sees."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # for everything else that prints
    for line in sys.stdin:
        try:
            answer = _answer(kind, line.removesuffix("\n"), Path(original))
        except (regplug.RegplugError, regplug_runtime.BundleError) as error:
            answer = {"refused": str(error)}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
