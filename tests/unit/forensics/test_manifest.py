"""Signed manifests: what was signed verifies; every change is caught and named."""

import base64
import hashlib
import json
import os
import subprocess
import sys

import pytest

from quantharm.common.errors import UserError
from quantharm.common.files import sha256_of_file
from quantharm.forensics import file_hashes, manifest


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    private, public = folder / "owner.pem", folder / "owner.pub"
    manifest.make_keys(private, public)
    return private, public


@pytest.fixture
def signed(tmp_path, keys):
    """A small checkpoint and its signature."""
    folder = tmp_path / "model"
    (folder / "original").mkdir(parents=True)
    for name, content in {"config.json": b"{}", "model.safetensors": bytes(range(256)), "original/a.txt": b"a"}.items():
        (folder / name).write_bytes(content)
    signature = tmp_path / "model.sig"
    assert manifest.sign(folder, keys[0], signature) == 3
    return folder, signature


def test_the_private_key_is_its_owners_alone_and_never_overwritten(keys, tmp_path):
    assert keys[0].stat().st_mode & 0o077 == 0
    with pytest.raises(UserError, match="exists already"):
        manifest.make_keys(keys[0], tmp_path / "other.pub")


def test_a_signed_folder_verifies_and_names_every_file(signed, keys):
    record = manifest.verify(signed[0], keys[1], signed[1])
    assert record["verified"]
    assert record["files"] == 3
    assert set(manifest.signed_files(signed[1])) == {"config.json", "model.safetensors", "original/a.txt"}


def flip_a_bit(folder):
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)


