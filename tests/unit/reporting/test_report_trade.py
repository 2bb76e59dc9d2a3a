"""Who is closer to the baseline, and what a saved byte costs, among several methods."""

from types import SimpleNamespace

import numpy
import pandas
import pytest

from quantharm.common.files import write_parquet
from quantharm.report import default_thresholds
from quantharm.reporting.demonstrated import demonstrated_harm
from quantharm.reporting.differences import is_measurable, kl_differences
from quantharm.reporting.judgement import Judgement
from quantharm.reporting.ranking import MOST_PAIRS, beaten_by, front_of, front_sentence, is_closer
from quantharm.reporting.results import Cell, Results
from quantharm.reporting.tables.trade import per_saved, price_ratio, trade_off_pairs_table
from quantharm.reporting.verdicts import Verdict

THRESHOLDS = default_thresholds()
CATEGORIES = [f"c{i}" for i in range(6)]


def cell(folder, name: str, kl: float, ci95, weight: int, means=None, losses=None, change=(2.0, [1.0, 3.0])) -> Cell:
    """A method with these prompt means of KL ([categories, prompts]) and these losses of windows of 100 targets."""
    folder = folder / name
    if means is not None:
        rows = [
            {"prompt_id": f"{c}-{p}", "category": c, "kl_nats": float(value)}
            for c, line in zip(CATEGORIES, means, strict=True)
            for p, value in enumerate(line)
        ]
        rows.append({"prompt_id": "text-0", "category": "text", "kl_nats": 99.0})
        write_parquet(folder / "divergence.parquet", pandas.DataFrame(rows))
    if losses is not None:
        table = {"window": range(len(losses)), "nll_sum_nats": losses, "targets": [100] * len(losses)}
        write_parquet(folder / "perplexity.parquet", pandas.DataFrame(table))
    row = {"kl_nats_mean": kl, "kl_nats_ci95": ci95, "weight_bytes": weight, "saved_bytes": 1000 - weight}
    row |= {"perplexity_change_percent": change[0], "perplexity_change_percent_ci95": change[1]}
    ran = {"dtype": "bfloat16", "device_type": "cpu"}
    return Cell(
        name,
        row,
        {},
        {},
        {"by_category": {}, "store": {"dtype": "bfloat16"}},
        {"provenance": ran},
        {"failed": []},
        None,
        folder,
    )


def results(cells: list[Cell], ranges=None) -> Results:
    made = Results("model", None, cells, THRESHOLDS)
    folders = {c.method: c.folder for c in made.methods if (c.folder / "divergence.parquet").is_file()}
    made.kl_differences = kl_differences(folders, ranges or {}, made.least_kl)
    return made


def test_a_cell_equal_to_the_baseline_is_not_beaten_by_it(tmp_path):
    baseline = cell(tmp_path, "baseline", 1e-7, [0.0, 2e-7], 1000)
    for kl, bounds, beaten in (
        (0.0, [0.0, 0.0], False),
        (3e-4, [2e-4, 4e-4], False),  # other hardware explains it
        (6e-4, [4e-4, 8e-4], False),
        (6e-4, None, False),
        (6e-4, [5.5e-4, 7e-4], True),
    ):
        compared = results([baseline, cell(tmp_path, "same", kl, bounds, 1000)])
        assert is_closer(compared, "baseline", "same") == beaten
        assert not is_closer(compared, "same", "baseline")
        assert beaten_by(compared, "same") == (["baseline"] if beaten else [])
        assert ("same" in front_of(compared)) is not beaten


def test_a_difference_must_exceed_what_says_nothing_and_what_calibration_moves(tmp_path):
    random = numpy.random.default_rng(0)
    base = random.uniform(0.02, 0.03, (6, 8))
    cells = [cell(tmp_path, "baseline", 1e-7, [0.0, 2e-7], 1000)]
    for name, shift in {"a": 0.0, "b": 0.004, "c": 0.0003}.items():
        cells.append(cell(tmp_path, name, 0.025, [0.02, 0.03], 300, base + shift * random.uniform(0.9, 1.1, (6, 8))))
    compared = results(cells)
    assert compared.kl_differences["b", "a"].nats == pytest.approx(0.004, rel=0.05)
    assert is_closer(compared, "a", "b")
    assert not is_closer(compared, "b", "a")
    assert not is_closer(compared, "a", "c")  # 3e-4 nats, as sure as they are here, are less than other hardware moves
    assert compared.kl_differences["c", "a"].ci95[0] > 0
    assert compared.kl_differences["a", "c"].ci95 == [-b for b in compared.kl_differences["c", "a"].ci95[::-1]]
    assert not is_closer(results(cells, {"b": 0.005}), "a", "b")


