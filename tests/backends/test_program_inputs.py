"""Inputs besides plain tensors: a program gives right numbers or raises ShapeError, never wrong numbers."""

import pytest
import torch
from torch._subclasses import FakeTensorMode

import regplug

X = torch.randn(2, 4, 24, generator=torch.Generator().manual_seed(0))
Z = torch.complex(torch.ones_like(X), -X)


class Named(torch.Tensor):
    """A subclass that adds nothing but its name."""


class Shifted(torch.Tensor):
    """A subclass that changes what functions see; a program takes the numbers that are there."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return (
            super().__torch_function__(func, types, args, kwargs)
            if func is not torch.Tensor.contiguous
            else args[0] + 1
        )


class Wrapper(torch.Tensor):
    """A subclass without memory: its numbers are twice those of another tensor."""

    @staticmethod
    def __new__(cls, inner):
        wrapper = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, strides=inner.stride())
        wrapper.inner = inner
        return wrapper

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return func(*[2 * one.inner if isinstance(one, cls) else one for one in args], **(kwargs or {}))


def inference_tensor():
    with torch.inference_mode():
        return X.clone()


def without_memory():
    freed = X.clone()
    freed.untyped_storage().resize_(0)
    return freed


# each gives the numbers of X
TAKEN = {
    "lazily negated": lambda: torch._neg_view(-X),
    "lazily negated, of a slice": lambda: torch._neg_view(-torch.cat([X, X], 1))[:, 4:],
    "the imaginary part of a conjugate": lambda: Z.conj().imag,
    "a conjugate's, made contiguous": lambda: torch.imag(Z.conj()).contiguous(),
    "a subclass": lambda: X.as_subclass(Named),
    "a subclass that overrides functions": lambda: X.as_subclass(Shifted),
    "a negated subclass": lambda: torch._neg_view(-X).as_subclass(Named),
    "a parameter": lambda: torch.nn.Parameter(X),
    "one that needs a gradient": lambda: X.clone().requires_grad_() * 1,
    "an inference tensor": inference_tensor,
    "a transposed view": lambda: X.transpose(1, 2).contiguous().transpose(1, 2),
}
REFUSED = {
    "a wrapper": (lambda: Wrapper(X), "expected a plain tensor, got Wrapper; "),
    "sparse COO": (lambda: X.to_sparse(), "expected a dense tensor, got another layout."),
    "sparse CSR": (lambda: X.to_sparse_csr(), "expected a dense tensor, got another layout."),
    "mkldnn": (lambda: X.to_mkldnn(), "expected a dense tensor, got another layout."),
    "meta": (lambda: X.to("meta"), "expected device cpu, got meta."),
    "zero": (lambda: torch._efficientzerotensor(2, 4, 24), "expected a plain tensor, got one that holds no numbers "),
    "quantized": (lambda: torch.quantize_per_tensor(X, 0.1, 0, torch.qint8), "expected dtype float32, got qint8."),
    "complex": (lambda: Z, "expected dtype float32, got complex64."),
    "conjugated": (lambda: Z.conj(), "expected dtype float32, got complex64."),
    "fake": (lambda: FakeTensorMode().from_tensor(X), "expected a plain tensor, got FakeTensor; "),
    "nested": (lambda: torch.nested.nested_tensor([*X]), "expected a plain tensor, got a nested one; "),
    "jagged": (
        lambda: torch.nested.nested_tensor([*X], layout=torch.jagged),
        "expected a plain tensor, got a nested one; ",
    ),
    "without memory": (without_memory, "expected a tensor with memory, got one whose storage was freed."),
    "no tensor": (lambda: X.numpy(), "expected a tensor, got ndarray."),
}


@pytest.fixture(
    scope="module",
    params=["torchscript", pytest.param("aotinductor", marks=pytest.mark.compiler), "onnx"],
)
def backend(request):
    return request.param


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, backend):
    spec = regplug.resolve("pool", num_registers=4, hidden_dim=24)
    folder = tmp_path_factory.mktemp("inputs") / "b"
    module = spec.build()
    torch.nn.init.normal_(module.logits, generator=torch.Generator().manual_seed(1))
    regplug.export(spec, module, folder, backends=[backend])
    return folder


@pytest.fixture(scope="module")
def wanted(bundle):
    with torch.no_grad():
        return regplug.load(bundle)(X)


@pytest.fixture(scope="module")
def program(bundle, backend):
    return regplug.load(bundle, program=backend)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", TAKEN)
def test_any_tensor_with_numbers_in_memory_gives_the_same_as_a_plain_tensor(program, wanted, kind):
    got = program(TAKEN[kind]())
    assert type(got) is torch.Tensor
    torch.testing.assert_close(got, wanted)


def test_an_expanded_tensor_gives_the_same_as_its_copy(program, bundle):
    given = X[:, :1].expand(2, 4, 24)
    with torch.no_grad():
        torch.testing.assert_close(program(given), regplug.load(bundle)(given.contiguous()))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", REFUSED)
def test_a_tensor_without_numbers_in_memory_is_refused(program, kind):
    make, message = REFUSED[kind]
    with pytest.raises(regplug.ShapeError) as error:
        program(make())
    assert str(error.value).startswith(f"program '{program.backend}': {message}")


TRANSFORMS = {
    "vmap": lambda program: torch.vmap(program)(torch.stack([X, X])),
    "grad": lambda program: torch.func.grad(lambda given: program(given).sum())(X),
    "functionalize": lambda program: torch.func.functionalize(program)(X),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_program_inside_a_transform_is_refused(program, transform):
    with pytest.raises(regplug.ShapeError, match="expected a plain tensor, got one that holds no numbers"):
        TRANSFORMS[transform](program)


@pytest.mark.parametrize("backend", ["torchscript"], indirect=True)
def test_a_program_loaded_in_inference_mode_takes_ordinary_tensors(bundle, backend, run_python):
    code = f"""
import torch
with torch.inference_mode():
    import regplug
    program = regplug.load({str(bundle)!r}, program={backend!r})
print(tuple(program(torch.ones(2, 4, 24)).shape))
"""
    assert run_python(code).stdout == "(2, 24)\n"
