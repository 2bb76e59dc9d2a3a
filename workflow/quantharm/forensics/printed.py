"""The printed findings on a checkpoint: a line each for files, weights and behaviour, then the suspect matrices."""

from quantharm.common.records.integrity import Behaviour, Files, FolderIntegrity, FolderScan
from quantharm.common.sanitize import print_line, visible

SHOWN_MATRICES = 8
OUTCOMES = {True: "ok", False: "DIFFERS", None: "cannot be told"}


def print_table(record: FolderIntegrity) -> None:
    """Prints the answers on files, weights and behaviour, then the matrices that most look quantized."""
    files, scan, behaviour = record["manifest"], record["scan"], record["behaviour"]
    print_part("files", files and files["verified"], files, "no signature given")
    print_line(f"{'weights':10} {scan['verdict']:14} {scan['explanation']}")
    if behaviour:
        store = record["store_manifest"]
        print_part("store", store and store["verified"], store, "no signature given")
    print_part("behaviour", behaviour and behaviour["same_as_original"], behaviour, "no log-prob store given")
    if scan["matrices"]:
        print_matrices(scan)


def print_part(name: str, right: bool | None, part: Files | Behaviour | None, missing: str) -> None:
    """Prints one finding; right: None where it cannot be told; missing: why there is no `part`."""
    if part is None:
        print_line(f"{name:10} {'not checked':14} {missing}")
    else:
        print_line(f"{name:10} {OUTCOMES[right]:14} {part['explanation']}")


def print_matrices(scan: FolderScan) -> None:
    """Prints the SHOWN_MATRICES matrices that most look quantized, and how much was scanned."""
    closest = sorted(scan["matrices"], key=lambda m: m["ratio"] if m["ratio"] is not None else 2)[:SHOWN_MATRICES]
    head = ("matrix", "verdict", "closest format", "r", "without grid", "ratio", "distinct", "zeros")
    lines: list[tuple[str, ...]] = [head]
    for m in closest:
        judged = m["ratio"] is not None
        figures = [f"{m['r']:.4f}", f"{m['r_reference']:.4f}", f"{m['ratio']:.3f}"] if judged else ["", "", ""]
        shares = [f"{m['distinct_share_of_row']:.0%}", f"{m['zero_share']:.1%}"]
        lines.append((visible(m["name"]), m["verdict"], m["closest"] or "none could be tried", *figures, *shares))
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    print()
    for line in lines:
        left = [f"{text:<{width}}" for text, width in zip(line[:3], widths[:3], strict=True)]
        right = [f"{text:>{width}}" for text, width in zip(line[3:], widths[3:], strict=True)]
        print_line("  ".join([*left, *right]))
    print(f"{len(scan['matrices'])} matrices scanned, {scan['coverage']:.0%} of their weights sampled")
