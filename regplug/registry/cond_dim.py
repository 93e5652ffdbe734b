"""Builds readouts, and measures ``cond_dim`` on the meta device, where nothing is allocated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

from regplug.errors import SpecError, class_name, one_line, with_class
from regplug.registry.integers import check_positive_int
from regplug.registry.readout_inputs import vector_widths, zero_vectors
from regplug.registry.untrusted_values import repr_of

if TYPE_CHECKING:
    from torch import nn

# Two samples: a module that confuses batch and registers is found out.
PROBE_BATCH = 2
# a readout of any number of tokens is measured at the least, 1 or its min_tokens, and at two more
MORE_TOKENS = (0, 2)


def construct(owner: str, build: Callable[..., Any], arguments: Mapping[str, Any]) -> nn.Module:
    """Call the constructor; its error becomes one that names the strategy.

    Raises:
        SpecError: The constructor raised, or did not give an ``nn.Module``.
    """
    from torch import nn

    from regplug.torch_private import outside_inference_mode

    with outside_inference_mode():
        module = _called(owner, build, arguments)
    if not isinstance(module, nn.Module):
        raise SpecError(f"{owner}: expected an nn.Module, got {class_name(module)}.")
    return module


def calculate(owner: str, width: Callable[..., Any], arguments: Mapping[str, Any]) -> int:
    """``cond_dim`` as the entry's own ``cond_dim`` gives it.

    Raises:
        SpecError: It raises, as the constructor would, or does not give a positive integer.
    """
    return int(check_positive_int(f"{owner}: cond_dim", _called(owner, width, arguments)))


def _called(owner: str, build: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    try:
        return build(**arguments)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # any exception of a constructor means: not with these arguments
        given = ", ".join(f"{name}={repr_of(value)}" for name, value in arguments.items())
        raise SpecError(
            f"{owner}: expected sizes and options that its constructor takes, got {given or 'none'}: "
            f"{with_class(error)}"
        ) from error


def measure(
    owner: str, build: Callable[..., Any], arguments: Mapping[str, Any], num_registers: int | None, hidden_dim: int
) -> tuple[int, bool]:
    """``cond_dim``, and whether a forward on the meta device confirmed it.

    It is the module's ``out_dim``, if it has one, compared with a forward on the meta device; else the width of that.

    Args:
        owner: The strategy, for messages.
        build: The readout's class.
        arguments: What its constructor gets.
        num_registers: R; None for any number.
        hidden_dim: D.

    Raises:
        SpecError: The constructor raises; ``out_dim`` and the forward disagree; the output is not
            ``[B, cond_dim]``; there is neither ``out_dim`` nor a forward that runs on the meta device; or the width
            depends on a number of registers that is not fixed.
    """
    import torch

    with torch.device("meta"):  # a constructor that reads values of its tensors fails, and torch says why
        module = construct(owner, build, arguments)
    stated = stated_width(owner, module)
    try:
        width = probe(owner, module, num_registers, hidden_dim, device="meta")
    except SpecError:
        raise
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # no meta forward: an operation that lacks one may raise anything
        if stated is None:
            raise SpecError(
                f"{owner}: expected an integer attribute out_dim or a forward that runs on the meta device, "
                f"got neither ({class_name(error)}: {one_line(error)})."
            ) from error
        return stated, False
    check_width(owner, stated, width)
    return width, True


def stated_width(owner: str, module: nn.Module) -> int | None:
    """The module's ``out_dim``, if it has one.

    Raises:
        SpecError: ``out_dim`` is not a positive integer.
    """
    stated = getattr(module, "out_dim", None)
    return None if stated is None else check_positive_int(f"{owner}: out_dim", stated)


def probe(
    owner: str,
    module: nn.Module,
    num_registers: int | None,
    hidden_dim: int,
    device: str,
    vectors: Mapping[str, int] | None = None,
) -> int:
    """Run a forward in eval mode on zeros ``[2, R, D]`` and return the width of what comes out.

    With None for R, it runs for several R, which must agree. It gets zeros for the vectors too: those that it names, or
    these names and widths.
    """
    vectors = vector_widths(module) if vectors is None else vectors
    if num_registers is not None:
        return _probe_once(owner, module, num_registers, hidden_dim, device, vectors)
    least = getattr(module, "min_tokens", 1)
    widths = {
        least + more: _probe_once(owner, module, least + more, hidden_dim, device, vectors) for more in MORE_TOKENS
    }
    if len(set(widths.values())) > 1:
        got = ", ".join(f"{width} for {count}" for count, width in widths.items())
        raise SpecError(
            f"{owner}: num_registers: expected a fixed number, as the width depends on the number of tokens ({got}), "
            "got None."
        )
    return widths[least]


def _probe_once(
    owner: str, module: nn.Module, num_registers: int, hidden_dim: int, device: str, vectors: Mapping[str, int]
) -> int:
    import torch

    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.get_default_dtype())
    registers = torch.zeros(PROBE_BATCH, num_registers, hidden_dim, dtype=dtype, device=device)
    training = {child: child.training for child in module.modules()}
    module.eval()  # in training mode it would change the running statistics of a batch norm
    try:
        with torch.no_grad():
            output = module(registers, **zero_vectors(vectors, registers))
    finally:
        for child, mode in training.items():
            child.training = mode
    if not isinstance(output, torch.Tensor):
        raise SpecError(f"{owner}: expected a tensor [B, cond_dim], got {class_name(output)}.")
    if output.dim() != 2 or output.shape[0] != PROBE_BATCH:
        raise SpecError(
            f"{owner}: expected [{PROBE_BATCH}, cond_dim] for registers {list(registers.shape)}, "
            f"got {list(output.shape)}."
        )
    return int(output.shape[1])


def probe_in_place(
    owner: str,
    module: nn.Module,
    num_registers: int | None,
    hidden_dim: int,
    vectors: Mapping[str, int] | None = None,
) -> int:
    """``probe`` on the device of the module's tensors; on the default device, if it has none.

    Raises:
        SpecError: The forward raises, or does not give ``[B, cond_dim]``.
    """
    import torch

    first = next(chain(module.parameters(), module.buffers()), None)
    device = str(torch.get_default_device() if first is None else first.device)
    try:
        return probe(owner, module, num_registers, hidden_dim, device, vectors)
    except SpecError:
        raise
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # any exception of a forward means: not these registers
        raise SpecError(
            f"{owner}: expected to read registers [{PROBE_BATCH}, {num_registers or 'N'}, {hidden_dim}], "
            f"got {class_name(error)}: {one_line(error)}"
        ) from error


def check_stated(owner: str, stated: int, measured: int) -> None:
    """Refuse an entry whose ``cond_dim`` is not what the readout gives."""
    if stated != measured:
        raise SpecError(
            f"{owner}: cond_dim: expected {measured}, which its forward gives, got {stated} from the entry."
        )


def check_width(owner: str, stated: int | None, measured: int) -> None:
    """Refuse a module whose ``out_dim`` is not what its forward gives."""
    if stated is not None and stated != measured:
        raise SpecError(f"{owner}: out_dim: expected {measured}, which its forward gives, got {stated}.")
