# a model's result files → results/{model}/{report.html,EVALUATION_SUMMARY.md,figures/,tables/}; all → results/…


localrules:
    report,
    report_of_all,


rule report:
    """The page, the summary, the charts and the tables of one model."""
    input:
        ENVIRONMENT,
        modules("report"),
        REPORT_TEMPLATES,
        f"{os.path.relpath(PACKAGE)}/schemas/config.schema.yaml",
        f"{os.path.relpath(PACKAGE)}/report/integrity-detection.csv",
        lambda wildcards: finished_files(wildcards, [*(f"{stage}.json" for stage in CELL_RECORDS), *REPORTED_FILES]),
        summary="results/{model}/summary.json",
        prompts=prompts_of,
    output:
        figure_files("results/{model}", report_names.FIGURES, "../report/captions/figure.rst", model="{model}"),
        table_files("results/{model}", report_names.TABLES, "../report/captions/table.rst", model="{model}"),
        html=report(
            "results/{model}/report.html",
            caption="../report/captions/model.rst",
            category="Reports",
            labels={"model": "{model}", "form": "page"},
        ),
        markdown="results/{model}/EVALUATION_SUMMARY.md",
    log:
        "results/logs/report/{model}.log",
    benchmark:
        "results/benchmarks/report/{model}.tsv"
    conda:
        "../../envs/evaluation.yaml"
    params:
        python=PYTHON,
        folder=subpath(output.html, parent=True),
        thresholds=json.dumps(config["report"], ensure_ascii=False),
        # Studies that were run are shown, and a new one makes the page again; the page does not ask for any.
        studies=lambda wildcards: studies_of(wildcards.model),
    message:
        "{wildcards.model}: report"
    shell:
        "{params.python:q} -m quantharm.report"
        " --model {params.folder:q}"
        " --thresholds {params.thresholds:q}"
        " --prompts {input.prompts:q}"
        " --html {output.html:q}"
        " --markdown {output.markdown:q}"
        " --figures {params.folder:q}/figures"
        " --tables {params.folder:q}/tables"
        " > {log:q} 2>&1"


rule report_of_all:
    """The page, the summary, the charts and the tables over all models of the default run."""
    input:
        ENVIRONMENT,
        modules("report"),
        REPORT_TEMPLATES,
        pages=expand("results/{model}/report.html", model=models_of_default_run()),
    output:
        figure_files("results", report_names.OVERVIEW_FIGURES, "../report/captions/overview-figure.rst", model="all"),
        table_files("results", report_names.OVERVIEW_TABLES, "../report/captions/overview-table.rst", model="all"),
        html=report(
            "results/report.html",
            caption="../report/captions/overview.rst",
            category="Reports",
            labels={"model": "all", "form": "page"},
        ),
        markdown="results/EVALUATION_SUMMARY.md",
    log:
        "results/logs/report.log",
    benchmark:
        "results/benchmarks/report.tsv"
    conda:
        "../../envs/evaluation.yaml"
    params:
        python=PYTHON,
        folders=expand("results/{model}", model=models_of_default_run()),
        left_out=models_left_out(),
        folder=subpath(output.html, parent=True),
        thresholds=json.dumps(config["report"], ensure_ascii=False),
    message:
        "report over all models"
    shell:
        "{params.python:q} -m quantharm.report"
        " --models {params.folders:q}"
        " --left-out {params.left_out:q}"
        " --thresholds {params.thresholds:q}"
        " --html {output.html:q}"
        " --markdown {output.markdown:q}"
        " --figures {params.folder:q}/figures"
        " --tables {params.folder:q}/tables"
        " > {log:q} 2>&1"
