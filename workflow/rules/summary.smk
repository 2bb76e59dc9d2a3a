# all cells of a model → results/{model}/summary.{parquet,csv,json}; all models → results/summary.{parquet,csv}

CELL_FILES = [
    *(f"{stage}.json" for stage in [*CELL_RECORDS, "checks", "integrity"]),
    "generation.parquet",
    "perplexity.parquet",
]


localrules:
    summary,
    summary_of_all,


rule summary:
    """One table of a model's cells."""
    input:
        ENVIRONMENT,
        modules("summary"),
        lambda wildcards: finished_files(wildcards, CELL_FILES),
    output:
        parquet="results/{model}/summary.parquet",
        csv="results/{model}/summary.csv",
        json="results/{model}/summary.json",
    log:
        "results/logs/summary/{model}.log",
    conda:
        "../../envs/evaluation.yaml"
    params:
        python=PYTHON,
        cells=cells_of,
        left_out=left_out_of,
    message:
        "{wildcards.model}: summary"
    shell:
        "{params.python:q} -m quantharm.summary"
        " --cells {params.cells:q}"
        " --left-out {params.left_out:q}"
        " --parquet {output.parquet:q}"
        " --csv {output.csv:q}"
        " --json {output.json:q}"
        " > {log:q} 2>&1"


rule summary_of_all:
    """One table of all cells of the default run."""
    input:
        ENVIRONMENT,
        modules("summary"),
        summaries=expand("results/{model}/summary.json", model=models_of_default_run()),
    output:
        parquet="results/summary.parquet",
        csv="results/summary.csv",
    log:
        "results/logs/summary.log",
    conda:
        "../../envs/evaluation.yaml"
    params:
        python=PYTHON,
        left_out=models_left_out(),
    message:
        "summary of all models"
    shell:
        "{params.python:q} -m quantharm.summary"
        " --summaries {input.summaries:q}"
        " --left-out {params.left_out:q}"
        " --parquet {output.parquet:q}"
        " --csv {output.csv:q}"
        " > {log:q} 2>&1"
