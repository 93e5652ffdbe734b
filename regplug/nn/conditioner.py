"""Select registers, read them, generate FiLM pairs: one module from tokens to pairs."""

# TorchScript reads Final[...] only when annotations are not postponed
from typing import Final

from torch import Tensor, nn

from regplug.errors import SpecError
from regplug.nn.pairing import Convention, check_film_width, convention_of
from regplug.nn.token_reader import Mask, TokenReader, Vectors
from regplug.nn.wrappers import unwrapped
from regplug.registry.cond_dim import check_width, probe_in_place, stated_width
from regplug.registry.layout import TokenLayout
from regplug.registry.registry import Registry
from regplug.registry.spec import ReadoutSpec


class BuiltReadout:
    """A readout that is built here from its spec, so its width is known and needs no second measurement.

    Args:
        spec: From ``resolve``, which measured ``cond_dim``; where it could not, ``spec.build`` does.
    """

    def __init__(self, spec: ReadoutSpec) -> None:
        self.spec = spec
        self.module = spec.build()


class Conditioner(TokenReader):
    """Tokens ``[B, T, D]`` -> FiLM pairs, gamma first: ``film(readout(select(tokens)))``.

    Its keys are ``readout.*`` and ``film.*``. The pairs are gamma first for every generator. Their form (``gamma`` or
    ``1+gamma``) is the generator's; ``convention`` holds it.

    Args:
        layout: Where the registers sit.
        readout: ``[B, R, D] -> [B, cond_dim]``. A module is run once on zeros to measure its width; a
            ``BuiltReadout`` is not.
        film: ``[B, cond_dim] -> [(gamma, beta), ...]``.
        form: ``"gamma"`` or ``"1+gamma"``; None for what the generator's family is known to mean.
        order: ``"gamma-first"`` or ``"shift-first"``; None as for ``form``.
        registry: Where families are looked up; the installed plugins when None.

    Raises:
        SpecError: The readout does not take the layout's sizes, the generator takes another width than the readout
            gives, or the meaning of its pairs is not known.

    Example:
        >>> import torch
        >>> from regplug.nn.film import KernelFiLMGenerator
        >>> from regplug.nn.readouts.averages import RegisterMean
        >>> layout = TokenLayout(num_registers=4, hidden_dim=48, start=1)
        >>> pairs = Conditioner(layout, RegisterMean(4, 48), KernelFiLMGenerator(48, 32, 3))(torch.zeros(2, 21, 48))
        >>> len(pairs), pairs[0][0].shape
        (3, torch.Size([2, 32]))
    """

    shift_first: Final[bool]

    def __init__(
        self,
        layout: TokenLayout,
        readout: nn.Module | BuiltReadout,
        film: nn.Module,
        form: str | None = None,
        order: str | None = None,
        registry: Registry | None = None,
    ) -> None:
        super().__init__()
        module = readout.module if isinstance(readout, BuiltReadout) else readout
        for word, given, wanted in (
            ("layout", layout, TokenLayout),
            ("readout", module, nn.Module),
            ("film", film, nn.Module),
        ):
            if not isinstance(given, wanted):
                raise SpecError(f"Conditioner: {word}: expected a {wanted.__name__}, got {given!r}.")
        stated = convention_of(film, form, order, registry)
        width = _built_width(readout, layout) if isinstance(readout, BuiltReadout) else _width_of(module, layout)
        check_film_width(film, width, type(module).__name__, registry=registry)
        self.shift_first = stated.order == "shift-first"
        self.convention = Convention(stated.form, "gamma-first")
        self._set_readout(layout, module)
        self.film = film

    def forward(self, tokens: Tensor, mask: Mask = None, vectors: Vectors = None) -> list[tuple[Tensor, Tensor]]:
        """One ``(gamma, beta)`` per FiLM layer, each ``[B, width]``.

        Args:
            tokens: ``[B, T, D]``.
            mask: ``[B, T]``, bool, true where a token counts, if the readout takes a mask.
            vectors: For each vector of a join its name and ``[B, width]``.

        Raises:
            ShapeError: The tokens are not what the layout says, or the readout takes no mask or no vectors.
        """
        pairs: list[tuple[Tensor, Tensor]] = self.film(self._read(tokens, mask, vectors))
        if self.shift_first:
            return [(gamma, beta) for beta, gamma in pairs]
        return pairs


def _built_width(readout: BuiltReadout, layout: TokenLayout) -> int:
    _check_sizes(f"strategy {readout.spec.entry.name!r}", readout.spec, layout)
    return readout.spec.cond_dim


def _width_of(readout: nn.Module, layout: TokenLayout) -> int:
    readout = unwrapped(readout)
    owner = f"readout {type(readout).__name__}"
    stated = stated_width(owner, readout)
    _check_sizes(owner, readout, layout)
    width = probe_in_place(owner, readout, layout.num_registers, layout.hidden_dim)
    check_width(owner, stated, width)
    return width


def _check_sizes(owner: str, readout: nn.Module | ReadoutSpec, layout: TokenLayout) -> None:
    for word in ("num_registers", "hidden_dim"):
        own = getattr(readout, word, None)
        if own is not None and own != getattr(layout, word):
            raise SpecError(f"{owner}: {word}: expected {getattr(layout, word)} as the layout has, got {own}.")
