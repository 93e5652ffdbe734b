"""Bundles with a mask, vectors and any number of tokens in C++: the reader, both loaders, and what is built on them."""

import json
import subprocess

import pytest
import torch
from support.consumer import built, built_without_libtorch, check_golden, run
from support.damage import PROGRAM, change_golden, repin
from support.joins import FIVE, LAYOUT, WIDTH, conditioner
from torch import nn

import regplug
from regplug.format.weights import load_tensors, save_tensors

pytestmark = pytest.mark.compiler

BOTH = ["torchscript", "aotinductor"]
ANY_COUNT = {"num_registers": None, "hidden_dim": WIDTH}


def joined():
    """A conditioner on a class token, registers that take no mask, patches, and two vectors."""
    return conditioner(FIVE.resolve(LAYOUT), LAYOUT.for_group("tokens"))


def readout(strategy, **sizes):
    spec = regplug.resolve(strategy, **{**ANY_COUNT, **sizes})
    return spec, spec.build()


MODULES = {
    "attention": lambda: readout("attention"),
    "mean of four": lambda: readout("mean", num_registers=4),
    "join": joined,
    "last four": lambda: conditioner(
        regplug.resolve("attention", num_registers=4, hidden_dim=WIDTH),
        regplug.TokenLayout(num_registers=4, hidden_dim=WIDTH, start=-4),
    ),
}


def export(module, folder, **options):
    torch.manual_seed(0)
    regplug.export(*MODULES[module](), folder, backends=BOTH, mask=True, **options)
    return folder


@pytest.fixture(scope="module", params=["libtorch", "runtime"])
def programs(request):
    """The C++ programs, over libtorch and without it."""
    return built() if request.param == "libtorch" else built_without_libtorch()


@pytest.fixture(scope="module", params=MODULES)
def bundle(request, tmp_path_factory):
    return export(request.param, tmp_path_factory.mktemp("bundle") / "b")


@pytest.fixture(scope="module")
def attention(tmp_path_factory):
    """Attention over any number of tokens."""
    return export("attention", tmp_path_factory.mktemp("attention") / "b")


@pytest.fixture(scope="module")
def join(tmp_path_factory):
    return export("join", tmp_path_factory.mktemp("join") / "b")


def inputs_of(folder, batch=2, length=None):
    """Ones for every input, by name."""
    manifest = json.loads((folder / "manifest.json").read_text())
    first = manifest["input"]
    sizes = {"B": batch, "T": length or first["min_tokens"]}
    return {
        one["name"]: torch.ones([sizes.get(size, size) for size in one["shape"]], dtype=getattr(torch, one["dtype"]))
        for one in (first, *manifest["more_inputs"])
    }


def call(program, inputs):
    vectors = {name: one for name, one in inputs.items() if name not in ("tokens", "mask")}
    return program(inputs["tokens"], mask=inputs.get("mask"), vectors=vectors or None)


def flat(outputs):
    return [outputs] if isinstance(outputs, torch.Tensor) else [one for pair in outputs for one in pair]


def refusal(program, inputs):
    with pytest.raises(regplug.ShapeError) as error:
        call(program, inputs)
    return str(error.value)


def test_the_unit_tests_of_the_reader_and_of_a_calls_checks_pass(programs, short_path):
    assert run(programs / "regplug_more_inputs", short_path) == (0, "")


def check_messages(report, folder, backend):
    """Those of C++ are those of Python."""
    program, good = regplug.load(folder, program=backend), inputs_of(folder)
    names = list(good)
    wanted = f"program '{backend}': expected inputs [{', '.join(names)}], got "
    *few, last = names
    assert report["names"] == {
        "all": "",
        "none": f"{wanted}[tokens].",
        "few": f"{wanted}[{', '.join(few)}].",
        "twice": f"{wanted}[{', '.join([*names, 'tokens'])}].",
        "unknown": f"{wanted}[{', '.join([*few, 'other'])}\\n].",
    }
    assert report["names"]["few"] == refusal(program, {name: one for name, one in good.items() if name != last})
    for name in names[1:]:
        one, said = good[name], report["more"][name]
        wrong = {
            "width": torch.cat([one, one[:, :1]], 1),
            "batch": one[:1],
            "rank": one[:, 0],
            "dtype": one.to(torch.uint8),
        }
        assert {what: said[what] for what in wrong} == {
            what: refusal(program, {**good, name: given}) for what, given in wrong.items()
        }
        assert said["nothing"] == said["rank"].replace("[2]", "no tensor")
    mask = good["mask"].clone()
    mask[1] = False
    assert report["more"]["mask"]["false"] == refusal(program, {**good, "mask": mask})
    assert report["more"]["mask"]["byte"] == f"program '{backend}': mask: expected bytes 0 and 1, got 255."


def test_golden_cases_hold_and_wrong_inputs_are_refused_as_in_python(programs, bundle):
    """Also NaN in the padding, masks and inputs that are strided, and sequences of one token."""
    report = check_golden(programs / "regplug_aoti_golden", bundle)
    assert {"batch_0", "batch_1", "batch_2", "slice"} <= set(report["cases"])
    check_messages(report, bundle, "aotinductor")


