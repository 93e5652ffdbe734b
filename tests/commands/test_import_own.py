"""Readouts in regplug's own modules are found in any checkpoint; a missing weight is refused by its name."""

import functools
import json
import os
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from support.strategies import EVERY, D, R, trained
from torch import nn
from torch.optim.swa_utils import AveragedModel

import regplug
from regplug.commands.import_checkpoint.option_inference import Constructor, infer_options
from regplug.nn.backbone import build_backbone
from regplug.registry.stored_values import plain

MODEL = "timm:vit_small_patch14_reg4_dinov2"
SIZES = ["--num-registers", 4, "--hidden-dim", 384]
FILM = {"kernel_hidden_dim": 3, "num_film_layers": 2}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@functools.cache
def attached(seed=0, film=False, strategy="compress-concat", **options):
    """A trained backbone with a readout; the tests read it and never change it."""
    torch.manual_seed(seed)
    vit = timm.create_model("vit_small_patch14_reg4_dinov2", img_size=28, depth=1, num_classes=0)
    whole = regplug.attach(
        vit, strategy, **(options or {"compressed_dim": 8}), film_options=FILM if film else None
    ).eval()
    with torch.no_grad():
        for name, parameter in whole.named_parameters():
            if not name.startswith("tokens."):
                parameter += torch.randn_like(parameter)
    return whole


class Policy(nn.Module):
    def __init__(self, film=False):
        super().__init__()
        self.obs_encoder = attached(film=film)
        self.head = nn.Linear(32, 2)


# ---- any wrapper, any prefix, any way to save


WAYS = {
    "as it is": (lambda whole: whole.state_dict(), ""),
    "DistributedDataParallel": (lambda whole: {f"module.{k}": v for k, v in whole.state_dict().items()}, "module"),
    "compiled": (lambda whole: {f"_orig_mod.{k}": v for k, v in whole.state_dict().items()}, ""),
    "compiled in DistributedDataParallel": (
        lambda whole: {f"module._orig_mod.{k}": v for k, v in whole.state_dict().items()},
        "module",
    ),
    "a part compiled": (
        lambda whole: {k.replace("blocks.0.", "blocks.0._orig_mod."): v for k, v in whole.state_dict().items()},
        "",
    ),
    "Lightning": (lambda whole: {f"network.{k}": v for k, v in whole.state_dict().items()}, "network"),
    "a policy's own": (
        lambda whole: {f"policy.obs_encoder.{k}": v for k, v in whole.state_dict().items()},
        "policy.obs_encoder",
    ),
    "AveragedModel": (lambda whole: AveragedModel(whole).state_dict(), "module"),
}
FILES = {
    "safetensors": lambda state: save_file({k: v.clone().contiguous() for k, v in state.items()}, "net"),
    "torch": lambda state: torch.save(state, "net"),
    "a training program": lambda state: torch.save({"epoch": 1, "state_dict": state, "optimizer": {}}, "net"),
}


WAYS_AND_FILES = sorted({*((way, "torch") for way in WAYS), *(("Lightning", file) for file in FILES)})


@pytest.mark.parametrize(("way", "file"), WAYS_AND_FILES)
def test_what_attach_trained_is_found_however_it_was_wrapped_and_saved(run, way, file):
    whole = attached()
    make, where = WAYS[way]
    FILES[file](make(whole))
    code, out, err = run("import", "net", "--backbone", MODEL, "-o", "w", "--json")
    assert (code, err) == (0, "")
    [readout] = json.loads(out)["readouts"]
    assert (readout["block"], readout["strategy"]) == (where, "regplug:compress-concat")
    assert readout["options"] == {"compressed_dim": 8}
    assert torch.equal(load_file("w")["compress.weight"], whole.readout.compress.weight)


