# a cell's result files and the baseline's → {method}/checks.json

CELL_RECORDS = ["quantization", "generation", "perplexity", "divergence"]


use rule stage as checks with:
    """Whether the cell's numbers may be believed; a failed check fails this job and is named in its log."""
    input:
        ENVIRONMENT,
        extra_packages,
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
    threads: threads_of_job
    resources:
        **needs("checks"),
    params:
        **command(
            "checks",
            cell="results/{wildcards.model}/{wildcards.method}",
            baseline="results/{wildcards.model}/baseline",
            text="{input.text}",
            prompts="{input.prompts}",
            on_failure=config["on_failed_check"],
            device=config["device"],
            output="{output}",
        ),
    message:
        "{wildcards.model} × {wildcards.method}: {rule}"
