"""Manifests in which each key fits the schema, and the keys together agree or contradict each other.

Every rule of ``regplug/format/manifest_rules.py`` is met from both sides. A case is a base, what is changed in it, and
how the message of the reader begins after the file, or None where it must accept the manifest.
"""

import json
import typing

from support.good_manifests import BASES, CASE, SHA, conditioner, readout


def with_values(base: str, edits: dict[str, object]) -> bytes:
    """A base manifest with values changed at paths like ``layout/start``; Ellipsis removes one."""
    values = json.loads(json.dumps(BASES[base]()))
    for where, value in edits.items():
        inside: object = values
        *path, last = [int(step) if step.isdigit() else step for step in where.split("/")]
        for step in path:
            inside = inside[step]
        if value is ...:
            del inside[last]
        else:
            inside[last] = value
    return json.dumps(values).encode()


def golden_cases(*cases: tuple[str, int, int]) -> dict[str, object]:
    """Edits that give a manifest these cases, by name, batch and length, and no program."""
    listed = [CASE | {"case": name, "batch": batch, "length": length} for name, batch, length in cases]
    return {"golden/cases": listed, "programs": [], "files/program.onnx": ...}


def pairs(count: int) -> list[dict]:
    """This many outputs of a conditioner."""
    names = [f"{'gamma' if index % 2 == 0 else 'beta'}_{index // 2}" for index in range(count)]
    return [{"name": name, "dtype": "float32", "shape": ["B", 3 + index]} for index, name in enumerate(names)]


POSITIONS = "layout: expected positions that agree with its sizes"
OF_LAYOUT = "layout: expected the num_registers and hidden_dim of the manifest"
IMAGE_SHAPE = 'input.shape: expected "B" and 1 to 7 sizes'
INDICES = {"layout/start": None, "layout/indices": [0, 2, 4, 6], "layout/num_tokens": 9}
FIXED = {"input/shape": ["B", 9, 8], "input/min_tokens": 9}
LAYOUT = {"num_registers": 4, "hidden_dim": 8, "start": 1, "indices": None, "num_tokens": None, "normalized": None}
Edits = typing.Iterator[tuple[str, dict[str, object], str | None]]


def of_parts() -> Edits:
    """Which keys are required by the value of ``holds``."""
    film = conditioner()["film"]
    yield "readout", {"film": film}, "film: expected null, got {"
    yield "readout", {"layout": LAYOUT}, None
    yield "conditioner", {"film": None}, "film: expected an object, got null"
    yield "conditioner", {"layout": None}, "layout: expected an object, got null"
    yield "images", {"layout": None}, "layout: expected an object, got null"
    yield "images", {"layout/normalized": False}, "layout.normalized: expected true, got false"
    yield "images", {"layout/normalized": None}, "layout.normalized: expected true, got null"
    yield "images", {"backbone/normalized": False}, "layout.normalized: expected false, got true"
    yield "images", {"layout/normalized": False, "backbone/normalized": False}, None
    for base, where, distribution in (
        ("readout", "strategy", "acme:pool"),
        ("conditioner", "film/generator", "acme-film:x"),
        ("images", "backbone/name", "vendor:x"),
    ):
        name = distribution.partition(":")[0]
        listed = {"regplug": "1.0", name: "2.0"}
        yield base, {where: distribution}, f"provenance.packages: expected {name} among them"
        yield base, {where: distribution, "provenance/packages": listed}, None
        yield base, {where: distribution, "provenance/packages": {name: "2.0"}}, "provenance.packages: expected regplug"


