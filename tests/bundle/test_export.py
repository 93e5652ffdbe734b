"""Export and load: a module is loaded as it was exported, and wrong modules and programs are refused."""

import copy
import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from support.damage import repin
from support.plugins import installed_with
from support.readouts import SIZES, trained
from torch import nn

import regplug
from regplug.backends.interface import ExportBackend, Program, flatten
from regplug.bundle.golden import CaseError, largest_error
from regplug.commands.main import group
from regplug.format.weights import load_tensors, save_tensors

STRATEGIES = {"mean": {}, "concat": {}, "pool": {}, "compress-concat": {"compressed_dim": 6}}


class ScaledMean(nn.Module):
    """A readout that refuses an empty batch, or computes in float32, if its arguments say so."""

    def __init__(self, hidden_dim: int, min_batch: int = 0, single: bool = False, factor: float = 1.0):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(hidden_dim))
        self.min_batch, self.single, self.factor = min_batch, single, factor

    def forward(self, registers: torch.Tensor) -> torch.Tensor:
        if registers.shape[0] < self.min_batch:
            raise ValueError("an empty batch")
        if self.single:
            registers = registers.float()
        return registers.mean(1) * self.scale.to(registers.dtype) * self.factor


class Random(ScaledMean):
    """Is random in eval mode too."""

    def forward(self, registers: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(registers.mean(1) * self.scale, 0.5, True)


class WritesIntoItsInput(ScaledMean):
    """Changes the caller's tensor, and so its own output."""

    def forward(self, registers: torch.Tensor) -> torch.Tensor:
        return registers.add_(1.0).mean(1) * self.scale


class Asserting(ScaledMean):
    """Refuses an empty batch and float64 with an assert."""

    def forward(self, registers: torch.Tensor) -> torch.Tensor:
        assert registers.shape[0] > 0
        assert registers.dtype == torch.float32
        return registers.mean(1) * self.scale


class FailsInScript(ScaledMean):
    """Compiles to a program that fails when it runs."""

    def forward(self, registers: torch.Tensor) -> torch.Tensor:
        if torch.jit.is_scripting():
            raise ValueError("not in a script")
        return registers.mean(1) * self.scale


class GivesItsWeight(ScaledMean):
    """Its output is a view of a parameter."""

    def forward(self, registers: torch.Tensor) -> torch.Tensor:
        return self.scale.expand(registers.shape[0], -1)


class TakesAnything(nn.Module):
    """Has an option of any kind."""

    def __init__(self, option=None):
        super().__init__()

    def forward(self, registers: torch.Tensor) -> torch.Tensor:
        return registers.mean(1)


class Unscriptable(ScaledMean):
    """Uses Python that TorchScript does not support."""

    def forward(self, registers):
        return super().forward(registers) * {1: 1.0}.get(registers.dim() % 2, 1.0) if vars(self) else registers


class GoodBackend(ExportBackend):
    """A correct backend that runs a copy of the module; each wrong backend below changes one thing."""

    def export(self, source):
        kept[type(self).__name__] = source.module
        return [Program(f"program.{NAMES[type(self)]}", b"bytes")]

    def open(self, owner, program, weights):
        module = copy.deepcopy(kept[type(self).__name__])
        module.load_state_dict(weights)
        return self.run(module)

    def run(self, module):
        return lambda given: flatten(module(given))


class OffByLittle(GoodBackend):
    def run(self, module):
        return lambda given: [out + 1e-4 for out in flatten(module(given))]


class IsNaN(GoodBackend):
    def run(self, module):
        return lambda given: [
            torch.where(out == out.max(), float("nan"), out) if len(out) > 2 else out for out in flatten(module(given))
        ]


class IgnoresWeights(GoodBackend):
    def open(self, owner, program, weights):
        return self.run(kept[type(self).__name__])


class IgnoresStrides(GoodBackend):
    def run(self, module):
        # as a compiled program does that was made from a contiguous example
        return lambda given: flatten(module(torch.as_strided(given, given.shape, torch.empty(given.shape).stride())))


class DividesByTheBatch(GoodBackend):
    def run(self, module):
        # as compiled attention does; in C++ that ends the process
        return lambda given: [out * (len(given) // len(given)) for out in flatten(module(given))]


class Escapes(GoodBackend):
    def export(self, source):
        return [Program("program.escapes/../../evil", b"")]


class WrongFile(GoodBackend):
    def export(self, source):
        return [Program("../evil", b"")]


kept = {}
NAMES = {
    cls: cls.__name__.lower()
    for cls in (GoodBackend, OffByLittle, IsNaN, IgnoresWeights, IgnoresStrides, DividesByTheBatch, Escapes, WrongFile)
}


@pytest.fixture
def registry():
    return installed_with(
        regplug.ReadoutEntry("scaled", ScaledMean),
        regplug.ReadoutEntry("unscriptable", Unscriptable),
        regplug.ReadoutEntry("random", Random),
        regplug.ReadoutEntry("writes-into-its-input", WritesIntoItsInput),
        regplug.ReadoutEntry("asserting", Asserting),
        regplug.ReadoutEntry("fails-in-script", FailsInScript),
        regplug.ReadoutEntry("gives-its-weight", GivesItsWeight),
        regplug.ReadoutEntry("takes-anything", TakesAnything),
        *(regplug.ExportBackendEntry(name, cls) for cls, name in NAMES.items()),
        distribution="test-plugin",
    )


def conditioner_of(spec, layout, seed=0):
    film = regplug.pair(
        spec,
        regplug.KernelFiLMGenerator,
        kernel_hidden_dim=5,
        num_film_layers=2,
        init_type="small_random",
        init_std=0.5,
    )
    torch.manual_seed(seed)
    return regplug.Conditioner(layout, trained(spec), film)


@pytest.fixture(scope="module")
def mean_program(tmp_path_factory):
    spec = regplug.resolve("mean", **SIZES)
    folder = tmp_path_factory.mktemp("mean") / "b"
    regplug.export(spec, spec.build(), folder)
    return regplug.load(folder, program="torchscript")


@pytest.fixture(scope="module")
def compressed(tmp_path_factory):
    """The bundle of a trained CompressConcat with seed 0; tests change copies of it."""
    spec = regplug.resolve("compress-concat", **SIZES, compressed_dim=6)
    folder = tmp_path_factory.mktemp("compressed") / "b"
    regplug.export(spec, trained(spec), folder)
    return folder


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_trained_readout_is_loaded_bit_for_bit_and_its_program_agrees(tmp_path, strategy, dtype):
    spec = regplug.resolve(strategy, **SIZES, **STRATEGIES[strategy])
    module = trained(spec).to(dtype)
    regplug.export(spec, module, tmp_path / "b")
    loaded = regplug.load(tmp_path / "b")
    program = regplug.load(tmp_path / "b", program="torchscript")
    assert type(loaded) is type(module)
    assert not loaded.training
    # a module without weights has no dtype: its bundle is float32
    tokens = torch.randn(5, 9, 24, dtype=dtype if list(module.parameters()) else torch.float32)
    registers = tokens[:, 2:6]
    assert torch.equal(loaded(registers), module(registers))
    assert torch.allclose(program(registers), module(registers), atol=1e-6)
    assert program.cond_dim == spec.cond_dim == program(registers).shape[1]


LAYOUTS = {
    "prefix": regplug.TokenLayout(**SIZES, start=1),
    "suffix": regplug.TokenLayout(**SIZES, start=-6),
    "indices": regplug.TokenLayout(**SIZES, indices=(0, 2, 3, 9), num_tokens=11),
    "interleaved": regplug.TokenLayout.interleaved(**SIZES, num_patches=14),
}


@pytest.mark.parametrize("place", LAYOUTS)
def test_a_conditioner_is_loaded_bit_for_bit_and_its_program_agrees(tmp_path, place):
    layout = LAYOUTS[place]
    spec = regplug.resolve("compress-concat", **SIZES, compressed_dim=6)
    module = conditioner_of(spec, layout)
    done = regplug.export(spec, module, tmp_path / "b")
    loaded = regplug.load(tmp_path / "b")
    program = regplug.load(tmp_path / "b", program="torchscript")
    tokens = torch.randn(3, layout.num_tokens or 17, 24)
    wanted = flatten(module(tokens))
    assert loaded.layout == layout
    assert all(torch.equal(a, b) for a, b in zip(flatten(loaded(tokens)), wanted, strict=True))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(flatten(program(tokens)), wanted, strict=True))
    assert [len(pair) for pair in program(tokens)] == [2, 2]
    assert done.manifest.film.options == {
        "kernel_hidden_dim": 5,
        "num_film_layers": 2,
        "film_hidden_dim": 64,
        "no_weight_decay": False,
    }
    assert done.manifest.input.shape == ("B", layout.num_tokens or "T", 24)


def test_a_bfloat16_readout_has_a_bfloat16_tolerance(tmp_path):
    spec = regplug.resolve("compress-concat", **SIZES, compressed_dim=6)
    done = regplug.export(spec, trained(spec).bfloat16(), tmp_path / "b")
    assert done.manifest.golden.truth == "float64"
    assert regplug.load(tmp_path / "b").compress.weight.dtype == torch.bfloat16
    case = next(case for case in done.manifest.golden.cases if case.case == "batch_7")
    assert 1e-3 < case.tolerance < 1.0


def test_export_leaves_the_module_the_random_state_and_the_mode_alone(tmp_path):
    spec = regplug.resolve("compress-concat", **SIZES, compressed_dim=6)
    module = trained(spec).train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = torch.get_rng_state()
    regplug.export(spec, module, tmp_path / "b")
    regplug.load(tmp_path / "b")
    assert torch.equal(torch.get_rng_state(), state)
    assert module.training
    assert module.compress.weight.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_the_same_module_gives_the_same_bytes(tmp_path):
    spec = regplug.resolve("pool", **SIZES)
    digests = {regplug.export(spec, trained(spec), tmp_path / name).digest for name in "ab"}
    assert len(digests) == 1
    other = regplug.export(spec, trained(spec, seed=1), tmp_path / "c").digest
    assert other not in digests


def test_a_backend_may_be_named_with_its_distribution(tmp_path):
    spec = regplug.resolve("pool", **SIZES)
    regplug.export(spec, spec.build(), tmp_path / "full", backends=["regplug:torchscript"])
    assert [file.name for file in (tmp_path / "full").glob("program*")] == ["program.torchscript.pt"]
    registers = torch.randn(3, 4, 24)
    bare, full = (regplug.load(tmp_path / "full", program=name) for name in ("torchscript", "regplug:torchscript"))
    assert torch.equal(bare(registers), full(registers))
    with pytest.raises(regplug.BundleError, match="program 'regplug:onnx': not in this bundle; known: torchscript"):
        regplug.load(tmp_path / "full", program="regplug:onnx")


def test_a_compiled_module_is_exported_as_the_module_inside(tmp_path):
    spec = regplug.resolve("pool", **SIZES)
    module = trained(spec)
    regplug.export(spec, torch.compile(module, backend="eager"), tmp_path / "b")
    assert torch.equal(regplug.load(tmp_path / "b").logits, module.logits)


def test_the_weights_file_says_what_it_is_and_carries_no_path_or_time(compressed):
    data = (compressed / "weights.safetensors").read_bytes()
    said = json.loads(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["regplug"])
    assert said["strategy"] == "regplug:compress-concat"
    assert said["options"] == {"compressed_dim": 6}


def test_the_archive_holds_no_path_of_the_exporting_machine(tmp_path):
    spec = regplug.resolve("pool", **SIZES)
    regplug.export(spec, trained(spec), tmp_path / "b")
    data = (tmp_path / "b" / "program.torchscript.pt").read_bytes()
    assert b"debug_pkl" not in data
    assert str(Path(regplug.__file__).parent).encode() not in data


@pytest.mark.slow
def test_a_plain_libtorch_user_loads_the_archive_with_torch_alone(compressed):
    module = regplug.load(compressed)
    code = (
        "import sys, torch, warnings; warnings.simplefilter('ignore')\n"
        f"m = torch.jit.load({str(compressed / 'program.torchscript.pt')!r})\n"
        "assert 'regplug' not in sys.modules\n"
        "print(m.out_dim, m(torch.ones(1, 4, 24)).sum().item())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    width, total = done.stdout.split()
    assert int(width) == 24
    assert float(total) == pytest.approx(module(torch.ones(1, 4, 24)).sum().item(), rel=1e-5)


def test_a_module_that_refuses_an_empty_batch_has_min_batch_one_and_its_program_refuses_it_too(tmp_path, registry):
    spec = registry.resolve("scaled", **SIZES, min_batch=1)
    done = regplug.export(spec, trained(spec), tmp_path / "b", backends=["goodbackend"], registry=registry)
    assert done.manifest.input.min_batch == 1
    assert "batch_0" not in [case.case for case in done.manifest.golden.cases]
    program = regplug.load(tmp_path / "b", program="goodbackend", registry=registry)
    with pytest.raises(regplug.ShapeError, match=r"expected registers \[B, 4, 24\] with B >= 1, got \[0, 4, 24\]"):
        program(torch.zeros(0, 4, 24))


def test_a_module_without_a_float64_forward_is_compared_with_eager(tmp_path, registry):
    spec = registry.resolve("scaled", **SIZES, single=True)
    done = regplug.export(spec, trained(spec), tmp_path / "b", backends=["goodbackend"], registry=registry)
    assert done.manifest.golden.truth == "eager"
    tensors = load_tensors("golden", (tmp_path / "b" / "golden.safetensors").read_bytes())
    case = next(case for case in done.manifest.golden.cases if case.case == "batch_7")
    assert case.tolerance == pytest.approx(1e-5 * tensors["batch_7.output.conditioning"].abs().max().item())
    assert tensors["batch_7.output.conditioning"].dtype == torch.float32


def test_the_golden_cases_are_what_the_specification_says(tmp_path):
    spec = regplug.resolve("pool", num_registers=4, hidden_dim=24)
    done = regplug.export(spec, trained(spec), tmp_path / "b")
    cases = {case.case: case for case in done.manifest.golden.cases}
    assert list(cases) == ["batch_0", "batch_1", "batch_2", "batch_7", "batch_64", "slice"]
    tensors = load_tensors("golden", (tmp_path / "b" / "golden.safetensors").read_bytes())
    assert tensors["slice.input"].shape == (2, 6, 24)
    assert (cases["slice"].start, cases["slice"].length) == (1, 4)
    assert {tensor.dtype for name, tensor in tensors.items() if ".output." in name} == {torch.float64}


def test_large_sizes_keep_the_golden_cases_under_four_megabytes(tmp_path):
    spec = regplug.resolve("mean", num_registers=14, hidden_dim=4096)
    done = regplug.export(spec, spec.build(), tmp_path / "b", backends=[])
    assert 3_000_000 < done.manifest.files["golden.safetensors"].size < 4_000_000
    assert "batch_7" in [case.case for case in done.manifest.golden.cases]


def test_a_case_too_large_for_any_golden_file_is_refused_with_its_size(tmp_path):
    spec = regplug.resolve("mean", num_registers=14, hidden_dim=40_960)
    with pytest.raises(regplug.ExportError, match="expected golden cases within 4000000 bytes"):
        regplug.export(spec, spec.build(), tmp_path / "b", backends=[])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        ("offbylittle", "program 'offbylittle': case 'batch_1': error 0.0001.* is above the tolerance"),
        ("isnan", "program 'isnan': case 'batch_7': error nan is above the tolerance"),
        ("ignoresweights", "program 'ignoresweights': case 'batch_1': error"),
        ("wrongfile", "expected a file program.wrongfile"),
        ("escapes", "expected a file program.escapes"),
    ],
)
def test_nothing_is_written_if_one_program_is_wrong(tmp_path, registry, backend, message):
    spec = registry.resolve("compress-concat", **SIZES, compressed_dim=6)
    with pytest.raises(regplug.RegplugError, match=message):
        regplug.export(spec, trained(spec), tmp_path / "b", backends=["torchscript", backend], registry=registry)
    assert list(tmp_path.iterdir()) == []


def test_a_program_that_reads_past_strides_is_right_because_the_loader_makes_its_input_contiguous(tmp_path, registry):
    spec = registry.resolve("compress-concat", **SIZES, compressed_dim=6)
    module = trained(spec)
    regplug.export(spec, module, tmp_path / "b", backends=["ignoresstrides"], registry=registry)
    program = regplug.load(tmp_path / "b", program="ignoresstrides", registry=registry)
    registers = torch.randn(3, 9, 24)[:, 2:6]
    assert torch.allclose(program(registers), module(registers), atol=1e-6)
    bare = IgnoresStrides().run(module)
    assert not torch.allclose(bare(registers)[0], module(registers), atol=1e-2)


def test_a_module_that_torchscript_cannot_compile_is_refused_with_the_cause(tmp_path, registry):
    spec = registry.resolve("unscriptable", **SIZES)
    with pytest.raises(regplug.ExportError, match="program 'torchscript': expected a scriptable module") as error:
        regplug.export(spec, spec.build(), tmp_path / "b", registry=registry)
    assert error.value.__cause__ is not None
    assert list(tmp_path.iterdir()) == []


def test_a_module_that_is_not_what_the_spec_builds_is_refused(tmp_path, registry):
    spec = registry.resolve("pool", **SIZES)
    with pytest.raises(regplug.ExportError, match="expected a RegisterPooling or a Conditioner around it, got Linear"):
        regplug.export(spec, nn.Linear(2, 2), tmp_path / "b")
    other = registry.resolve("scaled", **SIZES, factor=2.0)
    with pytest.raises(regplug.ExportError, match="outputs differ by .* in case 'batch_1'"):
        regplug.export(
            registry.resolve("scaled", **SIZES), trained(other), tmp_path / "b", backends=[], registry=registry
        )
    narrow = registry.resolve("compress-concat", **SIZES, compressed_dim=3)
    with pytest.raises(regplug.ExportError, match="compress-concat"):
        regplug.export(registry.resolve("compress-concat", **SIZES, compressed_dim=6), narrow.build(), tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_finite_are_refused(tmp_path):
    spec = regplug.resolve("pool", **SIZES)
    module = trained(spec)
    module.logits.data[1] = float("nan")
    with pytest.raises(regplug.ExportError, match="case 'batch_1': expected finite outputs"):
        regplug.export(spec, module, tmp_path / "b")


def test_weights_of_two_dtypes_are_refused(tmp_path):
    spec = regplug.resolve("compress-concat", **SIZES, compressed_dim=6)
    module = conditioner_of(spec, LAYOUTS["prefix"])
    module.film.double()
    with pytest.raises(regplug.ExportError, match="expected weights of one dtype, got float32 and float64"):
        regplug.export(spec, module, tmp_path / "b")


def test_a_film_generator_that_is_not_registered_is_refused(tmp_path):
    class Stranger(nn.Module):
        cond_dim = 24

        def forward(self, c):
            return [(c, c)]

    spec = regplug.resolve("mean", **SIZES)
    module = regplug.Conditioner(LAYOUTS["prefix"], spec.build(), Stranger(), form="gamma", order="gamma-first")
    with pytest.raises(regplug.ExportError, match="FiLM generator Stranger: expected a registered class"):
        regplug.export(spec, module, tmp_path / "b")


def test_a_readouts_layout_is_stored_and_must_have_its_sizes(tmp_path):
    spec = regplug.resolve("mean", **SIZES)
    done = regplug.export(spec, spec.build(), tmp_path / "b", layout=LAYOUTS["suffix"])
    assert done.manifest.token_layout == LAYOUTS["suffix"]
    other = regplug.TokenLayout(num_registers=3, hidden_dim=24, start=0)
    with pytest.raises(regplug.ExportError, match="layout: expected num_registers=4 and hidden_dim=24, got 3 and 24"):
        regplug.export(spec, spec.build(), tmp_path / "c", layout=other)


def test_a_program_runs_without_the_plugin_that_made_the_readout_and_the_module_does_not(tmp_path, registry):
    spec = registry.resolve("scaled", **SIZES)
    module = trained(spec)
    regplug.export(spec, module, tmp_path / "b", registry=registry)
    given = torch.randn(2, 4, 24)
    assert torch.allclose(regplug.load(tmp_path / "b", program="torchscript")(given), module(given), atol=1e-6)
    with pytest.raises(regplug.NameLookupError, match="strategy 'test-plugin:scaled'"):
        regplug.load(tmp_path / "b")


def test_an_installed_class_that_computes_something_else_now_is_refused(tmp_path, registry, monkeypatch):
    spec = registry.resolve("scaled", **SIZES)
    regplug.export(spec, trained(spec), tmp_path / "b", backends=[], registry=registry)
    monkeypatch.setattr(ScaledMean, "forward", lambda self, registers: registers.mean(1) * self.scale * 1.01)
    with pytest.raises(
        regplug.BundleError, match=r"the installed test-plugin:scaled: case 'batch_1': .*test-plugin 1\.0"
    ):
        regplug.load(tmp_path / "b", registry=registry)


def test_a_bundle_says_which_programs_it_has(tmp_path):
    spec = regplug.resolve("mean", **SIZES)
    regplug.export(spec, spec.build(), tmp_path / "b", backends=[])
    with pytest.raises(regplug.BundleError, match="program 'torchscript': not in this bundle; known: none"):
        regplug.load(tmp_path / "b", program="torchscript")


def test_a_pinned_digest_must_be_the_bundles(tmp_path):
    spec = regplug.resolve("mean", **SIZES)
    done = regplug.export(spec, spec.build(), tmp_path / "b")
    assert regplug.load(tmp_path / "b", digest=done.digest).out_dim == 24
    with pytest.raises(regplug.BundleError, match=f"manifest.json: sha256 is {done.digest}, pinned is {'0' * 64}"):
        regplug.load(tmp_path / "b", digest="0" * 64)


def test_a_program_that_returns_its_input_returns_a_copy(tmp_path):
    spec = regplug.resolve("concat", num_registers=1, hidden_dim=24)
    regplug.export(spec, spec.build(), tmp_path / "b")
    program = regplug.load(tmp_path / "b", program="torchscript")
    given = torch.randn(2, 1, 24)
    out = program(given)
    kept_out = out.clone()
    given.zero_()
    assert torch.equal(out, kept_out)


def test_loading_by_default_runs_no_code_of_the_bundle(tmp_path):
    """The bundle has a program that writes a file when it is loaded, and correct digests."""
    spec = regplug.resolve("mean", **SIZES)
    regplug.export(spec, spec.build(), tmp_path / "b")
    canary = tmp_path / "canary"

    class Bomb:
        def __reduce__(self):
            return (os.system, (f"touch {canary}",))

    bomb = tmp_path / "b" / "program.torchscript.pt"
    torch.save(Bomb(), bomb)
    repin(tmp_path / "b")
    assert regplug.load(tmp_path / "b")(torch.zeros(1, 4, 24)).shape == (1, 24)
    assert regplug.verify(tmp_path / "b").ok
    for command in ("verify", "info"):
        done = CliRunner().invoke(group, [command, str(tmp_path / "b")])
        assert done.exit_code == 0, done.output
    assert not canary.exists()
    with pytest.raises(regplug.BundleError):
        regplug.load(tmp_path / "b", program="torchscript")
    torch.load(bomb, weights_only=False)
    assert canary.exists()


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"compress.weights": torch.zeros(6, 24)}, r"expected tensors \[compress.weight\], got \[compress.weights\]"),
        ({"compress.weight": torch.zeros(6, 23)}, r"expected float32 \[6, 24\], got float32 \[6, 23\]"),
        ({"compress.weight": torch.zeros(6, 24).half()}, r"expected float32 \[6, 24\], got float16 \[6, 24\]"),
    ],
)
@pytest.mark.parametrize("program", [None, "torchscript"])
def test_weights_that_do_not_fit_are_refused_by_module_and_program_alike(compressed, tmp_path, state, message, program):
    shutil.copytree(compressed, tmp_path / "b")
    (tmp_path / "b" / "weights.safetensors").write_bytes(save_tensors(state))
    repin(tmp_path / "b")
    with pytest.raises(regplug.BundleError, match=f"weights.safetensors: .*{message}"):
        regplug.load(tmp_path / "b", program=program)


