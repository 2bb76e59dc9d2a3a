# cells with weight noise → results/{model}/noise_sweep.{json,parquet,csv,svg,png}. Not in the default run.

SWEEP = derived_methods.noise_sweep(config)


rule defense:
    """Weight noise as a defense: its price and its effect, for the models in `defense:`."""
    input:
        expand("results/{model}/noise_sweep.json", model=names.models_of(config, "defense")),
    message:
        "finished: see results/<model>/noise_sweep.svg and noise_sweep.csv"


use rule stage as noise_sweep with:
    """A row for each method and size of the noise, and a chart."""
    input:
        ENVIRONMENT,
        modules("noise_sweep", *(f"quantizers.{config['methods'][cell['method']]['quantizer']}" for cell in SWEEP)),
        lambda wildcards: [
            f"results/{wildcards.model}/{method}/{file}"
            for method in [
                "baseline",
                *dict.fromkeys(cell[k] for cell in SWEEP for k in ("method", "alone", "quantized")),
            ]
            for file in ("quantization.json", "checkpoint", "perplexity.parquet", "divergence.json")
        ],
    output:
        multiext("results/{model}/noise_sweep", ".parquet", ".csv", ".svg", ".png"),
        json="results/{model}/noise_sweep.json",
    log:
        "results/logs/noise_sweep/{model}.log",
    benchmark:
        "results/benchmarks/noise_sweep/{model}.tsv"
    threads: config["threads"]
    resources:
        mem_mb=needs("quantize")["mem_mb"],
        runtime=needs("quantize")["runtime"],
    params:
        **command(
            "noise_sweep",
            model="results/{wildcards.model}",
            cells=json.dumps(SWEEP),
            output="{output.json}",
        ),
    message:
        "{wildcards.model}: weight noise"