def of_layouts() -> Edits:
    """Positions, and the sizes that they must fit."""
    yield "conditioner", {"layout/start": None}, POSITIONS
    yield "conditioner", {"layout/indices": [0, 1, 2, 3], "layout/num_tokens": 9}, POSITIONS
    yield "conditioner", INDICES | FIXED, None
    for indices in ([0, 2, 4], [0, 2, 4, 6, 8], [0, 2, 2, 6], [6, 4, 2, 0], []):
        yield "conditioner", INDICES | FIXED | {"layout/indices": indices}, POSITIONS
    yield "conditioner", INDICES | FIXED | {"layout/num_tokens": None}, POSITIONS
    for start, tokens, fits in (
        (1, 4, False),
        (1, 5, True),
        (-4, 4, True),
        (-4, 3, False),
        (-3, 9, False),
        (0, 4, True),
    ):
        length = max(tokens, 5)
        fixed = {"layout/start": start, "layout/num_tokens": tokens, "input/shape": ["B", tokens, 8]}
        fixed |= {"input/min_tokens": tokens} | golden_cases(("batch_1", 1, tokens if fits else length))
        yield "conditioner", fixed, None if fits else POSITIONS
    for start, least in ((0, 4), (2, 6), (-4, 4), (-6, 6)):
        yield "conditioner", {"layout/start": start, "input/min_tokens": least}, None
        said = f"input.min_tokens: expected {least}, got "
        for wrong in (least - 1, least + 1, None):
            yield "conditioner", {"layout/start": start, "input/min_tokens": wrong}, said
    for start in (-(2**53), 2**53, 2**53 + 1):
        yield "conditioner", {"layout/start": start}, f"layout.start: expected an integer, got {start}"
    yield "conditioner", {"layout/start": 1 - 2**53}, "input.min_tokens: expected 9007199254740991, got 5"
    for size in ("num_registers", "hidden_dim"):
        for base in ("conditioner", "images"):
            for value in (LAYOUT[size] - 1, LAYOUT[size] + 1):
                yield base, {f"layout/{size}": value}, OF_LAYOUT


def of_inputs() -> Edits:
    """The input's name, sizes and smallest number of tokens."""
    for base, name in (("readout", "registers"), ("conditioner", "tokens"), ("images", "images")):
        for other in {"registers", "tokens", "images"} - {name}:
            yield base, {"input/name": other}, f'input.name: expected "{name}", got "{other}"'
    for shape in (
        ["B", 3, 8],
        ["B", 5, 8],
        ["B", 4, 7],
        ["B", 4, 9],
        ["B", "T", 8],
        ["T", 4, 8],
        ["B", 4],
        ["B", 4, 8, 1],
        [],
    ):
        yield "readout", {"input/shape": shape}, 'input.shape: expected ["B",4,8], got ['
    for shape in (["B", 9, 8], ["B", "T", 9], ["T", "T", 8], ["B", "B", 8]):
        yield "conditioner", {"input/shape": shape}, 'input.shape: expected ["B","T",8], got ['
    yield (
        "conditioner",
        {"layout/num_tokens": 9, "input/min_tokens": 9},
        'input.shape: expected ["B",9,8], got ["B","T",8]',
    )
    yield "conditioner", {"layout/num_tokens": 9, "input/shape": ["B", 9, 8]}, "input.min_tokens: expected 9, got 5"
    for base in ("readout", "images"):
        yield base, {"input/min_tokens": 1}, "input.min_tokens: expected null, got 1"
    for sizes in ([3], [3, 8], [3] * 7):
        yield "images", {"input/shape": ["B", *sizes]}, None
    for shape in (["B"], ["B", *[3] * 8], ["T", 3, 8, 8], [3, 3, 8, 8], ["B", "T", 8, 8], ["B", 3, 8, "B"], []):
        yield "images", {"input/shape": shape}, IMAGE_SHAPE


