"""Signed manifests: the sha256 of every file of a checkpoint (or of a log-prob store), under one signature.

    python -m quantharm.forensics.manifest keys --private-key owner.pem --public-key owner.pub
    python -m quantharm.forensics.manifest sign FOLDER --private-key owner.pem --signature FOLDER.sig [--files ...]
    python -m quantharm.forensics.manifest verify FOLDER --public-key owner.pub --signature FOLDER.sig [--files ...]

With --files only those files matter, such as the log-prob store among a baseline's results; others may come and go.
Signatures are bundles of the OpenSSF's model-signing library with an elliptic-curve key (P-256): they need no network
and no account, and any verifier of that format reads them. The public key must come by another way than the checkpoint.
Exit code of verify: 0 where every file is the signed one, 3 where one is not, 1 where it cannot be judged.
"""

import os
import sys
from collections.abc import Collection
from pathlib import Path

from quantharm.common.errors import UserError, first_line
from quantharm.common.files import replacing, write_text
from quantharm.common.records.integrity import Files
from quantharm.common.sanitize import print_line
from quantharm.common.stage import run_stage, stage_parser
from quantharm.forensics.file_hashes import counted, in_words, named_faults
from quantharm.forensics.signed_statement import signed_files, statement_of

FOUND_SOMETHING = 3  # exit code: the files, or models, are not what they should be
MISMATCH = "Signature mismatch"  # begins the library's error when the signature holds and the files differ
Names = Collection[str]  # of files, relative to their folder


def signing_library():
    """The package model_signing; raises UserError where it is not installed."""
    try:
        import model_signing
    except ImportError:
        raise UserError(
            "the package model-signing is not installed in this environment; install envs/evaluation.txt"
        ) from None
    return model_signing


def make_keys(private: Path, public: Path, password: str | None = None) -> None:
    """Writes a new P-256 key pair as PEM, the private key readable by its owner only.

    Raises UserError if one of the files exists.
    """
    signing_library()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    for path in (private, public):
        if path.exists():
            raise UserError(f"{path} exists already; a key is never overwritten, name another file")
    key = ec.generate_private_key(ec.SECP256R1())
    protection = serialization.BestAvailableEncryption(password.encode()) if password else serialization.NoEncryption()
    secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection)
    with replacing(private) as temporary:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        temporary.write_bytes(secret)
    known = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    write_text(public, known.decode())


def sign(path: Path, private_key: Path, signature: Path, password: str | None = None, only: Names | None = None) -> int:
    """Signs every file of a folder, one file, or those named in `only`; returns their number.

    Git's own files and the signature itself are left out. Raises UserError for a missing file or a key that cannot
    sign.
    """
    library = signing_library()
    require(path, "to sign")
    for name in only or ():
        require(path / name, "to sign")
    require(private_key, "the private key")
    hashing = library.hashing.Config().set_allow_symlinks(True)
    try:
        signer = library.signing.Config().use_elliptic_key_signer(
            private_key=private_key, password=password.encode() if password else None
        )
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{private_key} cannot sign ({first_line(error)}); it must be an elliptic-curve key in PEM"
        ) from None
    with replacing(signature) as temporary:
        left_out = inside(path, signature, temporary) + ([] if only is None else others(path, only))
        signer.set_hashing_config(hashing.set_ignored_paths(paths=left_out))
        signer.sign(path, temporary)
        return len(signed_files(temporary))


def inside(path: Path, *files: Path) -> list[Path]:
    """The files that lie in the folder, relative to it."""
    folder = path.resolve()
    return [f.resolve().relative_to(folder) for f in files if f.resolve().is_relative_to(folder)]


def others(folder: Path, only: Names) -> list[Path]:
    """The folder's files beside those named, relative to it."""
    files = [p.relative_to(folder) for p in folder.rglob("*") if p.is_file()]
    return [p for p in files if p.as_posix() not in only]


def require(path: Path, what: str) -> None:
    """Raises UserError where a path does not exist; what: its part in the command."""
    if not path.exists():
        raise UserError(f"{path} does not exist ({what}); correct the path")