def test_a_conditioner_behind_any_prefix_becomes_a_bundle_that_gives_its_numbers(run):
    policy = Policy(film=True)
    torch.save({"state_dict": {f"policy.{k}": v for k, v in policy.state_dict().items()}}, "last.ckpt")
    command = ["import", "last.ckpt", "--backbone", MODEL, "-o", "w"]
    code, _, err = run(*command)
    assert code == 2  # L pairs of width k: the shapes tell their product
    assert (
        "obs_encoder: FiLM generator 'kernel-film': --film: expected option kernel_hidden_dim or num_film_layers" in err
    )
    assert run(*command, "--film", "num_film_layers=2")[0] == 0
    assert run("export", "--weights", "w", "--no-programs", "-o", "b")[0] == 0
    tokens = torch.randn(3, 9, 384)
    with torch.no_grad():
        pairs, wanted = regplug.load("b")(tokens), policy.obs_encoder.conditioner(tokens)
    assert all(
        torch.equal(a, b) for pair, other in zip(pairs, wanted, strict=True) for a, b in zip(pair, other, strict=True)
    )
    assert run(*command, "--readout-only", "--force")[0] == 0
    assert [*load_file("w")] == ["compress.weight"]


def test_a_conditioner_without_a_backbone_needs_its_sizes_and_its_layout(run):
    spec = regplug.resolve("pool", num_registers=3, hidden_dim=6)
    film = regplug.pair(spec, "kernel-film", **FILM)
    conditioner = regplug.Conditioner(regplug.TokenLayout(3, 6, start=2), spec.build(), film)
    save_file({f"net.cond.{k}": v for k, v in conditioner.state_dict().items()}, "net")
    command = ["import", "net", "-o", "w", "--film", "num_film_layers=2"]
    code, _, err = run(*command)
    assert (code, "expected --backbone NAME[:MODEL], or --num-registers and --hidden-dim, got neither" in err) == (
        2,
        True,
    )
    command += ["--num-registers", 3, "--hidden-dim", 6, "--strategy", "pool"]
    code, _, err = run(*command)
    assert (code, "layout: expected --layout start=N" in err) == (2, True)
    assert run(*command, "--layout", "start=2")[0] == 0
    assert len(load_file("w")) == 5
    code, _, err = run(*command, "--layout", "start=2", "--force", "--film", "kernel_hidden_dim=4")
    assert code == 1
    assert "net.cond: expected the weights of FiLM generator" in err


@pytest.mark.parametrize("strategy", [name for name in EVERY if trained(name).state_dict()])
def test_a_bare_readout_of_every_strategy_is_found_behind_any_prefix(run, strategy):
    readout = trained(strategy)
    save_file({f"a.b.{k}": v for k, v in readout.state_dict().items()} | {"other.weight": torch.ones(2)}, "net")
    options = [f"-O{word}={json.dumps(plain(value))}" for word, value in EVERY[strategy][0].items()]
    command = ["import", "net", "--num-registers", R, "--hidden-dim", D, "--strategy", strategy, "-o", "w"]
    assert run(*command, *options)[0] == 0
    found = load_file("w")
    assert {k: v.tolist() for k, v in found.items()} == {k: v.tolist() for k, v in readout.state_dict().items()}


def test_options_that_no_shape_tells_are_said_and_may_be_given(run):
    readout = regplug.create("attention", num_registers=4, hidden_dim=24, num_queries=2, num_heads=3)
    save_file({f"pooler.{k}": v for k, v in readout.state_dict().items()}, "net")
    command = [
        "import",
        "net",
        "--num-registers",
        4,
        "--hidden-dim",
        24,
        "--strategy",
        "attention",
        "-o",
        "w",
        "--force",
    ]
    code, out, _ = run(*command)
    assert code == 0
    assert (
        "block pooler: not shown by names and shapes, so at the default; change it with -O or --film: num_heads=8, "
        in out
    )
    code, out, _ = run(*command, "-O", "num_heads=3", "-O", "gelu=exact", "--json")
    [said] = json.loads(out)["readouts"]
    assert (said["options"], said["assumed"]) == ({"num_heads": 3, "gelu": "exact", "num_queries": 2}, {})