def test_a_torchscript_program_takes_the_same_inputs(bundle):
    report = check_golden(built() / "regplug_golden", bundle)
    check_messages(report, bundle, "torchscript")
    said = report["more"]["mask"]
    assert said["meta"] == "program 'torchscript': mask: expected device cpu, got meta."
    assert said["sparse"] == "program 'torchscript': mask: expected a dense tensor, got another layout."


def test_any_number_of_tokens_runs_without_a_mask(programs, tmp_path):
    regplug.export(*readout("mean"), tmp_path / "b", backends=BOTH)
    report = check_golden(programs / "regplug_aoti_golden", tmp_path / "b")
    assert report["names"]["all"] == report["names"]["none"] == ""
    assert report["refused"]["rank"] == "program 'aotinductor': expected tokens [B, T, 24], got [1, 24]."
    check_golden(built() / "regplug_golden", tmp_path / "b")


def test_an_archive_of_format_1_may_have_parameters_for_other_inputs(tmp_path):
    spec = regplug.resolve("compress-concat", num_registers=4, hidden_dim=WIDTH, compressed_dim=6)
    torch.manual_seed(0)
    regplug.export(spec, spec.build(), tmp_path / "b")

    class WithMore(nn.Module):
        def __init__(self):
            super().__init__()
            self.compress = nn.Linear(WIDTH, 6, bias=False)

        def forward(
            self,
            registers: torch.Tensor,
            mask: torch.Tensor | None = None,
            scale: float = 1.0,
            vectors: dict[str, torch.Tensor] | None = None,
        ) -> torch.Tensor:
            if mask is not None or vectors is not None:
                raise ValueError("expected nothing more")
            return scale * self.compress(registers).flatten(1)

    torch.jit.script(WithMore().eval()).save(tmp_path / "b" / PROGRAM)
    repin(tmp_path / "b")
    check_golden(built() / "regplug_golden", tmp_path / "b")


def all_padding(tensors):
    tensors["batch_2.input.mask"][1] = False


def short_mask(tensors):
    tensors["batch_1.input.mask"] = tensors["batch_1.input.mask"][:, :-1].contiguous()


def float_mask(tensors):
    tensors["slice.input.mask"] = tensors["slice.input.mask"].float()


def no_mask(tensors):
    del tensors["batch_7.input.mask"]


@pytest.mark.parametrize("change", [all_padding, short_mask, float_mask, no_mask])
@pytest.mark.parametrize("module", ["mean of four", "join"])
def test_golden_cases_with_a_wrong_mask_are_refused_as_in_python(tmp_path, module, change):
    export(module, tmp_path / "b")
    change_golden(tmp_path / "b", change)
    with pytest.raises(regplug.BundleError) as error:
        regplug.load(tmp_path / "b")
    assert "mask" in str(error.value)
    assert run(built() / "regplug_open", tmp_path / "b") == (1, f"{error.value}\n")


# ---- what is built on the loaders


def regplug_run(programs, *arguments):
    command = [programs / "regplug-run" / "regplug-run", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout, done.stderr


def test_regplug_run_reads_all_inputs_by_name_and_padding_does_not_matter(programs, attention, tmp_path):
    torch.manual_seed(0)
    tokens, mask = torch.randn(3, 11, WIDTH), torch.rand(3, 11) < 0.5
    mask[:, 4] = True
    wanted = regplug.load(attention, program="aotinductor")(tokens, mask=mask)
    given, made = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    outputs = []
    for padding in (0.0, float("nan"), float("inf")):
        padded = torch.where(mask.unsqueeze(2), tokens, padding)
        given.write_bytes(save_tensors({"tokens": padded, "mask": mask}))
        assert regplug_run(programs, attention, given, made) == (0, "", "")
        outputs.append(load_tensors("out", made.read_bytes())["conditioning"].clone())
    torch.testing.assert_close(outputs[0], wanted)
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])
    given.write_bytes(save_tensors({"tokens": tokens}))
    said = f"error: {given}: expected tensors [mask, tokens], got [tokens].\n"
    assert regplug_run(programs, attention, given, made) == (1, "", said)


def test_a_program_in_c_gives_all_inputs_by_name(join):
    code, out = run(built_without_libtorch() / "run_in_c", join)
    assert code == 0, out
    described, *lines = out.splitlines()
    manifest = json.loads((join / "manifest.json").read_text())
    specs = (manifest["input"], *manifest["more_inputs"])
    keys = ("name", "dtype", "shape")
    assert json.loads(described)["inputs"] == [{key: one[key] for key in keys} for one in specs]
    wanted = flat(call(regplug.load(join, program="aotinductor"), inputs_of(join, length=9)))
    for line, output in zip(lines, wanted, strict=True):
        numbers = torch.tensor([float(number) for number in line.split()[1:]])
        torch.testing.assert_close(numbers, output.flatten(), rtol=1e-5, atol=1e-6)
