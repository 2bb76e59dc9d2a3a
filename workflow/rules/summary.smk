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
        lambda wildcards: [f"{cell}/{file}" for cell in cells_of(wildcards) for file in CELL_FILES],
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
    message:
        "{wildcards.model}: summary"
    shell:
        "{params.python:q} -m quantharm.summary"
        " --cells {params.cells:q}"
        " --parquet {output.parquet:q}"
        " --csv {output.csv:q}"
        " --json {output.json:q}"
        " > {log:q} 2>&1"


rule summary_of_all:
    """One table of all cells of the default run."""
    input:
        ENVIRONMENT,
        modules("summary"),
        summaries=expand("results/{model}/summary.json", model=config["evaluate"]["models"]),
    output:
        parquet="results/summary.parquet",
        csv="results/summary.csv",
    log:
        "results/logs/summary.log",
    conda:
        "../../envs/evaluation.yaml"
    params:
        python=PYTHON,
    message:
        "summary of all models"
    shell:
        "{params.python:q} -m quantharm.summary"
        " --summaries {input.summaries:q}"
        " --parquet {output.parquet:q}"
        " --csv {output.csv:q}"
        " > {log:q} 2>&1"
