"""Manifests with hostile options, of every class that a bundle can name: how much memory and time a load takes.

As a program, ``python -m torture.options``, it loads the folders that stdin names, one per line, and prints the outcome
of each, its peak of memory and its CPU seconds.
"""

import dataclasses
import gc
import itertools
import json
import random
import select
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.damage import edit_manifest
from support.strategies import EVERY, spec_of

import regplug
from regplug.registry.options import describe
from torture import Figure

MANIFESTS = 1000
HANG_S = 60.0  # a load that takes longer hangs
MAX_SECONDS = 1.0
# what Python and torch need for any load, and what the allocator keeps
GRAIN = 16 << 20
TESTS = Path(__file__).resolve().parent.parent
LARGE = (2_000, 1 << 16, 400_000, 1_000_000, 16_000_000, (1 << 31) - 1, 1 << 40, (1 << 53) - 1)
HOSTILE: tuple[Any, ...] = (
    *LARGE, 0, -1, -(1 << 40), 1e12, 1e308, True, None, "", "meta", "x" * 500_000, [], [1 << 40], [1 << 20, 1 << 20],
    list(range(20_000)), {}, {"meta": 1}, {str(index): index for index in range(20_000)}, [[[[[]]]]], "\x1b[2J\u202e",
)  # fmt: skip
UNKNOWN = (
    "metadata",
    "meta",
    "device",
    "dtype",
    "self",
)  # not options; some mean something to torch
SMALL_TIMM = {"img_size": 28, "depth": 1, "embed_dim": 48, "num_heads": 2, "num_classes": 0}
TIMM = {
    "timm:vit_small_patch14_reg4_dinov2": SMALL_TIMM,
    "timm:vit_small_patch16_dinov3": SMALL_TIMM | {"img_size": 32},
}
SMALL_LAYERS = {"num_hidden_layers": 1, "hidden_size": 48, "num_attention_heads": 2}
SMALL_MLP = SMALL_LAYERS | {"intermediate_size": 96}
TRANSFORMERS = {
    "transformers:dinov2_with_registers": SMALL_LAYERS | {"image_size": 28},
    "transformers:dinov3_vit": SMALL_MLP | {"image_size": 32, "num_register_tokens": 4},
    "transformers:radio": SMALL_LAYERS | {"image_size": 32, "max_img_size": 32},
    "transformers:sapiens2": SMALL_MLP | {"image_size": 32, "num_key_value_heads_per_layer": [2]},
    "transformers:tipsv2_vision_model": SMALL_LAYERS | {"image_size": 28},
}


@dataclass(frozen=True)
class Subject:
    """A bundle, and the options in it that are made hostile.

    Args:
        kind: The row of the table.
        folder: The bundle.
        place: The keys in the manifest that lead to the options.
        options: Their names.
    """

    kind: str
    folder: Path
    place: tuple[str, ...]
    options: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """``loaded`` or the error message of a load, the bytes it took at its peak, and its CPU seconds."""

    said: str
    taken: int
    seconds: float


# ---- good bundles of every class


def subjects(work: Path) -> Iterator[Subject]:
    """A data-only bundle of every class that is installed."""
    for strategy in EVERY:
        spec = spec_of(strategy)
        folder = work / strategy.replace(":", "-")
        regplug.export(spec, spec.build(), folder, backends=[])
        options = tuple(describe(spec.readout_class, spec.entry.sizes))
        yield Subject("core" if strategy.startswith("regplug:") else "plugins", folder, ("options",), options)
    yield _conditioner(work / "conditioner")
    for kind, models in (("timm", TIMM), ("transformers", TRANSFORMERS)):
        for name, options in models.items():
            module = regplug.attach(name, "mean", model_options=options)
            folder = work / name.replace(":", "-")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                regplug.export(module.spec, module, folder, backends=[])
            yield Subject(kind, folder, ("backbone", "options"), _model_options(kind, module))


def _conditioner(folder: Path) -> Subject:
    spec = spec_of("regplug:pool")
    film = regplug.pair(spec, regplug.KernelFiLMGenerator, kernel_hidden_dim=5, num_film_layers=2)
    layout = regplug.TokenLayout(num_registers=4, hidden_dim=24, start=1)
    regplug.export(spec, regplug.Conditioner(layout, spec.build(), film), folder, backends=[])
    options = tuple(word for word in describe(regplug.KernelFiLMGenerator) if word != "cond_dim")
    return Subject("FiLM", folder, ("film", "options"), options)


def _model_options(kind: str, module: Any) -> tuple[str, ...]:
    """The options of the model's constructor or configuration."""
    model = next(part for part in module.tokens.modules() if hasattr(part, "blocks") or hasattr(part, "config"))
    if kind == "timm":
        return tuple(describe(type(model)))
    return tuple(field.name for field in dataclasses.fields(model.config) if not field.name.startswith("_"))


# ---- hostile ones


