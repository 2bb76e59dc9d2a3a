"""The SLURM profile and what the rules ask a cluster for; the cluster itself is in tests/slurm."""

import re

import pytest
import yaml
from workflow_project import CHECKOUT

from quantharm.config import resources

PROFILE = CHECKOUT / "workflow/profiles/slurm/profile.yaml"
RULES = "".join(path.read_text(encoding="utf-8") for path in sorted((CHECKOUT / "workflow/rules").glob("*.smk")))
STAGES = sorted(set(re.findall(r'needs\("(\w+)"', RULES)))
SMALL_NODE_MB = 4_000
SIZES = (0.5, 4, 7, 70)  # billions of parameters
NOT_MEASURED = "not yet"


def test_a_user_edits_partition_and_account_only():
    text = PROFILE.read_text(encoding="utf-8")
    blank = {key for key, value in yaml.safe_load(text)["default-resources"].items() if value == ""}
    assert blank == {"slurm_partition", "slurm_account"}
    for key in blank:
        assert re.search(rf'^  {key}: "" # \w.+$', text, re.M)
    assert "gpu=" not in str(yaml.safe_load(text).get("resources", ""))  # a limit would hold back a cluster of many


def test_jobs_of_a_small_model_take_one_thread_and_those_of_others_the_configs():
    model = {"billion_parameters": None, "source": str(CHECKOUT / "data/reference-model")}
    assert resources.threads(model, 8) == 1
    assert resources.threads(model | {"billion_parameters": 0.5}, 8) == 8


@pytest.mark.parametrize("stage", STAGES)
def test_resources_follow_size_and_attempt(stage):
    model = {"billion_parameters": None, "source": str(CHECKOUT / "data/reference-model"), "dtype": "bfloat16"}
    assert resources.mem_mb(stage, model, 2) <= SMALL_NODE_MB  # the built-in model fits a small node, twice tried
    for function in (resources.mem_mb, resources.runtime_minutes):
        needs = [function(stage, model | {"billion_parameters": b}, 1) for b in SIZES]
        assert needs == sorted(set(needs))
        assert function(stage, model, 1) < function(stage, model, 2) < function(stage, model, 3)
    assert resources.mem_mb(stage, model | {"billion_parameters": 7}, 1) > 7 * 2_000
    assert resources.mem_mb(stage, model | {"billion_parameters": 7, "dtype": "float32"}, 1) > 7 * 4_000


def rows_of_the_page() -> dict[str, list[str]]:
    """{stage: cells} of the table in docs/slurm.md."""
    page = (CHECKOUT / "docs/slurm.md").read_text(encoding="utf-8")
    lines = re.search(r"^\| stage, .*?\n\n", page, re.M | re.S)[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line]
    return {row[0].split(" (")[0]: row[1:] for row in cells}


def test_the_table_of_the_page_is_what_is_asked_for():
    rows = rows_of_the_page()
    assert set(rows) == set(STAGES)
    for stage, cells in rows.items():
        for billions, cell in zip(SIZES, cells[: len(SIZES)], strict=True):
            model = {"billion_parameters": billions, "source": "a/b", "dtype": "bfloat16"}
            minutes, megabytes = resources.runtime_minutes(stage, model, 1), resources.mem_mb(stage, model, 1)
            assert cell == f"{minutes} min, {megabytes / 1000:.1f} GB", (stage, billions)


def test_what_was_measured_is_less_than_what_is_asked_for():
    """Its last column: seconds, of the fastest and the slowest method, or a word that there is no measurement."""
    seven = {"billion_parameters": 7, "source": "a/b", "dtype": "bfloat16"}
    for stage, cells in rows_of_the_page().items():
        (measured,) = cells[len(SIZES) :]
        if measured != NOT_MEASURED:
            seconds = [int(part) for part in re.fullmatch(r"(?:(\d+) to )?(\d+) s", measured).groups() if part]
            assert seconds == sorted(seconds), stage
            assert seconds[-1] < 60 * resources.runtime_minutes(stage, seven, 1), stage
