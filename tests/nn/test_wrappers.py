"""Wrappers that training puts around a module or its weights are removed by export, or named."""

import copy
import multiprocessing
import pickle
import threading

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.optim.swa_utils import AveragedModel

import regplug
from regplug.bundle.program import LoadedProgram
from regplug.nn.wrappers import unwrapped

SPEC = regplug.resolve("compress-concat", num_registers=4, hidden_dim=8, compressed_dim=3)
LAYOUT = regplug.TokenLayout(4, 8, start=1)
X = torch.randn(3, 4, 8)


@pytest.fixture(scope="module")
def ddp(tmp_path_factory):
    import torch.distributed as dist

    place = tmp_path_factory.mktemp("rendezvous") / "file"
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=0, world_size=1)
    yield nn.parallel.DistributedDataParallel
    dist.destroy_process_group()


@pytest.fixture(params=["ddp", "dp", "ema", "compiled", "compiled ddp", "ema of ddp"])
def wrap(request, ddp):
    return {
        "ddp": ddp,
        "dp": nn.DataParallel,
        "ema": AveragedModel,
        "compiled": torch.compile,
        "compiled ddp": lambda module: torch.compile(ddp(module)),
        "ema of ddp": lambda module: AveragedModel(ddp(module)),
    }[request.param]


def film():
    return regplug.KernelFiLMGenerator(12, kernel_hidden_dim=4, num_film_layers=2)


def test_a_wrapped_readout_and_a_wrapped_conditioner_are_exported(wrap, tmp_path):
    readout = SPEC.build()
    regplug.export(SPEC, wrap(readout), tmp_path / "readout")
    assert torch.equal(regplug.load(tmp_path / "readout")(X), readout.eval()(X))
    conditioner = regplug.Conditioner(LAYOUT, wrap(readout), wrap(film()))
    assert regplug.pair(SPEC, wrapped := wrap(film())) is wrapped
    exported = regplug.export(SPEC, wrap(conditioner), tmp_path / "conditioner")
    assert exported.manifest.holds == "conditioner"
    loaded = regplug.load(tmp_path / "conditioner")
    assert list(loaded.state_dict()) == ["readout.compress.weight", *(f"film.{name}" for name in film().state_dict())]
    assert torch.equal(loaded.readout(X), readout(X))


@pytest.mark.filterwarnings("ignore:FSDP is switching")
@pytest.mark.parametrize("held", [lambda module: module, lambda module: regplug.Conditioner(LAYOUT, module, film())])
@pytest.mark.parametrize("kind", ["FullyShardedDataParallel", "fully_shard"])
def test_a_sharded_readout_is_refused_with_how_to_gather_its_weights(ddp, tmp_path, kind, held):
    from torch.distributed import fsdp
    from torch.distributed.device_mesh import init_device_mesh

    readout = SPEC.build()
    if kind == "fully_shard":
        fsdp.fully_shard(readout, mesh=init_device_mesh("cpu", (1,)))
    else:
        readout = fsdp.FullyShardedDataParallel(readout, device_id=torch.device("cpu"))
    with pytest.raises(regplug.ExportError, match=r"expected whole weights, got FSDP's shards; .*get_model_state_dict"):
        regplug.export(SPEC, held(readout), tmp_path / "b")


def test_a_compiled_layer_inside_is_exported_too(tmp_path):
    readout = SPEC.build()
    wanted = readout.eval()(X)
    readout.compress = torch.compile(readout.compress)
    regplug.export(SPEC, readout, tmp_path / "b")
    assert torch.equal(regplug.load(tmp_path / "b")(X), wanted)
    assert unwrapped(readout.compress) is not readout.compress  # the user's own module stays as it was


def test_a_wrapped_film_generator_of_another_width_is_still_refused(wrap):
    with pytest.raises(regplug.SpecError, match="KernelFiLMGenerator: expected conditioning of width 12, got 32"):
        regplug.pair(regplug.resolve("concat", num_registers=4, hidden_dim=8), wrap(film()))


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        (lambda layer: parametrizations.weight_norm(layer), r"torch\.nn\.utils\.parametrize\.remove_parametrizations"),
        (lambda layer: parametrizations.orthogonal(layer), r"torch\.nn\.utils\.parametrize\.remove_parametrizations"),
        (lambda layer: nn.utils.spectral_norm(layer), r"torch\.nn\.utils\.remove_spectral_norm"),
        (lambda layer: prune.l1_unstructured(layer, "weight", 0.5), r"torch\.nn\.utils\.prune\.remove"),
    ],
    ids=["weight_norm", "orthogonal", "spectral_norm", "prune"],
)
def test_computed_weights_are_refused_with_what_ends_them(change, advice, tmp_path):
    readout = SPEC.build()
    change(readout.compress)
    with pytest.raises(regplug.ExportError, match=rf"module 'compress': expected plain weights, got .*{advice}"):
        regplug.export(SPEC, readout, tmp_path / "b")


