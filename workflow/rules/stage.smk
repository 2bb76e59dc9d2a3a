# What every stage's rule begins with: interpreter, log, environment, command. No job is made of these two.


rule stage:
    """What the stages share. Not a job: each adds what it reads and writes, and its command."""
    log:
        "results/logs/stage.log",
    conda:
        "../../envs/evaluation.yaml"
    params:
        python=PYTHON,
        environment="",
        packages=packages_of,
    message:
        "{wildcards.model}: {rule}"
    shell:
        "{params.packages} {params.environment} {params.python:q} -m quantharm.{params.command} > {log:q} 2>&1"


use rule stage as model_stage with:
    """What the stages share that load a model."""
    retries: 1
    threads: threads_of_job
    message:
        "{wildcards.model} × {wildcards.method}: {rule}"
