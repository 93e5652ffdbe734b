"""Signs a bundle and verifies its signature with the package model-signing: offline, with an elliptic-curve key.

The signature is next to the folder, as ``BUNDLE.sig``. The signed statement holds the digests of the bytes that were
read when the bundle was checked; nothing is read from the disk a second time.
"""

from __future__ import annotations

import base64
import importlib
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from regplug.errors import BundleError, RegplugError, SpecError, clip, message_of
from regplug.format.folder import MANIFEST, read_single_file
from regplug.format.manifest import ProgramRecord
from regplug.format.read_bundle import BundleFiles, check_bundle, read_bundle
from regplug.format.single_file import check_file_place, write_files
from regplug.registry.json_text import WrongValueError, parse_json, plain

MAX_SIGNATURE = 1 << 20
MAX_KEY = 1 << 16
CURVES = ("secp256r1", "secp384r1", "secp521r1")
KEYS = "a PEM file with a key on P-256, P-384 or P-521"
SHA256 = re.compile(r"[0-9a-f]{64}")
STATED = "https://model_signing/signature/v1.0"


@dataclass(frozen=True)
class Signed:
    """The result of ``sign``: the bundle's digest, which the signature covers, and the signature's file."""

    directory: Path
    digest: str
    signature: Path


def sign(
    directory: str | os.PathLike[str],
    key: str | os.PathLike[str],
    *,
    password: bytes | None = None,
    signature: str | os.PathLike[str] | None = None,
    digest: str | None = None,
    follow_links: bool = False,
    force: bool = False,
) -> Signed:
    """Read and check a whole bundle, as a loader does, and sign what was read.

    The signature covers ``manifest.json`` and every file that it lists. It does not cover ``README.md`` and dotfiles,
    which no loader opens.

    Args:
        directory: The bundle's folder.
        key: The private key, PEM; P-256, P-384 or P-521.
        password: The key's password, if it is encrypted.
        signature: The file to write; ``DIRECTORY.sig`` next to the folder if None.
        digest: The manifest's sha256 that the bundle must have.
        follow_links: Allow symbolic links to files.
        force: Replace an existing signature, atomically.

    Raises:
        BundleError: The bundle is damaged, or the key cannot sign.
        ExportError: Something is at the signature's path that must be kept, or it cannot be written.
        RegplugError: The package model-signing is not installed.
    """
    place = Path(signature) if signature is not None else default_signature_path(directory)
    if os.path.realpath(place.parent) == os.path.realpath(directory):  # unlike `resolve`, not an error for a loop
        raise SpecError(f"signature {place}: expected a place outside the bundle, got one inside.")
    signing = _imported("signing")
    check_file_place(place, force)
    _check_private_key(os.fspath(key), password)
    files = check_bundle(directory, digest=digest, follow_links=follow_links)
    stated = _digests(files)
    signer = signing.Config().use_elliptic_key_signer(private_key=key, password=password)
    signer.set_hashing_config(_AsRead(default_signature_path(directory).stem, stated))
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder, "signature")
        signer.sign(directory, written)
        write_files({place: written.read_bytes()}, force)
    return Signed(Path(directory), files.digest, place)


def read_signed_bundle(
    directory: str | os.PathLike[str],
    *,
    public_key: str | os.PathLike[str],
    signature: str | os.PathLike[str] | None = None,
    digest: str | None = None,
    follow_links: bool = False,
    keep: Callable[[ProgramRecord], bool] = lambda program: False,
) -> BundleFiles:
    """Verify a bundle's signature, then read the bundle as ``read_bundle`` does.

    Args:
        directory: The bundle's folder.
        public_key: The key that must have signed it, PEM.
        signature: The signature's file; ``DIRECTORY.sig`` next to the folder if None.
        digest: The manifest's sha256 that the bundle must have.
        follow_links: Allow symbolic links to files.
        keep: Which programs to keep in memory; the others are only checked.

    Raises:
        BundleError: The signature is missing, malformed, by another key or of another bundle, or the bundle is damaged.
        RegplugError: The package model-signing is not installed.
    """
    verifying = _imported("verifying")
    key = os.fspath(public_key)
    path = os.fspath(signature if signature is not None else default_signature_path(directory))
    owner = f"signature {path}"
    _check_public_key(key)
    data = read_single_file(owner, path, at_most=MAX_SIGNATURE)
    stated = _read_stated(owner, data)
    verifier = verifying.Config().use_elliptic_key_verifier(public_key=key)
    # it compares the digests in the statement, as we read them, with what the key signed
    verifier.set_hashing_config(_AsRead("", stated))
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "signature")
        copy.write_bytes(data)
        try:
            verifier.verify(directory, copy)
        except Exception as error:  # from cryptography, from pydantic, and ValueErrors
            why = clip(message_of(error), 100) or type(error).__name__
            raise BundleError(f"{owner}: expected one by the key {key}, got another: {why}") from error
    files = read_bundle(directory, digest=digest, follow_links=follow_links, keep=keep)
    for name, sha256 in _digests(files).items():
        # the manifest pins the rest; but a signer that saw other weights next to it did not sign these
        if stated.get(name, "none" if name == MANIFEST else sha256) != sha256:
            raise BundleError(
                f"{owner}: {name}: expected sha256 {sha256}, got {stated.get(name, 'none')}; it is of another bundle "
                f"than {files.path}: sign this one, or get its signature."
            )
    return files


