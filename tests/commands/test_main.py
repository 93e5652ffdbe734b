"""The command line: what it prints, and its exit codes."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.damage import DAMAGES, edit_manifest, rename_strategy, replace_weights

import regplug
from regplug.backends import cache
from regplug.format.weights import save_tensors
from regplug.registry.option_text import read_value

SIZES = ["--num-registers", "4", "--hidden-dim", "24"]
MEAN = ["mean", *SIZES]
COMPRESS = ["compress-concat", *SIZES, "-O", "compressed_dim=6"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "bundle"
    spec = regplug.resolve("compress-concat", num_registers=4, hidden_dim=24, compressed_dim=6)
    torch.manual_seed(0)
    regplug.export(spec, spec.build(), folder)
    return folder


@pytest.fixture
def bundle(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "bundle")


def test_list_names_strategies_with_distribution_and_version(run):
    code, out, _ = run("list")
    assert code == 0
    assert any(line.split()[:3] == ["pool", "regplug", regplug.__version__] for line in out.splitlines())
    code, out, _ = run("list", "--json")
    listed = json.loads(out)
    assert listed["schema"] == "regplug.list/1"
    entry = next(one for one in listed["strategies"] if one["name"] == "pool")
    assert entry["full_name"] == "regplug:pool"
    assert entry["version"] == regplug.__version__
    own = {"distribution": "regplug", "version": regplug.__version__, "status": "ok", "error": None, "notes": []}
    assert own in listed["plugins"]


def test_list_imports_neither_torch_nor_a_readouts_module(run_python):
    done = run_python(
        "import sys, atexit; sys.argv = ['regplug', 'list']\n"
        "atexit.register(lambda: print(*sys.modules, file=sys.stderr))\n"
        "from regplug.commands.main import answer; sys.exit(answer())"
    )
    imported = set(done.stderr.split())
    assert "regplug.registry.builtin" in imported
    assert not imported & {"torch", "numpy", "safetensors", "rich"}
    readouts = {f"regplug.nn.readouts.{name}" for name in ("averages", "concatenations", "attentions")}
    assert not imported & {*readouts, "regplug.nn.film"}


def test_cond_dim_prints_the_width_alone(run):
    code, out, _ = run(
        "cond-dim", "compress-concat", "--num-registers", 14, "--hidden-dim", 384, "-O", "compressed_dim=96"
    )
    assert (code, out) == (0, "1344\n")


def test_cond_dim_allocates_no_weights(run):
    code, out, _ = run(
        "cond-dim", "compress-concat", "--num-registers", 4, "--hidden-dim", 10**7, "-O", f"compressed_dim={10**6}"
    )
    assert (code, out) == (0, "4000000\n")  # the weights would take 40 TB


def test_cond_dim_as_json_says_what_was_asked(run):
    code, out, _ = run("cond-dim", *COMPRESS, "--json")
    assert code == 0
    assert json.loads(out) == {
        "schema": "regplug.cond-dim/1",
        "strategy": "regplug:compress-concat",
        "num_registers": 4,
        "hidden_dim": 24,
        "options": {"compressed_dim": 6},
        "cond_dim": 24,
        "film_sites": [],
    }


WRONG_USAGE = {
    "strategy 'pol': not registered; known:": ["cond-dim", "pol", *SIZES],
    "(closest: pool)": ["cond-dim", "pol", *SIZES],
    "backbone 'vit': not registered": ["cond-dim", "pool", "--backbone", "vit"],
    "option 'compresed_dim': expected a known option": ["cond-dim", *COMPRESS, "-O", "compresed_dim=6"],
    "expected option compressed_dim: int, got none": ["cond-dim", "compress-concat", *SIZES],
    "option 'compressed_dim': expected int, got 'six'": [
        "cond-dim",
        "compress-concat",
        *SIZES,
        "-O",
        "compressed_dim=six",
    ],
    "option 'compressed_dim': expected int, got 6.5": [
        "cond-dim",
        "compress-concat",
        *SIZES,
        "-O",
        "compressed_dim=6.5",
    ],
    "compressed_dim: expected a positive integer, got 0": ["cond-dim", *COMPRESS, "-O", "compressed_dim=0"],
    "option 'hidden_dim': expected an option of the strategy": ["cond-dim", *COMPRESS, "-O", "hidden_dim=3"],
    "expected key=value, got 'compressed_dim'": ["cond-dim", *COMPRESS, "-O", "compressed_dim"],
    "sizes: expected --num-registers R and --hidden-dim D": ["cond-dim", "pool"],
    "got both": ["cond-dim", "pool", *SIZES, "--backbone", "x"],
    "num_registers: expected a positive integer, got 0": ["cond-dim", "pool", "--num-registers", 0, "--hidden-dim", 2],
    "layout: expected --layout start=N or --backbone NAME": [
        "export",
        *COMPRESS,
        "--film",
        "num_film_layers=2",
        "-o",
        "x",
    ],
    "option 'self': expected a known option": ["cond-dim", "mean", *SIZES, "-O", "self=3"],
    "--film: spec: expected an option of the generator": [
        "export",
        *COMPRESS,
        "--layout",
        "start=1",
        "--film",
        "spec=7",
        "-o",
        "x",
    ],
    "FiLM generator 'kernel-fim': not registered": [
        "export",
        *COMPRESS,
        "--layout",
        "start=1",
        "--film-generator",
        "kernel-fim",
        "-o",
        "x",
    ],
    "FiLM generator '': not registered": [
        "export",
        *COMPRESS,
        "--layout",
        "start=1",
        "--film-generator",
        "",
        "-o",
        "x",
    ],
    "applies FiLM itself": ["export", *COMPRESS, "--layout", "start=1", "--film-generator", "dit", "-o", "x"],
    "--film: width: expected an option of the generator": [
        "export",
        *COMPRESS,
        "--layout",
        "start=1",
        "--film",
        "width=7",
        "-o",
        "x",
    ],
    "--with-backbone: expected --backbone NAME:MODEL, which gives sizes": [
        "export",
        "pool",
        "--with-backbone",
        "-o",
        "x",
    ],
    "--model-option: expected --backbone NAME too": ["cond-dim", *COMPRESS, "-M", "img_size=28"],
    "model 'vit_smal': not known to timm; closest of 1": ["cond-dim", "--backbone", "timm:vit_smal"],
    "model 'test_vit': carries no register tokens": ["info", "timm:test_vit"],
    "model '/no/where': expected a model type, a folder": ["info", "transformers:/no/where"],
    "model DINOv3ViTModel: carries no register tokens (num_register_tokens is 0)": ["info", "transformers:dinov3_vit"],
    "the one size of its images": [
        *(
            "export",
            "pool",
            "--with-backbone",
            "--backbone",
            "timm:naflexvit_base_patch16_gap",
            "-M",
            "depth=1",
            "-o",
            "x",
        )
    ],
    "Invalid value for '--seed'": ["export", *COMPRESS, "--seed", 10**30, "-o", "x"],
    "expected a strategy, a backbone or a path, got ''": ["info", ""],
    "digest: expected 64 hexadecimal digits, got '12'": ["verify", "nowhere", "--digest", "12"],
    "--digest: expected a bundle, got 'mean', which is none": ["info", "mean", "--digest", "0" * 64],
    "signature: expected a public key with it, got none": ["verify", "nowhere", "--signature", "nowhere.sig"],
    "--password-env: expected an environment variable, got 'NOWHERE', which is none": [
        *("sign", "nowhere", "--key", "nokey", "--password-env", "NOWHERE")
    ],
    "path './nowhere': expected a bundle's folder or a weights file": ["info", "./nowhere"],
    "'nothing': no strategy, no backbone and no path; known: ": ["info", "nothing"],
    "No such command 'exprt'": ["exprt"],
    "export backend 'flash': not registered; known: aotinductor, ": [
        "export",
        *COMPRESS,
        "--backend",
        "flash",
        "-o",
        "x",
    ],
}


@pytest.mark.parametrize("message", WRONG_USAGE)
def test_wrong_usage_is_one_message_on_stderr_and_exit_code_two(run, tmp_path, monkeypatch, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*WRONG_USAGE[message])
    assert code == 2
    assert message in err
    assert out == ""
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_a_broken_plugin_is_listed_with_exit_code_zero_and_three_when_it_is_asked_for(install_plugin, run_python):
    folder = install_plugin(
        "broken-readouts",
        {"broken_readouts.py": "import sys\nsys.exit(0)\n"},
        {"regplug_v1": {"broken": "broken_readouts"}},
    )
    listed = run_python(
        "import sys; sys.argv = ['regplug', 'list']; from regplug.commands.main import main; main()", [folder]
    )
    assert listed.returncode == 0
    assert "broken-readouts" in listed.stdout
    asked = run_python(
        "import sys; sys.argv = 'regplug cond-dim broken-readouts:x --num-registers 1 --hidden-dim 1'.split()\n"
        "from regplug.commands.main import main; main()",
        [folder],
    )
    assert asked.returncode == 3
    assert "SystemExit" in asked.stderr


VIT = ["--backbone", "timm:vit_small_patch14_reg4_dinov2", "-M", "img_size=28", "-M", "depth=1"]


def test_a_backbone_is_exported_whole_by_name_and_takes_its_weights_again(run, tmp_path):
    film = ["--film", "kernel_hidden_dim=8", "--film", "num_film_layers=2"]
    command = ["export", *VIT, "--with-backbone", *film, "--no-programs", "--json"]
    code, out, _ = run(*command, "-o", tmp_path / "first")
    first = json.loads(out)
    assert (code, first["strategy"], first["cond_dim"]) == (0, "regplug:pool", 384)
    _, out, _ = run("info", tmp_path / "first", "--json")
    said = json.loads(out)
    assert (said["holds"], said["input"]["shape"]) == ("conditioner", ["B", 3, 28, 28])
    assert said["backbone"]["options"] == {"depth": 1, "img_size": 28}
    weights = tmp_path / "first" / "weights.safetensors"
    code, out, err = run(*command, "--seed", 1, "--weights", weights, "-o", tmp_path / "second")
    assert (code, err, json.loads(out)["digest"]) == (0, "", first["digest"])
    code, _, err = run(*command, "-M", "depth=2", "--weights", weights, "-o", tmp_path / "third")
    assert code == 1
    assert "expected tensors [" in err
    code, _, err = run("export", "--weights", weights, "-o", tmp_path / "third")
    assert code == 1
    assert "expected a readout or conditioner alone, got one behind 'regplug-timm:timm'" in err
    assert not (tmp_path / "third").exists()


@pytest.mark.filterwarnings("default:export. option")
def test_the_old_name_of_with_backbone_works_with_one_warning_and_is_in_no_help(run, tmp_path):
    sizes = ["--backbone", "timm:vit_small_patch14_reg4_dinov2", "-M", "img_size=28", "-M", "depth=1"]
    code, _, err = run("export", "mean", "--whole", *sizes, "--no-programs", "-o", tmp_path / "b")
    assert code == 0, err
    assert err.splitlines()[0] == "warning: export: option '--whole' is now named '--with-backbone'; use that."
    assert err.count("warning: ") == 1
    assert json.loads((tmp_path / "b" / "manifest.json").read_text())["backbone"]["name"] == "regplug-timm:timm"
    assert "--whole" not in run("export", "--help")[1]


def test_a_models_options_count_wherever_a_backbone_is_named(run):
    code, out, _ = run("cond-dim", "concat", "--backbone", "transformers:dinov3_vit", "-M", "num_register_tokens=3")
    assert (code, out.strip()) == (0, str(3 * 384))
    code, out, _ = run("info", "timm:vit_small_patch14_reg4_dinov2", "-M", "embed_dim=48", "--json")
    assert (code, json.loads(out)["layout"]["hidden_dim"]) == (0, 48)


def test_export_prints_the_digest_that_pins_the_bundle(run, tmp_path):
    code, out, err = run("export", *COMPRESS, "-o", tmp_path / "b")
    assert code == 0
    digest = out.split("digest ")[1].strip()
    assert "weights are initial, from seed 0" in err
    assert run("verify", tmp_path / "b", "--digest", digest)[0] == 0
    for command in ("verify", "info"):
        assert run(command, tmp_path / "b", "--digest", digest.upper())[0] == 0
        code, _, err = run(command, tmp_path / "b", "--digest", "0" * 64)
        assert code == 1
        assert err == f"error: bundle {tmp_path / 'b'}: manifest.json: sha256 is {digest}, pinned is {'0' * 64}.\n"


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["text", "json"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_wrong_with_a_bundle_is_one_line_and_exit_code_one(run, bundle, damage, options):
    change, expected = DAMAGES[damage]
    change(bundle)
    code, out, err = run("verify", bundle, *options)
    assert (code, out) == (1, "")
    assert err == f"error: {expected.replace('DIR', str(bundle))}\n"


@pytest.mark.parametrize("damage", ["half a surrogate pair", "weights of another dtype"])
def test_the_real_command_says_the_same_line(bundle, damage):
    change, expected = DAMAGES[damage]
    change(bundle)
    command = [Path(sys.executable).parent / "regplug", "verify", bundle, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: {expected.replace('DIR', str(bundle))}\n"


def test_a_name_that_the_bundle_gives_and_nobody_offers_is_the_bundles_fault(run, bundle):
    edit_manifest(bundle, rename_strategy("os:system"))
    code, out, err = run("verify", bundle)
    assert (code, out) == (1, "")
    assert re.fullmatch(
        f"error: bundle {bundle}: strategy 'os:system': expected an installed plugin, got 'os'.*\n", err
    )


def test_the_seed_decides_the_initial_weights(run, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run("export", *COMPRESS, "--seed", seed, "-o", tmp_path / name)
    weights = {name: (tmp_path / name / "weights.safetensors").read_bytes() for name in "abc"}
    assert weights["a"] == weights["b"] != weights["c"]


def test_trained_weights_are_taken_from_a_file_and_must_fit(run, tmp_path):
    torch.manual_seed(3)
    state = {"compress.weight": torch.randn(6, 24)}
    (tmp_path / "w.safetensors").write_bytes(save_tensors(state))
    assert run("export", *COMPRESS, "--weights", tmp_path / "w.safetensors", "-o", tmp_path / "b")[0] == 0
    assert torch.equal(regplug.load(tmp_path / "b").compress.weight, state["compress.weight"])
    (tmp_path / "v.safetensors").write_bytes(save_tensors({"compress.weight": torch.randn(6, 23)}))
    code, _, err = run("export", *COMPRESS, "--weights", tmp_path / "v.safetensors", "-o", tmp_path / "c")
    assert code == 1
    assert "tensor 'compress.weight': expected float32 [6, 24], got float32 [6, 23]" in err
    code, _, err = run(
        "export", "pool", *SIZES, "--weights", tmp_path / "b" / "weights.safetensors", "-o", tmp_path / "c"
    )
    assert code == 1
    assert "strategy: expected 'regplug:pool', got 'regplug:compress-concat', as the file says of itself" in err
    assert not (tmp_path / "c").exists()


def test_a_folder_that_exists_is_kept_and_replaced_only_with_force(run, bundle):
    before = (bundle / "manifest.json").read_bytes()
    code, _, err = run("export", *COMPRESS, "--seed", 5, "-o", bundle)
    assert code == 2
    assert "exists and is kept" in err
    assert (bundle / "manifest.json").read_bytes() == before
    assert run("export", *COMPRESS, "--seed", 5, "--force", "-o", bundle)[0] == 0
    assert (bundle / "manifest.json").read_bytes() != before


def test_a_conditioner_is_exported_by_naming_its_film_generator_and_layout(run, tmp_path):
    film = ["--film", "kernel_hidden_dim=5", "--film", "num_film_layers=2", "--layout", "start=-4"]
    code, out, _ = run("export", *COMPRESS, *film, "-o", tmp_path / "b", "--json")
    assert code == 0
    assert json.loads(out)["schema"] == "regplug.export/1"
    loaded = regplug.load(tmp_path / "b")
    assert loaded.layout.start == -4
    assert len(loaded(torch.zeros(1, 9, 24))) == 2


@pytest.mark.parametrize(
    "layout",
    [
        ["start=-4"],
        ["start=-4", "normalized=true"],
        ["num_registers=4, hidden_dim=24, start=-4, indices=null, num_tokens=null, normalized=true"],
        ['{"start": -4, "num_tokens": 9}'],
        [' {"start": -4}'],
        ["indices=[5, 6, 7, 8], num_tokens=9"],
    ],
    ids=str,
)
def test_a_layout_is_given_field_by_field_or_as_info_prints_it(run, tmp_path, layout):
    chosen = [word for one in layout for word in ("--layout", one)]
    film = ["--film", "kernel_hidden_dim=5", "--film", "num_film_layers=2"]
    code, _, err = run("export", *COMPRESS, *chosen, *film, "--no-programs", "-o", tmp_path / "b")
    assert code == 0, err
    assert regplug.load(tmp_path / "b").layout.positions(9) == (5, 6, 7, 8)
    line = next(text for text in run("info", tmp_path / "b")[1].splitlines() if text.startswith("layout: "))
    again = ["--layout", line]
    code, _, err = run("export", *COMPRESS, *again, *film, "--no-programs", "-o", tmp_path / "c")
    assert code == 0, err
    assert regplug.load(tmp_path / "c").layout == regplug.load(tmp_path / "b").layout


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("num_registers=3, start=1", "num_registers"),
        ("{start: 1}", "expected a JSON object"),
        ("start", "expected key=value"),
        ("start=1, , end=2", "TokenLayout"),
        ("start=1, start=2", "start: expected once, got it twice in 'start=1, start=2'"),
        ('{"start": 1, "start": 2}', "start: expected once"),
    ],
)
def test_a_layout_that_does_not_fit_is_a_usage_error(run, tmp_path, text, said):
    film = ["--film", "kernel_hidden_dim=5", "--film", "num_film_layers=2"]
    code, _, err = run("export", *COMPRESS, "--layout", text, *film, "--no-programs", "-o", tmp_path / "b")
    assert code == 2
    assert said in err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["normalize=False"], "normalize: expected false, got False; as a text: 'normalize=\"False\"'"),
        (["normalize=True"], "expected true, got True"),
        (["eps=None"], "expected null, got None"),
    ],
)
def test_pythons_words_on_the_command_line_are_answered_with_those_of_json(run, given, said):
    code, _, err = run("cond-dim", "mean", "--num-registers", 4, "--hidden-dim", 8, "-O", *given)
    assert code == 2
    assert said in err


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("10.", 10.0),
        (".5", 0.5),
        ("-.5", -0.5),
        ("+3", 3),
        ("1e3", 1000.0),
        ("1.e-2", 0.01),
        ("007", "007"),
        (".", "."),
        ("1_000", "1_000"),
        ("nan", "nan"),
        ("Infinity", "Infinity"),
        ("[1, 2]", [1, 2]),
        ("text", "text"),
        ('"False"', "False"),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_a_number_is_parsed_in_any_notation(text, value):
    found = read_value(text)
    assert type(found) is type(value)
    assert found == value


def test_a_generator_is_exported_by_its_registered_name(run, tmp_path):
    chosen = ["--film-generator", "kernel-film", "--layout", "start=1"]
    film = ["--film", "kernel_hidden_dim=5", "--film", "num_film_layers=2"]
    code, _, err = run("export", *COMPRESS, *chosen, *film, "-o", tmp_path / "b", "--no-programs", "--json")
    assert code == 0, err
    assert regplug.load(tmp_path / "b").film.kernel_hidden_dim == 5
    code, _, err = run("export", *COMPRESS, *chosen, "-o", tmp_path / "c", "--no-programs")
    assert code == 2  # without the options that its constructor demands
    assert "expected option kernel_hidden_dim: int, num_film_layers: int" in err


def test_verify_prints_a_table_and_fails_with_exit_code_one(run, bundle):
    code, out, _ = run("verify", bundle)
    assert code == 0
    assert out.splitlines()[0].split() == ["largest", "error", "tolerance", "eager"]
    assert [line.split()[0] for line in out.splitlines()[1:6]] == [
        "batch_0",
        "batch_1",
        "batch_2",
        "batch_7",
        "batch_64",
    ]
    code, out, _ = run("verify", bundle, "--json")
    assert json.loads(out)["ok"] is True
    weights = bundle / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    code, out, err = run("verify", bundle)
    assert (code, out) == (1, "")
    assert err.startswith(f"error: bundle {bundle}: weights.safetensors: expected ")


def test_info_of_a_strategy_gives_options_width_parameters_and_flops(run):
    code, out, _ = run("info", *COMPRESS, "--json")
    assert code == 0
    values = json.loads(out)
    described = {"type": "int", "required": True, "default": None, "choices": None}
    assert values["options"] == [{"option": "compressed_dim", **described}]
    assert (values["cond_dim"], values["parameters"], values["flops_per_sample"]) == (24, 144, 4 * 2 * 24 * 6)
    assert (values["formula"], values["conditions"]) == ("6*R", [])
    assert values["signature"] == "RegisterCompressConcat(num_registers: int, hidden_dim: int, compressed_dim: int)"
    assert values["equation"] == "c = [W x_1 || ... || W x_R]"
    assert values["source"] == "nvSubquadratic, modules/film.py; the idea is Mamba-Reg's (Wang et al., 2024)"
    assert values["provenance"] == {"distribution": "regplug", "version": regplug.__version__}
    assert values["class"] == "regplug.nn.readouts.concatenations:RegisterCompressConcat"
    assert values["description"].startswith("Compress each register")


def test_info_without_sizes_gives_the_formula_where_the_options_are_known(run):
    code, out, _ = run("info", "mamba-reg", "-O", "ratio=4")
    assert code == 0
    assert out.startswith("strategy: regplug:mamba-reg\n")
    assert {"formula: R*D/4", "conditions: 4 divides D"} <= set(out.splitlines())
    assert "formula: D\nconditions: none\n" in run("info", "pool")[1]
    code, out, _ = run("info", "compress-concat", "--json")
    assert code == 0
    assert not {"formula", "cond_dim"} & set(json.loads(out))
    code, out, err = run("info", "compress-concat", "-O", "compressed_dim=0")
    assert (code, out) == (2, "")
    assert "compressed_dim: expected a positive integer, got 0" in err


def test_info_asks_for_both_sizes_or_none(run):
    code, _, err = run("info", "pool", "--num-registers", 4)
    assert code == 2
    assert "sizes: expected --num-registers R and --hidden-dim D" in err


def test_info_of_a_bundle_and_of_its_weights_file_alone(run, bundle):
    code, out, _ = run("info", bundle, "--json")
    values = json.loads(out)
    assert code == 0
    assert values["strategy"] == "regplug:compress-concat"
    assert len(values["digest"]) == 64
    code, out, _ = run("info", bundle / "weights.safetensors")
    assert code == 0
    assert "strategy: regplug:compress-concat" in out
    assert out.splitlines()[-1].split() == ["compress.weight", "F32", "[6,", "24]", "576"]


def test_the_directories_for_cpp_are_where_the_package_is(run):
    root = regplug.__file__.rpartition("/")[0]
    assert run("cmake-dir")[1] == f"{root}\n"
    assert run("include-dir")[1] == f"{root}/include\n"


def test_an_interrupt_ends_with_exit_code_130(run, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("regplug.registry.registry.Registry.plugins", interrupted)
    code, _, err = run("list")
    assert code == 130
    assert err.strip() == "interrupted"


def test_the_version_is_the_headers(run):
    assert run("--version")[1].strip().endswith(regplug.__version__)


def test_a_fifo_in_place_of_a_weights_file_is_refused_without_waiting_for_its_writer(run, tmp_path):
    os.mkfifo(tmp_path / "w.safetensors")
    for command in (
        ["export", *COMPRESS, "--weights", tmp_path / "w.safetensors", "-o", tmp_path / "b"],
        ["info", tmp_path / "w.safetensors"],
    ):
        code, _, err = run(*command)
        assert code == 1
        assert err == f"error: weights {tmp_path / 'w.safetensors'}: not a regular file.\n"


def test_weights_of_a_conditioner_with_another_layout_or_film_generator_are_refused(run, tmp_path):
    film = ["--film", "kernel_hidden_dim=5", "--film", "num_film_layers=2"]
    assert run("export", *COMPRESS, *film, "--layout", "start=1", "-o", tmp_path / "b")[0] == 0
    weights = ["--weights", tmp_path / "b" / "weights.safetensors", "-o", tmp_path / "c"]
    code, _, err = run("export", *COMPRESS, *film, "--layout", "start=2", *weights)
    assert code == 1
    assert "layout: expected {" in err
    code, _, err = run("export", *COMPRESS, *weights)
    assert code == 1
    assert "holds: expected 'readout', got 'conditioner', as the file says of itself" in err
    assert run("export", *COMPRESS, *film, "--layout", "start=1", *weights)[0] == 0


def test_an_error_that_is_no_number_is_null_in_json(run, bundle):
    replace_weights(bundle, lambda state: {name: tensor * float("nan") for name, tensor in state.items()})
    code, out, _ = run("verify", bundle, "--json")
    checks = json.loads(out, parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))["checks"]
    assert code == 1
    assert {check["error"] for check in checks if check["verdict"] == "failed"} == {None}


def test_a_full_disk_behind_stdout_is_one_message(tmp_path):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "regplug", "list"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode != 0
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.compiler
def test_verify_shows_program_against_case_and_marks_what_failed(run, tmp_path):
    both = ["--backend", "torchscript", "--backend", "aotinductor", "-o", tmp_path / "b"]
    assert run("export", *COMPRESS, *both)[0] == 0
    code, out, _ = run("verify", tmp_path / "b", "--programs")
    assert code == 0
    needs = "program 'aotinductor x86-64-v3': runs without libtorch"
    assert out.splitlines()[-2] == needs
    assert needs not in run("verify", tmp_path / "b")[1].splitlines()
    head, *rows = (re.split(r" {2,}", line) for line in out.splitlines())
    assert head[2:] == ["eager", "torch.compile", "torchscript", "aotinductor x86-64-v3"]
    assert [row[-1] for row in rows if row[0].startswith("wrong")] == ["refused"] * 5
    assert [row[0] for row in rows if len(row) == 6] == [
        *("batch_0", "batch_1", "batch_2", "batch_7", "batch_64", "slice")
    ]
    replace_weights(tmp_path / "b", lambda state: {name: 1.5 * tensor for name, tensor in state.items()})
    code, out, _ = run("verify", tmp_path / "b")
    assert code == 1
    [row] = [line.split() for line in out.splitlines() if line.startswith("batch_2 ")]
    assert row[3] == "failed"


@pytest.mark.torture
@pytest.mark.compiler
def test_an_instruction_set_is_chosen_by_name_and_is_in_the_files_name(run, tmp_path):
    compiled = ["--backend", "aotinductor", "--isa", "x86-64-v2", "--time-limit", "500"]
    assert run("export", *MEAN, *compiled, "-o", tmp_path / "b")[0] == 0
    assert "program.aotinductor.x86-64-v2.so" in {path.name for path in (tmp_path / "b").iterdir()}
    code, _, err = run("export", *MEAN, "--isa", "native", "-o", tmp_path / "c")
    assert code == 2
    assert "--isa, --time-limit, --compiler: expected --backend aotinductor, got another." in err


def test_cache_lists_and_prunes(run, tmp_path, monkeypatch):
    monkeypatch.setenv("REGPLUG_CACHE_DIR", str(tmp_path / "cache"))
    assert run("cache")[:2] == (0, f"0 entries, 0 kB in {tmp_path / 'cache'}\n")
    said = {"backend": "aotinductor", "holds": "readout", "strategy": "regplug:mean", "num_registers": 4}
    said |= {"hidden_dim": 24, "settings": {"isa": "x86-64-v3"}, "torch": "2.13.0"}
    cache.keep("a" * 64, said, {"program.x": bytes(5000)})
    code, out, _ = run("cache")
    assert code == 0
    assert out.splitlines()[1].split()[:7] == [
        "aotinductor",
        "readout",
        "regplug:mean",
        "4",
        "24",
        "isa=x86-64-v3",
        "2.13.0",
    ]
    listed = json.loads(run("cache", "--json")[1])
    assert listed["schema"] == "regplug.cache/1"
    assert listed["entries"][0]["is"]["strategy"] == "regplug:mean"
    assert run("cache", "prune")[1] == "deleted 0 entries, 0 kB\n"
    (tmp_path / "cache" / listed["entries"][0]["file"]).write_bytes(b"damaged")
    assert run("cache")[1].splitlines()[1].split()[0] == "damaged"
    assert json.loads(run("cache", "prune", "--json")[1])["bytes"] == 7
    cache.keep("a" * 64, said, {"program.x": bytes(5000)})
    assert run("cache", "prune", "--days", "0")[1].startswith("deleted 1 entries, ")
    assert run("cache", "prune", "--days", "-1")[0] == 2


def test_a_command_that_runs_out_of_memory_says_so_in_one_line(run_with_torch):
    code = """
