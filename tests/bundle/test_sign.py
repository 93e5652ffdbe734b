"""Signed bundles: what was read is signed, a wrong signature gives a one-line error, and model-signing agrees."""

import base64
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
import torch
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from support.damage import DAMAGES, edit_manifest, flip_byte, repin

import regplug
from regplug.bundle.sign import default_signature_path, read_signed_bundle
from regplug.format.write_bundle import write_folder

CURVES = {"p256": ec.SECP256R1(), "p384": ec.SECP384R1(), "p521": ec.SECP521R1(), "other": ec.SECP256R1()}
PEM = serialization.Encoding.PEM
PKCS8 = serialization.PrivateFormat.PKCS8


def write_key(folder, name, key, password=None):
    cipher = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    (folder / f"{name}.pem").write_bytes(key.private_bytes(PEM, PKCS8, cipher))
    public = key.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (folder / f"{name}.pub").write_bytes(public)


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    for name, curve in CURVES.items():
        write_key(folder, name, ec.generate_private_key(curve))
    write_key(folder, "locked", ec.generate_private_key(ec.SECP256R1()), b"open sesame")
    write_key(folder, "k1", ec.generate_private_key(ec.SECP256K1()))
    write_key(folder, "rsa", rsa.generate_private_key(65537, 2048))
    write_key(folder, "ed25519", ed25519.Ed25519PrivateKey.generate())
    (folder / "garbage.pub").write_bytes(b"\0\xff" * 50)
    (folder / "large.pub").write_bytes(b"-" * 70_000)
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    spec = regplug.resolve("compress-concat", num_registers=4, hidden_dim=24, compressed_dim=6)
    torch.manual_seed(0)
    regplug.export(spec, spec.build(), folder / "bundle")
    return folder / "bundle"


@pytest.fixture
def bundle(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "bundle")


@pytest.fixture
def signed(bundle, keys):
    regplug.sign(bundle, keys / "p256.pem")
    return bundle