def test_what_cannot_be_told_apart_is_listed_counted_or_not_tested(tmp_path):
    """A few pairs by name, many by their number; with one prompt a category none is called the same."""
    baseline = cell(tmp_path, "baseline", 1e-7, [0.0, 2e-7], 1000)

    def sentence(methods: int, prompts: int) -> str:
        random = numpy.random.default_rng(0)
        means = [random.uniform(0.02, 0.03, (6, prompts)) for _ in range(methods)]
        folder = tmp_path / f"{methods}-{prompts}"
        cells = [cell(folder, "abcdef"[i], 0.025, None, 300, mean) for i, mean in enumerate(means)]
        return front_sentence(results([baseline, *cells]))

    assert sentence(3, 8).endswith("No measurable difference in KL between a and b, a and c and b and c.")
    assert MOST_PAIRS < 15
    assert sentence(6, 8).endswith("Of their 15 pairs 15 have no measurable difference in KL.")
    assert sentence(6, 1).endswith("differ in KL cannot be told: one prompt a category gives no interval.")


def test_many_pairs_need_more_than_one_needs(tmp_path):
    """With a p-value of 0.02 one pair of two methods is claimed, and none of the six pairs of four."""
    random = numpy.random.default_rng(1)
    noise = random.normal(0, 1, (6, 8))
    noise -= noise.mean(axis=1, keepdims=True)
    noise /= noise.std(axis=1, ddof=1, keepdims=True)  # each category: mean 0, standard deviation 1
    error = 0.01 / 48**0.5
    baseline = cell(tmp_path, "baseline", 1e-7, [0.0, 2e-7], 1000)
    flat = numpy.full((6, 8), 0.1)
    shifted = flat + 0.01 * noise + 2.42 * error + 5e-4  # t = 2.42 with 42 degrees of freedom beyond the margin
    two = [cell(tmp_path, "a", 0.1, None, 300, flat), cell(tmp_path, "b", 0.1, None, 300, shifted)]
    more = [cell(tmp_path, n, 0.1, None, 300, flat + 0.01 * random.permuted(noise, axis=1)) for n in ("c", "d")]
    alone = results([baseline, *two]).kl_differences["a", "b"]
    assert alone.p_value == pytest.approx(0.02, abs=0.002)
    assert alone.measurable
    among = results([baseline, *two, *more]).kl_differences["a", "b"]
    assert among.ci95 == alone.ci95
    assert among.p_value >= 2 * alone.p_value
    assert not among.measurable


def test_what_saves_nothing_has_no_price_and_an_end_at_zero_is_not_measurable():
    assert per_saved(3.0, 2.0) == 1.5
    assert per_saved(3.0, 0.0) is per_saved(3.0, -1.0) is per_saved(None, 2.0) is None
    assert [is_measurable(bounds) for bounds in ([0.1, 2.0], [-2.0, -0.1])] == [True, True]
    assert [is_measurable(bounds) for bounds in ([0.0, 2.0], [-2.0, 0.0], [0.0, 0.0], [-1.0, 1.0], None)] == [False] * 5


def test_price_ratio_is_paired_over_windows(tmp_path):
    random = numpy.random.default_rng(2)
    base = random.normal(300, 20, 30)
    harm = random.normal(2.0, 0.2, 30)
    cells = [
        cell(tmp_path, "baseline", 0.0, None, 1000, losses=base),
        cell(tmp_path, "dear", 0.1, None, 500, losses=base + 3 * harm),
        cell(tmp_path, "cheap", 0.1, None, 500, losses=base + harm),
    ]
    ratio, (low, high) = price_ratio(cells[1], cells[2], cells[0])
    expected = numpy.expm1(3 * harm.mean() / 100) / numpy.expm1(harm.mean() / 100)
    assert ratio == pytest.approx(expected)
    assert low < ratio < high
    assert high - low < 0.02  # the windows' own spread cancels: each window costs three times as much
    cells[1].row["saved_bytes"] = 250
    assert price_ratio(cells[1], cells[2], cells[0])[0] == pytest.approx(2 * expected)
    for bounds in ([-1.0, 3.0], [-3.0, -1.0], None):
        cells[2].row["perplexity_change_percent_ci95"] = bounds
        assert price_ratio(cells[1], cells[2], cells[0]) is None


