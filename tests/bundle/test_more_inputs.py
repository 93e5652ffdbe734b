"""Bundles of format 2: a mask, vectors, and any number of tokens."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from support import joins
from support.joins import FIVE, LAYOUT, WIDTH
from support.strategies import EVERY

import regplug
from regplug.bundle.contents import BundleContents
from regplug.bundle.golden_inputs import draw_inputs
from regplug.bundle.io_signature import IOSignature
from regplug.bundle.mask_rules import MaskRules
from regplug.bundle.wrong_inputs import wrong_inputs
from regplug.format.manifest import InputSpec, MoreInput, PartRecord
from regplug.format.read_bundle import read_bundle
from regplug.format.safetensors_header import read_header

D = WIDTH
FREE = {"num_registers": None, "hidden_dim": D}
OF_FOUR = {
    name: regplug.resolve(name, num_registers=4, hidden_dim=D, **options) for name, (options, *_) in EVERY.items()
}
TAKES_MASK = [name for name, spec in OF_FOUR.items() if spec.takes_mask]
ALL = ("torchscript", "aotinductor", "onnx")


def exported(folder: Path, spec: regplug.ReadoutSpec, module: Any = None, **options: Any) -> Path:
    torch.manual_seed(0)
    regplug.export(spec, module or spec.build(), folder / "b", **options)
    return folder / "b"


def conditioner(choice: regplug.Join | str, layout: regplug.TokenLayout) -> tuple[regplug.ReadoutSpec, Any]:
    spec = choice.resolve(LAYOUT) if isinstance(choice, regplug.Join) else regplug.resolve(choice, **FREE)
    return joins.conditioner(spec, layout)


def format_of(folder: Path) -> int:
    return int(json.loads((folder / "manifest.json").read_text())["bundle_format"])


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    """Attention over any number of tokens, with a mask."""
    return exported(tmp_path_factory.mktemp("masked"), regplug.resolve("attention", **FREE), mask=True)


@pytest.fixture(scope="module")
def joined(tmp_path_factory):
    """A conditioner over a join of three groups and two vectors, with a mask."""
    spec, module = conditioner(FIVE, LAYOUT.for_group("tokens"))
    return exported(tmp_path_factory.mktemp("joined"), spec, module, mask=True)


# ---- what is written


@pytest.mark.parametrize("strategy", EVERY)
def test_one_input_of_a_fixed_number_of_registers_is_written_in_format_1(tmp_path, strategy):
    folder = exported(tmp_path, OF_FOUR[strategy], backends=[])
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["bundle_format"], manifest["input"]["name"]) == (1, "registers")
    assert {"more_inputs", "parts"}.isdisjoint(manifest)


@pytest.mark.parametrize("strategy", [name for name in TAKES_MASK if name != "regplug:join"])  # a part of it counts
def test_every_strategy_with_a_mask_is_exported_for_any_number_of_tokens(tmp_path, strategy):
    spec = regplug.resolve(strategy, **FREE, **EVERY[strategy][0])
    folder = exported(tmp_path, spec, mask=True)
    manifest = read_bundle(folder).manifest
    assert manifest.bundle_format == 2
    assert manifest.input == InputSpec("tokens", "float32", ("B", "T", D), manifest.input.min_batch, 1)
    assert manifest.more_inputs == (MoreInput("mask", "bool", ("B", "T")),)
    assert {case.length for case in manifest.golden.cases} >= {1, 3, 7, 9}
    assert regplug.verify(folder, programs=True).ok


@pytest.mark.compiler
@pytest.mark.parametrize("kind", ["readout", "conditioner", "several sizes", "registers of a sequence"])
def test_programs_of_every_backend_agree_with_eager_on_masks_and_vectors(tmp_path, kind):
    if kind == "readout":
        spec, module = regplug.resolve("attention", **FREE), None
    elif kind == "conditioner":
        spec, module = conditioner(FIVE, LAYOUT.for_group("tokens"))
    elif kind == "several sizes":
        spec, module = conditioner("mean", regplug.TokenLayout(num_registers=None, hidden_dim=D, start=2))
    else:
        spec = regplug.resolve("attention", num_registers=4, hidden_dim=D)
        module = regplug.Conditioner(
            regplug.TokenLayout(num_registers=4, hidden_dim=D, start=-4), spec.build(), joins.film_of(spec)
        )
    folder = exported(tmp_path, spec, module, backends=ALL, mask=True)
    verified = regplug.verify(folder, programs=True)
    assert [row for row in verified.checks if not row.ok] == []
    refused = {row.case for row in verified.checks if row.verdict == "refused"}
    assert {"mask: no token", "mask: wrong dtype", "mask: wrong width", "mask: wrong batch"} <= refused


def test_padding_of_golden_cases_holds_nan_and_infinity(masked):
    tensors = regplug.load(masked), read_bundle(masked).tensors["golden.safetensors"]
    read_header("golden", bytes(tensors[1]))
    contents = json.loads((masked / "manifest.json").read_text())
    from safetensors.torch import load_file

    stored = load_file(masked / "golden.safetensors")
    for case in contents["golden"]["cases"]:
        name = case["case"]
        given, mask = stored[f"{name}.input"], stored[f"{name}.input.mask"]
        assert mask.dtype == torch.bool
        if case["start"] is not None:
            used = slice(case["start"], case["start"] + case["length"])
            given, mask = given[:, used], mask[:, used]
        assert not given[~mask].isfinite().any()
        assert given[mask].isfinite().all()
        assert mask.any(1).all()
    patterns = torch.cat([stored["batch_7.input.mask"][row : row + 1] for row in range(7)])
    assert len({tuple(row.tolist()) for row in patterns}) >= 3


def test_parts_of_a_join_are_named_in_order_with_their_tokens(joined):
    manifest = read_bundle(joined).manifest
    assert manifest.parts == (
        PartRecord("cls", D, (0, 1), True),
        PartRecord("registers", 24, (1, 5), False),
        PartRecord("patches", D, (5, None), True),
        PartRecord("state", 7, None, False),
        PartRecord("time", 1, None, False),
    )
    assert manifest.input_names == ("tokens", "mask", "state", "time")
    assert manifest.input.min_tokens == 6


# ---- what is loaded


def inputs_of(batch: int, length: int) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(length)
    tokens = torch.randn(batch, length, D, generator=generator)
    mask = torch.ones(batch, length, dtype=torch.bool)
    return tokens, mask, {"state": torch.randn(batch, 7, generator=generator), "time": torch.rand(batch, 1)}


def test_module_and_program_are_called_the_same_way(joined):
    module, program = regplug.load(joined), regplug.load(joined, program="torchscript")
    tokens, mask, vectors = inputs_of(3, 11)
    mask[0, 8:], mask[1, 5:7] = False, False
    tokens[0, 8:] = float("nan")
    with torch.no_grad():
        wanted = module(tokens, mask, vectors)
    got = program(tokens, mask=mask, vectors=dict(reversed(vectors.items())))
    for (gamma, beta), (gamma_, beta_) in zip(got, wanted, strict=True):
        torch.testing.assert_close(gamma, gamma_)
        torch.testing.assert_close(beta, beta_)


def test_views_and_broadcast_masks_are_taken(masked):
    program = regplug.load(masked, program="torchscript")
    tokens = torch.randn(3, 18, D)[:, ::2]
    mask = torch.tensor([True] * 6 + [False] * 3).expand(3, 9)
    torch.testing.assert_close(program(tokens, mask), program(tokens[:, :6], torch.ones(3, 6, dtype=torch.bool)))


def test_an_empty_batch_gives_empty_outputs(joined):
    tokens, mask, vectors = inputs_of(0, 8)
    pairs = regplug.load(joined, program="torchscript")(tokens, mask, vectors)
    assert [gamma.shape for gamma, _ in pairs] == [(0, 5), (0, 5)]


BAD: dict[str, tuple[Any, str]] = {
    "no mask": (
        lambda t, m, v: (t, None, v),
        "expected inputs [tokens, mask, state, time], got [tokens, state, time].",
    ),
    "no vectors": (lambda t, m, v: (t, m), "expected inputs [tokens, mask, state, time], got [tokens, mask]."),
    "tokens alone": (lambda t, m, v: (t,), "expected inputs [tokens, mask, state, time], got [tokens]."),
    "another vector": (
        lambda t, m, v: (t, m, {**v, "goal": v["state"]}),
        "expected inputs [tokens, mask, state, time], got [tokens, mask, state, time, goal].",
    ),
    "mask of another length": (lambda t, m, v: (t, m[:, :8], v), "expected mask [B, T] with B=2 and T=9, got [2, 8]."),
    "mask of another rank": (lambda t, m, v: (t, m[0], v), "expected mask [B, T] with B=2 and T=9, got [9]."),
    "mask of another dtype": (lambda t, m, v: (t, m.byte(), v), "mask: expected dtype bool, got uint8."),
    "mask elsewhere": (lambda t, m, v: (t, m.to("meta"), v), "mask: expected device cpu, got meta."),
    "mask that is a list": (lambda t, m, v: (t, [1], v), "mask: expected a tensor, got list."),
    "vector of another width": (
        lambda t, m, v: (t, m, {**v, "state": v["state"][:, :6]}),
        "expected state [B, 7] with B=2, got [2, 6].",
    ),
    "vector of another batch": (
        lambda t, m, v: (t, m, {**v, "state": v["state"][:1]}),
        "expected state [B, 7] with B=2, got [1, 7].",
    ),
    "vector of another dtype": (
        lambda t, m, v: (t, m, {**v, "time": v["time"].double()}),
        "time: expected dtype float32, got float64.",
    ),
    "no token": (
        lambda t, m, v: (t, m & (torch.arange(9) < 5), v),
        "mask: expected a token of 'patches' that counts in every sample, got none in sample 0.",
    ),
    "a masked register": (
        lambda t, m, v: (t, m & (torch.tensor([[0], [1]]) * torch.arange(9) != 3), v),
        "mask: expected every token of 'registers' to count, which takes no mask, got padding in sample 1.",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_call_is_refused_with_one_line(joined, case):
    change, message = BAD[case]
    with pytest.raises(regplug.ShapeError) as error:
        regplug.load(joined, program="torchscript")(*change(*inputs_of(2, 9)))
    assert str(error.value) == f"program 'torchscript': {message}"


def test_one_row_without_a_token_is_named(masked):
    tokens, mask, _ = inputs_of(5, 3)
    mask[3] = False
    with pytest.raises(regplug.ShapeError) as error:
        regplug.load(masked, program="torchscript")(tokens, mask)
    assert str(error.value) == (
        "program 'torchscript': mask: expected a token that counts in every sample, got none in sample 3."
    )


def test_every_wrong_input_is_refused(joined):
    program = regplug.load(joined, program="torchscript")
    names = []
    for name, inputs in wrong_inputs(program.manifest):
        names.append(name)
        with pytest.raises(regplug.ShapeError):
            program.run_flat(*inputs)
    assert {"too few tokens", "mask: no token", "state: wrong batch", "time: wrong dtype", "one input alone"} <= set(
        names
    )


# ---- what is refused at export


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        ("pool", "strategy 'pool': mask: expected a strategy that takes one, got 'regplug:pool'."),
        ("join", "strategy 'join': mask: expected a part whose strategy takes one, got none."),
    ],
)
def test_a_mask_for_a_strategy_that_takes_none_is_refused(tmp_path, strategy, message):
    if strategy == "join":
        spec = regplug.join(registers="pool", state=7).resolve(LAYOUT, 9)
    else:
        spec = regplug.resolve(strategy, num_registers=4, hidden_dim=D)
    with pytest.raises(regplug.ExportError) as error:
        regplug.export(spec, spec.build(), tmp_path / "b", mask=True)
    assert str(error.value) == message
    assert list(tmp_path.iterdir()) == []


def test_a_program_that_reads_padding_is_refused(tmp_path, monkeypatch):
    from regplug.nn.readouts import averages

    monkeypatch.setattr(averages, "zero_padding", lambda tokens, mask: tokens)
    spec = regplug.resolve("mean", **FREE)
    with pytest.raises(regplug.ExportError, match="expected finite outputs, got inf or nan"):
        regplug.export(spec, spec.build(), tmp_path / "b", mask=True)


EDITED: dict[str, Any] = {
    "a mask for a part without": lambda parts: parts[1].update(takes_mask=True),
    "other tokens": lambda parts: parts[1].update(tokens=[2, 4]),
    "another order": lambda parts: parts.insert(0, parts.pop(1)),
    "other widths": lambda parts: (parts[0].update(width=23), parts[1].update(width=25)),
    "another name": lambda parts: parts[0].update(name="other"),
}


@pytest.mark.parametrize("case", EDITED)
def test_parts_that_are_not_those_of_the_join_are_refused(joined, tmp_path, case):
    """Programs are checked by them on every call, so a part without a mask would read padding."""
    shutil.copytree(joined, tmp_path / "b")
    path = tmp_path / "b" / "manifest.json"
    manifest = json.loads(path.read_text())
    EDITED[case](manifest["parts"])
    path.write_text(json.dumps(manifest))
    for call in (regplug.load, regplug.verify):
        with pytest.raises(regplug.BundleError, match=r": parts: expected \[.* of the installed regplug:join, got \["):
            call(tmp_path / "b")


def test_a_mask_in_the_manifest_of_a_strategy_that_takes_none_is_refused(tmp_path):
    spec = regplug.join(registers="pool", state=7).resolve(LAYOUT)
    folder = exported(tmp_path, spec, backends=[])
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["more_inputs"].insert(0, {"name": "mask", "dtype": "bool", "shape": ["B", "T"]})
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(regplug.BundleError):
        regplug.load(folder)


def test_vectors_of_a_program_are_given_by_name(joined):
    program = regplug.load(joined, program="torchscript")
    tokens, mask, vectors = inputs_of(2, 9)
    with pytest.raises(regplug.ShapeError, match="vectors: expected a tensor by each name, got Tensor"):
        program(tokens, mask, vectors["state"])
    with pytest.raises(regplug.ShapeError, match=r"got \[tokens, mask, state, time, 3\]"):
        program(tokens, mask, {**vectors, 3: tokens})


def test_a_mask_is_wanted_or_not(tmp_path):
    spec = regplug.resolve("mean", **FREE)
    with pytest.raises(regplug.ExportError, match="mask: expected True or False, got 'no'"):
        regplug.export(spec, spec.build(), tmp_path / "b", mask="no")


def test_vectors_in_another_order_exceed_the_tolerance(tmp_path):
    spec = regplug.join(cls="mean", state=3, goal=3).resolve(LAYOUT)
    contents = BundleContents(read_bundle(exported(tmp_path, spec), keep=lambda _: False))
    run = regplug.load(tmp_path / "b", program="torchscript").run_flat
    assert all(result.ok for result in contents.run_cases(run))
    swapped = contents.run_cases(lambda tokens, state, goal: run(tokens, goal, state))
    assert not any(result.ok for result in swapped if result.case != "batch_0")


# ---- golden masks


def test_drawn_masks_leave_every_group_a_token_and_every_fixed_part_whole():
    parts = (
        PartRecord("cls", 1, (0, 1), False),
        PartRecord("a", 1, (1, -2), True),
        PartRecord("b", 1, (3, None), True),
    )
    rules = MaskRules(regplug.TokenLayout(num_registers=None, hidden_dim=1, start=2), parts)
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for first in range(4):
        mask = rules.draw(16, 12, first, generator)
        rules.check("case", mask)
        assert mask[:, :3].all()
        seen |= {tuple(row.tolist()) for row in mask}
    assert len(seen) > 16


def test_a_layout_with_indices_is_drawn_in_its_places():
    layout = regplug.TokenLayout(num_registers=3, hidden_dim=1, indices=(1, 4, 7), num_tokens=9)
    rules = MaskRules(layout, None)
    mask = rules.draw(8, 9, 1, torch.Generator().manual_seed(0))
    rules.check("case", mask)
    assert not mask[:, [1, 4, 7]].all()
    assert mask[:, [0, 2, 3, 5, 6, 8]].all()
    mask[2, [1, 4, 7]] = False
    with pytest.raises(regplug.ShapeError, match="got none in sample 2"):
        rules.check("case", mask)


def test_slices_are_drawn_wider_than_they_are_used():
    given = InputSpec("tokens", "float32", ("B", "T", 3), 0, 1)
    signature = IOSignature(given, (), [4], (MoreInput("mask", "bool", ("B", "T")),), MaskRules(None, None))
    tokens, mask = draw_inputs(signature, 5, 2, 4, 1, torch.Generator().manual_seed(0))
    assert (tokens.shape, mask.shape) == ((2, 6, 3), (2, 6))
    assert not mask[:, [0, 5]].any()
    assert mask[:, 1:5].any(1).all()
