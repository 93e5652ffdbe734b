"""The ``sign`` command. Importing this module imports neither torch nor a plugin nor model-signing."""

from __future__ import annotations

import os
from pathlib import Path

import click

from regplug.commands.printing import print_json, say
from regplug.commands.shared_options import digest_option, follow_links_option, json_option
from regplug.errors import ExportError


@click.command("sign")
@click.argument("bundle", type=click.Path())
@click.option(
    "--key", type=click.Path(), required=True, metavar="FILE", help="The private key, PEM: P-256, P-384 or P-521."
)
@click.option("--password-env", metavar="VARIABLE", help="The environment variable that holds the key's password.")
@click.option(
    "--signature", type=click.Path(path_type=Path), metavar="FILE", help="The file to write. Default: BUNDLE.sig."
)
@click.option("--force", is_flag=True, help="Replace an existing signature, atomically.")
@digest_option
@follow_links_option
@json_option
def sign_command(
    bundle: str,
    key: str,
    password_env: str | None,
    signature: Path | None,
    force: bool,
    digest: str | None,
    follow_links: bool,
    as_json: bool,
) -> None:
    """Sign a bundle, offline.

    Writes BUNDLE.sig next to it, which `regplug verify --public-key` checks. Needs `pip install 'regplug[sign]'`.
    """
    from regplug.bundle.sign import default_signature_path, sign
    from regplug.format.single_file import check_file_place

    try:
        check_file_place(signature or default_signature_path(bundle), force)
    except ExportError as error:
        raise click.UsageError(str(error)) from error
    if password_env is not None and password_env not in os.environ:
        raise click.UsageError(
            f"--password-env: expected an environment variable, got {password_env!r}, which is none."
        )
    password = None if password_env is None else os.environb[os.fsencode(password_env)]
    done = sign(
        bundle, key, password=password, signature=signature, digest=digest, follow_links=follow_links, force=force
    )
    if as_json:
        print_json("sign", {"bundle": bundle, "digest": done.digest, "signature": str(done.signature)})
        return
    say(f"signature {done.signature}")
    say(f"digest {done.digest}")