def model_signing(*arguments):
    command = [Path(sys.executable).parent / "model_signing", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("curve", ["p256", "p384", "p521"])
def test_what_was_signed_is_verified_by_the_public_key(run, bundle, keys, curve):
    code, out, _ = run("sign", bundle, "--key", keys / f"{curve}.pem")
    digest = regplug.verify(bundle).digest
    assert (code, out) == (0, f"signature {bundle}.sig\ndigest {digest}\n")
    code, out, err = run("verify", bundle, "--public-key", keys / f"{curve}.pub")
    assert (code, err) == (0, "")
    assert out.endswith(f"digest {digest}\n")


def test_an_encrypted_key_takes_its_password_from_a_variable(run, bundle, keys, monkeypatch):
    key = keys / "locked.pem"
    code, _, err = run("sign", bundle, "--key", key)
    assert code == 1
    assert err.startswith(f"error: key {key}: expected a PEM file with a key on P-256, P-384 or P-521, got: ")
    monkeypatch.setenv("KEY_PASSWORD", "close sesame")
    assert run("sign", bundle, "--key", key, "--password-env", "KEY_PASSWORD")[0] == 1
    assert not default_signature_path(bundle).exists()
    monkeypatch.setenv("KEY_PASSWORD", "open sesame")
    code, out, _ = run("sign", bundle, "--key", key, "--password-env", "KEY_PASSWORD", "--json")
    assert (code, json.loads(out)["signature"]) == (0, f"{bundle}.sig")
    assert regplug.verify(bundle, public_key=keys / "locked.pub").ok


def test_model_signing_accepts_our_signature_and_detects_a_change(signed, keys):
    (signed / "README.md").write_text("for people; no loader reads it, no signature covers it")
    given = ["--signature", default_signature_path(signed), "--public_key", keys / "p256.pub"]
    done = model_signing("verify", "key", signed, *given)
    assert done.returncode == 0, done.stdout + done.stderr
    flip_byte(signed / "weights.safetensors")
    assert model_signing("verify", "key", signed, *given).returncode == 1


@pytest.mark.parametrize("readme", [False, True], ids=["bare", "with a README"])
def test_we_accept_what_model_signing_signed(bundle, keys, readme):
    if readme:
        (bundle / "README.md").write_text("signed by model-signing")
    done = model_signing(
        "sign", "key", bundle, "--private_key", keys / "p384.pem", "--signature", default_signature_path(bundle)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert regplug.verify(bundle, public_key=keys / "p384.pub").ok


def test_files_that_no_loader_reads_are_not_covered_by_the_signature(signed, keys):
    (signed / "README.md").write_text("edited afterwards")
    (signed / ".gitattributes").write_text("*.pt binary")
    assert regplug.verify(signed, public_key=keys / "p256.pub").ok


def test_files_through_links_are_signed_and_verified_where_links_are_allowed(exported, keys, tmp_path):
    bundle = tmp_path / "links"
    bundle.mkdir()
    for file in exported.iterdir():
        (bundle / file.name).symlink_to(file)
    with pytest.raises(regplug.BundleError, match="a symbolic link; use follow_links to follow it"):
        regplug.sign(bundle, keys / "p256.pem")
    regplug.sign(bundle, keys / "p256.pem", follow_links=True)
    assert regplug.verify(bundle, public_key=keys / "p256.pub", follow_links=True).ok
    given = ["--allow_symlinks", "--signature", default_signature_path(bundle), "--public_key", keys / "p256.pub"]
    assert model_signing("verify", "key", bundle, *given).returncode == 0


def test_a_damaged_bundle_is_not_signed(bundle, keys):
    for damage in ("one byte changed", "a file added", "a FIFO"):
        folder = shutil.copytree(bundle, bundle.parent / damage.replace(" ", "-"))
        change, expected = DAMAGES[damage]
        change(folder)
        with pytest.raises(regplug.BundleError) as refused:
            regplug.sign(folder, keys / "p256.pem")
        assert str(refused.value) == expected.replace("DIR", str(folder))
        assert not default_signature_path(folder).exists()


def test_only_the_bundle_with_the_digest_is_signed(bundle, keys):
    with pytest.raises(regplug.BundleError, match="pinned is 0{64}"):
        regplug.sign(bundle, keys / "p256.pem", digest="0" * 64)
    assert not default_signature_path(bundle).exists()


def test_an_existing_signature_is_kept_without_force(run, signed, keys):
    before = default_signature_path(signed).read_bytes()
    code, _, err = run("sign", signed, "--key", keys / "p384.pem")
    assert code == 2
    assert f"file {signed}.sig: exists and is kept; use force to replace it (--force), or another name.\n" in err
    assert default_signature_path(signed).read_bytes() == before
    assert run("sign", signed, "--key", keys / "p384.pem", "--force")[0] == 0
    assert regplug.verify(signed, public_key=keys / "p384.pub").ok
    assert sorted(path.name for path in signed.parent.iterdir()) == ["bundle", "bundle.sig"]


def test_a_signature_inside_the_bundle_is_refused(run, bundle, keys):
    code, _, err = run("sign", bundle, "--key", keys / "p256.pem", "--signature", bundle / "bundle.sig")
    assert code == 2
    assert err == f"error: signature {bundle}/bundle.sig: expected a place outside the bundle, got one inside.\n"


def test_the_signature_is_next_to_the_folder_for_every_spelling_of_its_path(signed, keys, monkeypatch):
    monkeypatch.chdir(signed)
    for spelled in (".", f"{signed}/", "../bundle", "../bundle/", Path("../bundle")):
        assert default_signature_path(spelled) == Path(f"{signed}.sig")
        assert regplug.verify(spelled, public_key=keys / "p256.pub").ok


def test_the_commands_of_the_security_page_do_what_it_says(run, bundle, keys, monkeypatch):
    page = Path(__file__).resolve().parents[2] / "docs" / "SECURITY.md"
    commands = re.findall(r"^    regplug (.+)$", page.read_text(), re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["sign", "verify"]
    monkeypatch.chdir(bundle.parent)
    shutil.copy(keys / "p256.pem", "key.pem")
    shutil.copy(keys / "p256.pub", "pub.pem")
    for command in commands:
        code, out, _ = run(*command.split())
        assert (code, out.splitlines()[-1]) == (0, f"digest {regplug.verify(bundle).digest}")
    assert Path("bundle.sig").is_file()


# ---- signatures of other bundles


def line_of(run, bundle, *more):
    """The one line that verify prints on stderr, with exit code 1."""
    code, out, err = run("verify", bundle, *more)
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    return err.removeprefix("error: ").rstrip("\n")


def test_the_signature_of_a_replaced_bundle_is_refused(run, signed, keys):
    old = regplug.verify(signed).digest
    spec = regplug.resolve("compress-concat", num_registers=4, hidden_dim=24, compressed_dim=6)
    new = regplug.export(spec, spec.build(), signed, force=True).digest
    said = (
        f"signature {signed}.sig: manifest.json: expected sha256 {new}, got {old}; it is of another bundle than "
        f"{signed}: sign this one, or get its signature."
    )
    assert line_of(run, signed, "--public-key", keys / "p256.pub") == str(regplug.BundleError(said))


def test_a_bundle_swapped_after_its_signature_was_verified_is_refused(signed, keys, monkeypatch):
    from regplug.bundle import sign

    read = sign.read_bundle

    def swapped(directory, **options):
        edit_manifest(signed, lambda values: values["provenance"].update(cpu="another"))
        return read(directory, **options)

    monkeypatch.setattr(sign, "read_bundle", swapped)
    with pytest.raises(regplug.BundleError, match="manifest.json: expected sha256 .* it is of another bundle"):
        read_signed_bundle(signed, public_key=keys / "p256.pub")


def test_while_a_writer_exchanges_bundles_only_the_signed_one_is_read(signed, keys, tmp_path):
    spec = regplug.resolve("compress-concat", num_registers=4, hidden_dim=24, compressed_dim=6)
    regplug.export(spec, spec.build(), tmp_path / "another")
    digest = regplug.verify(signed).digest
    versions = [
        {path.name: path.read_bytes() for path in folder.iterdir()} for folder in (tmp_path / "another", signed)
    ]
    stop = threading.Event()

    def write():
        for files in itertools.cycle(versions):
            write_folder(signed, files, force=True)
            if stop.is_set():
                return

    writer = threading.Thread(target=write)
    writer.start()
    seen = Counter()
    try:
        while len(seen) < 2 or seen.total() < 20:  # both, also on a slow machine
            try:
                seen[read_signed_bundle(signed, public_key=keys / "p256.pub").digest] += 1
            except regplug.BundleError as error:
                seen[str(error).rpartition(": ")[2]] += 1
    finally:
        stop.set()
        writer.join()
    assert set(seen) == {digest, "sign this one, or get its signature."}


def test_damage_is_reported_although_the_signature_is_valid(run, signed, keys):
    flip_byte(signed / "weights.safetensors")
    said = line_of(run, signed, "--public-key", keys / "p256.pub")
    assert said == (f"bundle {signed}: weights.safetensors: sha256 differs from the manifest; export the bundle again.")
    repin(signed)
    assert "it is of another bundle than" in line_of(run, signed, "--public-key", keys / "p256.pub")


@pytest.mark.parametrize("name", ["other", "p384"])
def test_a_signature_by_another_key_is_refused(run, signed, keys, name):
    public = keys / f"{name}.pub"
    said = line_of(run, signed, "--public-key", public)
    assert said.startswith(f"signature {signed}.sig: expected one by the key {public}, got another: ")


@pytest.mark.parametrize("name", ["k1", "rsa", "ed25519", "garbage", "large", "none"])
@pytest.mark.parametrize("command", ["sign", "verify"])
def test_a_key_of_another_kind_is_refused_with_its_file(run, signed, keys, name, command):
    if command == "sign":
        key = keys / (f"{name}.pub" if name in ("garbage", "large", "none") else f"{name}.pem")
        code, out, err = run("sign", signed, "--key", key, "--force")
    else:
        key = keys / f"{name}.pub"
        code, out, err = run("verify", signed, "--public-key", key)
    assert (code, out, err.count("\n")) == (1, "", 1)
    wanted = {"none": "missing.", "large": "expected at most 65536 bytes, got 70000."}
    wanted = wanted.get(name, "expected a PEM file with a key on P-256, P-384 or P-521, got")
    assert err.startswith(f"error: key {key}: {wanted}")


def changed(**changes):
    """The signature with some values of the file changed."""

    def change(path):
        values = json.loads(path.read_bytes())
        for place, value in changes.items():
            inside = values
            *steps, last = place.split("__")
            for step in steps:
                inside = inside[step]
            inside[last] = value
        path.write_text(json.dumps(values))

    return change


def restated(**changes):
    """The signature with another, consistent statement that was not signed."""

    def change(path):
        values = json.loads(path.read_bytes())
        statement = json.loads(base64.b64decode(values["dsseEnvelope"]["payload"]))
        statement.update({key: value for key, value in changes.items() if key != "predicate"})
        statement["predicate"].update(changes.get("predicate", {}))
        values["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()
        path.write_text(json.dumps(values))

    return change


def to_fifo(path):
    path.unlink()
    os.mkfifo(path)


FOREIGN = "expected one of whole files, by sha256 and an elliptic-curve key, got another."
NOT_OURS = "expected one by the key "
HOSTILE = {
    "missing": (Path.unlink, "missing."),
    "a FIFO": (to_fifo, "not a regular file."),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "not a regular file."),
    "large": (lambda path: path.write_bytes(b" " * (2 << 20)), "expected at most 1048576 bytes, got 2097152."),
    "large and sparse": (lambda path: os.truncate(path, 1 << 40), "expected at most 1048576 bytes, got 1099511627776."),
    "empty": (lambda path: path.write_bytes(b""), "not JSON."),
    "truncated": (lambda path: os.truncate(path, 700), "not JSON."),
    "deep": (lambda path: path.write_text("[" * 1_000 + "]" * 1_000), "nested deeper than 64."),
    "nested": (lambda path: path.write_text("[" * 100 + "]" * 100), "nested deeper than 64."),
    "no UTF-8": (lambda path: path.write_bytes(b'"\xff"'), "not JSON."),
    "a key twice": (
        lambda path: path.write_text('{"dsseEnvelope": 1, "dsseEnvelope": 2}'),
        "duplicate key 'dsseEnvelope'",
    ),
    "a list": (lambda path: path.write_text("[]"), FOREIGN),
    "no object inside": (changed(dsseEnvelope=3), FOREIGN),
    "no key": (changed(verificationMaterial__publicKey={}), FOREIGN),
    "no signature": (changed(dsseEnvelope__signatures=[]), FOREIGN),
    "a payload that is no base64": (changed(dsseEnvelope__payload="?"), FOREIGN),
    "a payload that is no JSON": (changed(dsseEnvelope__payload="AAAA"), "not JSON."),
    "another kind of payload": (changed(dsseEnvelope__payloadType="text/html"), NOT_OURS),
    "another media type": (changed(mediaType="text/html"), NOT_OURS),
    "a log's entry of another type": (changed(verificationMaterial__tlogEntries=3), NOT_OURS),
    "another signature": (changed(dsseEnvelope__signatures=[{"sig": "AAAA", "keyid": ""}]), NOT_OURS),
    "an old statement": (restated(predicateType="https://model_signing/Digests/v0.1"), FOREIGN),
    "shards": (restated(predicate={"serialization": {"method": "shards"}}), FOREIGN),
    "another hash": (restated(predicate={"resources": [{"name": "a", "algorithm": "md5", "digest": "00"}]}), FOREIGN),
    "no names": (restated(predicate={"resources": [{"name": 3, "algorithm": "sha256", "digest": "0" * 64}]}), FOREIGN),
    "a name twice": (
        restated(
            predicate={"resources": [{"name": n, "algorithm": "sha256", "digest": "0" * 64} for n in ("a", "./a")]}
        ),
        FOREIGN,
    ),
    "no file": (restated(predicate={"resources": []}), NOT_OURS),
    "another statement": (restated(subject=[{"name": "another", "digest": {"sha256": "0" * 64}}]), NOT_OURS),
}


@pytest.mark.parametrize("wrong", HOSTILE)
def test_a_hostile_signature_gives_a_one_line_error(run, signed, keys, wrong):
    change, expected = HOSTILE[wrong]
    change(default_signature_path(signed))
    said = line_of(run, signed, "--public-key", keys / "p256.pub")
    assert said.startswith(f"signature {signed}.sig: {expected}")


def sign_statement(path, key, change):
    """A valid signature, by the key, of a changed statement."""
    from model_signing._signing.sign_sigstore_pb import pae

    values = json.loads(path.read_bytes())
    statement = json.loads(base64.b64decode(values["dsseEnvelope"]["payload"]))
    change(statement)
    digests = b"".join(bytes.fromhex(one["digest"]) for one in statement["predicate"]["resources"])
    hasher = hashes.Hash(hashes.SHA256())
    hasher.update(digests)
    statement["subject"][0]["digest"]["sha256"] = hasher.finalize().hex()
    payload = json.dumps(statement).encode()
    private = serialization.load_pem_private_key(key.read_bytes(), None)
    raw = private.sign(pae(payload), ec.ECDSA(hashes.SHA256()))
    values["dsseEnvelope"] |= {
        "payload": base64.b64encode(payload).decode(),
        "signatures": [{"sig": base64.b64encode(raw).decode(), "keyid": ""}],
    }
    path.write_text(json.dumps(values))


def drop(name):
    return lambda statement: statement["predicate"].update(
        resources=[one for one in statement["predicate"]["resources"] if one["name"] != name]
    )


def restate(name, digest):
    def change(statement):
        for one in statement["predicate"]["resources"]:
            if one["name"] == name:
                one["digest"] = digest

    return change


def test_a_valid_signature_of_another_statement_is_compared_with_the_files(run, signed, keys):
    key, public, path = keys / "p256.pem", keys / "p256.pub", default_signature_path(signed)
    sign_statement(path, key, lambda statement: None)
    assert regplug.verify(signed, public_key=public).ok
    sign_statement(path, key, restate("weights.safetensors", "0" * 64))  # as if the bundle was damaged then
    said = line_of(run, signed, "--public-key", public)
    assert said.startswith(f"signature {path}: weights.safetensors: expected sha256 ")
    sign_statement(path, key, drop("weights.safetensors"))  # the manifest pins them
    assert regplug.verify(signed, public_key=public).ok
    sign_statement(path, key, drop("manifest.json"))
    said = line_of(run, signed, "--public-key", public)
    assert said.startswith(f"signature {path}: manifest.json: expected sha256 ")
    assert "got none; it is of another bundle" in said


COMMAND = "from regplug.commands.main import main; sys.argv = {!r}; main()"


def test_signing_without_its_package_says_what_to_install(run_with_torch, signed, keys):
    absent = "import sys; sys.modules.update(model_signing=None, cryptography=None, OpenSSL=None)\n"
    for given in (
        ["sign", signed, "--force", "--key", keys / "p256.pem"],
        ["verify", signed, "--public-key", keys / "p256.pub"],
    ):
        done = run_with_torch(absent + COMMAND.format(["regplug", *map(str, given)]))
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("error: signature: expected the package model-signing, got none (")
        assert done.stderr.endswith("); use pip install 'regplug[sign]'.\n")


@pytest.mark.slow
def test_verifying_without_a_key_imports_nothing_of_the_signing_packages(run_with_torch, signed):
    code = (
        "import sys, regplug; regplug.sign\n"
        "from regplug.commands.main import answer\n"
        f"sys.argv = {['regplug', 'verify', str(signed)]!r}; assert answer() == 0\n"
        "print({name.split('.')[0] for name in sys.modules} & {'model_signing', 'cryptography', 'OpenSSL', 'sigstore'})"
    )
    done = run_with_torch(code)
    assert (done.returncode, done.stderr, done.stdout.splitlines()[-1]) == (0, "", "set()")
