"""libFuzzer under ASan and UBSan: on both C++ readers, on the runtime's functions, and on calls of a bundle."""

import json
import os
import random
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from support import malformed_files, malformed_manifests
from support.consumer import CONSUMER, built_with
from support.cpp_build import compiled

from torture import Figure

RUNS = {"safetensors": 14_000_000, "manifest": 6_000_000, "shim": 300_000, "call": 500_000}  # each takes minutes
LONGEST = {"safetensors": 512, "manifest": 3072, "shim": 512, "call": 256}
WHAT = {
    "safetensors": "fuzzed inputs of the C++ reader of safetensors",
    "manifest": "fuzzed inputs of the C++ reader of manifest",
    "shim": "fuzzed lists of calls of the runtime's functions",
    "call": "fuzzed calls of a bundle with a mask and vectors",
}
CASES = {"safetensors": malformed_files.cases, "manifest": malformed_manifests.cases}
FROZEN = Path(__file__).resolve().parent.parent / "data"
BUNDLE = {"FUZZ_BUNDLE": str(FROZEN / "format-2" / "conditioner")}
SANITIZERS = ["-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g1", "-O2"]
# that check costs a third of the speed, and finds nothing in code without references to locals
ENVIRONMENT = {"ASAN_OPTIONS": "detect_stack_use_after_return=0", "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1"}
# a call that asks for much memory gets none; libFuzzer itself needs blocks of 20 MB
LITTLE_MEMORY = {"ASAN_OPTIONS": f"{ENVIRONMENT['ASAN_OPTIONS']}:allocator_may_return_null=1:max_allocation_size_mb=32"}
WORDS = {
    "safetensors": [
        *('"dtype":"F32"', '"shape":[', '"data_offsets":[0,', '"__metadata__":{', '"w":{', '"BOOL"', '"F64"', '"I8"'),
        *("9007199254740991", "9007199254740992", "\\\\ud800", "\\\\u0077", '"shape":[2],"data_offsets":[0,2]}'),
    ],
    "manifest": [
        *('"bundle_format":1', '"layout":', '"indices":[', '"normalized":true', '"start":null', '"T"', '"gamma_0"'),
        *('"batch_1"', '"images"', '"tokens"', '"programs":[', '"regplug:pool"'),
        *('"bundle_format":2', '"more_inputs":[', '"mask"', '"bool"', '["B","T"]', '"parts":[', '"takes_mask":true'),
        *('"tokens":[0,null]', '"tokens":[-2,null]', '"tokens":null', '"num_registers":null', '"min_tokens":2'),
        *("9007199254740992", "1e400", "-0", "\\\\ud800"),
    ],
}  # fmt: skip


def frozen_manifests() -> list[bytes]:
    """The manifest of each frozen bundle as its writer wrote it, in short: without its programs and without spaces."""
    found = []
    for path in sorted(FROZEN.glob("format-*/*/manifest.json")):
        values = json.loads(path.read_bytes())
        for program in values["programs"]:
            del values["files"][program["file"]]
        found.append(json.dumps(values | {"programs": []}, separators=(",", ":")).encode())
    return found


def seeds(target: str, folder: Path) -> Path:
    """Named cases and frozen manifests as files, except those longer than the fuzzer's inputs; for calls any bytes."""
    folder.mkdir(parents=True)
    if target in CASES:
        found = [data for data, _ in CASES[target]().values()]
        found += frozen_manifests() if target == "manifest" else []
        found = [data for data in found if len(data) <= LONGEST[target]]
    else:
        found = [random.Random(number).randbytes(LONGEST[target]) for number in range(50)]
    for index, data in enumerate(found):
        (folder / f"{index:04}").write_bytes(data)
    return folder


def fuzzer(target: str) -> Path:
    """The target's program with libFuzzer.

    Raises:
        FileNotFoundError: There is no clang.
    """
    compiler = shutil.which("clang++")
    if compiler is None:
        raise FileNotFoundError("clang++: expected clang with libFuzzer, got none; install clang, as Debian calls it.")
    if target not in CASES:
        flags = [*SANITIZERS, "-fsanitize=fuzzer-no-link,address,undefined"]
        settings = {"CMAKE_C_COMPILER": "clang", "CMAKE_CXX_COMPILER": compiler, "CMAKE_BUILD_TYPE": "None"}
        settings |= {"CMAKE_CXX_FLAGS": " ".join(flags), "FUZZER": "ON"}
        return built_with(settings, "fuzz_shim fuzz_call", CONSUMER / "runtime") / f"fuzz_{target}"
    flags = [*SANITIZERS, "-fsanitize=fuzzer,address,undefined", *(["-DMANIFEST"] if target == "manifest" else [])]
    return compiled("fuzz.cpp", *flags, compiler=compiler)


def start(target: str, program: Path, work: Path, runs: int, seed: int) -> subprocess.Popen[bytes]:
    """Start a fuzzer in its own folder, where it writes ``report``."""
    corpus = seeds(target, work / "corpus")
    # libFuzzer reads a seed of 0 as none
    options = {"runs": runs, "seed": seed + 1, "max_len": LONGEST[target], "timeout": 10, "rss_limit_mb": 4096}
    options |= {"print_final_stats": 1, "artifact_prefix": f"{work}/"}
    if target in WORDS:
        options["dict"] = work / "words"
        options["dict"].write_text("".join('"{}"\n'.format(word.replace('"', '\\"')) for word in WORDS[target]))
    command = [program, *(f"-{key}={value}" for key, value in options.items()), corpus]
    environment = {**os.environ, **ENVIRONMENT, **BUNDLE, **({} if target in CASES else LITTLE_MEMORY)}
    with (work / "report").open("wb") as report:
        return subprocess.Popen(command, stdout=report, stderr=report, cwd=work, env=environment)


def read_report(work: Path) -> tuple[int, int, int]:
    """The number of runs, of inputs kept and of faults; a fuzzer ends at the first fault."""
    text = (work / "report").read_text(errors="replace")
    runs = re.search(r"stat::number_of_executed_units: *(\d+)", text)
    kept = re.search(r"stat::new_units_added: *(\d+)", text)
    faults = re.findall(r"^SUMMARY: |does not hold|runtime error|ERROR: libFuzzer", text, re.MULTILINE)
    return int(runs[1]) if runs else 0, int(kept[1]) if kept else 0, len(faults)


def run(work: Path, share: float, seed: int, progress: Callable[[str], None]) -> list[Figure]:
    fuzzers = {}
    for target in RUNS:
        progress(f"{target}: compiling")
        fuzzers[target] = fuzzer(target)
    running = {}
    for target, program in fuzzers.items():
        place = work / f"{target}-run"
        place.mkdir()
        running[target] = place, start(target, program, place, int(RUNS[target] * share), seed)
    begun = time.monotonic()
    while any(process.poll() is None for _, process in running.values()):
        time.sleep(0.2)
        progress(f"{time.monotonic() - begun:.0f} s")
    figures = []
    for target, (place, process) in running.items():
        runs, kept, faults = read_report(place)
        wrong_end = int(process.returncode != 0 and not faults)
        figures.append(
            Figure(
                WHAT[target],
                runs,
                {"faults": faults, "ends without a reason": wrong_end},
                seed=seed,
                note=f"{kept:,} inputs that took a new path",
            )
        )
    return figures
