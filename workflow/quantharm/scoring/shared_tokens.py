"""The tokens that a method's cell shares with the baseline's store, where their output heads differ in rows.

Checkpoints and files for engines pad their vocabulary to a round number, each to another. No text has these tokens, and
a trained model gives them next to no probability: they are left out of both distributions.
"""

from pathlib import Path

from quantharm.common.errors import UserError
from quantharm.scoring.stored_logits import store_metadata


def shared_vocabulary(model, store: Path) -> int:
    """The number of tokens that are compared; rows that one of the two output heads has beyond it are padding."""
    rows = model.get_output_embeddings().weight.shape[0]
    return min(rows, store_metadata(store).get("vocabulary", rows))


def require_tokens(model, tokenizer, store: Path, cell: str) -> None:
    """Raises UserError where a model and the baseline's store do not both have all tokens of the tokenizer.

    They may have more, as padding, and in different numbers. cell: for the message.
    """
    rows, known = model.get_output_embeddings().weight.shape[0], max(tokenizer.get_vocab().values()) + 1
    stored = store_metadata(store).get("vocabulary", rows)
    if rows != stored and min(rows, stored) < known:
        raise UserError(
            f"{cell} has {rows} tokens and the baseline {stored}, of {known} that the tokenizer names: their tokens "
            "differ, and so would the meaning of their figures; take the method out, or measure it as a method of the "
            "model that it was made from"
        )