# ---- several, and which


def test_several_readouts_are_listed_and_one_is_chosen_or_all(run):
    state = {
        f"{name}.{k}": v for seed, name in enumerate(["left", "right"]) for k, v in attached(seed).state_dict().items()
    }
    save_file({k: v.contiguous() for k, v in state.items()}, "net")
    command = ["import", "net", "--backbone", MODEL, "-o", "w.safetensors"]
    code, _, err = run(*command)
    assert (code, "known: left, right" in err) == (2, True)
    assert run(*command, "--block", "right")[0] == 0
    assert torch.equal(load_file("w.safetensors")["compress.weight"], state["right.readout.compress.weight"])
    assert run(*command, "--all")[0] == 0
    assert torch.equal(load_file("w.block-left.safetensors")["compress.weight"], state["left.readout.compress.weight"])


def test_an_averaged_copy_is_chosen_by_key_by_prefix_or_by_name(run):
    plain, averaged = attached(0).state_dict(), attached(1).state_dict()
    key = "readout.compress.weight"
    torch.save({"model": plain, "ema": averaged, "state_dicts": {"ema_model": averaged}}, "keys")
    torch.save(
        {**plain, **{f"ema_model.module.{k}": v for k, v in averaged.items()}, "ema_model.n_averaged": torch.tensor(3)},
        "names",
    )
    command = ["--backbone", MODEL, "-o", "w", "--force"]

    def got():
        return load_file("w")["compress.weight"]

    code, out, _ = run("import", "keys", *command)
    assert (code, "not read: ema" in out, torch.equal(got(), plain[key])) == (0, True, True)
    for choice in ("ema", "state_dicts.ema_model"):
        assert run("import", "keys", *command, "--state-key", choice)[0] == 0
        assert torch.equal(got(), averaged[key])
    code, _, err = run("import", "keys", *command, "--state-key", "emma")
    assert (code, "expected a key with tensors, got 'emma'; known: ema, model, state_dicts.ema_model" in err) == (
        2,
        True,
    )
    assert run("import", "names", *command)[0] == 2
    assert run("import", "names", *command, "--block", "ema_model.module")[0] == 0
    assert torch.equal(got(), averaged[key])
    assert run("import", "names", *command, "--prefix", "ema_model.")[0] == 0
    assert torch.equal(got(), averaged[key])
    code, _, err = run("import", "names", *command, "--prefix", "emma")
    assert (code, "--prefix: expected what names begin with (tokens., readout., ema_model., " in err) == (2, True)


def test_weights_under_keys_that_nobody_knows_are_named(run):
    torch.save({"state_dicts": {"ema_model": attached().state_dict()}}, "net")
    code, _, err = run("import", "net", "--backbone", MODEL, "-o", "w")
    assert (code, "use --state-key state_dicts.ema_model" in err) == (1, True)


# ---- never filled at random


def changed(**tensors):
    state = {f"policy.{k}": v for k, v in attached(film=True).state_dict().items()}
    for name, tensor in tensors.items():
        key = f"policy.conditioner.{name.replace('__', '.')}"
        state.pop(key, None)
        if tensor is not None:
            state[key] = tensor
    return state