def test_weights_of_another_training_do_not_reproduce_the_golden_case(compressed, tmp_path):
    spec = regplug.resolve("compress-concat", **SIZES, compressed_dim=6)
    shutil.copytree(compressed, tmp_path / "b")
    (tmp_path / "b" / "weights.safetensors").write_bytes(save_tensors(trained(spec, seed=1).state_dict()))
    repin(tmp_path / "b")
    for program in (None, "torchscript"):
        with pytest.raises(regplug.BundleError, match="case 'batch_1': error .* is above the tolerance"):
            regplug.load(tmp_path / "b", program=program)


def test_the_largest_error_detects_a_wrong_value_shape_count_and_nan():
    right = [torch.ones(2, 3), torch.zeros(0, 3)]
    assert largest_error(right, right) == 0.0
    assert largest_error([torch.ones(2, 3) + 0.5, right[1]], right) == 0.5
    assert largest_error([torch.ones(3, 2), right[1]], right) == float("inf")
    assert largest_error(right[:1], right) == float("inf")
    error = largest_error([torch.tensor([1.0, float("nan")]), torch.zeros(1)], [torch.ones(2), torch.zeros(1)])
    assert error != error
    assert not CaseError("x", error, 1e9).ok


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.zeros(2, 5, 24), r"expected registers \[B, 4, 24\], got \[2, 5, 24\]"),
        (torch.zeros(2, 4, 23), r"expected registers \[B, 4, 24\], got \[2, 4, 23\]"),
        (torch.zeros(4, 24), r"expected registers \[B, 4, 24\], got \[4, 24\]"),
        (torch.zeros(2, 4, 24).double(), "expected dtype float32, got float64"),
        (torch.zeros(2, 4, 24, device="meta"), "expected device cpu, got meta"),
        ([1.0], "expected a tensor, got list"),
    ],
)
def test_a_program_refuses_wrong_inputs(mean_program, given, message):
    with pytest.raises(regplug.ShapeError, match=f"program 'torchscript': {message}"):
        mean_program(given)


