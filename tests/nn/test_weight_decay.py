"""Groups for optimizers that need no tags, and training in several processes."""

from __future__ import annotations

import copy
import io
import math
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nvsubquadratic.modules import film as upstream
from support import strategies
from support.readouts import moved
from support.strategies import EVERY, D, R
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import regplug
from regplug import KernelFiLMGenerator, SpecError, param_groups
from regplug.nn.readouts.averages import RegisterPooling
from regplug.nn.readouts.concatenations import RegisterCompressConcat

GIVEN = 0.05
CHOICES = [False, True, 0, 1, 0.0, 1e-3]


def named(module: nn.Module) -> dict[str, Tensor]:
    """The parameters, without the prefixes of wrappers."""
    found = {}
    for name, parameter in module.named_parameters():
        for prefix in ("module.", "_orig_mod."):
            name = name.removeprefix(prefix)
        found[name] = parameter
    return found


def decays(module: nn.Module, given: float = GIVEN) -> dict[str, float]:
    """The decay of each parameter by the groups; each is in one group, once."""
    of = {}
    for group in param_groups(module, weight_decay=given):
        assert list(group) == ["params", "weight_decay"]
        for parameter in group["params"]:
            assert id(parameter) not in of
            of[id(parameter)] = group["weight_decay"]
    trainable = {name: parameter for name, parameter in named(module).items() if parameter.requires_grad}
    assert len(of) == len(trainable)
    return {name: of[id(parameter)] for name, parameter in trainable.items()}


def meant_by_tags(module: nn.Module) -> dict[str, float]:
    """The decay of each parameter by nvSubquadratic's tags."""
    return {
        name: 0.0 if getattr(parameter, "_no_weight_decay", False) else getattr(parameter, "_weight_decay", GIVEN)
        for name, parameter in named(module).items()
    }


def film(no_weight_decay: bool | float = 1e-3) -> KernelFiLMGenerator:
    torch.manual_seed(3)
    made = KernelFiLMGenerator(
        4 * 6, 4, 2, film_hidden_dim=5, no_weight_decay=no_weight_decay, init_type="small_random"
    )
    return moved(made, 0.2)


def conditioner(no_weight_decay: bool | float = 1e-3) -> regplug.Conditioner:
    layout = regplug.TokenLayout(num_registers=R, hidden_dim=D, start=1)
    return regplug.Conditioner(layout, strategies.trained("regplug:compress-concat"), film(no_weight_decay))


# ---- the rule


@pytest.mark.parametrize("no_weight_decay", CHOICES, ids=repr)
@pytest.mark.parametrize("cls", [KernelFiLMGenerator, upstream.KernelFiLMGenerator], ids=["ours", "upstream"])
def test_the_groups_of_a_generator_are_what_its_tags_mean(cls: Any, no_weight_decay: bool | float) -> None:
    made = cls(6, 4, 2, no_weight_decay=no_weight_decay)
    found = decays(made)
    assert found == meant_by_tags(made)
    assert found["mlp.0.bias"] == found["mlp.2.bias"] == 0.0
    wrong = found | {"mlp.0.weight": 0.3}
    assert wrong != meant_by_tags(made)


@pytest.mark.parametrize(
    "made",
    [RegisterPooling(R, D), RegisterCompressConcat(R, D, 6), upstream.RegisterPooling(R)],
    ids=["pool", "compress-concat", "pool of upstream"],
)
def test_the_groups_of_a_readout_are_what_its_tags_mean(made: nn.Module) -> None:
    assert decays(made) == meant_by_tags(made) != {}
    assert decays(copy.deepcopy(made)) == decays(made)


@pytest.mark.parametrize("strategy", EVERY)
def test_of_every_readout_vectors_are_free_and_weights_decay(strategy: str) -> None:
    readout = strategies.spec_of(strategy).build()
    free = {name for name, parameter in readout.named_parameters() if parameter.dim() <= 1}
    if strategy == "regplug-zoo:channel-pool":
        free = {"logits"}  # a matrix, and declared free
    meant = meant_by_tags(readout)
    assert decays(readout) == {name: 0.0 if name in free else meant[name] for name, _ in readout.named_parameters()}


def test_groups_ascend_and_an_optimizer_takes_them() -> None:
    module = conditioner()
    groups = param_groups(module, weight_decay=GIVEN)
    assert [(group["weight_decay"], len(group["params"])) for group in groups] == [(0.0, 2), (1e-3, 2), (GIVEN, 1)]
    assert [id(p) for p in groups[1]["params"]] == [id(module.film.mlp[0].weight), id(module.film.mlp[2].weight)]
    optimizer = torch.optim.SGD(groups, lr=0.5)
    before = copy.deepcopy(module)
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(module.film.mlp[0].weight, before.film.mlp[0].weight * (1 - 0.5 * 1e-3))
    torch.testing.assert_close(module.film.mlp[0].bias, before.film.mlp[0].bias)
    torch.testing.assert_close(module.readout.compress.weight, before.readout.compress.weight * (1 - 0.5 * GIVEN))


