# all cells of a model → results/{model}/summary.{parquet,csv,json}; all models → results/summary.{parquet,csv}

CELL_FILES = [
    *(f"{stage}.json" for stage in [*CELL_RECORDS, "checks", "integrity"]),
    "generation.parquet",
    "perplexity.parquet",
]


use rule stage as summary with:
    """One table of a model's cells."""
    input:
        ENVIRONMENT,
        modules("summary"),
        lambda wildcards: finished_files(wildcards, cell_files(wildcards.model)),
    output:
        parquet="results/{model}/summary.parquet",
        csv="results/{model}/summary.csv",
        json="results/{model}/summary.json",
    log:
        "results/logs/summary/{model}.log",
    localrule: True
    params:
        **command(
            "summary",
            cells=cells_of,
            tasks=lambda wildcards: answers_tasks(wildcards.model),
            left_out=left_out_of,
            parquet="{output.parquet}",
            csv="{output.csv}",
            json="{output.json}",
        ),


use rule stage as summary_of_all with:
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
    localrule: True
    params:
        **command(
            "summary",
            summaries=expand("results/{model}/summary.json", model=models_of_default_run()),
            left_out=models_left_out,
            parquet="{output.parquet}",
            csv="{output.csv}",
        ),
    message:
        "summary of all models"
