# a model's result files → results/{model}/{report.html,EVALUATION_SUMMARY.md,figures/,tables/}; all → results/…


use rule stage as report with:
    """The page, the summary, the charts and the tables of one model."""
    input:
        ENVIRONMENT,
        modules("report"),
        REPORT_TEMPLATES,
        f"{os.path.relpath(PACKAGE)}/schemas/config.schema.yaml",
        f"{os.path.relpath(PACKAGE)}/report/integrity-detection.csv",
        lambda wildcards: finished_files(wildcards, [*(f"{stage}.json" for stage in CELL_RECORDS), *REPORTED_FILES]),
        lambda wildcards: earlier_run(wildcards),  # of the budget
        summary="results/{model}/summary.json",
        prompts=prompts_of,
    output:
        charts_and_tables("results/{model}", "{model}", report_names.FIGURES, report_names.TABLES),
        html=page("results/{model}", "../report/captions/model.rst", "{model}"),
        markdown="results/{model}/EVALUATION_SUMMARY.md",
    log:
        "results/logs/report/{model}.log",
    benchmark:
        "results/benchmarks/report/{model}.tsv"
    localrule: True
    params:
        **command(
            "report",
            model="results/{wildcards.model}",
            thresholds=json.dumps(config["report"], ensure_ascii=False),
            budget=json.dumps(config["budget"], ensure_ascii=False),
            prompts="{input.prompts}",
            html="{output.html}",
            markdown="{output.markdown}",
            figures="results/{wildcards.model}/figures",
            tables="results/{wildcards.model}/tables",
        ),
        # Studies that were run are shown, and a new one makes the page again; the page does not ask for any.
        studies=lambda wildcards: studies_of(wildcards.model),


use rule stage as report_of_all with:
    """The page, the summary, the charts and the tables over all models of the default run."""
    input:
        ENVIRONMENT,
        modules("report"),
        REPORT_TEMPLATES,
        pages=expand("results/{model}/report.html", model=models_of_default_run()),
    output:
        charts_and_tables("results", "all", report_names.OVERVIEW_FIGURES, report_names.OVERVIEW_TABLES),
        html=page("results", "../report/captions/overview.rst", "all"),
        markdown="results/EVALUATION_SUMMARY.md",
    log:
        "results/logs/report.log",
    benchmark:
        "results/benchmarks/report.tsv"
    localrule: True
    params:
        **command(
            "report",
            models=expand("results/{model}", model=models_of_default_run()),
            left_out=models_left_out,
            thresholds=json.dumps(config["report"], ensure_ascii=False),
            budget=json.dumps(config["budget"], ensure_ascii=False),
            html="{output.html}",
            markdown="{output.markdown}",
            figures="results/figures",
            tables="results/tables",
        ),
    message:
        "report over all models"
