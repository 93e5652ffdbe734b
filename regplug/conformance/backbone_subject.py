"""A backbone under check: one of its models, built once, and how its tokens are read."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from regplug.conformance.check import DoesNotApplyError
from regplug.conformance.marks import FoundMarks, find_marks
from regplug.conformance.model_state import ModelState, model_state
from regplug.conformance.subject import seeded
from regplug.errors import ConformanceError, ShapeError, SpecError
from regplug.nn.backbone import ask_film_sites, ask_layout, ask_tokens, build_backbone, named_backbone
from regplug.registry.default import default_registry
from regplug.registry.entries import BackboneEntry, FiLMSite
from regplug.registry.integers import is_positive_int
from regplug.registry.layout import TokenLayout
from regplug.registry.registry import Registry


@dataclass(frozen=True)
class BackboneSubject:
    """A model of a backbone under check.

    Args:
        entry: The backbone.
        model: Which of its models; None for its default.
        options: Options that the model is built with.
        given_shape: The shape of one sample of the model's input; None for what its tokens module states.
        registry: Where names are looked up.
        progress: Called with the steps of a long check.
    """

    entry: BackboneEntry
    model: str | None
    options: Mapping[str, Any] = field(hash=False)
    given_shape: tuple[int, ...] | None
    registry: Registry
    progress: Callable[[str], None] = field(compare=False)

    @property
    def name(self) -> str:
        """``distribution:name:model``, as results show it."""
        return self.entry.full_name if self.model is None else f"{self.entry.full_name}:{self.model}"

    @property
    def is_own(self) -> bool:
        """False: regplug itself provides no backbone."""
        return False

    def build(self) -> Any:
        """The model with random weights of a fixed seed, in eval mode, on the default device."""
        with seeded(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            built = build_backbone(self.entry, self.model, **self.options)
        return built.eval() if isinstance(built, nn.Module) else built

    @cached_property
    def built(self) -> Any:
        """The one model that all checks share; a check undoes its changes."""
        built = self.build()
        if isinstance(built, nn.Module):
            self.__dict__["_state_as_built"] = model_state(built)
        return built

    @property
    def network(self) -> nn.Module:
        """The model.

        Raises:
            DoesNotApplyError: The backbone has sizes only.
        """
        if not isinstance(self.built, nn.Module):
            raise DoesNotApplyError(f"its model has sizes only: expected an nn.Module, got {type(self.built).__name__}")
        return self.built

    @property
    def state_as_built(self) -> ModelState:
        """The network's state right after it was built."""
        _ = self.network
        state: ModelState = self.__dict__["_state_as_built"]
        return state

    @cached_property
    def layout(self) -> TokenLayout:
        """Where the registers are, as the plugin states."""
        return ask_layout(self.entry, self.built)

    @cached_property
    def film_sites(self) -> tuple[FiLMSite, ...]:
        """Where FiLM pairs go, as the plugin states."""
        return ask_film_sites(self.entry, self.built)

    def tokens_module(self, normalized: bool) -> nn.Module:
        """A new module from inputs to tokens.

        Raises:
            DoesNotApplyError: The backbone offers none.
            SpecError: The plugin refuses this ``normalized``.
        """
        network = self.network
        if self.entry.tokens is None:
            raise DoesNotApplyError("its entry has no tokens=, so its registers cannot be read from outside")
        return ask_tokens(self.entry, network, normalized)

    @property
    def stated_tokens(self) -> nn.Module:
        """The tokens module for the layout's ``normalized``."""
        return self.tokens_module(bool(self.layout.normalized))

    def raw_tokens(self) -> tuple[nn.Module, bool]:
        """The tokens module without the final norm if the plugin has one, else with it; and whether it is with it."""
        try:
            return self.tokens_module(False), False
        except SpecError:
            return self.tokens_module(True), True

    @cached_property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one sample: the user's, else the tokens module's ``input_shape`` or ``example_shape``.

        Raises:
            ConformanceError: None of them is given.
        """
        shape = self.given_shape
        tokens = self.stated_tokens
        for word in ("input_shape", "example_shape"):
            shape = shape or getattr(tokens, word, None)
        if not (isinstance(shape, (tuple, list)) and shape and all(map(is_positive_int, shape))):
            raise ConformanceError(
                f"tokens: expected an attribute input_shape, or example_shape where inputs may have several sizes, on "
                f"{type(tokens).__name__}, or --input C,H,W (input_shape= in Python), got {shape!r}."
            )
        return tuple(shape)

    def inputs(self, batch: int, shape: tuple[int, ...] | None = None) -> Tensor:
        """Inputs ``[batch, *shape]`` of the weights' dtype, always the same; ``shape`` is ``input_shape`` if None."""
        generator = torch.Generator().manual_seed(batch)
        weights = (one.dtype for one in self.network.parameters() if one.is_floating_point())
        dtype = next(weights, torch.get_default_dtype())
        return torch.randn((batch, *(shape or self.input_shape)), generator=generator).to(dtype)

    def read(self, tokens: nn.Module, inputs: Tensor, seed: int = 0) -> Tensor:
        """Tokens ``[B, T, D]``, without gradients.

        Raises:
            ConformanceError: The module gives something else.
        """
        with torch.no_grad(), seeded(seed):
            found = tokens(inputs)
        if not (isinstance(found, Tensor) and found.ndim == 3 and found.is_floating_point()):
            got = f"{found.dtype} {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise ConformanceError(f"tokens: expected floating-point numbers [B, T, D], got {got}.")
        return found

    @cached_property
    def marks(self) -> FoundMarks:
        """Where marks come out; found once for all checks.

        Raises:
            DoesNotApplyError: There are no tokens, which another check reports.
        """
        tokens, _ = self.raw_tokens()
        return find_marks(tokens, self.checked_inputs(2), self.progress)

    @cached_property
    def marks_of_larger_inputs(self) -> FoundMarks | None:
        """As ``marks``, for inputs twice as high and wide; None if the model takes one size, or T is fixed."""
        tokens, _ = self.raw_tokens()
        shape = self.input_shape
        if hasattr(tokens, "input_shape") or self.layout.num_tokens is not None or len(shape) < 2:
            return None
        grown = range(1) if len(shape) == 2 else range(1, len(shape))  # N of [N, D]; H and W of [C, H, W]
        inputs = self.inputs(2, tuple(2 * size if axis in grown else size for axis, size in enumerate(shape)))
        try:
            self.read(tokens, inputs)
        except Exception:  # it takes one size only
            return None
        return find_marks(tokens, inputs, self.progress)

    def checked_inputs(self, batch: int) -> Tensor:
        """As ``inputs``, for checks other than ``tokens``, which reports a missing shape and missing tokens.

        Raises:
            DoesNotApplyError: There is no shape, or no tokens.
        """
        if not self._gives_tokens:
            raise DoesNotApplyError("there are no tokens, see the check tokens")
        return self.inputs(batch)

    @cached_property
    def _gives_tokens(self) -> bool:
        _ = self.stated_tokens
        try:
            self.read_checked()
        except Exception:  # a network may raise anything; another check reports it
            return False
        return True

    def read_checked(self) -> Tensor:
        """Tokens of two samples, with the layout's ``normalized``.

        Raises:
            ConformanceError: They are not finite, not of the layout's D, or too few for its positions.
        """
        found = self.read(self.stated_tokens, self.inputs(2))
        if len(found) != 2 or found.shape[2] != self.layout.hidden_dim:
            raise ConformanceError(f"tokens: expected [2, T, {self.layout.hidden_dim}], got {list(found.shape)}.")
        if not found.isfinite().all():
            raise ConformanceError("tokens: expected finite numbers, got NaN or infinity.")
        try:
            self.layout.positions(found.shape[1])
        except ShapeError as error:
            raise ConformanceError(f"tokens: {error}") from error
        return found