def verify(path: Path, public_key: Path, signature: Path, only: Names | None = None) -> Files:
    """Compares a folder, or a file, with its signature: {verified, explanation, files, missing, wrong, extra, …}.

    File names are relative to the folder. only: the files that matter, each of which must be a signed one; all others
    may come, go and change. Raises UserError where nothing can be judged: an argument is missing, or no signature or
    key.
    """
    library = signing_library()
    for file, what in ((path, "to verify"), (public_key, "the public key"), (signature, "the signature")):
        require(file, what)
    stated, serialization = signed_files(signature), statement_of(signature)["serialization"]
    try:
        verifier = library.verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{public_key} is no elliptic-curve public key in PEM ({first_line(error)}); name the signer's public key"
        ) from None
    if (serialization["method"], serialization.get("hash_type")) == ("files", "sha256"):
        # The library forgets that links were allowed when it signed; the hub's cache consists of links.
        verifier.set_hashing_config(library.hashing.Config().set_allow_symlinks(True))
    verifier.set_ignore_unsigned_files(only is not None)
    wanted = stated if only is None else {name: stated[name] for name in only if name in stated}
    unsigned = sorted(set(only or ()) - set(stated))
    faults: dict[str, list[str]] = {"missing": [], "wrong": [], "extra": unsigned}
    reason = ""
    from cryptography.exceptions import InvalidSignature

    try:
        verifier.verify(path, signature)
    except InvalidSignature:
        reason = "the signature is not of this key, or the manifest in it was altered"
    except ValueError as error:
        # The library looks at files only once the signature holds, so after these two errors its statement is true.
        if str(error).startswith((MISMATCH, f"Cannot use '{path}")):
            named = named_faults(path, wanted)
            faults = named if only is None else named | {"extra": unsigned}
        else:
            reason = f"the signature does not hold: {first_line(error)}"
    verified = not reason and not any(faults.values())
    explanation = f"{counted(len(wanted), 'file', 'the one that was', 'those that were')} signed"
    return {
        "kind": "signed",
        "signature": str(signature),
        "public_key": str(public_key),
        "verified": verified,
        "files": len(wanted),
        "missing": faults["missing"],
        "wrong": faults["wrong"],
        "extra": faults["extra"],
        "explanation": explanation if verified else reason or in_words(faults),
    }


def main() -> None:
    parser = stage_parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    keys = commands.add_parser("keys", help="make a key pair")
    signing = commands.add_parser("sign", help="sign every file of a folder, or one file")
    verifying = commands.add_parser("verify", help="compare a folder, or a file, with what was signed")
    for command in (signing, verifying):
        command.add_argument("path", type=Path, help="folder or file")
        command.add_argument("--signature", type=Path, required=True, help="signature file")
        command.add_argument("--files", nargs="+", metavar="NAME", help="only these files of the folder; all")
    for command in (keys, signing):
        command.add_argument("--private-key", type=Path, required=True, help="PEM file, to be kept secret")
        command.add_argument("--password-variable", help="environment variable that holds the private key's password")
    for command in (keys, verifying):
        command.add_argument("--public-key", type=Path, required=True, help="PEM file, to be handed out")
    arguments = parser.parse_args()
    if arguments.command == "verify":
        record = verify(arguments.path, arguments.public_key, arguments.signature, arguments.files)
        print_line(f"{'verified' if record['verified'] else 'NOT verified'}: {arguments.path}: {record['explanation']}")
        sys.exit(0 if record["verified"] else FOUND_SOMETHING)
    variable = arguments.password_variable
    if variable and variable not in os.environ:
        raise UserError(f"the environment variable {variable} is not set; it should hold the private key's password")
    password = os.environ[variable] if variable else None
    if arguments.command == "keys":
        make_keys(arguments.private_key, arguments.public_key, password)
        print(f"{arguments.private_key} (keep it secret), {arguments.public_key}")
    else:
        count = sign(arguments.path, arguments.private_key, arguments.signature, password, arguments.files)
        print(f"{arguments.signature}: {count} files of {arguments.path} signed")


if __name__ == "__main__":
    run_stage(main)