def of_outputs() -> Edits:
    """The outputs' number, names, dtypes and sizes."""
    one = readout()["outputs"]
    for outputs in ([], one * 2):
        yield "readout", {"outputs": outputs}, f"outputs: expected one output, got {len(outputs)}"
    for count in (0, 1, 3, 5):
        yield "conditioner", {"outputs": pairs(count)}, f"outputs: expected pairs of gamma and beta, got {count}"
    for count in (2, 4, 6, 8, 10):
        yield "conditioner", {"outputs": pairs(count)}, None
    for base, index, right, wrong in (
        ("readout", 0, "conditioning", ("a", "z", "gamma_0")),
        ("conditioner", 0, "gamma_0", ("beta_0", "gamma_1", "conditioning", "z")),
        ("conditioner", 1, "beta_0", ("gamma_0", "beta_1", "a")),
    ):
        for name in wrong:
            yield base, {f"outputs/{index}/name": name}, f'outputs.{index}.name: expected "{right}", got "{name}"'
    for base, index in (("readout", 0), ("conditioner", 1)):
        for dtype in ("bfloat16", "float64"):
            said = f'outputs.{index}.dtype: expected "float32", got "{dtype}"'
            yield base, {f"outputs/{index}/dtype": dtype}, said
    for shape in (["B", 7], ["B", 9], ["B"], [8, 8], ["T", 8], ["B", 8, 8], ["B", "T"], []):
        yield "readout", {"outputs/0/shape": shape}, 'outputs.0.shape: expected ["B",8], got ['
    for shape, wanted in (
        (["B", 2, 3], 3), (["B", 3, 2], 2), ([3, 3], 3), (["T", 3], 3), ([3], 3), (["B"], 8), (["B", "B"], 8), ([], 8),
    ):  # fmt: skip
        said = f'outputs.1.shape: expected ["B",{wanted}], got ['
        yield "conditioner", {"outputs/1/shape": shape}, said


def of_cases() -> Edits:
    """The golden cases: which exist, and that each fits the input."""
    among = "golden.cases: expected each case once and batch_1 among them"
    for names in ([], ["batch_2"], ["batch_1", "batch_1"], ["a", "batch_1", "a"]):
        yield "readout", golden_cases(*((name, 2 if name == "batch_2" else 1, 4) for name in names)), among
    yield "readout", golden_cases(("batch_1", 1, 4), ("batch_2", 2, 4), ("slice", 3, 4)), None
    for base, length, each in (("readout", 4, 2), ("conditioner", 9, 3)):
        most = 4096 // each
        many = [("batch_1", 1, length), *((f"c{number}", 1, length) for number in range(most))]
        yield base, golden_cases(*many[:most]), None
        yield base, golden_cases(*many), f"golden.cases: expected at most 4096 tensors, got {each * (most + 1)}"
    for least, batch, fits in ((1, 0, False), (0, 0, True), (1, 1, True), (1, 7, True), (0, 7, True)):
        edits = golden_cases(("batch_1", 1, 4), ("x", batch, 4)) | {"input/min_batch": least}
        yield "readout", edits, None if fits else "golden.cases.1.batch: expected an integer >= 1, got 0"
    yield "readout", {"input/min_batch": 2}, "golden.cases.0.batch: expected an integer >= 2, got 1"
    for batch in (1, 3):
        said = f'golden.cases.1.case: expected "batch_{batch}", got "batch_2"'
        yield "readout", golden_cases(("batch_1", 1, 4), ("batch_2", batch, 4)), said
    for length in (3, 5):
        yield "readout", {"golden/cases/0/length": length}, f"golden.cases.0.length: expected 4, got {length}"
    for length in (2, 4, 8):
        yield "images", {"golden/cases/0/length": length}, f"golden.cases.0.length: expected 3, got {length}"
    for length in (1, 4):
        said = f"golden.cases.0.length: expected an integer >= 5, got {length}"
        yield "conditioner", {"golden/cases/0/length": length}, said
    for length in (5, 6, 300):
        yield "conditioner", {"golden/cases/0/length": length}, None
    wide = {"num_registers": 300, "input/shape": ["B", 300, 8], "golden/cases/0/length": 300}
    yield "readout", wide, None


