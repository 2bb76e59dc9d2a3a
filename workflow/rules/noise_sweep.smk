# cells with weight noise → results/{model}/noise_sweep.{json,parquet,csv,svg,png}. Not in the default run.

SWEEP = derived_methods.noise_sweep(config)


rule defense:
    """Weight noise as a defense: its price and its effect, for the models in `defense:`."""
    input:
        expand("results/{model}/noise_sweep.json", model=names.models_of(config, "defense")),
    message:
        "finished: see results/<model>/noise_sweep.svg and noise_sweep.csv"


rule noise_sweep:
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
        json="results/{model}/noise_sweep.json",
        parquet="results/{model}/noise_sweep.parquet",
        csv="results/{model}/noise_sweep.csv",
        svg="results/{model}/noise_sweep.svg",
        png="results/{model}/noise_sweep.png",
    log:
        "results/logs/noise_sweep/{model}.log",
    benchmark:
        "results/benchmarks/noise_sweep/{model}.tsv"
    conda:
        "../../envs/evaluation.yaml"
    threads: config["threads"]
    resources:
        mem_mb=needs("mem_mb", "quantize"),
        runtime=needs("runtime_minutes", "quantize"),
    params:
        python=PYTHON,
        folder=subpath(output.json, parent=True),
        cells=json.dumps(SWEEP),
    message:
        "{wildcards.model}: weight noise"
    shell:
        "{params.python:q} -m quantharm.noise_sweep"
        " --model {params.folder:q}"
        " --cells {params.cells:q}"
        " --output {output.json:q}"
        " > {log:q} 2>&1"