import sys, regplug.bundle.verify
from regplug.commands.main import answer
sys.argv = ["regplug", "verify", "b"]
for error in (MemoryError, RuntimeError("std::bad_alloc")):
    def verify(*args, **kwargs):
        raise error
    regplug.bundle.verify.verify = verify
    print(answer())
"""
    done = run_with_torch(code)
    assert done.stdout.split() == ["1", "1"]
    line = "error: memory: expected more of it, got none; see `ulimit -v`, or use a larger machine.\n"
    assert done.stderr == 2 * line


def test_a_wrong_word_is_truncated_and_escaped(run_python):
    code = r"""
import sys
from regplug.commands.main import answer
for word in ("9" * 50_000, "b\x1b[31mred\x1b]0;title\x07"):
    for place in ([word], ["verify", "a", word], ["verify", "--backend" + word, "a"]):
        sys.argv = ["regplug", *place]
        print(answer())
        print("----", file=sys.stderr)
"""
    done = run_python(code)
    assert done.stdout.split() == ["2"] * 6
    messages = done.stderr.split("----\n")[:-1]
    assert len(messages) == 6
    for said in messages:
        assert len(said) < 700
        assert "\x1b" not in said
        assert said.splitlines()[-1].startswith("Error: ")


def test_without_a_command_it_prints_its_help(run_python):
    done = run_python("import sys; sys.argv = ['regplug']; from regplug.commands.main import main; main()")
    assert done.returncode in (0, 2)  # by click's version
    assert (done.stdout + done.stderr).splitlines()[0] == "Usage: regplug [OPTIONS] COMMAND [ARGS]..."
