"""Ways to damage a bundle, each with the message that both languages must give; DIR is the folder."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from regplug.format.weights import load_tensors, save_tensors

PROGRAM = "program.torchscript.pt"
WEIGHTS = "weights.safetensors"
LAYOUT = {
    "num_registers": 4,
    "hidden_dim": 24,
    "start": None,
    "indices": None,
    "num_tokens": None,
    "normalized": None,
}


def edit_manifest(folder: Path, change: Callable[[dict], object]) -> None:
    values = json.loads((folder / "manifest.json").read_bytes())
    change(values)
    (folder / "manifest.json").write_text(json.dumps(values))


def rename_strategy(full_name: str) -> Callable[[dict], None]:
    """Changes a manifest's strategy to another distribution's."""

    def change(values: dict) -> None:
        values["strategy"] = full_name
        values["provenance"]["packages"][full_name.partition(":")[0]] = "1.0"

    return change


def repin(folder: Path) -> None:
    """Write the true sizes and digests of the folder's files into its manifest."""

    def change(values: dict) -> None:
        for name in values["files"]:
            data = (folder / name).read_bytes()
            values["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    edit_manifest(folder, change)


def replace_weights(folder: Path, change: Callable[[dict], dict]) -> None:
    state = load_tensors("weights", (folder / WEIGHTS).read_bytes())
    (folder / WEIGHTS).write_bytes(save_tensors(change(state)))
    repin(folder)


def change_golden(folder: Path, change: Callable[[dict], object]) -> None:
    """Change the tensors of the golden cases in place."""
    tensors = load_tensors("golden", (folder / "golden.safetensors").read_bytes())
    change(tensors)
    (folder / "golden.safetensors").write_bytes(save_tensors(tensors))
    repin(folder)


def negate_outputs(folder: Path, *cases: str) -> None:
    """Wrong outputs for these cases, of the same magnitude, so that the tolerances stay right."""

    def change(tensors: dict) -> None:
        for name in tensors:
            if name.startswith(tuple(f"{case}.output." for case in cases)):
                tensors[name] = -tensors[name]

    change_golden(folder, change)


def raw_weights(folder: Path, data: bytes) -> None:
    (folder / WEIGHTS).write_bytes(data)
    repin(folder)


def flip_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def to_link(folder: Path) -> None:
    shutil.move(folder / WEIGHTS, folder.parent / "elsewhere")
    (folder / WEIGHTS).symlink_to(folder.parent / "elsewhere")


def to_fifo(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)


def to_folder(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).mkdir()


def rename_program(folder: Path, name: str) -> None:
    def change(values: dict) -> None:
        values["programs"][0]["file"] = name
        values["files"][name] = values["files"].pop(PROGRAM)

    edit_manifest(folder, change)


def set_value(*path: object, value: object) -> Callable[[Path], None]:
    def change(values: dict) -> None:
        inside = values
        for step in path[:-1]:
            inside = inside[step]
        inside[path[-1]] = value

    return lambda folder: edit_manifest(folder, change)


def with_backbone(**changes: object) -> Callable[[Path], None]:
    """Adds the key ``backbone`` to a manifest, and these values."""

    def change(values: dict) -> None:
        backbone = {"name": "acme:vit", "model": None, "options": {}, "normalized": True}
        layout = {**LAYOUT, "start": 1, "normalized": True}
        values.update({"backbone": backbone, "layout": layout, **changes})

    return lambda folder: edit_manifest(folder, change)


def added_file(name: bytes) -> Callable[[Path], None]:
    """Adds a file with any bytes as its name."""
    return lambda folder: (folder / os.fsdecode(name)).touch()


def to_pointer(name: str) -> Callable[[Path], object]:
    """Replaces a file by a pointer, as in a clone without ``git lfs pull``."""
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 208\n"
    return lambda folder: (folder / name).write_text(text)


def many_files(folder: Path) -> None:
    for index in range(4096):
        (folder / f".{index}").touch()


def with_outputs(count: int) -> Callable[[Path], None]:
    """Gives the manifest of a conditioner this many outputs."""

    def change(values: dict) -> None:
        film = {"generator": "regplug:kernel-film", "options": {}, "form": "gamma", "order": "gamma-first"}
        outputs = [
            {"name": f"{word}_{index}", "dtype": "float32", "shape": ["B", 1]}
            for index in range(count // 2)
            for word in ("gamma", "beta")
        ]
        values.update({"holds": "conditioner", "layout": {**LAYOUT, "start": 1}, "film": film, "outputs": outputs})
        values["input"].update({"name": "tokens", "shape": ["B", "T", 24], "min_tokens": 5})

    return lambda folder: edit_manifest(folder, change)


# a readout 'compress-concat' with R = 4, D = 24, c = 6 and one program is damaged
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no such folder": (shutil.rmtree, "bundle DIR: no such folder."),
    "a zip archive in its place": (
        lambda f: (shutil.rmtree(f), f.write_bytes(b"PK\x03\x04 and so on")),
        "bundle DIR: a zip archive, not a folder; unpack it first.",
    ),
    "a tar archive in its place": (
        lambda f: (shutil.rmtree(f), f.write_bytes(b"b/".ljust(257, b"\0") + b"ustar\0")),
        "bundle DIR: a tar archive, not a folder; unpack it first.",
    ),
    "a 7z archive in its place": (
        lambda f: (shutil.rmtree(f), f.write_bytes(b"7z\xbc\xaf\x27\x1c and so on")),
        "bundle DIR: a 7z archive, not a folder; unpack it first.",
    ),
    "a web page in its place": (
        lambda f: (shutil.rmtree(f), f.write_bytes(b" \n<!DOCTYPE html><title>404</title>")),
        "bundle DIR: a web page, not a folder; download the file itself.",
    ),
    "a Git LFS pointer in its place": (
        lambda f: (shutil.rmtree(f), f.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")),
        "bundle DIR: a Git LFS pointer, not the file itself; run `git lfs pull`.",
    ),
    "a file in its place": (lambda f: (shutil.rmtree(f), f.write_text("x")), "bundle DIR: not a folder."),
    "a folder that is no bundle": (
        lambda f: (f / "manifest.json").unlink(),
        "bundle DIR: manifest.json: missing; use a folder that `regplug export` wrote.",
    ),
    "weights missing": (
        lambda f: (f / WEIGHTS).unlink(),
        "bundle DIR: weights.safetensors: missing; export the bundle again.",
    ),
    "a program missing": (
        lambda f: (f / PROGRAM).unlink(),
        "bundle DIR: program.torchscript.pt: missing; export the bundle again.",
    ),
    "weights that are a Git LFS pointer": (
        to_pointer(WEIGHTS),
        "bundle DIR: weights.safetensors: a Git LFS pointer, not the file itself; run `git lfs pull`.",
    ),
    "a program that is a Git LFS pointer": (
        to_pointer(PROGRAM),
        "bundle DIR: program.torchscript.pt: a Git LFS pointer, not the file itself; run `git lfs pull`.",
    ),
    "a manifest that is a Git LFS pointer": (
        to_pointer("manifest.json"),
        "bundle DIR: manifest.json: a Git LFS pointer, not the file itself; run `git lfs pull`.",
    ),
    "a folder added": (
        lambda f: (f / "weights").mkdir(),
        "bundle DIR: weights: not listed in the manifest; remove it.",
    ),
    "a file added": (
        lambda f: (f / "weights.bin").write_text("x"),
        "bundle DIR: weights.bin: not listed in the manifest; remove it.",
    ),
    "truncated": (
        lambda f: os.truncate(f / WEIGHTS, 100),
        "bundle DIR: weights.safetensors: expected 888 bytes, got 100; export the bundle again.",
    ),
    "one byte changed": (
        lambda f: flip_byte(f / WEIGHTS),
        "bundle DIR: weights.safetensors: sha256 differs from the manifest; export the bundle again.",
    ),
    "one byte of the program changed": (
        lambda f: flip_byte(f / PROGRAM),
        "bundle DIR: program.torchscript.pt: sha256 differs from the manifest; export the bundle again.",
    ),
    "one byte of the golden cases changed": (
        lambda f: flip_byte(f / "golden.safetensors"),
        "bundle DIR: golden.safetensors: sha256 differs from the manifest; export the bundle again.",
    ),
    "a newer format": (
        set_value("bundle_format", value=3),
        "bundle DIR: manifest.json: bundle_format: expected 1 or 2, got 3; use a newer regplug.",
    ),
    "a newer format with other keys": (
        lambda f: (f / "manifest.json").write_text('{"bundle_format": 3, "news": true}'),
        "bundle DIR: manifest.json: bundle_format: expected 1 or 2, got 3; use a newer regplug.",
    ),
    "a path with dots": (
        lambda f: rename_program(f, "../evil"),
        'bundle DIR: manifest.json: programs.0.file: expected a file name, never a path, got "../evil".',
    ),
    "an absolute path": (
        lambda f: rename_program(f, "/etc/passwd"),
        'bundle DIR: manifest.json: programs.0.file: expected a file name, never a path, got "/etc/passwd".',
    ),
    "a list for a manifest": (
        lambda f: (f / "manifest.json").write_text("[]"),
        "bundle DIR: manifest.json: expected an object, got [].",
    ),
    "a key twice": (
        lambda f: (f / "manifest.json").write_text('{"bundle_format": 1, "bundle_format": 1}'),
        "bundle DIR: manifest.json: duplicate key 'bundle_format'.",
    ),
    "a key missing": (
        lambda f: edit_manifest(f, lambda values: values.pop("cond_dim")),
        "bundle DIR: manifest.json: cond_dim: expected a value, got nothing.",
    ),
    "a key added": (
        set_value("news", value=1),
        "bundle DIR: manifest.json: news: expected no such key, got 1.",
    ),
    "a size that is a fraction": (
        set_value("num_registers", value=4.0),
        "bundle DIR: manifest.json: num_registers: expected an integer >= 1, got 4.0.",
    ),
    "a shape that is not the readout's": (
        set_value("input", "shape", value=["B", 5, 24]),
        'bundle DIR: manifest.json: input.shape: expected ["B",4,24], got ["B",5,24].',
    ),
    "a symbolic link": (
        to_link,
        "bundle DIR: weights.safetensors: a symbolic link; use follow_links to follow it.",
    ),
    "a FIFO": (to_fifo, "bundle DIR: weights.safetensors: not a regular file."),
    "a folder for a file": (to_folder, "bundle DIR: weights.safetensors: not a regular file."),
    "weights by another name": (
        lambda f: replace_weights(f, lambda state: {"compress.weights": state["compress.weight"]}),
        "bundle DIR: weights.safetensors: expected tensors [compress.weight], got [compress.weights].",
    ),
    "weights of another shape": (
        lambda f: replace_weights(f, lambda state: {"compress.weight": state["compress.weight"][:, :23]}),
        "bundle DIR: weights.safetensors: tensor 'compress.weight': expected float32 [6, 24], got float32 [6, 23].",
    ),
    "weights of another dtype": (
        lambda f: replace_weights(f, lambda state: {"compress.weight": state["compress.weight"].double()}),
        "bundle DIR: weights.safetensors: tensor 'compress.weight': expected float32 [6, 24], got float64 [6, 24].",
    ),
    "half a surrogate pair": (
        lambda f: (f / "manifest.json").write_text('{"bundle_format": 1, "holds": "\\ud800"}'),
        "bundle DIR: manifest.json: not JSON.",
    ),
    "no JSON": (
        lambda f: (f / "manifest.json").write_text('{"bundle_format": 1, "holds": NaN}'),
        "bundle DIR: manifest.json: not JSON.",
    ),
    "a NUL behind the manifest": (
        lambda f: (f / "manifest.json").write_bytes((f / "manifest.json").read_bytes() + b"\0"),
        "bundle DIR: manifest.json: not JSON.",
    ),
    "a number beyond float64": (
        set_value("options", value={"compressed_dim": 10**400}),
        "bundle DIR: manifest.json: not JSON.",
    ),
    "a layout that does not fit its length": (
        set_value("layout", value={**LAYOUT, "start": 5, "num_tokens": 8}),
        "bundle DIR: manifest.json: layout: expected positions that agree with its sizes, got "
        '{"hidden_dim":24,"indices":null,"normalized":null,"num_regis....',
    ),
    "a layout with a start and indices": (
        set_value("layout", value={**LAYOUT, "start": 5, "indices": []}),
        "bundle DIR: manifest.json: layout: expected positions that agree with its sizes, got "
        '{"hidden_dim":24,"indices":[],"normalized":null,"num_registe....',
    ),
    "a least number of tokens for a readout": (
        set_value("input", "min_tokens", value=3),
        "bundle DIR: manifest.json: input.min_tokens: expected null, got 3.",
    ),
    "images without a backbone": (
        set_value("input", "shape", value=["B", 3, 8, 8]),
        'bundle DIR: manifest.json: input.shape: expected ["B",4,24], got ["B",3,8,8].',
    ),
    "a backbone in front of registers": (
        with_backbone(),
        'bundle DIR: manifest.json: input.name: expected "images", got "registers".',
    ),
    "a backbone without a layout": (
        with_backbone(layout=None),
        "bundle DIR: manifest.json: layout: expected an object, got null.",
    ),
    "a layout that was normalized otherwise": (
        with_backbone(layout={**LAYOUT, "start": 1, "normalized": False}),
        "bundle DIR: manifest.json: layout.normalized: expected true, got false.",
    ),
    "a layout that does not say whether it was normalized": (
        with_backbone(layout={**LAYOUT, "start": 1}),
        "bundle DIR: manifest.json: layout.normalized: expected true, got null.",
    ),
    "images of any size": (
        with_backbone(
            input={"name": "images", "dtype": "float32", "shape": ["B", 3, "T"], "min_batch": 0, "min_tokens": None}
        ),
        'bundle DIR: manifest.json: input.shape: expected "B" and 1 to 7 sizes, got ["B",3,"T"].',
    ),
    "images of no size": (
        with_backbone(input={"name": "images", "dtype": "float32", "shape": ["B"], "min_batch": 0, "min_tokens": None}),
        'bundle DIR: manifest.json: input.shape: expected "B" and 1 to 7 sizes, got ["B"].',
    ),
    "a backbone that is not named in full": (
        with_backbone(backbone={"name": "vit", "model": None, "options": {}, "normalized": True}),
        'bundle DIR: manifest.json: backbone.name: expected distribution:name, got "vit".',
    ),
    "a backbone that says neither yes nor no": (
        with_backbone(backbone={"name": "acme:vit", "model": None, "options": {}, "normalized": None}),
        "bundle DIR: manifest.json: backbone.normalized: expected true or false, got null.",
    ),
    "a backbone with a model that is not a name": (
        with_backbone(backbone={"name": "acme:vit", "model": 3, "options": {}, "normalized": True}),
        "bundle DIR: manifest.json: backbone.model: expected a model's name, never a path or an address, got 3.",
    ),
    "a backbone with a model that is a URL": (
        with_backbone(backbone={"name": "acme:vit", "model": "hf-hub:acme/vit", "options": {}, "normalized": True}),
        "bundle DIR: manifest.json: backbone.model: expected a model's name, never a path or an address, "
        'got "hf-hub:acme/vit".',
    ),
    "golden outputs of another dtype": (
        set_value("golden", "truth", value="eager"),
        "bundle DIR: golden.safetensors: tensor 'batch_0.output.conditioning': expected float32 [0, 24], "
        "got float64 [0, 24].",
    ),
    "a slice that is not inside its input": (
        set_value("golden", "cases", 5, "start", value=3),
        "bundle DIR: golden.safetensors: case 'slice': expected a slice of 4 inside the input.",
    ),
    "a name that moves the cursor": (
        added_file(b"program\x1b[2J\xff\n.py"),
        "bundle DIR: program\\x1b\\x5b2J\\xff\\x0a.py: not listed in the manifest; remove it.",
    ),
    "a name of another alphabet": (
        added_file("golden é".encode()),
        "bundle DIR: golden\\x20\\xc3\\xa9: not listed in the manifest; remove it.",
    ),
    "more files than allowed": (many_files, "bundle DIR: expected at most 4096 files, got more."),
    "a key that moves the cursor": (
        set_value("\x1b[2J é", value="é"),
        'bundle DIR: manifest.json: "\\u001b[2J \\u00e9": expected no such key, got "\\u00e9".',
    ),
    "a key of a thousand letters": (
        set_value("a" * 1000, value=1),
        f'bundle DIR: manifest.json: "{"a" * 59}...: expected no such key, got 1.',
    ),
    "a key that moves the cursor, twice": (
        lambda f: (f / "manifest.json").write_text('{"\\u001b é": 1, "\\u001b é": 1}', encoding="utf-8"),
        "bundle DIR: manifest.json: duplicate key '\\u001b \\u00e9'.",
    ),
    "a duplicate key and deep nesting": (
        lambda f: (f / "manifest.json").write_text('{"a": 1, "a": ' + "[" * 65 + "]" * 65 + "}"),
        "bundle DIR: manifest.json: nested deeper than 64.",
    ),
    "a duplicate key and malformed JSON": (
        lambda f: (f / "manifest.json").write_text('{"a": 1, "a": 1, "b"}'),
        "bundle DIR: manifest.json: not JSON.",
    ),
    "two keys twice, the first one outside": (
        lambda f: (f / "manifest.json").write_text('{"a": 1, "a": {"b": 1, "b": 1}}'),
        "bundle DIR: manifest.json: duplicate key 'a'.",
    ),
    "brackets inside a text": (
        lambda f: (f / "manifest.json").write_text(json.dumps(["[" * 65 + '"\\'])),
        'bundle DIR: manifest.json: expected an object, got ["' + "[" * 58 + "....",
    ),
    "an integer that C++ holds as a fraction": (
        set_value("cond_dim", value=10**30),
        "bundle DIR: manifest.json: cond_dim: expected an integer >= 1, got 1e+30.",
    ),
    "a fraction of sixteen digits": (
        set_value("cond_dim", value=1234567890123456.5),
        "bundle DIR: manifest.json: cond_dim: expected an integer >= 1, got 1.23456789012e+15.",
    ),
    "an option that is no keyword": (
        set_value("options", value={"compressed_dim": 6, "a-b": 1}),
        'bundle DIR: manifest.json: options: expected an option\'s name, got "a-b".',
    ),
    "a backend of another alphabet": (
        set_value("programs", 0, "backend", value="torch\x1bscript"),
        'bundle DIR: manifest.json: programs.0.backend: expected a plain name, got "torch\\u001bscript".',
    ),
    "a property on two lines": (
        set_value("programs", 0, "properties", value={"note": "a\nb"}),
        'bundle DIR: manifest.json: programs.0.properties.note: expected printable ASCII, got "a\\nb".',
    ),
    "a property without a plain name": (
        set_value("programs", 0, "properties", value={"a b": "c"}),
        'bundle DIR: manifest.json: programs.0.properties: expected a plain name, got "a b".',
    ),
    "CPU flags that are no words": (
        set_value("programs", 0, "properties", value={"cpu_flags": "avx2  fma"}),
        "bundle DIR: manifest.json: programs.0.properties.cpu_flags: expected words separated by single spaces, "
        'got "avx2  fma".',
    ),
    "a file's key that is a path": (
        set_value("files", "../evil", value={"size": 0, "sha256": "0" * 64}),
        'bundle DIR: manifest.json: files: expected a file name, never a path, got "../evil".',
    ),
    "a version of two words": (
        set_value("provenance", "torch", value="2.13 evil"),
        'bundle DIR: manifest.json: provenance.torch: expected a version, got "2.13 evil".',
    ),
    "a package that is not named": (
        set_value("provenance", "packages", value={}),
        "bundle DIR: manifest.json: provenance.packages: expected regplug among them, got [].",
    ),
    "weights larger than any": (
        set_value("files", WEIGHTS, "size", value=(64 << 30) + 1),
        "bundle DIR: manifest.json: files.weights.safetensors.size: expected at most 68719476736, got 68719476737.",
    ),
    "golden cases larger than any": (
        set_value("files", "golden.safetensors", "size", value=(256 << 20) + 1),
        "bundle DIR: manifest.json: files.golden.safetensors.size: expected at most 268435456, got 268435457.",
    ),
    "a program larger than any": (
        set_value("files", PROGRAM, "size", value=(4 << 30) + 1),
        "bundle DIR: manifest.json: files.program.torchscript.pt.size: expected at most 4294967296, got 4294967297.",
    ),
    "an output without sizes": (
        set_value("outputs", 0, "shape", value=[]),
        'bundle DIR: manifest.json: outputs.0.shape: expected ["B",24], got [].',
    ),
    "outputs by the thousand": (
        with_outputs(2000),
        "bundle DIR: manifest.json: golden.cases: expected at most 4096 tensors, got 12006.",
    ),
    "a case of fewer samples than the least": (
        set_value("input", "min_batch", value=1),
        "bundle DIR: manifest.json: golden.cases.0.batch: expected an integer >= 1, got 0.",
    ),
    "a case with another batch in its name": (
        set_value("golden", "cases", 1, "batch", value=5),
        'bundle DIR: manifest.json: golden.cases.1.case: expected "batch_5", got "batch_1".',
    ),
    "a case of another length": (
        set_value("golden", "cases", 2, "length", value=3),
        "bundle DIR: manifest.json: golden.cases.2.length: expected 4, got 3.",
    ),
    "a slice of another length": (
        set_value("golden", "cases", 5, "length", value=5),
        "bundle DIR: manifest.json: golden.cases.5.length: expected 4, got 5.",
    ),
    "weights that are no safetensors": (
        lambda f: raw_weights(f, b"\0" * 4),
        "bundle DIR: weights.safetensors: size: expected at least 8 bytes, got 4.",
    ),
    "weights with a name twice": (
        lambda f: raw_weights(f, (14).to_bytes(8, "little") + b'{"a":1,"a":1} '),
        "bundle DIR: weights.safetensors: duplicate: duplicate key 'a'.",
    ),
}


def damaged_copies(bundle: Path, folder: Path) -> dict[str, tuple[Path, str]]:
    """A copy of the bundle for each way to damage it, and the message that every loader must give."""
    copies = {}
    for index, (case, (damage, message)) in enumerate(DAMAGES.items()):
        copy = shutil.copytree(bundle, folder / str(index) / "b")
        damage(copy)
        copies[case] = (copy, message.replace("DIR", str(copy)))
    return copies
