"""Signs a bundle and verifies its signature, through the package model-signing; offline, with an elliptic-curve key.

The signature stands beside the folder, as ``BUNDLE.sig``. What is signed is what was read: the digests of the bytes
that the load protocol gave go into the signed statement, and nothing on the disk is read a second time.
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
from regplug.format.folder import MANIFEST, read_lone_file
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
    """What ``sign`` did: the bundle's digest, which the signature covers, and the signature's file."""

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
    """Read a bundle whole, as a loader does, and sign what was read.

    The signature covers ``manifest.json`` and every file that it lists; ``README.md`` and dotfiles, which no loader
    opens, it does not.

    Args:
        directory: The bundle's folder.
        key: The private key, PEM; P-256, P-384 or P-521.
        password: Of the key, where it is encrypted.
        signature: The file to write; ``DIRECTORY.sig`` beside the folder when None.
        digest: The manifest's sha256 that the bundle must have.
        follow_links: Allow symbolic links to files.
        force: Replace the signature that stands there, in one step.

    Raises:
        BundleError: The bundle is damaged, or the key is none that can sign.
        ExportError: Something stands at the signature's place and is to be kept, or it cannot be written.
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
    """``read_bundle``, of the bundle that a signature is of: first the signature is verified, then the bundle is read.

    Args:
        directory: The bundle's folder.
        public_key: The key that must have signed it, PEM.
        signature: The signature's file; ``DIRECTORY.sig`` beside the folder when None.
        digest: The manifest's sha256 that the bundle must have.
        follow_links: Allow symbolic links to files.
        keep: Which programs are kept in memory; the others are checked and dropped.

    Raises:
        BundleError: The signature is missing, malformed, by another key or of another bundle, or the bundle is damaged.
        RegplugError: The package model-signing is not installed.
    """
    verifying = _imported("verifying")
    key = os.fspath(public_key)
    path = os.fspath(signature if signature is not None else default_signature_path(directory))
    owner = f"signature {path}"
    _check_public_key(key)
    data = read_lone_file(owner, path, at_most=MAX_SIGNATURE)
    stated = _read_stated(owner, data)
    verifier = verifying.Config().use_elliptic_key_verifier(public_key=key)
    # it is told what we read in the statement, and says whether that is what the key signed
    verifier.set_hashing_config(_AsRead("", stated))
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "signature")
        copy.write_bytes(data)
        try:
            verifier.verify(directory, copy)
        except Exception as error:  # of cryptography, of pydantic, and ValueErrors
            why = clip(message_of(error), 100) or type(error).__name__
            raise BundleError(f"{owner}: expected one by the key {key}, got another: {why}") from error
    files = read_bundle(directory, digest=digest, follow_links=follow_links, keep=keep)
    for name, sha256 in _digests(files).items():
        # the manifest pins the rest; but a signer whose tool saw other weights beside it did not sign these
        if stated.get(name, "none" if name == MANIFEST else sha256) != sha256:
            raise BundleError(
                f"{owner}: {name}: expected sha256 {sha256}, got {stated.get(name, 'none')}; it is of another bundle "
                f"than {files.path}: sign this one, or get its signature."
            )
    return files


def default_signature_path(directory: str | os.PathLike[str]) -> Path:
    """Where a bundle's signature stands: beside the folder, under its name."""
    whole = Path(os.path.abspath(directory))  # noqa: PTH100  # "bundle/", "." and ".." have names; a link keeps its own
    return whole.parent / f"{whole.name}.sig"


def _digests(files: BundleFiles) -> dict[str, str]:
    """Every file's sha256, the manifest's own too; the bytes that were read had them."""
    return {MANIFEST: files.digest, **{name: record.sha256 for name, record in files.manifest.files.items()}}


def _imported(module: str) -> Any:
    try:
        return importlib.import_module(f"model_signing.{module}")
    except ImportError as error:  # it needs pyopenssl, and does not say so
        raise RegplugError(
            f"signature: expected the package model-signing, got none ({error}); use pip install 'regplug[sign]'."
        ) from error


class _AsRead:
    """What model-signing asks for a folder's digests: it answers with those of the bytes that regplug read.

    Args:
        name: The folder's, which the statement repeats.
        stated: Each file's sha256.
    """

    def __init__(self, name: str, stated: Mapping[str, str]) -> None:
        made = _imported("manifest")
        digest = _imported("_hashing.hashing").Digest  # it has no public name
        items = [
            made.FileManifestItem(path=PurePosixPath(file), digest=digest("sha256", bytes.fromhex(sha256)))
            for file, sha256 in stated.items()
        ]
        # bytes are signed, through links or not; dotfiles it would have to be told one by one
        form = {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": ["README.md"]}
        self._manifest = made.Manifest(name, items, made.SerializationType.from_args(form))

    def hash(self, model_path: object, *, files_to_hash: object = None) -> Any:
        return self._manifest

    def add_ignored_paths(self, *, model_path: object, paths: object) -> None:
        """Nothing is looked for on the disk, so nothing is passed over."""


def _read_stated(owner: str, data: bytes) -> dict[str, str]:
    """Each file's sha256 that a signature's statement claims; whose claim it is, is verified afterwards.

    Raises:
        BundleError: It is not what model-signing writes with an elliptic-curve key.
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
    except (KeyError, TypeError, ValueError):  # a key that is not there, or another kind of value at its place
        fits, stated = False, {}
    if not fits or len(stated) != len(resources):
        raise BundleError(f"{owner}: expected one of whole files, by sha256 and an elliptic-curve key, got another.")
    return stated


def _check_private_key(path: str, password: bytes | None) -> None:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    owner = f"key {path}"
    _check_curve(owner, lambda data: load_pem_private_key(data, password).public_key())


def _check_public_key(path: str) -> None:
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    _check_curve(f"key {path}", load_pem_public_key)


def _check_curve(owner: str, load: Callable[[bytes], Any]) -> None:
    """Refuse a key before model-signing reads it, which would say so in a dozen ways, and never of which file."""
    from cryptography.exceptions import UnsupportedAlgorithm

    data = read_lone_file(owner, owner.removeprefix("key "), at_most=MAX_KEY)
    try:
        key = load(data)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:  # a TypeError: with a password, or without
        raise BundleError(f"{owner}: expected {KEYS}, got: {clip(message_of(error), 100)}") from error
    curve = getattr(key, "curve", None)
    if curve is None or curve.name not in CURVES:
        got = type(key).__name__ if curve is None else curve.name
        raise BundleError(f"{owner}: expected {KEYS}, got {got}.")
