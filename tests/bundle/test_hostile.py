"""A manifest that does not fit its weights: nothing is allocated, read or run."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from click.testing import CliRunner
from support.damage import edit_manifest
from support.plugins import installed_with
from support.strategies import EVERY, spec_of
from torture.options import load_measured, memory

import regplug
from regplug.bundle.weights_file import build_filled
from regplug.commands.main import group
from regplug.format.weights import save_tensors

# loads one bundle for each line, with little more memory than torch itself takes
LOAD = """
import resource, sys, torch, regplug
regplug.resolve("mean", num_registers=1, hidden_dim=1).build()
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), used + (256 << 20)))
for line in sys.stdin:
    try:
        if line.strip() == "allocate":
            torch.zeros(1 << 28)
        else:
            regplug.load(line.strip())
        print("loaded", flush=True)
    except regplug.BundleError as error:
        print(error, flush=True)
    except RuntimeError:
        print("no memory", flush=True)
"""
LARGE = (10**12, 1 << 40, 1 << 50)


# makes a reader that compares nothing before it builds, and has no limits
WITHOUT_OUTLINE = (
    "import regplug.bundle.rebuild\n"
    "regplug.bundle.rebuild.build_outlined = lambda build, compare, state: build()\n"
    "regplug.bundle.rebuild._check_counts = lambda *given: None\n"
)


class SmallReader:
    """A process with little memory that loads bundles."""

    def __init__(self, before=""):
        command = [sys.executable, "-c", before + LOAD]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def load_all(self, folders):
        """The message of each load."""
        messages = []
        for folder in folders:
            print(folder, file=self.process.stdin, flush=True)
            messages.append(self.process.stdout.readline().rstrip("\n"))
        assert self.process.poll() is None
        return messages


@pytest.fixture(scope="module")
def load_all():
    reader = SmallReader()
    yield reader.load_all
    reader.process.communicate()


@pytest.fixture(scope="module")
def load_all_without_checks():
    reader = SmallReader(WITHOUT_OUTLINE)
    yield reader.load_all
    reader.process.kill()
    reader.process.communicate()


def exported(folder, spec, module, **changes):
    regplug.export(spec, module, folder, backends=[])
    edit_manifest(folder, lambda values: values.update(changes))
    return folder


def widened(folder, cond_dim):
    """The manifest has this width everywhere; only the golden cases have another."""

    def change(values):
        values["cond_dim"] = cond_dim
        values["outputs"][0]["shape"][1] = cond_dim

    edit_manifest(folder, change)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    spec = spec_of("regplug:compress-concat")
    return exported(tmp_path_factory.mktemp("good") / "b", spec, spec.build())


def test_the_process_of_small_memory_loads_what_is_good_and_refuses_what_is_large(load_all, good):
    assert load_all([good, "allocate", good]) == ["loaded", "no memory", "loaded"]


def test_options_of_any_size_allocate_nothing(load_all, tmp_path):
    folders = []
    for index, (strategy, (options, _)) in enumerate(sorted(EVERY.items())):
        spec = spec_of(strategy)
        sizes = [name for name, value in options.items() if isinstance(value, int) and not isinstance(value, bool)]
        made = exported(tmp_path / f"{index}", spec, spec.build())
        for name in sizes:
            for large in LARGE:
                folder = shutil.copytree(made, tmp_path / f"{index}-{name}-{large}")
                edit_manifest(folder, lambda values, name=name, large=large: values["options"].update({name: large}))
                folders.append(folder)
    assert len(folders) > 30
    for folder, said in zip(folders, load_all(folders), strict=True):
        assert said.startswith(f"bundle {folder}: "), said


def test_the_options_of_a_part_of_a_join_allocate_nothing(load_all, tmp_path):
    spec = spec_of("regplug:join")
    made = exported(tmp_path / "b", spec, spec.build())
    for large in LARGE:
        folder = shutil.copytree(made, tmp_path / f"b-{large}")

        def enlarge(values, large=large):
            values["options"]["parts"][1]["options"]["compressed_dim"] = large

        edit_manifest(folder, enlarge)
        assert load_all([folder])[0].startswith(f"bundle {folder}: ")


def test_a_width_that_agrees_with_a_large_option_is_held_to_the_golden_cases(load_all, good, tmp_path):
    spec = spec_of("regplug:compress-concat")
    folder = exported(tmp_path / "b", spec, spec.build(), options={"compressed_dim": 1 << 40})
    widened(folder, 4 << 40)
    wanted = "golden.safetensors: tensor 'batch_0.output.conditioning': expected float64 [0, 4398046511104]"
    assert load_all([folder])[0].startswith(f"bundle {folder}: {wanted}")


@pytest.mark.parametrize("sizes", [{"num_registers": 1 << 40}, {"hidden_dim": 1 << 50}])
def test_registers_of_any_size_are_held_to_the_golden_cases(load_all, tmp_path, sizes):
    spec = spec_of("regplug:mean")
    folder = exported(tmp_path / "b", spec, spec.build(), **sizes)
    wanted = {"num_registers": 4, "hidden_dim": 24, **sizes}

    def change(values):
        values["input"]["shape"] = ["B", wanted["num_registers"], wanted["hidden_dim"]]
        for case in values["golden"]["cases"]:
            case["length"] = wanted["num_registers"]

    edit_manifest(folder, change)
    widened(folder, wanted["hidden_dim"])
    assert load_all([folder])[0].startswith(f"bundle {folder}: golden.safetensors: tensor 'batch_0.")


@pytest.mark.slow
def test_a_film_generator_of_any_size_allocates_nothing(load_all_without_checks, load_all, tmp_path):
    spec = spec_of("regplug:pool")
    film = regplug.pair(spec, regplug.KernelFiLMGenerator, kernel_hidden_dim=5, num_film_layers=2)
    layout = regplug.TokenLayout(num_registers=4, hidden_dim=24, start=1)
    made = exported(tmp_path / "made", spec, regplug.Conditioner(layout, spec.build(), film))
    folders = []
    for option in ("num_film_layers", "kernel_hidden_dim", "film_hidden_dim"):
        for large in (60_000, 10**9, *LARGE):
            folder = shutil.copytree(made, tmp_path / f"{option}-{large}")

            def change(values, option=option, large=large):
                values["film"]["options"][option] = large

            edit_manifest(folder, change)
            folders.append(folder)
    for folder, said in zip(folders, load_all(folders), strict=True):
        wanted = "FiLM generator 'regplug:kernel-film': option '"
        if folder.name.endswith("-60000"):
            wanted = "weights.safetensors: tensor 'film.mlp."
        assert said.startswith(f"bundle {folder}: {wanted}"), said
    # a reader that compares nothing first tries to allocate all of it
    assert all("memory" in said for said in load_all_without_checks(folders[1:2]))


def attached(**model_options):
    torch.manual_seed(0)
    small = {"img_size": 28, "depth": 1, "embed_dim": 48, "num_heads": 2, "num_classes": 0}
    return regplug.attach("timm:vit_small_patch14_reg4_dinov2", "mean", model_options={**small, **model_options})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    module = attached()
    return exported(tmp_path_factory.mktemp("whole") / "b", module.spec, module)


def with_options(whole, folder, **options):
    """The bundle with a backbone, its model built with these options too."""
    folder.mkdir()
    for file in whole.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    edit_manifest(folder, lambda values: values["backbone"]["options"].update(options))
    return folder


REFUSED = {
    "backbone 'regplug-timm:timm': option 'embed_dim': expected at most 65536, as many numbers as the weights hold": [
        {"embed_dim": 1 << 40}
    ],
    "backbone 'regplug-timm:timm': option 'depth': expected at most 65536": [{"depth": 10**9}, {"depth": 16_000_000}],
    "the installed regplug-timm:timm: model 'vit_small_patch14_reg4_dinov2': depth: expected at most 1024 blocks": [
        {"depth": 1025},
        {"depth": 65_536},
    ],
    "the installed regplug-timm:timm: model 'vit_small_patch14_reg4_dinov2': expected options that it takes": [
        {"depth": 1000}
    ],
    "backbone 'regplug-timm:timm': option 'img_size': expected at most 65536": [{"img_size": 28 << 30}],
    "backbone 'regplug-timm:timm': option 'patch_size': expected at most 65536": [{"patch_size": [[1 << 20]]}],
    "weights.safetensors: tensor 'tokens.model.blocks.0.mlp.fc1.bias': expected float32 [": [{"mlp_ratio": 1e6}],
    "layout: expected TokenLayout(num_registers=4, ": [{"reg_tokens": 5}, {"reg_tokens": 60_000}],
}


@pytest.mark.parametrize(("said", "options"), [(said, one) for said, some in REFUSED.items() for one in some])
def test_a_backbone_of_any_size_is_refused_before_it_allocates_or_loops(whole, tmp_path, said, options):
    folder = with_options(whole, tmp_path / "b", **options)
    came = load_measured(str(folder))
    assert came.said.startswith(f"bundle {folder}: {said}"), came.said
    assert came.taken < 16 << 20
    assert came.seconds < 1


@pytest.mark.slow
def test_a_reader_without_limits_allocates_what_a_manifest_asks_for(load_all_without_checks, load_all, whole, tmp_path):
    folder = with_options(whole, tmp_path / "b", depth=1000)
    assert load_all_without_checks([folder]) != load_all([folder])


@pytest.mark.parametrize("options", [{"metadata": 1}, {"init_type": "meta"}, {"film_hidden_dim": 1 << 40}])
def test_no_word_of_a_manifest_switches_off_the_comparison_of_sizes(tmp_path, options):
    spec = spec_of("regplug:compress-concat")
    film = regplug.pair(spec, regplug.KernelFiLMGenerator, kernel_hidden_dim=5, num_film_layers=2)
    layout = regplug.TokenLayout(num_registers=4, hidden_dim=24, start=1)
    folder = exported(tmp_path / "b", spec, regplug.Conditioner(layout, spec.build(), film))

    def change(values):
        values["options"]["compressed_dim"] = 10**7
        values["cond_dim"] = 4 * 10**7
        values["film"]["options"].update(options)

    edit_manifest(folder, change)
    came = load_measured(str(folder))
    assert came.said.startswith(f"bundle {folder}: ")
    assert came.taken < 16 << 20


class Meta(torch.nn.Module):
    """Refuses its option with torch's message for the meta device; records on which device it was built."""

    asked: ClassVar[list[str]] = []

    def __init__(self, hidden_dim: int, metadata: int = 0):
        super().__init__()
        self.asked.append(str(torch.empty(0).device))
        if metadata:
            raise ValueError("Tensor.item() cannot be called on meta tensors")
        self.scale = torch.nn.Parameter(torch.ones(hidden_dim))

    def forward(self, registers: torch.Tensor) -> torch.Tensor:
        return registers.mean(1) * self.scale