@pytest.mark.parametrize("strategy", ["random", "writes-into-its-input"])
def test_a_readout_with_changing_outputs_is_refused(tmp_path, registry, strategy):
    spec = registry.resolve(strategy, **SIZES)
    with pytest.raises(regplug.ExportError, match="expected the same outputs for the same input, got .* apart"):
        regplug.export(spec, spec.build(), tmp_path / "b", backends=[], registry=registry)
    assert list(tmp_path.iterdir()) == []


def test_a_readout_that_asserts_may_refuse_an_empty_batch_and_float64(tmp_path, registry):
    spec = registry.resolve("asserting", **SIZES)
    done = regplug.export(spec, trained(spec), tmp_path / "b", backends=[], registry=registry)
    assert done.manifest.input.min_batch == 1
    assert done.manifest.golden.truth == "eager"


def test_a_program_that_fails_when_it_runs_is_refused_with_its_message(tmp_path, registry):
    spec = registry.resolve("fails-in-script", **SIZES)
    with pytest.raises(regplug.ExportError, match="expected a program that runs, got: .*not in a script") as error:
        regplug.export(spec, spec.build(), tmp_path / "b", registry=registry)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_program_that_returns_a_weight_returns_a_copy(tmp_path, registry):
    spec = registry.resolve("gives-its-weight", **SIZES)
    regplug.export(spec, spec.build(), tmp_path / "b", registry=registry)
    program = regplug.load(tmp_path / "b", program="torchscript")
    given = torch.zeros(1, 4, 24)
    with torch.inference_mode():
        program(given).zero_()
    assert torch.equal(program(given), torch.ones(1, 24))


