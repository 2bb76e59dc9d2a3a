"""The sha256 of a checkpoint's files against those expected: which are missing, wrong or extra."""

import re
from pathlib import Path

from quantharm.common.checkpoint_files import folder_of, weight_files
from quantharm.common.files import sha256_of_files
from quantharm.common.records.integrity import Files
from quantharm.common.records.parts import WeightFile

HUB_BLOB = re.compile(r"[0-9a-f]{64}")  # the hub's cache names large files by the sha256 that the hub published


def named_faults(path: Path, expected: dict[str, str]) -> dict[str, list[str]]:
    """{missing, wrong, extra}: names of files, comparing a folder (or one file) with {name: sha256}."""
    files = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
    present = {p.relative_to(path).as_posix(): p for p in files}
    if not path.is_dir():  # signed under the name `.`
        expected = dict.fromkeys([path.name], *expected.values())
        present = {path.name: path}
    unsigned = {name for name in set(present) - set(expected) if not name.startswith(".git")}
    both = sorted(set(expected) & set(present))
    hashes = sha256_of_files([present[name] for name in both])
    return {
        "missing": sorted(set(expected) - set(present)),
        "wrong": [name for name in both if hashes[present[name]] != expected[name]],
        "extra": sorted(unsigned),
    }


def counted(number: int, what: str, one: str, more: str) -> str:
    """`1 file is the one that was`, `3 files are those that were`."""
    return f"1 {what} is {one}" if number == 1 else f"{number} {what}s are {more}"


def in_words(faults: dict[str, list[str]]) -> str:
    """The faults of named_faults as a sentence."""
    parts = [f"{kind}: {', '.join(names[:10])}" for kind, names in faults.items() if names]
    return "; ".join(parts) or "the files differ from the manifest"


def verify_recorded(folder: Path, files: list[WeightFile]) -> Files:
    """Compares weight files with a record's hashes, and with those published by the hub where its cache has them.

    Returns the keys of manifest.verify. A record made from the folder itself shows only that nothing changed since.
    """
    expected = {file["name"]: file["sha256"] for file in files}
    weights = {p.name for p in weight_files(folder)}  # those that would be loaded
    folder = folder_of(folder)
    paths = {name: Path(folder) / name for name in expected if (Path(folder) / name).is_file()}
    hashes = sha256_of_files(list(paths.values()))
    actual = {name: hashes[path] for name, path in paths.items()}
    published = {name: blob for name in actual if HUB_BLOB.fullmatch(blob := (Path(folder) / name).resolve().name)}
    faults = {
        "missing": sorted(set(expected) - set(actual)),
        "wrong": sorted(n for n in actual if actual[n] != expected[n] or published.get(n, actual[n]) != actual[n]),
        "extra": sorted(weights - set(expected)),
    }
    verified = not any(faults.values())
    if len(published) == len(expected):
        explanation = f"{counted(len(expected), 'weight file', 'the one that was', 'those that were')} published"
    else:
        explanation = counted(len(expected), "weight file", "as recorded when fetched", "as recorded when fetched")
    return {
        "kind": "recorded",
        "verified": verified,
        "files": len(expected),
        "missing": faults["missing"],
        "wrong": faults["wrong"],
        "extra": faults["extra"],
        "explanation": explanation if verified else in_words(faults),
    }
