"""Writes an evaluation text as one file: from a file here, or from a data set on the hub at its pinned revision.

The rows of a data set are joined by blank lines, as in the protocol `concat-2048`. May use the network.
"""

import os
from pathlib import Path

from quantharm.common.errors import UserError, first_line
from quantharm.common.files import sha256_of_text, write_json, write_text
from quantharm.common.stage import run_stage, sentence_for, stage_parser
from quantharm.common.text import read_text
from quantharm.models.hub import ask_hub


def read_dataset(dataset: str, name: str | None, split: str, revision: str | None, column: str) -> str:
    """All rows of one column, joined by blank lines; lines end as in a text that is read from a file."""
    # A folder of Parquet files is a data set too. Asked before `datasets` is imported, which takes over the answer.
    unreachable = "" if os.path.isdir(dataset) else ask_hub(dataset, revision, "dataset")
    import datasets

    try:
        rows = datasets.load_dataset(dataset, name, split=split, revision=revision)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        if sentence_for(error):  # the disk is full
            raise
        reason = unreachable or first_line(error)
        raise UserError(
            f"the data set {dataset} cannot be loaded ({reason}); connect once, or name a text file"
        ) from None
    if column not in rows.column_names:
        raise UserError(f"the data set {dataset} has no column {column!r}; correct `column:` in the config")
    return "\n\n".join(rows[column]).replace("\r\n", "\n").replace("\r", "\n")


def main() -> None:
    parser = stage_parser(__doc__)
    parser.add_argument("--text", required=True, help="name in the config")
    parser.add_argument("--path", type=Path, help="a text file, UTF-8")
    parser.add_argument("--dataset", help="or a data set's hub id")
    parser.add_argument("--name", help="the data set's configuration")
    parser.add_argument("--split", default="test", help="the data set's split")
    parser.add_argument("--column", default="text", help="the data set's column")
    parser.add_argument("--revision", help="commit of the data set")
    parser.add_argument("--output", type=Path, required=True, help="the text")
    parser.add_argument("--record", type=Path, required=True, help="where it came from, JSON")
    arguments = parser.parse_args()
    if bool(arguments.path) == bool(arguments.dataset):
        parser.error("name --path or --dataset")
    if arguments.path:
        text = read_text(arguments.path)
    else:
        text = read_dataset(arguments.dataset, arguments.name, arguments.split, arguments.revision, arguments.column)
    write_text(arguments.output, text)
    write_json(
        arguments.record,
        {
            "text": arguments.text,
            "source": str(arguments.path or arguments.dataset),
            "revision": arguments.revision,
            "bytes": len(text.encode("utf-8")),
            "sha256": sha256_of_text(text),
        },
    )


if __name__ == "__main__":
    run_stage(main)
