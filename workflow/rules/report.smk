# a model's summary → results/{model}/EVALUATION_SUMMARY.md


localrules:
    report,


rule report:
    """The tables of one model, as Markdown."""
    input:
        ENVIRONMENT,
        modules("report"),
        summary="results/{model}/summary.json",
        cells=lambda wildcards: [
            f"{cell}/{record}.json"
            for cell in cells_of(wildcards)
            for record in ("generation", "divergence", "checks")
        ],
    output:
        "results/{model}/EVALUATION_SUMMARY.md",
    log:
        "results/logs/report/{model}.log",
    conda:
        "../../envs/evaluation.yaml"
    params:
        python=PYTHON,
        folder=subpath(output[0], parent=True),
    message:
        "{wildcards.model}: report"
    shell:
        "{params.python:q} -m quantharm.report" " --results {params.folder:q}" " --output {output:q}" " > {log:q} 2>&1"
