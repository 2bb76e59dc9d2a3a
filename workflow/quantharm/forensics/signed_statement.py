"""The statement inside a signature file: which files were signed, and how they were hashed."""

import base64
import json
from pathlib import Path
from typing import NotRequired, TypedDict

from quantharm.common.errors import UserError, first_line


class SignedFile(TypedDict):
    """A file in a signature's statement."""

    name: str  # relative to the folder
    digest: str


class Serialization(TypedDict):
    """The way in which the files were hashed."""

    method: str  # files: each on its own
    hash_type: NotRequired[str]


class Statement(TypedDict):
    """The content that a signature signs."""

    serialization: Serialization
    resources: list[SignedFile]


def statement_of(signature: Path) -> Statement:
    """The statement of a signature, not yet verified; raises UserError for a file that is no signature."""
    try:
        bundle = json.loads(signature.read_text(encoding="utf-8"))
        statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))["predicate"]
        _ = [(file["name"], file["digest"]) for file in statement["resources"]], statement["serialization"]["method"]
        return statement
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(f"{signature} is not a model signature ({first_line(error)}); fetch it again") from None


def signed_files(signature: Path) -> dict[str, str]:
    """{name: digest} in a signature's statement, not yet verified."""
    return {file["name"]: file["digest"] for file in statement_of(signature)["resources"]}
