"""Targets beside the default run: weight noise, calibration samples, the monitor."""

import re

import pytest
from workflow_project import METHODS, Project, everything


def dry_run(project: Project, target: str) -> set[str]:
    """The messages of a target's jobs."""
    result = project.snakemake("--dry-run", target)
    assert result.code == 0, result.output[-3000:]
    return {name for name in re.findall(r"^Job \d+: (.+)$", result.output, re.MULTILINE) if "finished" not in name}


def cells(jobs: set[str], stage: str) -> set[str]:
    return {
        name.removeprefix("reference × ").removesuffix(f": {stage}") for name in jobs if name.endswith(f": {stage}")
    }


def test_the_noise_sweep_is_made_of_ordinary_cells(small):
    small.edit("defense/sigmas", [0.3])
    jobs = dry_run(small, "defense")
    noisy = {"nf4+noise-0.3", "int8+noise-0.3", "awq+noise-0.3"}
    alone = {"noise-0.3-nf4", "noise-0.3-int8", "noise-0.3-int4-128"}
    for stage in ("quantize", "perplexity", "divergence"):
        assert cells(jobs, stage) == {*METHODS, *noisy, *alone}
    assert "reference: weight noise" in jobs
    assert not cells(jobs, "checks")


def test_the_calibration_study_is_made_of_ordinary_cells(small):
    jobs = dry_run(small, "calibration")
    honest = {f"awq+{text}-{seed}" for text in ("articles", "source-code") for seed in (1, 2, 3)}
    assert cells(jobs, "quantize") == {*METHODS, *honest, "awq+random-tokens", "awq+repeated-token"}
    assert "reference: calibration samples" in jobs


def test_a_method_with_noise_in_the_default_run_is_a_cell_like_any_other(small):
    small.edit("evaluate/methods", [*METHODS, "nf4+noise-0.3"])
    assert small.jobs() == everything(methods=(*METHODS, "nf4+noise-0.3")) | {
        "builtin: fetch the text",
        "summary of all models",
        "report over all models",
    }


def test_the_monitor_is_told_whose_signature_the_store_must_bear(small):
    for key, name in (("signature", "store of ours.sig"), ("public_key", "owner.pub")):
        (small / name).write_text("x")
        small.edit(f"monitor/{key}", name)
    result = small.snakemake("--dry-run", "--printshellcmds", "monitor")
    assert result.code == 0, result.output[-3000:]
    assert " --signature 'store of ours.sig' --public-key owner.pub" in result.output
    small.edit("monitor/public_key", None)
    result = small.snakemake("--dry-run", "monitor")
    assert result.code != 0
    assert "`signature` and `public_key` go together" in result.output


def test_a_protocol_becomes_flags(small):
    """Words quoted, true as the flag alone, false and null as no flag, a list as many words as it has."""
    protocol = small.config()["models"]["reference"]["protocol"]
    target = small.path("nf4/generation.json").relative_to(small.folder)
    for key, value in {"system_prompt": "It's {odd}", "thinking": True, "prompts_per_category": None}.items():
        small.edit(f"protocols/{protocol}/{key}", value)
    small.edit(f"protocols/{protocol}/benchmark/prefill_tokens", [8, 16])
    result = small.snakemake("--dry-run", "--printshellcmds", str(target))
    assert result.code == 0, result.output[-3000:]
    (command,) = re.findall(r"-m quantharm\.generation (.*results/reference/nf4/generation\.json.*)", result.output)
    assert " --thinking --template-date " in command
    assert """ --system-prompt 'It'"'"'s {odd}' """ in command
    assert " --benchmark-prefill-tokens 8 16 --benchmark-" in command
    for absent in ("--prompts-per-category", "--benchmark-compile", "None", "True", "False"):
        assert absent not in command


@pytest.mark.slow
def test_the_monitor_runs_each_time_it_is_named_and_says_why_it_cannot(finished):
    for _ in range(2):  # one prompt a category in this run: nothing to draw, in one sentence
        result = finished.snakemake("monitor")
        assert result.code != 0
        assert "no control limits can be learned; lower `monitor.per_category:`" in result.output
        assert "Traceback" not in result.output
    assert not finished.path("monitor/history.parquet").exists()
