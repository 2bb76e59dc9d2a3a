"""Means over the positions of each prompt: the values that figures and intervals of a divergence are made of."""

from pathlib import Path

import numpy
import pandas

from quantharm.common.constants import TEXT_CATEGORY
from quantharm.common.files import read_parquet


def prompt_means(rows: pandas.DataFrame, column: str = "kl_nats") -> pandas.Series:
    """[category, prompt_id] → mean of a column over the prompt's positions; rows: of divergence.parquet, text apart."""
    return rows.groupby(["category", "prompt_id"], sort=False)[column].mean()


def read_prompt_means(cell: Path) -> pandas.Series:
    """The mean KL of each prompt in nats, from the divergence.parquet in a cell's folder."""
    rows = read_parquet(cell / "divergence.parquet", ["prompt_id", "category", "kl_nats"])
    return prompt_means(rows[rows["category"] != TEXT_CATEGORY])


def by_category(means: pandas.Series) -> list[numpy.ndarray]:
    """The prompts' means of each category, [prompts] each."""
    return [part.to_numpy() for _, part in means.groupby(level="category", sort=False)]
