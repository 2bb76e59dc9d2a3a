# all cells, the config's budget → results/gate/{budget.json,budget.md,junit.xml}. Not in the default run.
#
# Snakemake deletes the outputs of a job that fails. So two rules: `budget` judges and writes, and `gate`, which has no
# outputs, fails where a limit is breached; what was written stays, and each call of this target asks again.
from quantharm.gating.limits import has_limits

HAS_LIMITS = has_limits(config["budget"])
NO_LIMITS = (
    "error: `budget:` in the config limits nothing, so there is nothing to gate; give it a limit, `kl_nats: 0.05`"
)


rule gate:
    """Fail where a method costs more than the config's budget allows; without a limit, before anything is run."""
    input:
        (ENVIRONMENT + modules("gate")) if HAS_LIMITS else [],
        budget="results/gate/budget.json" if HAS_LIMITS else [],
    log:
        "results/logs/gate.log",
    localrule: True
    conda:
        "../../envs/evaluation.yaml"
    params:
        **command(
            "gate",
            budget="{input.budget}",
        ),
        python=PYTHON,
        says=NO_LIMITS,
    message:
        "the gate: see results/gate/budget.md"
    shell:
        "{params.python:q} -m quantharm.{params.command} 2>&1 | tee {log:q}"
        if HAS_LIMITS
        else "echo {params.says:q} | tee {log:q}; exit 1"


use rule stage as budget with:
    """Every limit on every cell, and which method to ship."""
    input:
        ENVIRONMENT,
        modules("budget"),
        compared_files,
        earlier_run,
        summaries=expand("results/{model}/summary.json", model=models_of_default_run()),
    output:
        markdown="results/gate/budget.md",
        junit="results/gate/junit.xml",
        record="results/gate/budget.json",
    log:
        "results/logs/budget.log",
    localrule: True
    params:
        **command(
            "budget",
            models=expand("results/{model}", model=models_of_default_run()),
            left_out=models_left_out,
            budget=json.dumps(config["budget"], ensure_ascii=False),
            thresholds=json.dumps(config["report"], ensure_ascii=False),
            markdown="{output.markdown}",
            junit="{output.junit}",
            output="{output.record}",
        ),
    message:
        "the budget"
