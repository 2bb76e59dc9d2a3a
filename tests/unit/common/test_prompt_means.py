"""Means of each prompt's positions, and those of each category."""

import pandas

from quantharm.common.prompt_means import by_category, prompt_means, read_prompt_means

ROWS = pandas.DataFrame(
    [
        ("b", "maths", 1.0, True),
        ("b", "maths", 3.0, False),
        ("a", "maths", 4.0, True),
        ("c", "code", 5.0, True),
        ("window-0", "text", 9.0, False),
    ],
    columns=["prompt_id", "category", "kl_nats", "top1_agrees"],
)


def test_means_are_over_positions_in_the_order_of_the_file():
    assert [values.tolist() for values in by_category(prompt_means(ROWS[:4]))] == [[2.0, 4.0], [5.0]]
    assert prompt_means(ROWS[:4], "top1_agrees")["maths", "b"] == 0.5


def test_windows_of_the_text_are_no_prompts(tmp_path):
    ROWS.to_parquet(tmp_path / "divergence.parquet")
    assert dict(read_prompt_means(tmp_path)) == {("maths", "b"): 2.0, ("maths", "a"): 4.0, ("code", "c"): 5.0}
