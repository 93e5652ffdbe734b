"""The rules of format 2 for a manifest's further inputs, a mask and vectors, and for the parts of a join."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from regplug.format.manifest import IMAGES, Manifest, PartRecord
from regplug.format.strict_json import format_value, wrong
from regplug.registry.layout import REGISTERS, TOKENS
from regplug.registry.readout_inputs import MASK

MAX_PARTS = 64
MAX_MORE_INPUTS = 65  # a mask and vectors, of which each is a part
TAKEN = (REGISTERS, TOKENS, IMAGES, MASK)  # a vector with such a name would be taken for another input


def check_more_inputs(manifest: Manifest) -> None:
    """Refuse further inputs that are neither the mask of the input's tokens nor vectors, after ``check_parts``.

    Raises:
        WrongValueError: A name, a dtype or a shape is another one.
    """
    names = [one.name for one in manifest.more_inputs]
    if len(set(names)) != len(names):  # `check_parts` has refused more vectors than parts
        raise wrong("more_inputs", f"different names, at most {MAX_MORE_INPUTS}", names)
    for index, one in enumerate(manifest.more_inputs):
        where = f"more_inputs.{index}"
        if one.name == MASK and index == 0 and manifest.backbone is None:
            wanted_dtype, wanted_shape = "bool", ["B", manifest.input.shape[1]]
        elif one.name in TAKEN:
            raise wrong(f"{where}.name", "a vector's name", one.name)
        else:
            width = one.shape[-1] if one.shape else None
            wanted_dtype, wanted_shape = manifest.input.dtype, ["B", width if isinstance(width, int) else 1]
        for word, wanted, got in (("dtype", wanted_dtype, one.dtype), ("shape", wanted_shape, list(one.shape))):
            if wanted != got:
                raise wrong(f"{where}.{word}", format_value(wanted), got)


def check_parts(manifest: Manifest) -> None:
    """Refuse parts of a join whose widths, tokens or vectors are not those of the manifest.

    Raises:
        WrongValueError: They contradict the manifest.
    """
    parts = manifest.parts
    vectors = [one.name for one in manifest.more_inputs if one.name != MASK]
    if parts is None:
        if vectors:
            raise wrong("parts", "a list, for the vectors", None)
        return
    names = [part.name for part in parts]
    if not parts or len(parts) > MAX_PARTS or len(set(names)) != len(names):
        raise wrong("parts", f"1 to {MAX_PARTS} parts with different names", names)
    if (total := sum(part.width for part in parts)) != manifest.cond_dim:
        raise wrong("parts", f"widths whose sum is {manifest.cond_dim}", total)
    if (got := [part.name for part in parts if part.tokens is None]) != vectors:
        raise wrong("parts", f"{format_value(vectors)} without tokens", got)
    for index, part in enumerate(parts):
        if not _fits(part, manifest.num_registers):
            raise wrong(f"parts.{index}", "tokens inside the sequence", asdict(part))


def least_tokens(parts: Sequence[PartRecord] | None) -> int:
    """The shortest sequence in which every part has all its tokens; one token without parts."""
    least = 1
    for part in parts or ():
        if part.tokens is None:
            continue
        start, stop = part.tokens[0] or 0, part.tokens[1]  # `check_parts` has refused a start of null
        if start < 0:
            least = max(least, -start)
        elif stop is None or stop < 0:
            least = max(least, start + 1 - (stop or 0))
        else:
            least = max(least, stop)
    return least


def _fits(part: PartRecord, num_tokens: int | None) -> bool:
    """Whether a part has tokens in the sequence, if its length is known, and a mask only with tokens."""
    if part.tokens is None:
        return not part.takes_mask
    if len(part.tokens) != 2:
        return False
    start, stop = part.tokens
    if start is None:
        return False
    if num_tokens is None:
        return stop is None or start >= 0 > stop or (start < stop and (start < 0) == (stop < 0))
    return bool(range(num_tokens)[start:stop])