def hostile(
    subjects: Sequence[Subject], count: int, seed: int, work: Path
) -> Iterator[tuple[Subject, dict[str, Any], Path]]:
    """This many bundles, each with one or two options changed or added: first large counts, then drawn ones."""
    draw = random.Random(seed)
    every = [(one, {word: value}) for one in subjects for word in one.options for value in LARGE[:5]]
    draw.shuffle(every)
    more = ((one, _drawn(draw, one)) for one in itertools.cycle(subjects))
    for number, (one, options) in enumerate(itertools.islice(itertools.chain(every[: count // 2], more), count)):
        folder = shutil.copytree(one.folder, work / f"hostile-{number}")
        edit_manifest(folder, lambda values, one=one, options=options: _inside(values, one.place).update(options))
        yield one, options, folder


def _drawn(draw: random.Random, one: Subject) -> dict[str, Any]:
    words = draw.sample([*one.options, *UNKNOWN], k=draw.choice((1, 1, 2)))
    return {word: draw.choice(HOSTILE) for word in words}


def _inside(values: Any, place: Sequence[str]) -> Any:
    for key in place:
        values = values[key]
    return values


# ---- loading them in a process that may die


class Loader:
    """A process that loads bundles; started again after one that it died of."""

    def __init__(self, warm: Sequence[Path]) -> None:
        self._warm = warm  # so that no load includes the import of its class
        self._process: subprocess.Popen[str] | None = None

    def load(self, folder: Path) -> Outcome | str:
        """The outcome; ``died`` or ``hung`` if there is none."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "torture.options"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=TESTS,
            )  # fmt: skip
            for one in self._warm:
                self._ask(one, 10 * HANG_S)
        return self._ask(folder, HANG_S)

    def _ask(self, folder: Path, limit: float) -> Outcome | str:
        process = self._process
        with suppress(BrokenPipeError):  # it died; the missing answer shows that
            print(folder, file=process.stdin, flush=True)
        if not select.select([process.stdout], [], [], limit)[0]:
            self.close()
            return "hung"
        line = process.stdout.readline()
        if not line:
            self.close()
            return "died"
        return Outcome(**json.loads(line))

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            with suppress(BrokenPipeError):
                self._process.communicate()
            self._process = None


def judge(folder: Path, outcome: Outcome | str) -> Mapping[str, int]:
    """What must not happen, each with whether it did."""
    allowed = 1.1 * sum(file.stat().st_size for file in folder.iterdir()) + GRAIN
    came = outcome if isinstance(outcome, Outcome) else Outcome("", 0, 0.0)
    tidy = came.said == "loaded" or (came.said.startswith(f"bundle {folder}: ") and len(came.said) <= 400)
    return {
        "process deaths": outcome == "died",
        "hangs": outcome == "hung",
        "untidy refusals": isinstance(outcome, Outcome) and not (tidy and came.said.isprintable()),
        "over 1 s": came.seconds > MAX_SECONDS,
        "over 1.1 times the files and 16 MiB": came.taken > allowed,
    }


def run(work: Path, share: float, seed: int, progress: Callable[[str], None]) -> list[Figure]:
    """See ``torture``; the options are drawn."""
    count = max(round(MANIFESTS * share), 20)
    made = list(subjects(work))
    loader = Loader([one.folder for one in made])
    rows: dict[str, list[tuple[Mapping[str, int], Outcome]]] = {}
    try:
        for number, (one, options, folder) in enumerate(hostile(made, count, seed, work)):
            outcome = loader.load(folder)
            bad = judge(folder, outcome)
            if any(bad.values()):
                print(f"options: {one.kind} {one.folder.name} {str(options)[:200]}: {outcome}", file=sys.stderr)
            known = outcome if isinstance(outcome, Outcome) else Outcome("", 0, HANG_S)
            rows.setdefault(one.kind, []).append((bad, known))
            shutil.rmtree(folder)
            progress(f"{number + 1} of {count}")
    finally:
        loader.close()
    return [_figure(kind, found, seed) for kind, found in rows.items()]


def _figure(kind: str, found: Sequence[tuple[Mapping[str, int], Outcome]], seed: int) -> Figure:
    bad = {word: sum(one[word] for one, _ in found) for word in found[0][0]}
    loaded = sum(outcome.said == "loaded" for _, outcome in found)
    taken, seconds = (max(getattr(outcome, word) for _, outcome in found) for word in ("taken", "seconds"))
    note = f"{len(found) - loaded} refused, {loaded} loaded; at most {taken / (1 << 20):.1f} MiB and {seconds:.2f} s"
    return Figure(f"manifests with hostile options: {kind}", len(found), bad, seed=seed, note=note)


# ---- the process that loads


def memory(word: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{word}:"):
            return int(line.split()[1]) << 10
    raise ValueError(f"/proc/self/status: expected {word}, got none.")


def load_measured(folder: str) -> Outcome:
    """Load a bundle and measure the peak of memory and the CPU time."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak to the present value
    before, begun = memory("VmRSS"), time.process_time()
    try:
        regplug.load(folder)
        said = "loaded"
    except regplug.BundleError as error:
        said = str(error)
    except Exception as error:  # the fault that this part looks for
        said = f"{type(error).__name__}: {error}"
    seconds = time.process_time() - begun
    return Outcome(said, max(memory("VmHWM") - before, 0), seconds)


if __name__ == "__main__":
    for path in sys.stdin:
        print(json.dumps(dataclasses.asdict(load_measured(path.strip()))), flush=True)
