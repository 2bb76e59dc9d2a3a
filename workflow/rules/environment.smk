# envs/evaluation.txt → .venv-evaluation/, unless the config names another interpreter. Uses the network.


localrules:
    evaluation_environment,


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
        "exec > {log} 2>&1; "
        '"$WORKFLOW_PYTHON" -m venv --clear .venv-evaluation && '
        ".venv-evaluation/bin/python -m pip install --no-compile --disable-pip-version-check --requirement {input} && "
        ".venv-evaluation/bin/python -m pip freeze --disable-pip-version-check > {output}.part && "
        "mv {output}.part {output} || "
        "{{ echo \"error: the environment of the model stages could not be built from {input}; above is why, in pip's"
        " words. Without a network see docs/offline.md, or name another interpreter: python: in the"
        ' config"; exit 1; }}'
