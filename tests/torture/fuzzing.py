"""libFuzzer under ASan and UBSan on both C++ readers, starting from the named cases."""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from support import malformed_files, malformed_manifests
from support.cpp_build import compiled

from torture import Figure

RUNS = 20_000_000
LONGEST = {"safetensors": 512, "manifest": 3072}
PARTS = {"safetensors": 0.7, "manifest": 0.3}  # of the runs: a manifest takes longer
CASES = {"safetensors": malformed_files.cases, "manifest": malformed_manifests.cases}
SANITIZERS = ["-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g1", "-O2"]
# that check costs a third of the speed, and finds nothing in code without references to locals
ENVIRONMENT = {"ASAN_OPTIONS": "detect_stack_use_after_return=0", "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1"}
WORDS = {
    "safetensors": [
        *('"dtype":"F32"', '"shape":[', '"data_offsets":[0,', '"__metadata__":{', '"w":{', '"BOOL"', '"F64"', '"I8"'),
        *("9007199254740991", "9007199254740992", "\\\\ud800", "\\\\u0077", '"shape":[2],"data_offsets":[0,2]}'),
    ],
    "manifest": [
        *('"bundle_format":1', '"layout":', '"indices":[', '"normalized":true', '"start":null', '"T"', '"gamma_0"'),
        *('"batch_1"', '"images"', '"tokens"', '"programs":[', '"regplug:pool"'),
        *("9007199254740992", "1e400", "-0", "\\\\ud800"),
    ],
}  # fmt: skip


def seeds(reader: str, folder: Path) -> Path:
    """The named cases as files, except those longer than the fuzzer's inputs."""
    folder.mkdir(parents=True)
    for index, (data, _) in enumerate(CASES[reader]().values()):
        if len(data) <= LONGEST[reader]:
            (folder / f"{index:04}").write_bytes(data)
    return folder


def fuzzer(reader: str) -> Path:
    """The reader's program with libFuzzer.

    Raises:
        FileNotFoundError: There is no clang.
    """
    compiler = shutil.which("clang++")
    if compiler is None:
        raise FileNotFoundError("clang++: expected clang with libFuzzer, got none; install clang, as Debian calls it.")
    flags = [*SANITIZERS, "-fsanitize=fuzzer,address,undefined", *(["-DMANIFEST"] if reader == "manifest" else [])]
    return compiled("fuzz.cpp", *flags, compiler=compiler)


def start(reader: str, program: Path, work: Path, runs: int, seed: int) -> subprocess.Popen[bytes]:
    """Start a fuzzer in its own folder, where it writes ``report``."""
    corpus = seeds(reader, work / "corpus")
    dictionary = work / "words"
    dictionary.write_text("".join('"{}"\n'.format(word.replace('"', '\\"')) for word in WORDS[reader]))
    # libFuzzer reads a seed of 0 as none
    options = {"runs": runs, "seed": seed + 1, "max_len": LONGEST[reader], "timeout": 10, "rss_limit_mb": 4096}
    options |= {"dict": dictionary, "print_final_stats": 1, "artifact_prefix": f"{work}/"}
    command = [program, *(f"-{key}={value}" for key, value in options.items()), corpus]
    with (work / "report").open("wb") as report:
        return subprocess.Popen(command, stdout=report, stderr=report, cwd=work, env={**os.environ, **ENVIRONMENT})


def read_report(work: Path) -> tuple[int, int, int]:
    """The number of runs, of inputs kept and of faults; a fuzzer ends at the first fault."""
    text = (work / "report").read_text(errors="replace")
    runs = re.search(r"stat::number_of_executed_units: *(\d+)", text)
    kept = re.search(r"stat::new_units_added: *(\d+)", text)
    faults = re.findall(r"^SUMMARY: |does not hold|runtime error|ERROR: libFuzzer", text, re.MULTILINE)
    return int(runs[1]) if runs else 0, int(kept[1]) if kept else 0, len(faults)


def run(work: Path, share: float, seed: int, progress: Callable[[str], None]) -> list[Figure]:
    fuzzers = {}
    for reader in CASES:
        progress(f"{reader}: compiling")
        fuzzers[reader] = fuzzer(reader)
    running = {}
    for reader, program in fuzzers.items():
        place = work / f"{reader}-run"
        place.mkdir()
        running[reader] = place, start(reader, program, place, int(RUNS * share * PARTS[reader]), seed)
    begun = time.monotonic()
    while any(process.poll() is None for _, process in running.values()):
        time.sleep(0.2)
        progress(f"{time.monotonic() - begun:.0f} s")
    figures = []
    for reader, (place, process) in running.items():
        runs, kept, faults = read_report(place)
        wrong_end = int(process.returncode != 0 and not faults)
        figures.append(
            Figure(
                f"fuzzed inputs of the C++ reader of {reader}",
                runs,
                {"faults": faults, "ends without a reason": wrong_end},
                seed=seed,
                note=f"{kept:,} inputs that took a new path",
            )
        )
    return figures
