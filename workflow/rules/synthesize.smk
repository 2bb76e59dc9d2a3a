# a shape of the config → results/{model}/synthetic/, for models that are to be random weights


use rule model_stage as synthesize with:
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
    resources:
        **needs("synthesize", most_gpus=1),  # layer by layer
    params:
        **command(
            "synthesize",
            architecture=lambda wildcards: config["models"][wildcards.model]["source"]["architecture"],
            seed=lambda wildcards: config["models"][wildcards.model]["source"]["seed"],
            dtype=model_value("dtype"),
            tokenizer="data/reference-model",
            device=config["device"],
            output="{output}",
        ),
    message:
        "{wildcards.model}: random weights"