WRONG = {
    "lacks a weight of the generator": ({"film__mlp__2__bias": None}, "got no mlp.2.bias."),
    "lacks the readout's weight": ({"readout__compress__weight": None}, "policy:"),
    "one more": (
        {"readout__compress__bias": torch.ones(8)},
        "of strategy 'compress-concat' at num_registers=4, hidden_dim=384, got extra compress.bias.",
    ),
    "of another width": ({"readout__compress__weight": torch.ones(8, 385)}, "got compress.weight [8, 385]."),
    "misshaped in the generator": (
        {"film__mlp__0__bias": torch.ones(63)},
        "FiLM generator 'kernel-film' for cond_dim 32, got mlp.0.bias [63], ",
    ),
    "not finite": (
        {"readout__compress__weight": torch.full((8, 384), torch.nan)},
        "'policy.conditioner.readout.compress.weight': expected finite",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_checkpoint_that_lacks_a_weight_or_has_another_is_refused_by_its_name(run, here, kind):
    tensors, words = WRONG[kind]
    torch.save(changed(**tensors), "net")
    code, out, err = run(
        "import", "net", "--backbone", MODEL, "--strategy", "compress-concat", "--film", "num_film_layers=2", "-o", "w"
    )
    assert (code, out) == (1, "")
    assert err.startswith("error: checkpoint net: ")
    assert words in err
    assert len(err) <= 410
    assert [path.name for path in here.iterdir()] == ["net"]


def test_a_generator_that_is_asked_for_and_is_not_there_is_not_left_out_silently(run, here):
    torch.save({k: v for k, v in changed().items() if ".film." not in k}, "net")
    words = ["import", "net", "--backbone", MODEL, "--strategy", "compress-concat", "-o", "w"]
    for asked in (["--film", "num_film_layers=2"], ["--film-generator", "kernel-film"]):
        code, _, err = run(*words, *asked)
        assert code == 1
        assert "expected the weights of a FiLM generator, as --film or --film-generator is given" in err
    assert run(*words)[0] == 0


def test_the_right_checkpoint_of_these_tests_is_imported(run):
    torch.save(changed(), "net")
    assert run("import", "net", "--backbone", MODEL, "--film", "num_film_layers=2", "-o", "w")[0] == 0


def test_weights_of_several_strategies_want_its_name(run):
    save_file({"a.logits": torch.ones(4)}, "net")
    code, _, err = run("import", "net", *SIZES, "-o", "w")
    assert code == 2
    assert "a: expected --strategy NAME, as these weights may be those of regplug:pool, " in err
    assert run("import", "net", *SIZES, "--strategy", "pool", "-o", "w")[0] == 0
    code, _, err = run("import", "net", *SIZES, "--backbone", "timm:vit_base_patch16_reg4_gap_256", "-o", "v")
    assert (code, "hidden_dim: expected 768, as timm:vit_base_patch16_reg4_gap_256 has, got 384" in err) == (2, True)


def test_a_file_with_nothing_of_regplug_says_what_is_in_it(run):
    save_file({"a.kernel": torch.ones(2)}, "net")
    code, _, err = run("import", "net", *SIZES, "-o", "w")
    assert (code, "expected weights of a readout, got 1 tensors and none of them: a.kernel." in err) == (1, True)
    code, _, err = run("import", "net", "--backbone", "timm", "-o", "w")
    assert (code, "use --backbone NAME:MODEL, or --num-registers and --hidden-dim" in err) == (1, True)


def test_a_backbones_own_network_is_found_behind_any_prefix(run):
    readout = regplug.create("mamba-reg", num_registers=3, hidden_dim=8, ratio=4)
    state = {**readout.state_dict(), "cls_token": torch.zeros(1, 3, 8)}
    save_file({f"policy.vision.{k}": v for k, v in state.items()}, "net")
    code, out, _ = run("import", "net", "--backbone", "mamba-reg", "-o", "w")
    assert (code, "prefix taken off: policy.vision." in out) == (0, True)


def bare(**tensors):
    state = {f"policy.pooler.{k}": v for k, v in trained("regplug:gated-abmil").state_dict().items()}
    for name, tensor in tensors.items():
        state.pop(key := f"policy.pooler.{name.replace('__', '.')}", None)
        if tensor is not None:
            state[key] = tensor
    return {**state, "policy.action.weight": torch.ones(2)}


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"gate__bias": None}, "with no gate.bias."),
        ({"gate__bias": torch.ones(6)}, "with gate.bias [6], "),
        ({"gate__scale": torch.ones(5)}, "with extra gate.scale."),
    ],
)
def test_a_bare_readout_that_lacks_a_weight_or_has_another_is_named_where_it_is_nearest(run, here, tensors, words):
    save_file(bare(**tensors), "net")
    code, _, err = run("import", "net", "--num-registers", R, "--hidden-dim", D, "--strategy", "gated-abmil", "-o", "w")
    assert code == 1
    assert f"nearest: policy.pooler: of 'gated-abmil' at num_registers={R}, hidden_dim={D}, {words}" in err
    assert [path.name for path in here.iterdir()] == ["net"]
    save_file(bare(), "net")
    assert run("import", "net", "--num-registers", R, "--hidden-dim", D, "--strategy", "gated-abmil", "-o", "w")[0] == 0


