"""The ``export`` command. Importing this module imports neither torch nor a plugin."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from regplug.commands.part_option import chosen_join, part_option
from regplug.commands.printing import complain, print_json, progress, say, say_needs
from regplug.commands.shared_options import (
    KeyValue,
    chosen_spec,
    complete_export_backend,
    complete_strategy,
    film_generator_option,
    json_option,
    layout_option,
    size_options,
)
from regplug.errors import ExportError, SpecError
from regplug.registry.deprecation import warn_once

if TYPE_CHECKING:
    from regplug.nn.backbone import BackboneSizes
    from regplug.registry.layout import TokenLayout
    from regplug.registry.spec import ReadoutSpec


def _warn_of_old_name(context: click.Context, option: click.Parameter, is_given: bool) -> None:
    """``--whole`` works as ``--with-backbone`` for one release."""
    if is_given:
        warn_once("export: option '--whole' is now named '--with-backbone'; use that.")
        context.params["with_backbone"] = True


@click.command("export")
@click.argument("strategy", required=False, shell_complete=complete_strategy)
@size_options
@click.option(
    "--weights",
    type=click.Path(exists=True),
    metavar="FILE",
    help="Trained weights, safetensors. A file with regplug's metadata needs no STRATEGY, sizes and options.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**63 - 1),
    default=0,
    show_default=True,
    help="Seed of the initial weights, without --weights.",
)
@click.option(
    "--backend",
    "backends",
    multiple=True,
    default=("torchscript",),
    show_default=True,
    shell_complete=complete_export_backend,
    help="Export backend of a program. Repeatable.",
)
@click.option(
    "--isa",
    multiple=True,
    help="Instruction set for aotinductor: x86-64-v3 (default), native, armv8-a, ... Repeatable.",
)
@click.option(
    "--time-limit",
    type=float,
    help="Seconds that aotinductor's compiler, or one run of an emulator, may take. Default: 600.",
)
@click.option(
    "--compiler",
    metavar="COMMAND",
    help="The C++ compiler for another machine's instruction set. Default: aarch64-linux-gnu-g++, or ziglang.",
)
@click.option("--no-programs", is_flag=True, help="Export data only, no programs.")
@film_generator_option
@click.option(
    "--film",
    type=KeyValue(),
    multiple=True,
    help="Export a conditioner, with this option of its FiLM generator. Repeatable.",
)
@layout_option("Where the registers are")
@click.option(
    "--with-backbone",
    is_flag=True,
    help="Export the backbone too, so that the bundle takes the backbone's inputs. Needs --backbone NAME:MODEL.",
)
@click.option(
    "--group",
    default="registers",
    show_default=True,
    help="The tokens that the readout reads: registers, a group that `regplug info NAME:MODEL` lists, or tokens, for "
    "all of them. Needs --with-backbone.",
)
@part_option
@click.option(
    "--mask", is_flag=True, help="Let the bundle take a mask of the tokens that count, if the strategy takes one."
)
@click.option("--whole", is_flag=True, hidden=True, callback=_warn_of_old_name, expose_value=False)
@click.option("--force", is_flag=True, help="Replace an existing bundle, atomically.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, metavar="DIR", help="The folder to create."
)
@json_option
def export_command(
    strategy: str | None,
    num_registers: int | str | None,
    hidden_dim: int | None,
    backbone: str | None,
    options: Any,
    model_option: Any,
    weights: str | None,
    seed: int,
    backends: tuple[str, ...],
    isa: tuple[str, ...],
    time_limit: float | None,
    compiler: str | None,
    no_programs: bool,
    film_generator: str | None,
    film: Any,
    layout: Any,
    with_backbone: bool,
    group: str,
    parts: Any,
    mask: bool,
    force: bool,
    output: Path,
    as_json: bool,
) -> None:
    """Export a readout or a conditioner as a bundle.

    A bundle holds weights, golden cases, and programs that were checked to be equal to eager mode.
    """
    from regplug.format.destination import absolute, check_place

    try:
        check_place(output, force)  # before torch is imported and anything is computed
        place_of_output = absolute(output)  # before a plugin is imported, which may change the working directory
    except ExportError as error:
        raise click.UsageError(str(error)) from error
    compiled = {"isa": isa or None, "time_limit": time_limit, "compiler": compiler}
    compiled = {name: value for name, value in compiled.items() if value is not None}
    if compiled and "aotinductor" not in backends:
        raise click.UsageError("--isa, --time-limit, --compiler: expected --backend aotinductor, got another.")
    choice: dict[str, Any] = {"strategy": strategy, "num_registers": num_registers, "hidden_dim": hidden_dim}
    choice |= {"backbone": backbone, "options": options, "model_option": model_option}
    if group != "registers" and not with_backbone:
        raise click.UsageError(f"--group {group}: expected --with-backbone, which finds the group's tokens, got none.")
    if parts:
        if not with_backbone:
            raise click.UsageError("--part: expected --with-backbone, which finds the groups' tokens, got none.")
        choice["strategy"] = chosen_join(parts, strategy, backbone, options)
    if with_backbone:
        spec, module, place = _attached({**choice, "group": group}, film_generator, film, layout, weights, seed)
    else:
        spec, module, place = _chosen_module(choice, film_generator, film, layout, weights, seed)
    from regplug.bundle.export import export

    with progress("export") as step:
        done = export(
            spec,
            module,
            place_of_output,
            backends=() if no_programs else tuple(dict.fromkeys(backends)),
            settings={"aotinductor": compiled} if compiled else None,
            layout=place,
            mask=mask,
            force=force,
            progress=step,
        )
    if as_json:
        print_json("export", {"directory": str(output), "digest": done.digest, **spec.as_dict()})
        return
    say(f"bundle {output}: {done.manifest.holds} {spec.strategy}, cond_dim {spec.cond_dim}")
    say(f"digest {done.digest}")
    say_needs(done.manifest)
    if weights is None:
        complain(f"weights are initial, from seed {seed}; use --weights FILE for trained ones")
    if backbone is not None:
        complain(
            f"layout: as declared by the plugin; `regplug check --backbone {backbone}` compares it with the network"
        )


def _attached(
    choice: dict[str, Any], film_generator: str | None, film: Any, layout: Any, weights: str | None, seed: int
) -> tuple[ReadoutSpec, Any, None]:
    """The backbone with the readout, and a FiLM generator if chosen; its layout is in it."""
    if choice["backbone"] is None or choice["num_registers"] is not None or choice["hidden_dim"] is not None or layout:
        raise click.UsageError(
            "--with-backbone: expected --backbone NAME:MODEL, which gives sizes and layout, got otherwise."
        )
    import torch

    from regplug.bundle.weights_file import check_is_whole, fill
    from regplug.nn.attach import attach
    from regplug.nn.tokens import input_shape

    if weights is not None:
        check_is_whole(weights)
    torch.manual_seed(seed)
    module = attach(
        choice["backbone"],
        choice["strategy"],
        group=choice["group"],
        strategy_options=dict(choice["options"]),
        film=film_generator,
        film_options=dict(film) or None,
        model_options=dict(choice["model_option"]),
    )
    input_shape(module.tokens)  # refuses a wrong choice before anything is computed
    if weights is not None:
        fill(module, weights, module.spec)
    return module.spec, module, None


def _chosen_module(
    choice: dict[str, Any], film_generator: str | None, film: Any, layout: Any, weights: str | None, seed: int
) -> tuple[ReadoutSpec, Any, TokenLayout | None]:
    """The module to export, and its layout: from the options, and what they leave out, from the weights file."""
    generator = "regplug:kernel-film" if film and film_generator is None else film_generator
    without_sizes = all(choice[word] is None for word in ("num_registers", "hidden_dim", "backbone"))
    if weights is not None and (without_sizes or choice["strategy"] is None):
        from regplug.bundle.weights_file import read_note

        note = read_note(weights, choice["strategy"])
        if note is not None:
            # given options come last and win; they are compared with the file when the weights are loaded
            options = (*note.options.items(), *choice["options"])
            choice |= {"strategy": note.strategy, "options": options}
            if without_sizes:
                choice |= {"num_registers": note.num_registers, "hidden_dim": note.hidden_dim}
                layout = (*(vars(note.layout).items() if note.layout else ()), *layout)
            if note.film is not None:
                film = (*note.film.options.items(), *film)
                generator = note.film.generator if film_generator is None else film_generator
    spec, sizes = chosen_spec(**choice)
    film_options = dict(film)
    clashes = sorted({"spec", "film", "width", "registry"} & set(film_options))
    if clashes:
        raise SpecError(f"--film: {clashes[0]}: expected an option of the generator, got an argument of pair.")
    place = _layout(dict(layout), spec.num_registers, spec.hidden_dim, sizes)
    if generator is not None and place is None:
        raise click.UsageError("layout: expected --layout start=N or --backbone NAME for a conditioner, got neither.")
    import torch

    from regplug.bundle.weights_file import build_filled
    from regplug.nn.conditioner import Conditioner
    from regplug.nn.pairing import pair
    from regplug.registry.default import default_registry

    family = None if generator is None else default_registry().film_entry(generator)
    if family is not None and not family.gives_pairs:
        raise SpecError(
            f"FiLM generator {family.name!r}: expected one that gives pairs, got one that applies FiLM itself; export "
            "the readout alone."
        )

    def build() -> Any:
        readout = spec.build()
        if family is None or place is None:
            return readout
        generated = pair(spec, family.build, width=family.width, **film_options)
        return Conditioner(place, readout, generated, family.form, family.order)

    torch.manual_seed(seed)
    return spec, build() if weights is None else build_filled(build, weights, spec), place


def _layout(
    given: dict[str, Any], num_registers: int | None, hidden_dim: int, sizes: BackboneSizes | None
) -> TokenLayout | None:
    from regplug.registry.layout import TokenLayout

    if not given:
        return sizes.layout if sizes else None
    return TokenLayout.from_dict({"num_registers": num_registers, "hidden_dim": hidden_dim, **given})
