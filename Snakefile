# quantharm: what quantization does to a language model, measured.
#
#   snakemake --cores all --resources gpu=1                                    the default run
#   snakemake results/phi-3-mini/summary.json --cores all --resources gpu=1    one model
from snakemake.utils import min_version

min_version("9.0")


include: "workflow/rules/configuration.smk"  # reads config.yaml
include: "workflow/rules/common.smk"  # what the rules share: jobs
include: "workflow/rules/files.smk"  # and files
include: "workflow/rules/left_out.smk"  # what is done about failed jobs
include: "workflow/rules/onerror.smk"  # and about stopped runs
include: "workflow/rules/stage.smk"  # what the rules below begin with
include: "workflow/rules/environment.smk"
include: "workflow/rules/synthesize.smk"
include: "workflow/rules/tasks.smk"
include: "workflow/rules/fetch.smk"
include: "workflow/rules/quantize.smk"
include: "workflow/rules/generation.smk"
include: "workflow/rules/logits.smk"
include: "workflow/rules/perplexity.smk"
include: "workflow/rules/divergence.smk"
include: "workflow/rules/integrity.smk"
include: "workflow/rules/checks.smk"
include: "workflow/rules/summary.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/gate.smk"
include: "workflow/rules/card.smk"
include: "workflow/rules/noise_sweep.smk"
include: "workflow/rules/calibration_study.smk"
include: "workflow/rules/monitor.smk"


rule all:
    default_target: True
    input:
        "results/summary.parquet",
        "results/report.html",
        expand("results/{model}/EVALUATION_SUMMARY.md", model=config["evaluate"]["models"]),
        records_of_default_run(),
    message:
        "finished: see results/"
