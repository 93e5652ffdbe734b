"""The ``regplug`` command. Importing this module imports neither torch nor a plugin."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from regplug.choices import (
    KeyValue,
    chosen_spec,
    complete_strategy,
    digest_option,
    follow_links_option,
    json_option,
    size_options,
)
from regplug.errors import ExportError, NameLookupError, PluginError, RegplugError, SpecError
from regplug.printing import print_columns, print_json, progress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from regplug.backbone import BackboneSizes
    from regplug.entries import Entry
    from regplug.layout import TokenLayout

EXIT_FAILED, EXIT_USAGE, EXIT_PLUGIN, EXIT_INTERRUPTED = 1, 2, 3, 130
HERE = Path(__file__).resolve().parent


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="regplug")
def group() -> None:
    """Pick a register readout by name, get the matching FiLM width, ship it to Python and C++."""


def main() -> None:
    """The entry point: every error on purpose is one message on stderr and an exit code."""
    try:
        sys.exit(group(standalone_mode=False))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(EXIT_INTERRUPTED)
    except RegplugError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(exit_code(error))
    except OSError as error:  # a full disk behind stdout, a folder that may not be listed
        click.echo(f"error: {error}", err=True)
        sys.exit(EXIT_FAILED)


def exit_code(error: RegplugError) -> int:
    """1 a check failed or a file is bad, 2 a name or an option is wrong, 3 the named plugin failed to load."""
    if isinstance(error, PluginError):
        return EXIT_PLUGIN
    return EXIT_USAGE if isinstance(error, (NameLookupError, SpecError)) else EXIT_FAILED


@group.command("list")
@json_option
def list_command(as_json: bool) -> None:
    """Show the strategies, backbones and export backends, and who brought them."""
    from regplug.installed import default_registry

    registry = default_registry()
    sections: dict[str, Sequence[Entry]] = {
        "strategies": registry.readout_entries(),
        "film_generators": registry.film_entries(),
        "backbones": registry.backbone_entries(),
        "export_backends": registry.export_backend_entries(),
    }
    if as_json:
        print_json(
            "list",
            {
                section: [
                    {
                        "name": entry.name,
                        "full_name": entry.full_name,
                        "distribution": entry.provenance.distribution if entry.provenance else None,
                        "version": entry.provenance.version if entry.provenance else None,
                        "summary": entry.summary,
                    }
                    for entry in entries
                ]
                for section, entries in sections.items()
            }
            | {
                "plugins": [
                    {
                        "distribution": record.distribution,
                        "version": record.version,
                        "status": record.status,
                        "error": record.error and str(record.error),
                    }
                    for record in registry.plugins()
                ]
            },
        )
        return
    for section, entries in sections.items():
        rows = [
            (entry.name, f"{entry.provenance.distribution} {entry.provenance.version}", entry.summary)
            for entry in entries
            if entry.provenance
        ]
        if rows:
            print_columns((section.replace("_", " "), "from", ""), rows)
            click.echo()
    found = [(one.distribution, one.version, one.status, str(one.error or "")) for one in registry.plugins()]
    print_columns(("plugins", "version", "status", ""), found)


@group.command("cond-dim")
@click.argument("strategy", required=False, shell_complete=complete_strategy)
@size_options
@json_option
def cond_dim_command(
    strategy: str | None,
    num_registers: int | None,
    hidden_dim: int | None,
    backbone: str | None,
    options: Any,
    as_json: bool,
) -> None:
    """Print the width of the conditioning vector; with --backbone, site by site. Allocates no weights."""
    spec, sizes = chosen_spec(strategy, num_registers, hidden_dim, backbone, options)
    sites = [{**asdict(site), "cond_dim": spec.cond_dim} for site in sizes.film_sites] if sizes else []
    if as_json:
        print_json("cond-dim", {**spec.as_dict(), "film_sites": sites})
    elif sites:
        print_columns(("site", "features", "layers", "cond_dim"), [tuple(site.values()) for site in sites])
    else:
        click.echo(spec.cond_dim)


@group.command("info")
@click.argument("what", metavar="STRATEGY|BACKBONE[:MODEL]|BUNDLE|WEIGHTS", shell_complete=complete_strategy)
@size_options
@follow_links_option
@json_option
def info_command(what: str, follow_links: bool, as_json: bool, **choice: Any) -> None:
    """Say what a strategy, a backbone, a bundle or a weights file is. Runs nothing of a bundle."""
    from regplug.information import inform

    values = inform(what, follow_links=follow_links, **choice)
    if as_json:
        print_json("info", values)
        return
    for key, value in json.loads(json.dumps(values)).items():  # tuples print as the lists they are in JSON
        if isinstance(value, list) and value and isinstance(value[0], dict):
            click.echo(f"{key}:")
            print_columns(tuple(value[0]), [tuple(row.values()) for row in value])
        else:
            click.echo(f"{key}: {_spell(value)}")


@group.command("export")
@click.argument("strategy", required=False, shell_complete=complete_strategy)
@size_options
@click.option(
    "--weights", type=click.Path(exists=True, dir_okay=False), metavar="FILE", help="Trained weights, safetensors."
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**63 - 1),
    default=0,
    show_default=True,
    help="Of the initial weights, without --weights.",
)
@click.option("--backend", "backends", multiple=True, default=("torchscript",), show_default=True, help="Repeatable.")
@click.option("--no-programs", is_flag=True, help="Data only: no program of any backend.")
@click.option("--film", type=KeyValue(), multiple=True, help="Export a conditioner; an option of its FiLM generator.")
@click.option("--layout", type=KeyValue(), multiple=True, help="Where the registers sit: start=1, num_tokens=201, ...")
@click.option("--force", is_flag=True, help="Replace the bundle that stands there, in one step.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, metavar="DIR", help="The folder to make."
)
@json_option
def export_command(
    strategy: str | None,
    num_registers: int | None,
    hidden_dim: int | None,
    backbone: str | None,
    options: Any,
    weights: str | None,
    seed: int,
    backends: tuple[str, ...],
    no_programs: bool,
    film: Any,
    layout: Any,
    force: bool,
    output: Path,
    as_json: bool,
) -> None:
    """Write a bundle: weights, golden cases, and programs proven equal to eager."""
    from regplug.writing import check_place

    try:
        check_place(output, force)  # before torch is imported and anything is computed
    except ExportError as error:
        raise click.UsageError(str(error)) from error
    spec, sizes = chosen_spec(strategy, num_registers, hidden_dim, backbone, options)
    film_options = dict(film)
    clashes = sorted({"spec", "film", "width"} & set(film_options))
    if clashes:
        raise SpecError(f"--film: {clashes[0]}: expected an option of the generator, got an argument of pair.")
    place = _layout(dict(layout), spec.num_registers, spec.hidden_dim, sizes)
    if film and place is None:
        raise click.UsageError("layout: expected --layout start=N or --backbone NAME for a conditioner, got neither.")
    import torch

    from regplug.bundle import export
    from regplug.conditioner import Conditioner
    from regplug.film import KernelFiLMGenerator
    from regplug.pairing import pair
    from regplug.weightsfile import fill

    torch.manual_seed(seed)
    module: Any = spec.build()
    if film and place is not None:
        module = Conditioner(place, module, pair(spec, KernelFiLMGenerator, **film_options))
    if weights is not None:
        fill(module, weights, spec)
    with progress("export") as step:
        done = export(
            spec,
            module,
            output,
            backends=() if no_programs else tuple(dict.fromkeys(backends)),
            layout=place,
            force=force,
            progress=step,
        )
    if as_json:
        print_json("export", {"directory": str(done.directory), "digest": done.digest, **spec.as_dict()})
        return
    click.echo(f"bundle {done.directory}: {done.manifest.holds} {spec.strategy}, cond_dim {spec.cond_dim}")
    click.echo(f"digest {done.digest}")
    if weights is None:
        click.echo(f"weights are initial, from seed {seed}; use --weights FILE for trained ones", err=True)


@group.command("verify")
@click.argument("bundle", type=click.Path(exists=True))
@click.option("--programs", is_flag=True, help="Run every program too; a program is code of whoever made the bundle.")
@digest_option
@follow_links_option
@json_option
def verify_command(bundle: str, programs: bool, digest: str | None, follow_links: bool, as_json: bool) -> None:
    """Check files, digests, and eager against the golden cases; with --programs, every program on every case."""
    from regplug.verification import verify

    with progress("verify") as step:
        found = verify(bundle, programs=programs, digest=digest, follow_links=follow_links, progress=step)
    if as_json:
        # JSON has no NaN and no infinity
        checks = [{**asdict(c), "error": _finite(c.error), "ok": c.ok} for c in found.checks]
        print_json("verify", {"bundle": bundle, "digest": found.digest, "ok": found.ok, "checks": checks})
    else:
        rows = [(c.program, c.case, _number(c.error), _number(c.tolerance), c.verdict) for c in found.checks]
        print_columns(("program", "case", "largest error", "tolerance", "verdict"), rows)
        for check in found.checks:
            if check.detail:
                click.echo(check.detail)
        click.echo(f"digest {found.digest}")
    if not found.ok:
        sys.exit(EXIT_FAILED)


@group.command("cmake-dir")
def cmake_dir_command() -> None:
    """Print the folder for CMAKE_PREFIX_PATH, under which find_package(regplug) looks."""
    click.echo(HERE)


@group.command("include-dir")
def include_dir_command() -> None:
    """Print the folder of the C++ headers."""
    click.echo(HERE / "include")


def _layout(
    given: dict[str, Any], num_registers: int, hidden_dim: int, sizes: BackboneSizes | None
) -> TokenLayout | None:
    from regplug.layout import TokenLayout

    if not given:
        return sizes.layout if sizes else None
    return TokenLayout.from_dict({"num_registers": num_registers, "hidden_dim": hidden_dim, **given})


def _finite(value: float | None) -> float | None:
    return value if value is None or math.isfinite(value) else None


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _spell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={_spell(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(_spell, value)) or "none"
    return "none" if value is None else str(value)
