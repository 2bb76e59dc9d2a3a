# a cell's result files and the baseline's → {method}/checks.json

CELL_RECORDS = ["quantization", "generation", "perplexity", "divergence"]


rule checks:
    """Whether the cell's numbers may be believed; a failed check fails this job and is named in its log."""
    input:
        ENVIRONMENT,
        package("checks"),
        expand("results/{{model}}/{{method}}/{stage}.json", stage=CELL_RECORDS),
        expand("results/{{model}}/baseline/{stage}.json", stage=CELL_RECORDS[:-1]),
        floor="results/{model}/baseline/divergence.json",
        checkpoint="results/{model}/{method}/checkpoint",
        text=text_of,
        prompts=prompts_of,
    output:
        "results/{model}/{method}/checks.json",
    log:
        "results/logs/checks/{model}/{method}.log",
    benchmark:
        "results/benchmarks/checks/{model}/{method}.tsv"
    conda:
        "../../envs/evaluation.yaml"
    threads: config["threads"]
    resources:
        gpu=gpus_of,
        mem_mb=needs("mem_mb", "checks"),
        runtime=needs("runtime_minutes", "checks"),
    params:
        python=PYTHON,
        cell=subpath(output[0], parent=True),
        baseline=subpath(input.floor, parent=True),
        on_failure=config["on_failed_check"],
        device=config["device"],
    message:
        "{wildcards.model} × {wildcards.method}: checks"
    shell:
        "{params.python:q} -m quantharm.checks"
        " --cell {params.cell:q}"
        " --baseline {params.baseline:q}"
        " --text {input.text:q}"
        " --prompts {input.prompts:q}"
        " --on-failure {params.on_failure:q}"
        " --device {params.device:q}"
        " --output {output:q}"
        " > {log:q} 2>&1"
