"""The file beside a store that holds the output head which turns its hidden states into logits."""

import json
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from quantharm.common.errors import UserError, refuse_unread
from quantharm.common.files import replacing
from quantharm.common.records.logits import HeadDescription
from quantharm.scoring.output_heads import OutputHead


def write_head(path: Path, head: OutputHead | None, reason: str | None = None) -> None:
    """Writes `weight` and `bias` as safetensors; where the store needs no head, a file with the reason alone."""
    from safetensors.torch import save_file

    tensors = {name: t.detach().cpu().contiguous() for name, t in head.tensors().items()} if head else {}
    metadata = {"settings": json.dumps(head.settings())} if head else {"reason": reason or ""}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)
        temporary.chmod(0o644)  # safetensors' files are their owner's alone; a store is passed on to others


def read_head(path: Path, description: HeadDescription) -> tuple[OutputHead, Future[None]]:
    """The head that a store's metadata describe, and what ends once its sha256 is compared, beside the caller's work.

    Raises UserError for a file that is missing, damaged or another; the result() of the second one, where only the
    sha256 tells.
    """
    import safetensors
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except FileNotFoundError as error:
        refuse_unread(path, error)
        raise UserError(
            f"{path} does not exist: the store beside it holds hidden states and needs this output head; run the stage "
            "`logits`, or copy the file with the store"
        ) from None
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        refuse_unread(path, error)
        raise UserError(f"{path} is damaged ({error}); delete it and run the same command again") from None
    if "weight" not in tensors:
        raise another(path, description)
    head = OutputHead(tensors["weight"], tensors.get("bias"), description["scale"], description["softcap"])
    if {**head.settings(), "sha256": description["sha256"]} != description:  # it might not fit the states
        raise another(path, description)

    def compare() -> None:
        if head.sha256() != description["sha256"]:
            raise another(path, description)

    pool = ThreadPoolExecutor(1)
    comparing = pool.submit(compare)  # a second for each gigabyte
    pool.shutdown(wait=False)
    return head, comparing


def another(path: Path, description: HeadDescription) -> UserError:
    """The message for a file that holds another head than a store's."""
    return UserError(
        f"{path} is not the output head that its store was filled with (sha256 {description['sha256'][:12]}…); delete "
        "the store and run the same command again"
    )