def default_signature_path(directory: str | os.PathLike[str]) -> Path:
    """The default path of a bundle's signature: next to the folder, with the folder's name."""
    whole = Path(os.path.abspath(directory))  # noqa: PTH100  # also for "bundle/", "." and ".."; a link keeps its name
    return whole.parent / f"{whole.name}.sig"


def _digests(files: BundleFiles) -> dict[str, str]:
    """The sha256 of every file that was read, the manifest included."""
    return {MANIFEST: files.digest, **{name: record.sha256 for name, record in files.manifest.files.items()}}


def _imported(module: str) -> Any:
    try:
        return importlib.import_module(f"model_signing.{module}")
    except ImportError as error:  # its message does not say that it needs pyopenssl
        raise RegplugError(
            f"signature: expected the package model-signing, got none ({error}); use pip install 'regplug[sign]'."
        ) from error


class _AsRead:
    """Gives model-signing the digests of the bytes that regplug read, instead of those of a folder.

    Args:
        name: The folder's name, which is part of the statement.
        stated: The sha256 of each file.
    """

    def __init__(self, name: str, stated: Mapping[str, str]) -> None:
        made = _imported("manifest")
        digest = _imported("_hashing.hashing").Digest  # it has no public name
        items = [
            made.FileManifestItem(path=PurePosixPath(file), digest=digest("sha256", bytes.fromhex(sha256)))
            for file, sha256 in stated.items()
        ]
        # bytes are signed, through links or not; dotfiles would have to be listed one by one
        form = {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": ["README.md"]}
        self._manifest = made.Manifest(name, items, made.SerializationType.from_args(form))

    def hash(self, model_path: object, *, files_to_hash: object = None) -> Any:
        return self._manifest

    def add_ignored_paths(self, *, model_path: object, paths: object) -> None:
        """Nothing is read from the disk, so nothing is ignored."""


def _read_stated(owner: str, data: bytes) -> dict[str, str]:
    """The sha256 of each file in a signature's statement; the signature itself is verified later.

    Raises:
        BundleError: Model-signing does not write such files with an elliptic-curve key.
    """
    try:
        whole = plain(parse_json(data))
        envelope = whole["dsseEnvelope"]
        statement = plain(parse_json(base64.b64decode(envelope["payload"], validate=True)))
        predicate = statement["predicate"]
        resources = predicate["resources"]
        fits = (
            isinstance(whole["verificationMaterial"]["publicKey"]["hint"], str)
            and len(envelope["signatures"]) == 1
            and statement["predicateType"] == STATED
            and predicate["serialization"]["method"] == "files"
            and all(one["algorithm"] == "sha256" and SHA256.fullmatch(one["digest"]) for one in resources)
        )
        stated = {str(PurePosixPath(one["name"])): one["digest"] for one in resources}
    except WrongValueError as error:
        raise BundleError(f"{owner}: {error}.") from error
    except (KeyError, TypeError, ValueError):  # a missing key, or a value of another type
        fits, stated = False, {}
    if not fits or len(stated) != len(resources):
        raise BundleError(f"{owner}: expected one of whole files, by sha256 and an elliptic-curve key, got another.")
    return stated


def _check_private_key(path: str, password: bytes | None) -> None:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    _check_curve(path, lambda data: load_pem_private_key(data, password).public_key())


def _check_public_key(path: str) -> None:
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    _check_curve(path, load_pem_public_key)


def _check_curve(path: str, load: Callable[[bytes], Any]) -> None:
    """Refuse a wrong key before model-signing reads it: its many messages never name the file."""
    from cryptography.exceptions import UnsupportedAlgorithm

    owner = f"key {path}"
    data = read_single_file(owner, path, at_most=MAX_KEY)
    try:
        key = load(data)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:  # a TypeError: a password is missing, or not needed
        raise BundleError(f"{owner}: expected {KEYS}, got: {clip(message_of(error), 100)}") from error
    curve = getattr(key, "curve", None)
    if curve is None or curve.name not in CURVES:
        got = type(key).__name__ if curve is None else curve.name
        raise BundleError(f"{owner}: expected {KEYS}, got {got}.")