def backbone_subject_of(
    name: str | BackboneEntry,
    model: str | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    input_shape: Sequence[int] | None = None,
    registry: Registry | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> BackboneSubject:
    """A model of a backbone, ready to be checked.

    Args:
        name: ``"NAME"``, ``"NAME:MODEL"`` or an entry.
        model: The model's name, if ``name`` is an entry or names none.
        options: Options that the model is built with.
        input_shape: The shape of one sample of its input; the one that its tokens module states when None.
        registry: Where names are looked up; the installed plugins when None.
        progress: Called with the steps of a long check.

    Raises:
        NameLookupError: No backbone has this name.
        SpecError: The backbone does not know the model, the model has no registers, or an option does not fit.
        PluginError: The model cannot be built, or its plugin gives something else than was asked for.
    """
    registry = registry or default_registry()
    entry, named = (name, None) if isinstance(name, BackboneEntry) else named_backbone(name, registry)
    if named is not None and model is not None:
        raise SpecError(f"backbone {entry.name!r}: expected one model, got {named!r} and {model!r}.")
    shape = None if input_shape is None else tuple(input_shape)
    if shape is not None and not (shape and all(map(is_positive_int, shape))):
        raise SpecError(f"input_shape: expected positive integers, as (3, 224, 224), got {input_shape!r}.")
    subject = BackboneSubject(entry, named or model, dict(options or {}), shape, registry, progress)
    _ = subject.layout  # a model that cannot be built is one error, not a failure of every check
    return subject