def of_programs() -> Edits:
    """The programs' file names, CPU flags and cases."""
    for file in ("program.onn", "program.torchscript.pt", "onnx"):
        edits = {"programs/0/file": file, "files/program.onnx": ..., f"files/{file}": {"size": 1, "sha256": SHA}}
        yield "readout", edits, "programs.0.file: expected a name that begins with program.onnx, got "
    for flags in ("", "avx", "avx avx2", "avx512_vnni fma sse4.1"):
        yield "readout", {"programs/0/properties": {"cpu_flags": flags}}, None
    for flags in (" ", "avx ", " avx", "avx  avx2", "avx,avx2", "a" * 129):
        said = "programs.0.properties.cpu_flags: expected words separated by single spaces, got "
        yield "readout", {"programs/0/properties": {"cpu_flags": flags}}, said
    result = {"error": 0.0, "tolerance": 1e-6}
    for names in ([], ["batch_2"], ["batch_1", "batch_2"]):
        said = "programs.0.cases: expected the golden cases and no other, got ["
        yield "readout", {"programs/0/cases": dict.fromkeys(names, result)}, said
    place = "programs/0/cases/batch_1"
    for tolerance in (0.0, 0.99e-6, 1.01e-6, 1e308):
        said = f"programs.0.cases.batch_1.tolerance: expected 1e-06, got {tolerance:.12g}"
        yield "readout", {f"{place}/tolerance": tolerance}, said
    for error in (0.0, 1e-300, 1e-6):
        yield "readout", {f"{place}/error": error}, None
    for error in (1.01e-6, 1e308):
        said = f"programs.0.cases.batch_1.error: expected at most 1e-06, got {error:.12g}"
        yield "readout", {f"{place}/error": error}, said
    second = readout()["programs"][0] | {"file": "program.onnx.2"}
    files = {"files/program.onnx.2": {"size": 1, "sha256": SHA}}
    yield "readout", {"programs": [readout()["programs"][0], second]} | files, None
    other = second | {"cases": {}}
    said = "programs.1.cases: expected the golden cases"
    yield "readout", {"programs": [readout()["programs"][0], other]} | files, said


def of_files() -> Edits:
    """Which files are listed, and how large each may be."""
    listed = "files: expected [weights.safetensors, golden.safetensors, program.onnx], got ["
    record = {"size": 1, "sha256": SHA}
    for name in ("weights.safetensors", "golden.safetensors", "program.onnx"):
        yield "readout", {f"files/{name}": ...}, listed
        yield "readout", {f"files/{name}": ..., f"files/{name}.2": record}, listed
    for name in ("a", "program.other", "z"):
        yield "readout", {f"files/{name}": record}, listed
    for name, most in (("weights.safetensors", 1 << 36), ("golden.safetensors", 1 << 28), ("program.onnx", 1 << 32)):
        for size in (0, most - 1, most):
            yield "readout", {f"files/{name}/size": size}, None
        for size in (most + 1, 2 * most, 2**53 - 1):
            yield "readout", {f"files/{name}/size": size}, f"files.{name}.size: expected at most {most}, got {size}"


def of_formats() -> Edits:
    """The keys of format 2, and what only it allows."""
    for key in ("more_inputs", "parts"):
        yield "join", {key: ...}, f"{key}: expected a value, got nothing"
        yield "readout", {key: []}, f"{key}: expected no such key, got []"
    older = {"bundle_format": 1, "more_inputs": ..., "parts": ...}
    yield "join", {"bundle_format": 1}, "more_inputs: expected no such key, got [{"
    yield "join", older, "num_registers: expected an integer >= 1, got null"
    yield "join", older | {"num_registers": 4}, 'input.name: expected "registers", got "tokens"'
    yield "any_count", older | {"num_registers": 4}, OF_LAYOUT
    newer = {"bundle_format": 2, "more_inputs": [], "parts": None}
    yield "conditioner", newer, None
    yield "images", newer, None
    yield "readout", newer, 'input.name: expected "tokens", got "registers"'
    yield "readout", newer | {"input/name": "tokens"}, None
    yield "readout", newer | {"input/name": "tokens", "num_registers": None}, 'input.shape: expected ["B","T",8], got ['
    yield "readout", {"num_registers": None}, "num_registers: expected an integer >= 1, got null"


