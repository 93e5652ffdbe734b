"""The manifest is read strictly, and read back as it was written."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

import regplug
from regplug.errors import BundleError
from regplug.format.manifest_rules import parse_manifest


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    spec = regplug.resolve("compress-concat", num_registers=3, hidden_dim=8, compressed_dim=2)
    film = regplug.pair(spec, regplug.KernelFiLMGenerator, kernel_hidden_dim=4, num_film_layers=2)
    layout = regplug.TokenLayout(num_registers=3, hidden_dim=8, start=1)
    conditioner = regplug.Conditioner(layout, spec.build(), film)
    return regplug.export(spec, conditioner, tmp_path_factory.mktemp("manifest") / "bundle").manifest


def changed(manifest, path, value):
    """The manifest's bytes with the value at ``path`` replaced, or removed if ``value`` is Ellipsis."""
    values = json.loads(manifest.to_bytes())
    *above, last = path
    inside = values
    for step in above:
        inside = inside[step]
    if value is ...:
        del inside[last]
    else:
        inside[last] = value
    return json.dumps(values).encode()


def test_a_manifest_is_read_back_as_it_was_written(manifest):
    again = parse_manifest("DIR", manifest.to_bytes())
    assert again.to_bytes() == manifest.to_bytes()
    assert again.token_layout == regplug.TokenLayout(num_registers=3, hidden_dim=8, start=1)


WRONG = {
    "bundle_format: expected 1 or 2, got 3; use a newer regplug": (["bundle_format"], 3),
    "bundle_format: expected 1 or 2, got 1.0; use a newer regplug": (["bundle_format"], 1.0),
    "bundle_format: expected a value, got nothing": (["bundle_format"], ...),
    "strategy: expected a value, got nothing": (["strategy"], ...),
    'strategy: expected distribution:name, got "pool"': (["strategy"], "pool"),
    "extra: expected no such key, got 1": (["extra"], 1),
    "input.extra: expected no such key, got []": (["input", "extra"], []),
    "num_registers: expected an integer >= 1, got 3.0": (["num_registers"], 3.0),
    "num_registers: expected an integer >= 1, got true": (["num_registers"], True),
    "num_registers: expected an integer >= 1, got 0": (["num_registers"], 0),
    "cond_dim: expected an integer >= 1, got 9007199254740992": (["cond_dim"], 2**53),
    "options: expected an object, got []": (["options"], []),
    'holds: expected one of [readout, conditioner], got "both"': (["holds"], "both"),
    'input.dtype: expected one of [float32, float64, float16, bfloat16], got "int8"': (["input", "dtype"], "int8"),
    "layout: expected an object, got null": (["layout"], None),
    "film: expected an object, got null": (["film"], None),
    'film.order: expected one of [gamma-first], got "shift-first"': (["film", "order"], "shift-first"),
    'input.name: expected "tokens", got "registers"': (["input", "name"], "registers"),
    'input.shape: expected ["B","T",8], got ["B",3,8]': (["input", "shape"], ["B", 3, 8]),
    'outputs.1.name: expected "beta_0", got "gamma_1"': (["outputs", 1, "name"], "gamma_1"),
    'outputs.0.dtype: expected "float32", got "float64"': (["outputs", 0, "dtype"], "float64"),
    'layout: expected positions that agree with its sizes, got {"hidden_dim":8': (["layout", "start"], -1),
    "layout: expected positions that agree with its sizes": (["layout", "num_tokens"], 2),
    "layout: expected positions that agree": (["layout", "indices"], []),
    "input.min_tokens: expected 4, got null": (["input", "min_tokens"], None),
    "input.min_tokens: expected 4, got 3": (["input", "min_tokens"], 3),
    "golden.cases.0.tolerance: expected a number >= 0, got -1": (["golden", "cases", 0, "tolerance"], -1),
    "golden.cases: expected a list, got {}": (["golden", "cases"], {}),
    'programs.0.file: expected a file name, never a path, got "../evil"': (["programs", 0, "file"], "../evil"),
    "programs.0.file: expected a name that begins with program.torchscript": (["programs", 0, "file"], "weights2"),
    "programs.0.cases: expected the golden cases and no other": (["programs", 0, "cases", "batch_1"], ...),
    "files: expected [weights.safetensors, golden.safetensors, program.torchscript.pt]": (
        ["files", "weights.safetensors"],
        ...,
    ),
    "files.golden.safetensors.sha256: expected 64 lower-case hexadecimal digits": (
        ["files", "golden.safetensors", "sha256"],
        "A" * 64,
    ),
    "files.golden.safetensors.size: expected an integer >= 0, got -1": (["files", "golden.safetensors", "size"], -1),
    "provenance.packages.regplug: expected a version, got 1": (["provenance", "packages", "regplug"], 1),
}


@pytest.mark.parametrize("message", WRONG)
def test_a_value_that_may_not_be_there_is_refused_with_its_key(manifest, message):
    path, value = WRONG[message]
    with pytest.raises(BundleError) as error:
        parse_manifest("DIR", changed(manifest, path, value))
    assert str(error.value).startswith(f"bundle DIR: manifest.json: {message}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace(b'"cond_dim"', b'"hidden_dim"'), "duplicate key 'hidden_dim'"),
        (lambda text: b"\xef\xbb\xbf" + text, "not JSON: begins with a byte order mark"),
        (lambda text: text[:-3], "manifest.json: not JSON\\.$"),
        (lambda text: text.replace(b"conditioner", b"\\ud800"), "manifest.json: not JSON\\.$"),
        (
            lambda text: text.replace(b"conditioner", b"\\ud83d\\ude00"),
            'holds: expected one of .*, got "\\\\ud83d\\\\ude00"',
        ),
        (lambda text: b"[" * 100 + b"]" * 100, "nested deeper than 64"),
        (lambda text: b"[" * 100_000, "nested deeper than 64"),
        (lambda text: b'"' + b"[" * 100_000, "manifest.json: not JSON"),
        (lambda text: text.replace(b"conditioner", b"\xff"), "not JSON"),
        (lambda text: text.replace(b'"cond_dim": 6', b'"cond_dim": ' + b"9" * 5000), "manifest.json: not JSON"),
        (lambda text: text.replace(b'"cond_dim": 6', b'"cond_dim": 1e400'), "manifest.json: not JSON"),
        (lambda text: b"[]", "manifest.json: expected an object, got \\[\\]"),
    ],
)
def test_what_is_no_plain_json_object_is_refused(manifest, change, message):
    with pytest.raises(BundleError, match=message):
        parse_manifest("DIR", change(manifest.to_bytes()))


@given(st.data())
def test_a_changed_value_gives_a_manifest_or_a_bundle_error(manifest, data):
    values = json.loads(manifest.to_bytes())
    inside, step = values, data.draw(st.sampled_from(sorted(values)))
    while isinstance(inside[step], (dict, list)) and inside[step] and data.draw(st.booleans()):
        inside = inside[step]
        step = data.draw(st.sampled_from(sorted(inside) if isinstance(inside, dict) else range(len(inside))))
    inside[step] = data.draw(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers()) | st.just({})
    )
    text = json.dumps(values).encode()
    try:
        parse_manifest("DIR", text)
    except BundleError as error:
        message = str(error)
    else:
        message = "bundle DIR: manifest.json: taken"
    assert message.startswith("bundle DIR: manifest.json: ")
    assert "\n" not in message