def test_a_decay_that_is_meant_twice_is_one_group() -> None:
    assert [group["weight_decay"] for group in param_groups(film(0.0), weight_decay=0)] == [0.0]
    assert len(param_groups(film(False), weight_decay=0)[0]["params"]) == 4


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.film = film(1e-3)
        self.again = nn.Linear(24, 5)
        self.again.weight = self.film.mlp[0].weight
        self.frozen = nn.Parameter(torch.zeros(2, 2), requires_grad=False)
        self.scale = nn.Parameter(torch.tensor(1.0))


def test_a_tied_parameter_is_listed_once_and_a_frozen_one_never() -> None:
    found = decays(Tied())
    assert "frozen" not in found
    assert (found["film.mlp.0.weight"], found["again.bias"], found["scale"]) == (1e-3, 0.0, 0.0)
    assert param_groups(nn.Identity(), weight_decay=GIVEN) == []
    assert param_groups(nn.Linear(2, 2).requires_grad_(False), weight_decay=GIVEN) == []


def test_a_tag_counts_before_a_shape_and_a_declaration_before_a_tag() -> None:
    layer = nn.Linear(2, 2)
    layer.weight._no_weight_decay = True
    layer.bias._weight_decay = 0.2
    assert decays(layer) == {"weight": 0.0, "bias": 0.2}
    declared, silent = film(1e-3), film(False)
    for one in (declared, silent):
        one.mlp[0].weight._weight_decay = 0.2
    assert decays(declared)["mlp.0.weight"] == 1e-3
    assert decays(silent)["mlp.0.weight"] == 0.2


class ChannelLogits(nn.Module):
    """A third party's readout with a matrix of logits: it declares no decay in an attribute, which copies keep."""

    def __init__(self) -> None:
        super().__init__()
        self.no_weight_decay = True
        self.logits = nn.Parameter(torch.zeros(R, D))


def test_any_module_may_declare_and_its_copies_do_too() -> None:
    made = nn.Sequential(ChannelLogits(), nn.Linear(2, 2))
    assert decays(made) == decays(copy.deepcopy(made)) == {"0.logits": 0.0, "1.weight": GIVEN, "1.bias": 0.0}


class TimmLike(nn.Module):
    """timm's models have a method of that name."""

    def __init__(self) -> None:
        super().__init__()
        self.film = film(True)
        self.layer = nn.Linear(2, 2)

    def no_weight_decay(self) -> set[str]:
        return {"layer.weight"}


def test_only_a_number_is_a_declaration_and_it_reaches_no_further_than_its_module() -> None:
    found = decays(TimmLike())
    assert found.pop("layer.weight") == GIVEN
    assert set(found.values()) == {0.0}


@pytest.mark.parametrize("decay", [-1.0, math.nan, math.inf, "0.1", True, None], ids=repr)
def test_a_weight_decay_that_is_none_is_refused(decay: Any) -> None:
    with pytest.raises(SpecError) as caught:
        param_groups(nn.Linear(2, 2), weight_decay=decay)
    assert str(caught.value) == (
        f"param_groups: weight_decay: expected a finite weight decay of at least 0, got {decay!r}."
    )


def test_what_a_module_declares_or_a_tag_says_is_checked_too() -> None:
    with pytest.raises(SpecError, match=r"^param_groups: parameter film.mlp.0.weight: expected .*, got -0.5\.$"):
        param_groups(conditioner(-0.5), weight_decay=GIVEN)
    layer = nn.Linear(2, 2)
    layer.weight._weight_decay = math.nan
    with pytest.raises(SpecError, match="parameter weight: expected a finite weight decay of at least 0, got nan"):
        param_groups(layer, weight_decay=GIVEN)
    with pytest.raises(SpecError, match="module: expected an nn.Module, got 3"):
        param_groups(3, weight_decay=GIVEN)


# ---- what copies lose


def through_pickle(module: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(module))


def on_meta_then_empty(module: nn.Module) -> nn.Module:
    with torch.device("meta"):
        made = conditioner()
    return made.to_empty(device="cpu")


def through_an_archive(module: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(module), buffer)
    buffer.seek(0)
    return torch.jit.load(buffer)