def of_any_count() -> Edits:
    """Any number of tokens: the layout, and the shortest sequence."""
    for start in (None, -1):
        yield "any_count", {"layout/start": start}, POSITIONS
    yield "any_count", {"layout/start": 0}, "input.min_tokens: expected 1, got 2"
    yield "any_count", {"layout/start": 0, "input/min_tokens": 1}, None
    yield "any_count", {"layout/num_tokens": 1}, POSITIONS
    fixed = {"layout/num_tokens": 9, "input/shape": ["B", 9, 8], "input/min_tokens": 9}
    yield "any_count", fixed, 'more_inputs.0.shape: expected ["B",9], got ["B","T"]'
    yield "any_count", fixed | {"more_inputs/0/shape": ["B", 9]}, None
    yield "any_count", {"layout/start": None, "layout/indices": [0, 1], "layout/num_tokens": 9}, POSITIONS
    yield "any_count", {"layout/num_registers": 4}, OF_LAYOUT
    yield "any_count", {"num_registers": 4}, OF_LAYOUT
    for least in (None, 1, 3):
        said = "null" if least is None else least
        yield "join", {"input/min_tokens": least}, f"input.min_tokens: expected 2, got {said}"
    negative = (([-3, -1], 3), ([0, -2], 3), ([1, -1], 3), ([1, -2], 4))
    for tokens, least in (*negative, ([0, 5], 5), ([3, 5], 5), ([6, None], 7)):
        yield "join", {"parts/1/tokens": tokens}, f"input.min_tokens: expected {least}, got 2"
        edits = {"parts/1/tokens": tokens, "input/min_tokens": least} | golden_cases(("batch_1", 1, 8))
        yield "join", edits, None
    mean, ends, state = BASES["join"]()["parts"]
    yield "join", {"parts": [state, mean, ends | {"tokens": [-3, None]}], "input/min_tokens": 3}, None
    yield "join", {"golden/cases/0/length": 1}, "golden.cases.0.length: expected an integer >= 2, got 1"


def of_more_inputs() -> Edits:
    """A mask and vectors: names, dtypes and shapes."""
    for shape in (["B", 4], ["B"], ["B", "T", 1], ["T", "T"], ["T", 4], [], [2, "T"]):
        yield "join", {"more_inputs/0/shape": shape}, 'more_inputs.0.shape: expected ["B","T"], got ['
    for dtype in ("float32", "float64"):
        yield "join", {"more_inputs/0/dtype": dtype}, f'more_inputs.0.dtype: expected "bool", got "{dtype}"'
    for dtype in ("bool", "float64"):
        yield "join", {"more_inputs/1/dtype": dtype}, f'more_inputs.1.dtype: expected "float32", got "{dtype}"'
    for shape, width in ((["B", "T"], 1), (["B"], 1), ([], 1), (["B", 2, 3], 3), ([7, 7], 7), (["T", 7], 7)):
        said = f'more_inputs.1.shape: expected ["B",{width}], got ['
        yield "join", {"more_inputs/1/shape": shape}, said
    yield "join", {"more_inputs/1/shape": ["B", 1]}, None
    for name in ("registers", "tokens", "images"):
        edits = {"more_inputs/1/name": name, "parts/2/name": name}
        yield "join", edits, f'more_inputs.1.name: expected a vector\'s name, got "{name}"'
    for name in ("a", "z9_", "a" * 64):
        yield "join", {"more_inputs/1/name": name, "parts/2/name": name}, None
    words = "expected lower-case letters, digits and underscores, got "
    for name in ("", "A", "9a", "_a", "a-b", "a.b", "a" * 65, "a b"):
        yield "join", {"more_inputs/1/name": name}, f"more_inputs.1.name: {words}"
        yield "join", {"parts/0/name": name}, f"parts.0.name: {words}"
    mask, vector = BASES["join"]()["more_inputs"]
    twice = 'more_inputs: expected different names, at most 65, got ["mask","mask"'
    yield "join", {"more_inputs": [mask, mask, vector]}, twice
    yield "join", {"more_inputs": [vector, mask]}, 'more_inputs.1.name: expected a vector\'s name, got "mask"'
    yield "join", {"more_inputs": [vector]}, None
    first = vector | {"name": "a"}  # before "mask" in the alphabet
    yield "join", {"more_inputs": [first], "parts/2/name": "a"}, None
    yield (
        "images",
        {"bundle_format": 2, "more_inputs": [mask], "parts": None},
        ('more_inputs.0.name: expected a vector\'s name, got "mask"'),
    )
    cases = [("batch_1", 1, 4), *((f"c{number}", 1, 4) for number in range(1023))]
    yield "join", golden_cases(*cases), None
    yield "join", golden_cases(*cases, ("last", 1, 4)), "golden.cases: expected at most 4096 tensors, got 4100"