FAULTS = {
    "wrong": (flip_a_bit, "model.safetensors"),
    "missing": (lambda folder: (folder / "original/a.txt").unlink(), "original/a.txt"),
    "extra": (lambda folder: (folder / "more.py").write_text("import os"), "more.py"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_caught_and_its_file_named(signed, keys, fault):
    change, name = FAULTS[fault]
    change(signed[0])
    record = manifest.verify(signed[0], keys[1], signed[1])
    assert not record["verified"]
    assert {kind: record[kind] for kind in FAULTS} == {kind: [name] if kind == fault else [] for kind in FAULTS}
    assert f"{fault}: {name}" in record["explanation"]


def test_a_renamed_file_is_missing_and_extra(signed, keys):
    (signed[0] / "config.json").rename(signed[0] / "konfig.json")
    record = manifest.verify(signed[0], keys[1], signed[1])
    assert (record["missing"], record["extra"], record["wrong"]) == (["config.json"], ["konfig.json"], [])


def test_another_key_does_not_verify(signed, tmp_path):
    manifest.make_keys(tmp_path / "b.pem", tmp_path / "b.pub")
    assert not manifest.verify(signed[0], tmp_path / "b.pub", signed[1])["verified"]


@pytest.mark.parametrize("with_files", [True, False])
def test_an_altered_manifest_does_not_verify(signed, keys, with_files):
    """Somebody changes a file and writes its new hash into the manifest, without the private key."""
    folder, signature = signed
    old = manifest.signed_files(signature)["config.json"]
    if with_files:
        (folder / "config.json").write_text('{"a": 1}')
    new = sha256_of_file(folder / "config.json") if with_files else "0" * 64
    bundle = json.loads(signature.read_text())
    payload = base64.b64decode(bundle["dsseEnvelope"]["payload"]).replace(old.encode(), new.encode())
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
    signature.write_text(json.dumps(bundle))
    record = manifest.verify(folder, keys[1], signature)
    assert not record["verified"]
    assert "altered" in record["explanation"]


def test_one_file_can_be_signed_and_lie_elsewhere(tmp_path, keys):
    store, signature = tmp_path / "logits.parquet", tmp_path / "logits.sig"
    store.write_bytes(b"store")
    manifest.sign(store, keys[0], signature)
    moved = store.rename(tmp_path / "other.parquet")
    assert manifest.verify(moved, keys[1], signature)["verified"]
    moved.write_bytes(b"Store")
    assert manifest.verify(moved, keys[1], signature)["wrong"] == ["other.parquet"]


def test_only_the_files_named_are_signed_and_matter(signed, keys, tmp_path):
    folder, signature = signed[0], tmp_path / "two.sig"
    only = ["config.json", "model.safetensors"]
    assert manifest.sign(folder, keys[0], signature, only=only) == 2
    (folder / "original/a.txt").write_text("b")
    (folder / "more.json").write_text("{}")
    assert manifest.verify(folder, keys[1], signature, only=only)["verified"]
    one = manifest.verify(folder, keys[1], signed[1], only=["config.json"])  # another signed file has changed
    assert (one["verified"], one["files"], one["wrong"]) == (True, 1, [])
    unsigned = manifest.verify(folder, keys[1], signature, only=["config.json", "more.json"])
    assert (unsigned["verified"], unsigned["extra"]) == (False, ["more.json"])
    flip_a_bit(folder)
    changed = manifest.verify(folder, keys[1], signature, only=only)
    assert (changed["verified"], changed["wrong"], changed["extra"]) == (False, ["model.safetensors"], [])
    (folder / "model.safetensors").unlink()
    gone = manifest.verify(folder, keys[1], signature, only=only)
    assert (gone["verified"], gone["missing"]) == (False, ["model.safetensors"])
    assert manifest.verify(folder, keys[1], signature, only=["config.json"])["verified"]
    manifest.make_keys(tmp_path / "b.pem", tmp_path / "b.pub")
    assert not manifest.verify(folder, tmp_path / "b.pub", signature, only=["config.json"])["verified"]
    with pytest.raises(UserError, match="none does not exist"):
        manifest.sign(folder, keys[0], signature, only=["none"])


def test_a_signature_inside_its_folder_is_left_out(signed, keys):
    folder, _ = signed
    manifest.sign(folder, keys[0], folder / "model.sig")
    assert manifest.verify(folder, keys[1], folder / "model.sig")["verified"]
    assert "model.sig" not in manifest.signed_files(folder / "model.sig")


def test_links_as_in_the_hubs_cache_are_followed(tmp_path, keys):
    folder = tmp_path / "snapshot"
    folder.mkdir()
    (tmp_path / "blob").write_bytes(b"weights")
    (folder / "model.safetensors").symlink_to(tmp_path / "blob")
    manifest.sign(folder, keys[0], tmp_path / "s.sig")
    assert manifest.verify(folder, keys[1], tmp_path / "s.sig")["verified"]
    (tmp_path / "blob").write_bytes(b"Weights")
    assert manifest.verify(folder, keys[1], tmp_path / "s.sig")["wrong"] == ["model.safetensors"]


def test_a_password_protects_the_private_key(tmp_path, signed):
    manifest.make_keys(tmp_path / "p.pem", tmp_path / "p.pub", password="secret")
    assert b"ENCRYPTED" in (tmp_path / "p.pem").read_bytes()
    with pytest.raises(UserError, match="cannot sign"):
        manifest.sign(signed[0], tmp_path / "p.pem", tmp_path / "p.sig")
    manifest.sign(signed[0], tmp_path / "p.pem", tmp_path / "p.sig", password="secret")
    assert manifest.verify(signed[0], tmp_path / "p.pub", tmp_path / "p.sig")["verified"]


@pytest.mark.parametrize("broken", ["signature", "key", "folder"])
def test_what_cannot_be_judged_is_one_sentence(signed, keys, tmp_path, broken):
    (tmp_path / "x").write_text("{}")
    arguments = {"folder": signed[0], "key": keys[1], "signature": signed[1]}
    arguments[broken] = tmp_path / ("none" if broken == "folder" else "x")
    with pytest.raises(UserError):
        manifest.verify(arguments["folder"], arguments["key"], arguments["signature"])


def test_exit_codes_of_the_command(signed, keys, root):
    environment = os.environ | {"PYTHONPATH": str(root / "workflow")}

    def run(signature):
        command = [sys.executable, "-m", "quantharm.forensics.manifest", "verify", signed[0], "--public-key", keys[1]]
        done = subprocess.run(
            [*map(str, command), "--signature", str(signature)], env=environment, capture_output=True, text=True
        )
        assert "Traceback" not in done.stderr
        return done.returncode

    assert run(signed[1]) == 0
    flip_a_bit(signed[0])
    assert run(signed[1]) == 3
    assert run(signed[0] / "none.sig") == 1


# ---------------------------------------------------------------- recorded hashes


def recorded(folder):
    return [{"name": p.name, "sha256": sha256_of_file(p)} for p in sorted(folder.glob("*.safetensors"))]


def test_recorded_hashes(signed):
    folder = signed[0]
    files = recorded(folder)
    assert file_hashes.verify_recorded(folder, files)["verified"]
    flip_a_bit(folder)
    assert file_hashes.verify_recorded(folder, files)["wrong"] == ["model.safetensors"]
    (folder / "consolidated.safetensors").write_bytes(b"2")  # which is not loaded
    assert file_hashes.verify_recorded(folder, files)["extra"] == []
    assert file_hashes.verify_recorded(folder, [])["extra"] == ["model.safetensors"]
    (folder / "model.safetensors").unlink()
    assert file_hashes.verify_recorded(folder, files)["missing"] == ["model.safetensors"]


def test_a_file_of_the_hubs_cache_is_compared_with_what_the_hub_published(tmp_path):
    folder = tmp_path / "snapshot"
    folder.mkdir()
    content = b"published"
    blob = tmp_path / hashlib.sha256(content).hexdigest()
    blob.write_bytes(content)
    (folder / "model.safetensors").symlink_to(blob)
    assert "published" in file_hashes.verify_recorded(folder, recorded(folder))["explanation"]
    blob.write_bytes(b"replaced")  # and recorded after that
    assert file_hashes.verify_recorded(folder, recorded(folder))["wrong"] == ["model.safetensors"]
