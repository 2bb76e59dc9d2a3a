# a cell's files, weights and divergence → {method}/integrity.json


use rule model_stage as integrity with:
    """Whether the checkpoint is what it is said to be: files, traces of quantization, behaviour."""
    input:
        ENVIRONMENT,
        extra_packages,
        package("integrity"),
        checkpoint="results/{model}/{method}/checkpoint",
        quantization="results/{model}/{method}/quantization.json",
        divergence="results/{model}/{method}/divergence.json",
        floor="results/{model}/baseline/divergence.json",
        baseline=baseline_integrity,
        signature=of_signed_model("signature"),
        public_key=of_signed_model("public_key"),
    output:
        "results/{model}/{method}/integrity.json",
    log:
        "results/logs/integrity/{model}/{method}.log",
    benchmark:
        "results/benchmarks/integrity/{model}/{method}.tsv"
    resources:
        **needs("integrity"),
    params:
        **command(
            "integrity",
            cell="results/{wildcards.model}/{wildcards.method}",
            floor="{input.floor}",
            baseline="{input.baseline}",
            signature="{input.signature}",
            public_key="{input.public_key}",
            device=config["device"],
            output="{output}",
        ),
