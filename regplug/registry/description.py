"""What a strategy is and takes, as data: for a sweep, a form or a web page."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from regplug.errors import SpecError
from regplug.registry.default import default_registry
from regplug.registry.entries import SIZES, ReadoutEntry
from regplug.registry.options import hints_of_options, parameters_of
from regplug.registry.references import load_reference
from regplug.registry.registry import Registry
from regplug.registry.spec import ReadoutSpec, specify
from regplug.registry.stored_values import UnfitError, plain
from regplug.registry.type_hints import choices, format_hint
from regplug.registry.untrusted_values import repr_of

# sizes to build a strategy with for its formula, if none are given; usual heads and ratios divide one of these
TYPICAL_SIZES = ((4, 384), (8, 1024), (16, 27720))


@dataclass(frozen=True)
class OptionDescription:
    """One option of a strategy.

    Args:
        type: Its type: the type hint in the constructor, else the type of the default.
        required: Whether it must be given.
        default: The default as a JSON value; its ``repr`` where it has no JSON form; None where it is required.
        choices: All values it may have, as JSON values, for an Enum, a Literal or a bool; else None.
    """

    type: str
    required: bool
    default: Any = field(default=None, hash=False)
    choices: tuple[Any, ...] | None = None


@dataclass(frozen=True)
class StrategyDescription:
    """What ``describe`` gives.

    Args:
        strategy: Its full name, ``distribution:name``.
        summary: One line for people.
        options: Its options, in the constructor's order.
        formula: ``cond_dim`` for all sizes, such as ``"R*D"``, with the options that were given; None if a required
            option is missing.
        conditions: What R and D must satisfy, such as ``"4 divides D"``.
    """

    strategy: str
    summary: str
    options: Mapping[str, OptionDescription] = field(hash=False)
    formula: str | None
    conditions: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """The description as plain JSON values."""
        return asdict(self)


def describe(strategy: str, /, *, registry: Registry | None = None, **options: Any) -> StrategyDescription:
    """A strategy's options, types, defaults, summary and width formula, as data.

    Args:
        strategy: A name, ``pool`` or ``acme-readouts:attend``.
        registry: Where to look it up; None for the installed plugins.
        **options: Options that the formula is for; the others have their defaults.

    Raises:
        NameLookupError: The strategy is unknown or ambiguous.
        PluginError: Its plugin is broken.
        SpecError: An option does not fit.

    Example:
        >>> found = describe("compress-concat")
        >>> found.options["compressed_dim"].type, found.options["compressed_dim"].required
        ('int', True)
        >>> describe("compress-concat", compressed_dim=96).formula
        '96*R'
    """
    entry = (registry or default_registry()).readout_entry(strategy)
    spec = spec_at_any_size(entry, options)
    return StrategyDescription(
        strategy=entry.full_name,
        summary=entry.summary,
        options=describe_options(entry),
        formula=spec.formula if spec else None,
        conditions=spec.conditions if spec else (),
    )


def describe_options(entry: ReadoutEntry) -> dict[str, OptionDescription]:
    """The options of a strategy by name, without the two sizes; imports its module.

    Raises:
        PluginError: The module cannot be imported.
        SpecError: The constructor has no signature that can be read.
    """
    owner = f"strategy {entry.name!r}"
    build = load_reference(owner, entry.build)
    hints = hints_of_options(owner, build)
    return {
        name: _describe_option(parameter, hints[name])
        for name, parameter in parameters_of(owner, build).items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and name not in {*SIZES, *entry.sizes}
    }


def _describe_option(parameter: inspect.Parameter, hint: Any) -> OptionDescription:
    counted = choices(hint)
    values = None if counted is None else tuple(counted)
    if parameter.default is parameter.empty:
        return OptionDescription(format_hint(hint), True, None, values)
    try:
        default = plain(parameter.default)
    except (UnfitError, RecursionError):
        default = repr_of(parameter.default)
    return OptionDescription(format_hint(hint), False, default, values)


def spec_at_any_size(entry: ReadoutEntry, options: Mapping[str, Any]) -> ReadoutSpec | None:
    """A spec at some sizes that fit; None if no options were given and some are required.

    Raises:
        SpecError: The options do not fit at any of the sizes.
    """
    refusals = []
    for num_registers, hidden_dim in TYPICAL_SIZES:
        try:
            return specify(entry, num_registers, hidden_dim, options)
        except SpecError as error:
            refusals.append(error)
    if options:
        raise refusals[0]
    return None
