# baseline/generation.parquet, evaluation text → baseline/{trace,logits}.parquet, baseline/output_head.safetensors


use rule model_stage as logits with:
    """Store what the baseline predicts along its own answers and along the text."""
    input:
        ENVIRONMENT,
        modules("logits", "quantizers.unquantized"),
        checkpoint="results/{model}/baseline/checkpoint",
        quantization="results/{model}/baseline/quantization.json",
        generation="results/{model}/baseline/generation.parquet",
        generation_record="results/{model}/baseline/generation.json",
        text=text_of,
    output:
        trace="results/{model}/baseline/trace.parquet",
        store="results/{model}/baseline/logits.parquet",
        head="results/{model}/baseline/output_head.safetensors",
        record="results/{model}/baseline/logits.json",
    log:
        "results/logs/logits/{model}.log",
    benchmark:
        "results/benchmarks/logits/{model}/baseline.tsv"
    resources:
        **needs("logits"),
    params:
        **command(
            "logits",
            quantization="{input.quantization}",
            generation="{input.generation}",
            generation_record="{input.generation_record}",
            text="{input.text}",
            window_tokens=protocol("window_tokens"),
            bos_every_window=protocol_word("bos_every_window"),
            windows=protocol("windows"),
            text_windows=protocol("text_windows"),
            stored_logits=protocol("stored_logits"),
            device=config["device"],
            trace="{output.trace}",
            output="{output.store}",
            record="{output.record}",
        ),
    message:
        "{wildcards.model}: the baseline's logits"
