# a checkpoint, the baseline's trace and store, {method}/perplexity.json → {method}/divergence.parquet, .json


use rule model_stage as divergence with:
    """Compare a cell with the baseline's store, position by position along the trace."""
    input:
        ENVIRONMENT,
        extra_packages,
        package("divergence"),
        checkpoint="results/{model}/{method}/checkpoint",
        quantization="results/{model}/{method}/quantization.json",
        trace="results/{model}/baseline/trace.parquet",
        store="results/{model}/baseline/logits.parquet",
        head="results/{model}/baseline/output_head.safetensors",
        perplexity="results/{model}/{method}/perplexity.json",
    output:
        rows="results/{model}/{method}/divergence.parquet",
        record="results/{model}/{method}/divergence.json",
    log:
        "results/logs/divergence/{model}/{method}.log",
    benchmark:
        "results/benchmarks/divergence/{model}/{method}.tsv"
    resources:
        **needs("divergence"),
    params:
        **command(
            "divergence",
            quantization="{input.quantization}",
            trace="{input.trace}",
            logits="{input.store}",
            perplexity="{input.perplexity}",
            device=config["device"],
            rows="{output.rows}",
            output="{output.record}",
        ),
        # Each new length of a prompt makes oneDNN keep some more kernels, 3 MB for a small model; a few shapes are enough.
        environment="ONEDNN_PRIMITIVE_CACHE_CAPACITY=12 LRU_CACHE_CAPACITY=1",
