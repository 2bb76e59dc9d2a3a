# quantization.json, checkpoint/, evaluation text → {method}/perplexity.parquet, {method}/perplexity.json


use rule model_stage as perplexity with:
    """Score the evaluation text, protocol concat-N."""
    input:
        ENVIRONMENT,
        extra_packages,
        package("perplexity"),
        checkpoint="results/{model}/{method}/checkpoint",
        quantization="results/{model}/{method}/quantization.json",
        text=text_of,
    output:
        rows="results/{model}/{method}/perplexity.parquet",
        record="results/{model}/{method}/perplexity.json",
    log:
        "results/logs/perplexity/{model}/{method}.log",
    benchmark:
        "results/benchmarks/perplexity/{model}/{method}.tsv"
    resources:
        **needs("perplexity"),
    params:
        **command(
            "perplexity",
            quantization="{input.quantization}",
            text="{input.text}",
            window_tokens=protocol("window_tokens"),
            bos_every_window=protocol_word("bos_every_window"),
            windows=protocol("windows"),
            device=config["device"],
            rows="{output.rows}",
            output="{output.record}",
        ),