def test_an_option_that_the_strategy_has_not_is_a_usage_error(run):
    save_file(bare(), "net")
    command = ["import", "net", "--num-registers", R, "--hidden-dim", D, "--strategy", "gated-abmil", "-o", "w"]
    code, _, err = run(*command, "-O", "attention_dims=5")
    assert (code, "option 'attention_dims': expected a known option, got 5; known: attention_dim" in err) == (2, True)


def test_readouts_in_the_blocks_of_a_network_are_found_with_their_backbones_layout(run):
    network = regplug.default_registry().backbone_entry("digits-vit")
    state = {f"module.net.{k}": v for k, v in build_backbone(network).state_dict().items()}
    save_file(state, "net")
    command = [
        "import",
        "net",
        "--backbone",
        "digits-vit",
        "--film",
        "num_film_layers=2",
        "--all",
        "-o",
        "w.safetensors",
    ]
    assert run(*command)[0] == 0
    for block in (0, 1):
        found = load_file(f"w.block-module.net.blocks.{block}.safetensors")
        assert torch.equal(
            found["readout.compress.weight"], state[f"module.net.blocks.{block}.readout.compress.weight"]
        )
        assert torch.equal(found["film.mlp.2.bias"], state[f"module.net.blocks.{block}.film.mlp.2.bias"])


# ---- sharded safetensors


def shards(state, names=("a-1.safetensors", "a-2.safetensors"), **more):
    halves = [dict(list(state.items())[::2]), dict(list(state.items())[1::2])]
    for name, half in zip(names, halves, strict=True):
        save_file({k: v.contiguous() for k, v in half.items()}, name)
    index = {
        "metadata": {"total_size": 1},
        "weight_map": {k: name for name, half in zip(names, halves, strict=True) for k in half},
    }
    Path("net.safetensors.index.json").write_text(json.dumps({**index, **more}))
    return index


def test_sharded_safetensors_are_read_by_their_index(run, here):
    whole = attached()
    shards(whole.state_dict())
    code, out, _ = run("import", "net.safetensors.index.json", "--backbone", MODEL, "-o", "w")
    assert (code, "safetensors in 2 files" in out) == (0, True)
    left = sum(t.nbytes for k, t in whole.state_dict().items() if k.startswith("tokens."))
    assert f"tensors, {left} bytes" in out  # without the files' headers
    assert torch.equal(load_file("w")["compress.weight"], whole.readout.compress.weight)
    (here / "elsewhere").mkdir()
    os.chdir("elsewhere")  # shards are next to the index
    assert run("import", "../net.safetensors.index.json", "--backbone", MODEL, "-o", "w")[0] == 0


def point(at):
    def change(index):
        index["weight_map"]["readout.compress.weight"] = at

    return change


BAD_INDEX = {
    "a path upwards": (
        point("../a-1.safetensors"),
        "a file '../a-1.safetensors', where a name that ends in .safetensors",
    ),
    "an absolute path": (point("/etc/a.safetensors"), "where a name that ends in"),
    "no safetensors": (point("a.bin"), "where a name that ends in"),
    "a hidden file": (point(".a.safetensors"), "where a name that ends in"),
    "no text": (point(3), "a file 3, where"),
    "a file that is not there": (lambda index: Path("a-1.safetensors").unlink(), "a-1.safetensors: missing."),
    "the other file": (point("a-1.safetensors"), "expected the tensors that the index names, got others: it "),
    "no map": (lambda index: index.pop("weight_map"), "no weight_map"),
    "an empty map": (lambda index: index["weight_map"].clear(), "no weight_map"),
    "an extra tensor": (
        lambda index: index["weight_map"].pop("tokens.model.pos_embed"),
        "it also has 'tokens.model.pos_embed'",
    ),
    "too many files": (
        lambda index: index["weight_map"].update({f"x{i}": f"x{i}.safetensors" for i in range(300)}),
        "302 files, of at most 256",
    ),
}


