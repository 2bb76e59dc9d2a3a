# a shape of the config → results/{model}/synthetic/, for models that are to be random weights


rule synthesize:
    """Write a checkpoint of random weights in the shape of a published model."""
    input:
        ENVIRONMENT,
        modules("synthesize"),
        lambda wildcards: [
            path for path in [config["models"][wildcards.model]["source"]["architecture"]] if os.path.isfile(path)
        ],
        config="data/reference-model/config.json",
        tokenizer=expand("data/reference-model/{file}.json", file=["tokenizer", "tokenizer_config"]),
    output:
        directory("results/{model}/synthetic"),
    log:
        "results/logs/synthesize/{model}.log",
    benchmark:
        "results/benchmarks/synthesize/{model}.tsv"
    retries: 1
    conda:
        "../../envs/evaluation.yaml"
    threads: config["threads"]
    resources:
        gpu=lambda wildcards: min(1, gpus_of(wildcards)),  # layer by layer
        mem_mb=needs("mem_mb", "synthesize"),
        runtime=needs("runtime_minutes", "synthesize"),
    params:
        python=PYTHON,
        architecture=lambda wildcards: config["models"][wildcards.model]["source"]["architecture"],
        seed=lambda wildcards: config["models"][wildcards.model]["source"]["seed"],
        dtype=model_value("dtype"),
        tokenizer=subpath(input.config, parent=True),
        device=config["device"],
    message:
        "{wildcards.model}: random weights"
    shell:
        "{params.python:q} -m quantharm.synthesize"
        " --architecture {params.architecture:q}"
        " --seed {params.seed}"
        " --dtype {params.dtype:q}"
        " --tokenizer {params.tokenizer:q}"
        " --device {params.device:q}"
        " --output {output:q}"
        " > {log:q} 2>&1"