def test_after_removing_them_the_weights_are_exported(tmp_path):
    readout = SPEC.build()
    parametrizations.weight_norm(readout.compress)
    nn.utils.parametrize.remove_parametrizations(readout.compress, "weight")
    regplug.export(SPEC, readout, tmp_path / "b")
    torch.testing.assert_close(regplug.load(tmp_path / "b")(X), readout.eval()(X))


class Locked:
    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __call__(self, module, given, output):
        return None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda readout: setattr(readout, "guard", threading.Lock()), "attribute 'guard': .*got lock: cannot pickle"),
        (
            lambda readout: setattr(readout.compress, "log", (n for n in ())),
            "attribute 'compress.log': .*got generator",
        ),
        (lambda readout: readout.compress.register_forward_hook(Locked()), "a hook: .*cannot pickle '_thread.lock'"),
        (lambda readout: readout.to("meta"), "tensor 'compress.weight': .*on the meta device"),
        (
            lambda readout: readout.compress.register_parameter(
                "weight", nn.Parameter(torch.zeros(3, 8, dtype=torch.float8_e4m3fn), requires_grad=False)
            ),
            "tensor 'compress.weight': expected a dtype that a bundle holds, got float8_e4m3fn",
        ),
    ],
    ids=["lock", "generator", "hook", "meta", "float8"],
)
def test_what_cannot_be_copied_or_stored_is_named(change, said, tmp_path):
    readout = SPEC.build()
    change(readout)
    with pytest.raises(regplug.ExportError, match=said):
        regplug.export(SPEC, readout, tmp_path / "b")


def test_a_hook_that_changes_nothing_is_left_out_and_one_that_does_is_named(tmp_path):
    readout = SPEC.build()
    seen = []
    readout.compress.register_forward_hook(lambda module, given, output: seen.append(output.shape))
    regplug.export(SPEC, readout, tmp_path / "b", backends=["torchscript"])
    assert seen
    assert torch.equal(regplug.load(tmp_path / "b", program="torchscript")(X), readout.eval()(X))

    def doubles(module, given, output):
        return output * 2

    readout.register_forward_hook(doubles)
    with pytest.raises(regplug.ExportError, match=r"does a hook change them \(.*doubles on 'RegisterCompressConcat'"):
        regplug.export(SPEC, readout, tmp_path / "other")


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pickled") / "b"
    regplug.export(SPEC, SPEC.build(), folder)
    return regplug.load(folder, program="torchscript")


def test_a_program_is_pickled_as_path_and_digest_and_opened_again_where_it_is_unpickled(program):
    data = pickle.dumps(program)
    assert len(data) < 1000
    assert program.digest.encode() in data
    again = pickle.loads(data)
    assert torch.equal(again(X), program(X))
    assert copy.deepcopy(program) is program


def run_there(program, given, answers):
    answers.put(program(given).clone().tolist())


@pytest.mark.slow
def test_a_spawned_worker_gets_the_program(program):
    context = multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    worker = context.Process(target=run_there, args=(program, X, answers))
    worker.start()
    assert answers.get() == program(X).tolist()
    worker.join()


def test_a_program_is_not_opened_again_after_its_bundle_was_replaced(tmp_path):
    regplug.export(SPEC, SPEC.build(), tmp_path / "b")
    data = pickle.dumps(regplug.load(tmp_path / "b", program="torchscript"))
    regplug.export(SPEC, SPEC.build(), tmp_path / "b", force=True)
    with pytest.raises(regplug.BundleError, match="pinned is"):
        pickle.loads(data)


def test_a_program_of_no_path_says_to_load_it_in_the_worker(program):
    with pytest.raises(regplug.BundleError, match="load it in the worker"):
        pickle.dumps(LoadedProgram("torchscript", program.manifest, program.digest, lambda given: []))
