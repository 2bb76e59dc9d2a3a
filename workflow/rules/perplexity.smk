# a checkpoint, evaluation text, the baseline's store → {method}/perplexity.parquet, {method}/perplexity.json


use rule model_stage as perplexity with:
    """Score the evaluation text, protocol concat-N, and compare with the baseline's store along it."""
    input:
        ENVIRONMENT,
        extra_packages,
        package("perplexity"),
        checkpoint="results/{model}/{method}/checkpoint",
        quantization="results/{model}/{method}/quantization.json",
        text=text_of,
        store="results/{model}/baseline/logits.parquet",
        head="results/{model}/baseline/output_head.safetensors",
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
            logits="{input.store}",
            device=config["device"],
            rows="{output.rows}",
            output="{output.record}",
        ),
