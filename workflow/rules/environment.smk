# envs/evaluation.txt → .venv-evaluation/, envs/{extra}.txt → .venv-extra/{extra}/; none of it where the config names
# another interpreter. Uses the network.


localrules:
    evaluation_environment,
    extra_packages,


rule evaluation_environment:
    """Build the environment of all model stages; the list of what was installed is an input of theirs."""
    input:
        "envs/evaluation.txt",
    output:
        ".venv-evaluation/installed.txt",
    log:
        "results/logs/evaluation_environment.log",
    conda:
        "../../envs/evaluation.yaml"
    message:
        "the evaluation environment, from envs/evaluation.txt (once; some minutes)"
    shell:
        'sh envs/build.sh "$WORKFLOW_PYTHON" .venv-evaluation {input} > {log} 2>&1'


rule extra_packages:
    """Packages that only some methods need, in a folder that only their jobs see: what is there changes no other cell."""
    input:
        ENVIRONMENT,
        pins="envs/{extra}.txt",
    output:
        ".venv-extra/{extra}/installed.txt",
    log:
        "results/logs/extra_packages/{extra}.log",
    conda:
        "../../envs/evaluation.yaml"
    params:
        python=PYTHON,
        folder=".venv-extra/{extra}",
    message:
        "packages of envs/{wildcards.extra}.txt, for the methods that need them (once)"
    shell:
        "exec > {log} 2>&1; "
        "rm -rf {params.folder:q} && "
        "{params.python:q} -m pip install --no-compile --no-deps --disable-pip-version-check --target {params.folder:q}"
        " --requirement {input.pins:q} && "
        "cp {input.pins:q} {output:q}.part && mv {output:q}.part {output:q} || "
        "{{ echo \"error: the packages of {input.pins} could not be installed; above is why, in pip's words. Without a"
        ' network see docs/offline.md, or name an interpreter that has them: python: in the config"; exit 1; }}'