@pytest.mark.parametrize("kind", BAD_INDEX)
def test_an_index_that_leads_elsewhere_or_does_not_fit_is_refused(run, kind):
    change, words = BAD_INDEX[kind]
    index = shards(attached().state_dict())
    change(index)
    Path("net").write_text(json.dumps(index))
    code, _, err = run("import", "net", "--backbone", MODEL, "-o", "w")
    assert code == 1
    assert err.startswith("error: checkpoint net: ")
    assert words in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "text", ['{"weight_map": {"a": "b.safetensors", "a": "c.safetensors"}}', "{", '{"a":' * 100_000]
)
def test_an_index_that_is_no_json_is_refused(run, text):
    Path("net").write_text(text)
    code, _, err = run("import", "net", *SIZES, "-o", "w")
    assert (code, "the index of sharded safetensors, got a damaged one (no JSON in UTF-8)" in err) == (1, True)


# ---- what shapes tell


class Two(nn.Module):
    """Two numbers that only their product tells."""

    def __init__(self, a: int, b: int = 1):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(a * b))


def shapes_of(module):
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def test_numbers_that_shapes_tell_only_together_are_asked_for():
    constructor = Constructor("two", Two, {})
    with pytest.raises(regplug.SpecError, match="expected option a or b, as the shapes determine them only together"):
        infer_options(constructor, {}, shapes_of(Two(4, 3)))
    assert infer_options(constructor, {"b": 3}, shapes_of(Two(4, 3))).options == {"b": 3, "a": 4}
    assert infer_options(constructor, {"b": 5}, shapes_of(Two(4, 3))) is None


@pytest.mark.parametrize("strategy", EVERY)
def test_what_is_inferred_has_the_shapes_that_were_given_or_nothing_is(strategy):
    entry = regplug.default_registry().readout_entry(strategy)
    readout = trained(strategy)
    constructor = Constructor(strategy, type(readout), {"num_registers": R, "hidden_dim": D}, entry.sizes)
    found = infer_options(constructor, {}, shapes_of(readout))
    # a list; parts; sizes that must divide D
    if strategy in ("regplug:select-concat", "regplug:join", "regplug-zoo:efficient-probing"):
        assert found is None
        return
    if not shapes_of(readout):  # nothing says what its options were
        assert not found.options
        return
    options = {k: v for k, v in EVERY[strategy][0].items() if k not in found.assumed}
    assert {**options, **found.options} == found.options or options.items() <= {**found.options}.items()
    assert constructor.shapes(found.options) == shapes_of(readout)


def test_what_was_imported_goes_on_with_a_backbone_but_is_not_a_whole(run):
    save_file({f"policy.{k}": v.contiguous() for k, v in attached().state_dict().items()}, "net")
    code, out, err = run("import", "net", "--backbone", MODEL, "--prefix", "policy.", "-o", "w")
    assert code == 0, err
    assert "prefix taken off: policy." in out
    assert "the parts that torch.compile adds" not in out
    model = ["--backbone", MODEL, "-M", "img_size=28", "-M", "depth=1"]
    code, _, err = run("export", "--weights", "w", *model, "--no-programs", "-o", "b")
    assert code == 0, err  # the file says which strategy it is of; the backbone's default is not asked
    assert regplug.load("b").compressed_dim == 8
    code, _, err = run("export", "--weights", "w", "--with-backbone", *model, "--no-programs", "-o", "c")
    assert code == 1
    assert "expected the backbone's weights too, got a readout alone" in err
