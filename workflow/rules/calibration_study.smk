# cells with other calibration samples → results/{model}/calibration_study.{json,parquet,csv,svg,png}. Not in the default run.

STUDY = derived_methods.calibration_cells(config)
STUDIED = list(dict.fromkeys(cell["method"] for cell in STUDY))
COMPARED = [m for m in derived_methods.rounding_methods(config, "defense") if m not in STUDIED] if STUDY else []


rule calibration:
    """What the choice of calibration samples does, for the models in `calibration_study:`."""
    input:
        expand("results/{model}/calibration_study.json", model=names.models_of(config, "calibration_study")),
    message:
        "finished: see results/<model>/calibration_study.svg and calibration_study.csv"


use rule stage as calibration_study with:
    """A row for each text and seed and for bad samples, their spread, and which rankings are larger than it."""
    input:
        ENVIRONMENT,
        modules("calibration_study", *(f"quantizers.{config['methods'][method]['quantizer']}" for method in STUDIED)),
        lambda wildcards: [
            f"results/{wildcards.model}/{method}/{file}"
            for method in ["baseline", *STUDIED, *COMPARED, *(cell["cell"] for cell in STUDY)]
            for file in ("quantization.json", "checkpoint", "perplexity.json", "perplexity.parquet", "divergence.json")
        ],
        config["calibration_study"]["texts"].values(),
        generation="results/{model}/baseline/generation.json",
        text=text_of,
        prompts=prompts_of,
    output:
        multiext("results/{model}/calibration_study", ".parquet", ".csv", ".svg", ".png"),
        json="results/{model}/calibration_study.json",
    log:
        "results/logs/calibration_study/{model}.log",
    benchmark:
        "results/benchmarks/calibration_study/{model}.tsv"
    threads: config["threads"]
    resources:
        mem_mb=needs("checks")["mem_mb"],
        runtime=needs("quantize")["runtime"],
    params:
        **command(
            "calibration_study",
            model="results/{wildcards.model}",
            cells=json.dumps(STUDY),
            others=COMPARED,
            text="{input.text}",
            prompts="{input.prompts}",
            output="{output.json}",
        ),
    message:
        "{wildcards.model}: calibration samples"
