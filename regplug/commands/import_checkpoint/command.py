"""The ``import`` command. Importing this module imports neither torch nor a plugin."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from regplug.commands.printing import print_columns, print_json, progress, say
from regplug.commands.shared_options import (
    KeyValue,
    complete_backbone,
    complete_strategy,
    film_generator_option,
    json_option,
    layout_option,
)
from regplug.errors import ExportError
from regplug.registry.process_guard import guard_process

if TYPE_CHECKING:
    from regplug.commands.import_checkpoint.extract import Import, Imported


@click.command("import")
@click.argument("checkpoint", type=click.Path(exists=True, dir_okay=False))
@click.option(
    "--backbone",
    metavar="NAME[:MODEL]",
    shell_complete=complete_backbone,
    help="The network's backbone; with MODEL, R and D must be that model's.",
)
@click.option("--num-registers", type=click.IntRange(min=1), metavar="R", help="R, without --backbone.")
@click.option("--hidden-dim", type=click.IntRange(min=1), metavar="D", help="D, without --backbone.")
@click.option(
    "--state-key",
    metavar="KEY",
    help="The file's key that has the weights, such as ema; default: the first known.",
)
@click.option("--prefix", metavar="TEXT", help="Read only names with this prefix, such as ema_model., and remove it.")
@click.option("--block", metavar="I", help="Which readout, if there are several: a block, or the name of its module.")
@click.option("--all", "every", is_flag=True, help="Import all readouts, each into its own FILE.block-I.safetensors.")
@click.option(
    "--strategy",
    metavar="NAME",
    shell_complete=complete_strategy,
    help="The readout's strategy; default: inferred from names and shapes.",
)
@click.option(
    "-O",
    "options",
    type=KeyValue(),
    multiple=True,
    help="An option of the strategy that shapes do not show: JSON, or else text.",
)
@layout_option("Where the registers are, if names and shapes do not show it, or show it wrongly")
@film_generator_option
@click.option(
    "--film",
    type=KeyValue(),
    multiple=True,
    help="An option of the FiLM generator that shapes do not show: JSON, or else text.",
)
@click.option("--readout-only", is_flag=True, help="Import the readout without its FiLM generator.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="The safetensors file to write.",
)
@json_option
def import_command(
    checkpoint: str,
    backbone: str | None,
    num_registers: int | None,
    hidden_dim: int | None,
    state_key: str | None,
    prefix: str | None,
    block: str | None,
    every: bool,
    strategy: str | None,
    options: Any,
    layout: Any,
    film_generator: str | None,
    film: Any,
    readout_only: bool,
    force: bool,
    output: Path,
    as_json: bool,
) -> None:
    """Import a trained readout from a network's checkpoint.

    Its FiLM generator comes with it. CHECKPOINT is a safetensors file, the index.json of sharded safetensors, or a
    PyTorch file of plain weights; no pickled code is run. The backbone's plugin finds the readouts of its networks. If
    it finds none, regplug's own modules are looked for under any prefix: those that attach and Conditioner give, and
    bare readouts. The file that is written names its strategy, sizes and options, so that `regplug export --weights
    FILE` needs no more.
    """
    from regplug.format.single_file import write_files

    if block is not None and every:
        raise click.UsageError("--block, --all: expected one of them, got both.")
    if not every:
        _check_place(output, checkpoint, force)  # before torch is imported
    from regplug.commands.import_checkpoint.extract import import_readouts
    from regplug.commands.import_checkpoint.readout_search import ImportRequest

    request = ImportRequest(
        backbone=backbone,
        num_registers=num_registers,
        hidden_dim=hidden_dim,
        block=block,
        every=every,
        strategy=strategy,
        options=dict(options),
        film_generator=film_generator,
        film_options=dict(film),
        layout=dict(layout),
        readout_only=readout_only,
        state_key=state_key,
        prefix=prefix,
    )
    with progress("import") as step:
        with guard_process():  # a plugin may change the working directory
            found = import_readouts(checkpoint, request, progress=step)
        files = {_place(output, one, every): one.to_bytes() for one in found.readouts}
        for path in files:
            _check_place(path, checkpoint, force)
        step("writing")
        write_files(files, force)
    sizes = {str(path): len(data) for path, data in files.items()}
    if as_json:
        print_json("import", _values(found, sizes))
    else:
        _print(found, sizes, prefix)


def _place(output: Path, one: Imported, every: bool) -> Path:
    return output.with_name(f"{output.stem}.block-{one.block}{output.suffix}") if every and one.block else output


def _check_place(path: Path, checkpoint: str, force: bool) -> None:
    from regplug.format.single_file import check_file_place

    try:
        check_file_place(path, force)
    except ExportError as error:
        raise click.UsageError(str(error)) from error
    if path.exists() and path.samefile(checkpoint):
        raise click.UsageError(f"file {path}: expected another file than the checkpoint, got the same.")


def _values(found: Import, sizes: dict[str, int]) -> dict[str, Any]:
    checkpoint = found.checkpoint
    return {
        "checkpoint": checkpoint.path,
        "kind": checkpoint.kind,
        "state_key": checkpoint.state_key,
        "other_keys": list(checkpoint.other_keys),
        "prefix": found.prefix,
        "readouts": [
            {
                "block": one.block,
                **one.metadata,
                "cond_dim": one.spec.cond_dim,
                "assumed": dict(one.assumed),
                "dtype": one.dtype,
                "tensors": dict(one.tensors),
                "file": path,
                "bytes": size,
            }
            for one, (path, size) in zip(found.readouts, sizes.items(), strict=True)
        ],
        "left": {"tensors": len(found.left), "bytes": found.left_bytes, "names": list(found.left)},
    }


def _print(found: Import, sizes: dict[str, int], prefix: str | None) -> None:
    from regplug.commands.import_checkpoint.state_names import listed
    from regplug.torch_private import uncompiled_name

    checkpoint = found.checkpoint
    heads = ("block", "strategy", "R", "D", "options", "cond_dim", "FiLM", "dtype", "tensors")
    rows = [
        (
            one.block or "-",
            one.spec.strategy,
            one.spec.num_registers,
            one.spec.hidden_dim,
            _format(one.metadata["options"]),
            one.spec.cond_dim,
            one.metadata["film"]["generator"] if one.metadata["film"] else "none",
            one.dtype,
            len(one.tensors),
        )
        for one in found.readouts
    ]
    print_columns(heads, rows)
    place = f" under {checkpoint.state_key!r}" if checkpoint.state_key else ""
    others = f" (not read: {', '.join(checkpoint.other_keys)})" if checkpoint.other_keys else ""
    say(f"read {checkpoint.path}: {checkpoint.kind}{place}{others}")
    if prefix or found.prefix:
        say(f"prefix taken off: {prefix or found.prefix}")
    if any(uncompiled_name(name) != name for name in checkpoint.names.values()):
        say("taken out of names: the parts that torch.compile adds")
    for one in found.readouts:
        if one.assumed:
            at = f"block {one.block}: " if one.block else ""
            taken = _format(dict(one.assumed))
            say(f"{at}not shown by names and shapes, so at the default; change it with -O or --film: {taken}")
    names = f": {listed(found.left)}" if found.left else ""
    say(f"left {len(found.left)} tensors, {found.left_bytes} bytes{names}")
    for one, (path, size) in zip(found.readouts, sizes.items(), strict=True):
        say(f"wrote {path}: {one.metadata['holds']}, {size} bytes")


def _format(options: dict[str, Any]) -> str:
    return ", ".join(f"{name}={json.dumps(value)}" for name, value in options.items()) or "none"