def test_nothing_is_written_that_readers_refuse(tmp_path, registry):
    spec = registry.resolve("takes-anything", **SIZES, option=[[[[[0] * 120_000]]]])  # a line each in the manifest
    wanted = "expected a bundle that can be read, got: .*manifest.json: expected at most 1048576 bytes"
    with pytest.raises(regplug.ExportError, match=wanted):
        regplug.export(spec, spec.build(), tmp_path / "b", registry=registry)
    assert list(tmp_path.iterdir()) == []


def test_export_names_the_argument_that_is_of_a_wrong_type(tmp_path):
    spec = regplug.resolve("mean", **SIZES)
    for wrong in ("mean", spec.build()):
        with pytest.raises(
            regplug.SpecError, match=r"export: spec: expected a ReadoutSpec, got (str|RegisterMean); use "
        ):
            regplug.export(wrong, spec, tmp_path / "b")
    with pytest.raises(regplug.SpecError, match=r"backends: expected a list of names, got 'torchscript'"):
        regplug.export(spec, spec.build(), tmp_path / "b", backends="torchscript")
    with pytest.raises(regplug.ExportError, match=r"layout: expected a TokenLayout, got \{'start': 1\}"):
        regplug.export(spec, spec.build(), tmp_path / "b", layout={"start": 1})