def of_join_parts() -> Edits:
    """The parts of a join: widths, names, tokens, and which are vectors."""
    yield "join", {"parts": None}, "parts: expected a list, for the vectors, got null"
    yield "any_count", {"parts": []}, "parts: expected 1 to 64 parts with different names, got []"
    yield "join", {"parts/1/name": "mean"}, 'parts: expected 1 to 64 parts with different names, got ["mean","mean"'
    for width in (1, 4, 2**53 - 1):
        yield "join", {"parts/0/width": width}, f"parts: expected widths whose sum is 8, got {width + 5}"
    for width in (255, 256, 257, 2**40):
        wide = {"parts/0/width": width, "cond_dim": width + 5, "outputs/0/shape": ["B", width + 5]}
        yield "join", wide, None
    alone = {"parts": [BASES["join"]()["parts"][0] | {"width": 8}], "more_inputs/1": ..., "input/min_tokens": 1}
    yield "join", alone, None
    for count in (64, 65):
        one = {"width": 1, "tokens": None, "takes_mask": False}
        vector = {"dtype": "float32", "shape": ["B", 2]}
        names = [f"v{number}" for number in range(count)]
        inputs = [{"name": name, **vector} for name in names]
        many = {"parts": [{"name": name, **one} for name in names], "more_inputs": inputs, "input/min_tokens": 1}
        many |= {"cond_dim": count, "outputs/0/shape": ["B", count]}
        said = None if count == 64 else "parts: expected 1 to 64 parts with different names, got ["
        yield "join", many, said
        yield "join", many | {"more_inputs": [BASES["join"]()["more_inputs"][0], *inputs]}, said
    vectors = 'parts: expected ["state"] without tokens, got '
    yield "join", {"parts/0/tokens": None}, f'{vectors}["mean","state"]'
    yield "join", {"parts/2/tokens": [0, 1]}, f"{vectors}[]"
    for name in ("other", "stated"):
        yield "join", {"parts/2/name": name}, f'{vectors}["{name}"]'
    inside = ": expected tokens inside the sequence, got {"
    yield "join", {"parts/2/takes_mask": True}, f"parts.2{inside}"
    for tokens in ([], [0], [None, 1], [0, 1, 2], [1, 1], [2, 1], [-1, -2], [-1, -1], [0, 0], [-3, 5], [-1, 0]):
        yield "join", {"parts/1/tokens": tokens}, f"parts.1{inside}"
    three = {"num_registers": 3, "input/shape": ["B", 3, 8], "input/min_tokens": None, "more_inputs/0/shape": ["B", 3]}
    three |= golden_cases(("batch_1", 1, 3))
    for tokens in ([3, None], [1, -2], [0, -3], [-1, 2], [-4, -3]):
        yield "join", three | {"parts/1/tokens": tokens}, f"parts.1{inside}"
    for tokens in ([2, None], [1, -1], [-9, 1], [-1, 9], [-3, -2]):
        yield "join", three | {"parts/1/tokens": tokens}, None


FORMAT_2 = (of_formats, of_any_count, of_more_inputs, of_join_parts)


def agreement() -> typing.Iterator[tuple[str, bytes, str | None]]:
    """Each key fits the schema; the keys agree or do not."""
    for group in (of_parts, of_layouts, of_inputs, of_outputs, of_cases, of_programs, of_files, *FORMAT_2):
        for number, (base, edits, said) in enumerate(group()):
            changes = "; ".join(
                where if value is ... else f"{where} {json.dumps(value)[:60]}" for where, value in edits.items()
            )
            yield f"{group.__name__} {number}, {base}: {changes}", with_values(base, edits), said
