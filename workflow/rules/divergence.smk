# quantization.json, checkpoint/, baseline/trace.parquet, baseline/logits.parquet → {method}/divergence.parquet, .json


rule divergence:
    """Compare a cell with the baseline's log-prob store, position by position."""
    input:
        ENVIRONMENT,
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
    retries: 1
    conda:
        "../../envs/evaluation.yaml"
    threads: config["threads"]
    resources:
        gpu=gpus_of,
        mem_mb=needs("mem_mb", "divergence"),
        runtime=needs("runtime_minutes", "divergence"),
    params:
        python=PYTHON,
        window_tokens=protocol("window_tokens"),
        bos=protocol_switch("bos_every_window"),
        text_windows=protocol("text_windows"),
        device=config["device"],
    message:
        "{wildcards.model} × {wildcards.method}: divergence"
    # Each new length of a prompt makes oneDNN keep some more kernels, 3 MB for a small model; a few shapes are enough.
    shell:
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY=12 LRU_CACHE_CAPACITY=1"
        " {params.python:q} -m quantharm.divergence"
        " --quantization {input.quantization:q}"
        " --trace {input.trace:q}"
        " --logits {input.store:q}"
        " --window-tokens {params.window_tokens}"
        " --bos-every-window {params.bos}"
        " --text-windows {params.text_windows}"
        " --device {params.device:q}"
        " --rows {output.rows:q}"
        " --output {output.record:q}"
        " > {log:q} 2>&1"