def test_options_that_the_installed_class_refuses_are_a_bundle_error(compressed, tmp_path):
    shutil.copytree(compressed, tmp_path / "b")
    values = json.loads((tmp_path / "b" / "manifest.json").read_bytes())
    values["options"] = {"compressed_dim": "six"}
    (tmp_path / "b" / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(regplug.BundleError, match="the installed regplug:compress-concat: .*expected int, got 'six'"):
        regplug.load(tmp_path / "b")


def test_an_installed_class_that_fails_now_is_a_bundle_error(tmp_path, registry, monkeypatch):
    spec = registry.resolve("scaled", **SIZES)
    regplug.export(spec, trained(spec), tmp_path / "b", backends=[], registry=registry)
    # two samples are what the width is measured with
    monkeypatch.setattr(ScaledMean, "forward", lambda self, registers: registers.mean(1 if len(registers) == 2 else 7))
    with pytest.raises(
        regplug.BundleError,
        match=r"the installed test-plugin:scaled: expected outputs for \[1, 4, 24\], got IndexError",
    ):
        regplug.load(tmp_path / "b", registry=registry)


def test_the_default_device_of_the_caller_changes_nothing(tmp_path):
    spec = regplug.resolve("compress-concat", **SIZES, compressed_dim=6)
    module = trained(spec)
    with torch.device("meta"):
        regplug.export(spec, module, tmp_path / "b")
        assert regplug.load(tmp_path / "b").compress.weight.device.type == "cpu"
    assert regplug.verify(tmp_path / "b").ok


@pytest.mark.slow
def test_the_same_command_gives_the_same_digest_in_any_process(run_python, run_with_torch, tmp_path):
    code = (
        "import torch, regplug\n"
        "spec = regplug.resolve('compress-concat', num_registers=4, hidden_dim=24, compressed_dim=6)\n"
        "torch.manual_seed(0)\n"
        "print(hash('a'), regplug.export(spec, spec.build(), {!r}).digest)"
    )
    new = run_python(code.format(str(tmp_path / "1")), env={"PYTHONHASHSEED": "1"}).stdout.split()
    forked = run_with_torch(code.format(str(tmp_path / "2"))).stdout.split()
    assert new[0] != forked[0]  # each process has other hashes
    assert new[1] == forked[1]


def test_no_program_is_run_for_an_empty_batch(registry, tmp_path):
    spec = registry.resolve("pool", num_registers=4, hidden_dim=24)
    layout = regplug.TokenLayout(num_registers=4, hidden_dim=24, start=1)
    for module, shape in ((trained(spec), (0, 4, 24)), (conditioner_of(spec, layout), (0, 9, 24))):
        place = tmp_path / type(module).__name__
        regplug.export(spec, module, place, backends=["dividesbythebatch"], registry=registry)
        program = regplug.load(place, program="dividesbythebatch", registry=registry)
        got, wanted = flatten(program(torch.zeros(shape))), flatten(module(torch.zeros(shape)))
        assert [(out.shape, out.dtype) for out in got] == [(out.shape, out.dtype) for out in wanted]
        with pytest.raises(regplug.ShapeError):
            program(torch.zeros(0, 3, 24))


def test_a_constructor_that_changes_the_working_folder_moves_no_bundle(tmp_path, registry, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    spec = registry.resolve("scaled", **SIZES)
    module, init = trained(spec), ScaledMean.__init__

    def moving(self, *args, **options):
        os.chdir(tmp_path / "elsewhere")
        init(self, *args, **options)

    monkeypatch.setattr(ScaledMean, "__init__", functools.wraps(init)(moving))
    done = regplug.export(spec, module, "b", backends=[], registry=registry)
    assert str(done.directory) == "b"
    assert (tmp_path / "here" / "b" / "manifest.json").is_file()
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("error", ["RuntimeError('sd')", "SystemExit(0)"])
def test_a_state_dict_that_fails_is_an_error_of_the_export(tmp_path, registry, monkeypatch, error):
    spec = registry.resolve("scaled", **SIZES)
    module = trained(spec)

    def fail(self, *args, **options):
        raise eval(error)

    monkeypatch.setattr(ScaledMean, "state_dict", fail)
    said = r"strategy 'scaled': expected weights in state_dict\(\), got (RuntimeError: sd|SystemExit: 0)"
    with pytest.raises(regplug.ExportError, match=said):
        regplug.export(spec, module, tmp_path / "b", backends=[], registry=registry)
    assert not (tmp_path / "b").exists()
