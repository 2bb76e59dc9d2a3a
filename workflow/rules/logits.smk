# baseline/generation.parquet, evaluation text → baseline/trace.parquet, baseline/logits.parquet


rule logits:
    """Store the baseline's log-probabilities over its own answers and the first windows of the text."""
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
        record="results/{model}/baseline/logits.json",
    log:
        "results/logs/logits/{model}.log",
    benchmark:
        "results/benchmarks/logits/{model}/baseline.tsv"
    retries: 1
    conda:
        "../../envs/evaluation.yaml"
    threads: config["threads"]
    resources:
        gpu=gpus_of,
        mem_mb=needs("mem_mb", "logits"),
        runtime=needs("runtime_minutes", "logits"),
    params:
        python=PYTHON,
        window_tokens=protocol("window_tokens"),
        bos=protocol_switch("bos_every_window"),
        text_windows=protocol("text_windows"),
        device=config["device"],
    message:
        "{wildcards.model}: the baseline's logits"
    shell:
        "{params.python:q} -m quantharm.logits"
        " --quantization {input.quantization:q}"
        " --generation {input.generation:q}"
        " --generation-record {input.generation_record:q}"
        " --text {input.text:q}"
        " --window-tokens {params.window_tokens}"
        " --bos-every-window {params.bos}"
        " --text-windows {params.text_windows}"
        " --device {params.device:q}"
        " --trace {output.trace:q}"
        " --output {output.store:q}"
        " --record {output.record:q}"
        " > {log:q} 2>&1"
