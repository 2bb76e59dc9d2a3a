# quantization.json, checkpoint/, baseline/trace.parquet, baseline/logits.parquet → {method}/divergence.parquet, .json


use rule model_stage as divergence with:
    """Compare a cell with the baseline's log-prob store, position by position."""
    input:
        ENVIRONMENT,
        extra_packages,
        package("divergence"),
        checkpoint="results/{model}/{method}/checkpoint",
        quantization="results/{model}/{method}/quantization.json",
        trace="results/{model}/baseline/trace.parquet",
        store="results/{model}/baseline/logits.parquet",
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
            window_tokens=protocol("window_tokens"),
            bos_every_window=protocol_word("bos_every_window"),
            text_windows=protocol("text_windows"),
            device=config["device"],
            rows="{output.rows}",
            output="{output.record}",
        ),
        # Each new length of a prompt makes oneDNN keep some more kernels, 3 MB for a small model; a few shapes are enough.
        environment="ONEDNN_PRIMITIVE_CACHE_CAPACITY=12 LRU_CACHE_CAPACITY=1",