# each way, and whether the tags are still there after it
WAYS: dict[str, tuple[Callable[[nn.Module], nn.Module], bool]] = {
    "deepcopy": (copy.deepcopy, False),
    "an EMA copy": (AveragedModel, False),
    "to_empty": (lambda module: module.to_empty(device="meta"), False),
    "built on meta": (on_meta_then_empty, False),
    "double": (nn.Module.double, True),
    "pickle": (through_pickle, True),
    "compile": (torch.compile, True),
    "script": (torch.jit.script, True),
    "a saved archive": (through_an_archive, False),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_groups_survive_what_the_tags_may_not(way: str) -> None:
    wanted = decays(conditioner())
    assert sorted(set(wanted.values())) == [0.0, 1e-3, GIVEN]
    change, keeps_tags = WAYS[way]
    changed = change(conditioner())
    assert decays(changed) == wanted
    assert (meant_by_tags(changed) == wanted) is keeps_tags


def test_a_decay_that_only_a_tag_declared_is_lost_with_the_tag() -> None:
    copied = copy.deepcopy(upstream.KernelFiLMGenerator(6, 4, 2, no_weight_decay=1e-3))
    assert decays(copied) == {"mlp.0.weight": GIVEN, "mlp.0.bias": 0.0, "mlp.2.weight": GIVEN, "mlp.2.bias": 0.0}


@pytest.mark.parametrize("no_weight_decay", [False, True, 0.0, 1e-3], ids=repr)
def test_a_generator_comes_back_from_a_bundle_with_its_decays_and_tags(
    tmp_path: Path, no_weight_decay: bool | float
) -> None:
    module = conditioner(no_weight_decay)
    regplug.export(strategies.spec_of("regplug:compress-concat"), module, tmp_path / "bundle")
    loaded = regplug.load(tmp_path / "bundle")
    assert type(loaded.film.no_weight_decay) is type(no_weight_decay)
    assert decays(loaded) == decays(module)
    assert meant_by_tags(loaded.film) == meant_by_tags(module.film)


# ---- several processes

BATCH, RATE, PROCESSES = 4, 0.1, 2
CONDITIONER = "a conditioner"
# torch's note for who changes an output in place; nothing here does
VIEW = r"FSDP2-wrapped module \(\w+\) returned a view tensor"


def module_and_batch(name: str) -> tuple[nn.Module, Tensor]:
    if name == CONDITIONER:
        return conditioner(), torch.randn(BATCH, 9, D, generator=torch.Generator().manual_seed(7))
    return strategies.trained(name), strategies.registers(BATCH)


def step(module: nn.Module, batch: Tensor) -> dict[str, Any]:
    """One step of SGD: the new weights, and each one's decay."""
    groups = param_groups(module, weight_decay=GIVEN)  # before the forward, which puts FSDP2's whole weights in place
    output = module(batch)
    parts = [output] if isinstance(output, Tensor) else [part for pair in output for part in pair]
    if groups:
        sum((part + 1).square().mean() for part in parts).backward()
        torch.optim.SGD(groups, lr=RATE).step()
    whole = {name: getattr(p, "full_tensor", lambda p=p: p)().detach().clone() for name, p in named(module).items()}
    return {"weights": whole, "decays": decays(module), "outputs": [part.detach().clone() for part in parts]}


def train_in_two_processes(rank: int, folder: str) -> None:
    """Run in each process: every readout and a conditioner, with DDP and with FSDP2."""
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
    from torch.nn.parallel import DistributedDataParallel

    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", VIEW, UserWarning)
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=PROCESSES)
    mesh = init_device_mesh("cpu", (PROCESSES,))
    results = {}
    for name in [*EVERY, CONDITIONER]:
        module, batch = module_and_batch(name)
        mine = batch.chunk(PROCESSES)[rank]
        try:
            results[name, "DDP"] = step(DistributedDataParallel(module), mine)
        except RuntimeError as error:
            results[name, "DDP"] = str(error)
        module, _ = module_and_batch(name)
        if name == CONDITIONER:
            fully_shard(module.readout, mesh=mesh)
            fully_shard(module.film, mesh=mesh)
        results[name, "FSDP2"] = step(fully_shard(module, mesh=mesh), mine)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch tells that it has a successor
        flat = FullyShardedDataParallel(conditioner(), device_id=torch.device("cpu"))
    try:
        param_groups(flat, weight_decay=GIVEN)
    except SpecError as error:
        results["FSDP1"] = str(error)
    torch.save(results, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_train_every_readout_and_a_conditioner_like_one_process(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(train_in_two_processes, (str(tmp_path),), nprocs=PROCESSES)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(PROCESSES)]
    for name in [*EVERY, CONDITIONER]:
        module, batch = module_and_batch(name)
        trained = bool(list(module.parameters()))
        alone = step(module, batch)
        half = step(module_and_batch(name)[0], batch.chunk(PROCESSES)[0])
        for wrapper in ("DDP", "FSDP2"):
            found = [result[name, wrapper] for result in ranks]
            if wrapper == "DDP" and not trained:
                assert all("doesn't have any parameter that requires a gradient" in text for text in found)
                continue
            for result in found:
                assert result["decays"] == alone["decays"], (name, wrapper)
                torch.testing.assert_close(result["weights"], alone["weights"], rtol=1e-5, atol=1e-6)
            outputs = [torch.cat(parts) for parts in zip(*(result["outputs"] for result in found), strict=True)]
            torch.testing.assert_close(outputs, alone["outputs"], rtol=1e-5, atol=1e-6)
            if trained:  # the comparison sees a step on half of the batch
                with pytest.raises(AssertionError):
                    torch.testing.assert_close(half["weights"], alone["weights"], rtol=1e-5, atol=1e-6)
    assert {result["FSDP1"] for result in ranks} == {
        "param_groups: expected weights in their shapes, got FSDP1's flat ones; use fully_shard."
    }