class ReadsNumbers(torch.nn.Module):
    """A FiLM generator that reads numbers from its tensors while it is built, as for drop rates."""

    def __init__(self, cond_dim: int, layers: int = 3):
        super().__init__()
        self.cond_dim, self.layers = cond_dim, layers
        self.rates = [rate.item() for rate in torch.linspace(0, 1, layers)]
        self.bias = torch.nn.Parameter(torch.ones(layers, 4))
        self.register_buffer("steps", torch.arange(layers).repeat_interleave(4).float())

    def forward(self, conditioning: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        given = conditioning.sum(1, keepdim=True)
        return [(given * self.bias[0], given + self.bias[1])]


@pytest.fixture
def odd_registry():
    film = regplug.FiLMEntry("reads-numbers", ReadsNumbers, form="gamma", order="gamma-first")
    return installed_with(regplug.ReadoutEntry("metaphor", Meta), film, distribution="odd")


def test_a_strategy_that_mentions_meta_in_its_errors_is_still_limited(odd_registry, tmp_path):
    spec = odd_registry.resolve("odd:metaphor", num_registers=4, hidden_dim=24)
    regplug.export(spec, spec.build(), tmp_path / "b", backends=[], registry=odd_registry)
    edit_manifest(tmp_path / "b", lambda values: values["options"].update(metadata=1))
    Meta.asked.clear()
    with pytest.raises(regplug.BundleError, match="Tensor.item\\(\\) cannot be called on meta tensors"):
        regplug.load(tmp_path / "b", registry=odd_registry)
    assert Meta.asked == ["meta"]


def test_a_module_that_reads_its_own_numbers_loads_and_is_bounded_by_its_weights(odd_registry, tmp_path):
    spec = odd_registry.resolve("mean", num_registers=4, hidden_dim=24)
    layout = regplug.TokenLayout(num_registers=4, hidden_dim=24, start=1)
    film = regplug.pair(spec, ReadsNumbers, registry=odd_registry)
    conditioner = regplug.Conditioner(layout, spec.build(), film, registry=odd_registry)
    regplug.export(spec, conditioner, tmp_path / "b", backends=[], registry=odd_registry)
    assert regplug.load(tmp_path / "b", registry=odd_registry).film.rates == [0.0, 0.5, 1.0]
    edit_manifest(tmp_path / "b", lambda values: values["film"]["options"].update(layers=60_000))
    with pytest.raises(regplug.BundleError, match="expected to take at most 10[0-9]{5} bytes, got more"):
        regplug.load(tmp_path / "b", registry=odd_registry)


def test_a_weights_file_is_compared_before_the_sizes_in_its_metadata_are_allocated(tmp_path):
    file = tmp_path / "w.safetensors"
    said = {"strategy": "regplug:compress-concat", "num_registers": 4, "hidden_dim": 24, "holds": "readout"}
    said |= {"options": {"compressed_dim": 20_000_000}, "film": None, "layout": None, "backbone": None}
    file.write_bytes(save_tensors({"compress.weight": torch.zeros(6, 24)}, said))
    spec = regplug.resolve("compress-concat", num_registers=4, hidden_dim=24, compressed_dim=20_000_000)
    wanted = "expected float32 \\[20000000, 24\\], got float32 \\[6, 24\\]"
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    with pytest.raises(regplug.BundleError, match=wanted):
        build_filled(spec.build, str(file), spec)
    assert memory("VmHWM") - before < 16 << 20
    done = CliRunner().invoke(group, ["export", "--weights", str(file), "-o", str(tmp_path / "b")])
    assert isinstance(done.exception, regplug.BundleError)
    assert not (tmp_path / "b").exists()


def test_a_layout_of_any_size_behind_a_backbone_allocates_nothing(load_all, whole, tmp_path):
    folder = with_options(whole, tmp_path / "b")

    def change(values):
        values.update({"num_registers": 1 << 20})
        values["layout"].update({"num_registers": 1 << 20})

    edit_manifest(folder, change)
    assert load_all([folder])[0].startswith(f"bundle {folder}: layout: expected TokenLayout(")


class Trace:
    """Makes a folder when it is unpickled."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return (os.mkdir, (str(self.place),))


def test_the_canary_leaves_a_trace_when_it_is_unpickled(tmp_path):
    torch.save(Trace(tmp_path / "trace"), tmp_path / "evil.pth")
    torch.load(tmp_path / "evil.pth", weights_only=False)
    assert (tmp_path / "trace").exists()


READING = {
    "checkpoint_path": lambda evil: str(evil),
    "pretrained": lambda evil: True,
    "pretrained_cfg": lambda evil: {"file": str(evil)},
    "pretrained_cfg_overlay": lambda evil: {"file": str(evil)},
    "cache_dir": lambda evil: str(evil.parent / "cache"),
    "device": lambda evil: "cuda",
    "pretrained_strict": lambda evil: False,
}


@pytest.mark.parametrize("option", READING)
def test_a_backbones_option_that_reads_or_fetches_is_refused_by_name_at_load_and_at_export(whole, tmp_path, option):
    torch.save(Trace(tmp_path / "trace"), tmp_path / "evil.pth")
    value = READING[option](tmp_path / "evil.pth")
    folder = with_options(whole, tmp_path / "b", **{option: value})
    wanted = f"model 'vit_small_patch14_reg4_dinov2': {option}: expected no such option"
    with pytest.raises(regplug.BundleError, match=f"the installed regplug-timm:timm: {wanted}") as error:
        regplug.load(folder)
    assert "\n" not in str(error.value)
    with pytest.raises(regplug.SpecError, match=wanted):
        attached(**{option: value})
    assert sorted(file.name for file in tmp_path.iterdir()) == ["b", "evil.pth"]


def test_a_model_without_such_an_option_is_loaded(whole):
    assert json.loads((whole / "manifest.json").read_bytes())["backbone"]["options"]["depth"] == 1
    assert regplug.load(whole).spec.strategy == "regplug:mean"


def test_a_bundles_model_is_never_a_folder_of_its_reader(tmp_path, monkeypatch):
    from regplug_transformers.models import build

    monkeypatch.chdir(tmp_path)
    with torch.device("meta"):
        build().config.save_pretrained("model")
        assert build("./model").config.num_register_tokens == 4
    with pytest.raises(regplug.NameLookupError, match="model 'model': expected a model type, a folder"):
        build("model")


def test_metadata_of_an_untrusted_file_cannot_control_the_terminal(good, tmp_path):
    evil = "\x1b[2J\n\u202e"
    said = {"options": {evil: evil}, "film": [{evil: evil}, {evil: evil}], "layout": [{}, 3], "weights": evil}
    (tmp_path / "w.safetensors").write_bytes(save_tensors({"a": torch.ones(1)}, said))
    folder = exported(tmp_path / "b", spec_of("regplug:mean"), spec_of("regplug:mean").build(), options={"a": [evil]})
    for path in (tmp_path / "w.safetensors", folder):
        done = CliRunner().invoke(group, ["info", str(path)])
        assert done.exit_code == 0, done.output
        assert "1b[2J\\n\\u202e" in done.output  # as \\x1b, or as JSON has it
        assert done.output.isascii()
        assert done.output.replace("\n", "").isprintable()
    with pytest.raises(regplug.BundleError) as error:
        regplug.load(folder)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("tiny_vit_5m_224", {"window_sizes": [64, 64, 64, 64]}),
        ("maxvit_tiny_tf_224", {"img_size": 65_536}),
        ("swin_tiny_patch4_window7_224", {"depths": [2, 2]}),
    ],
)
def test_a_model_of_another_family_is_refused_before_it_is_built(whole, tmp_path, model, options):
    folder = with_options(whole, tmp_path / "b")
    edit_manifest(folder, lambda values: values["backbone"].update(model=model, options=options))
    came = load_measured(str(folder))
    assert came.said.startswith(
        f"bundle {folder}: the installed regplug-timm:timm: model '{model}': carries no register"
    )
    assert came.taken < 16 << 20


def test_many_counts_in_one_option_are_counted_together(whole, tmp_path):
    folder = with_options(whole, tmp_path / "b", depths=[65_536] * 3000)
    with pytest.raises(regplug.BundleError, match="option 'depths': expected at most 65536, .* got 196608000"):
        regplug.load(folder)