def test_no_price_where_one_window_carries_it(tmp_path):
    cells = [
        cell(tmp_path, "baseline", 0.0, None, 1000, losses=[300.0, 300.0, 300.0]),
        cell(tmp_path, "a", 0.1, None, 500, losses=[309.0, 299.0, 299.0]),
        cell(tmp_path, "b", 0.1, None, 500, losses=[303.0, 302.0, 304.0]),
    ]
    assert price_ratio(cells[1], cells[2], cells[0]) is None


def test_pairs_say_that_they_were_corrected_for_their_number(tmp_path):
    flat = numpy.full((6, 8), 0.1) + numpy.random.default_rng(3).normal(0, 0.01, (6, 8))
    cells = [cell(tmp_path, "baseline", 1e-7, [0.0, 2e-7], 1000)]
    cells += [cell(tmp_path, n, 0.1, None, 300, flat + s, change=(0.0, [-1, 1])) for n, s in (("a", 0), ("b", 0.02))]
    table = trade_off_pairs_table(results(cells))
    assert table.rows[0][-1].text == "a is measurably closer to the baseline"
    assert "Holm's correction for all 1 pairs" not in table.note
    cells.append(cell(tmp_path, "c", 0.1, None, 300, flat, change=(0.0, [-1, 1])))
    assert "Holm's correction for all 3 pairs" in trade_off_pairs_table(results(cells)).note


@pytest.mark.parametrize("order", [("cheap", "dear"), ("dear", "cheap")])
def test_the_dearer_of_a_pair_stands_first(tmp_path, order):
    random = numpy.random.default_rng(4)
    base, harm = random.normal(300, 20, 30), random.normal(2.0, 0.2, 30)
    flat = 0.1 + random.normal(0, 0.01, (6, 8))
    cells = [cell(tmp_path, "baseline", 0.0, None, 1000, losses=base)]
    times = {"cheap": 1, "dear": 3}
    cells += [cell(tmp_path, n, 0.1, None, 500, flat + 0.01 * times[n], base + times[n] * harm) for n in order]
    row = trade_off_pairs_table(results(cells)).rows[0]
    assert [row[0].text, row[1].text] == ["dear", "cheap"]
    assert row[2].value > 3
    assert row[3].text.startswith("dear pays 3")
    assert row[4].value == pytest.approx(0.02)
    assert row[5].text == "cheap is measurably closer to the baseline"


@pytest.mark.parametrize(("prompts", "few"), [(8, True), (29, True), (30, False), (40, False)])
def test_enough_prompts_are_not_called_too_few(tmp_path, prompts, few):
    verdict = Verdict("low", "low", "+2 %", "rule", ("low", "low"))
    compared = results([cell(tmp_path, "baseline", 1e-7, None, 1000), cell(tmp_path, "a", 0.03, None, 300)])
    compared.baseline.generation["by_category"] = {"x": {"prompts": prompts}}
    compared.cells[1].divergence["by_category"] = {"x": {"kl_nats_mean": 0.04, "ci95": [0.03, 0.05]}}
    compared.cells[1].row |= {"succeeded": 1, "prompts": 2}
    compared.cells[1].changes = {"decode_percent": (0.0, None)}
    judged = Judgement(compared.cells[1], verdict, verdict, verdict, Verdict("none", "", "", ""), verdict)
    sentence = next(s for s in demonstrated_harm(compared, {"a": judged}) if s.startswith("Largest by category"))
    assert ("too few" in sentence) is few
    assert "a in x (0.0400 nats [0.0300, 0.0500])" in sentence


def test_a_change_that_is_not_known_well_is_said_and_not_called_none(tmp_path):
    wide = Verdict("undecided", "no measurable change, but the interval reaches high", "+4 %", "rule", ("none", "high"))
    none = SimpleNamespace(level="none", words="", figure="")
    compared = results([cell(tmp_path, "baseline", 1e-7, None, 1000), cell(tmp_path, "a", 0.03, None, 300)])
    compared.baseline.generation["by_category"] = {"x": {"prompts": 2}}
    compared.cells[1].row |= {"succeeded": 1, "prompts": 2}
    judged = Judgement(compared.cells[1], wide, none, wide, none, none)
    assert demonstrated_harm(compared, {"a": judged}) == ["The perplexity change is too uncertain to judge: a +4 %."]
