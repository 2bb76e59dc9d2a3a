# quantization.json, checkpoint/, evaluation text → {method}/perplexity.parquet, {method}/perplexity.json


rule perplexity:
    """Score the evaluation text, protocol concat-N."""
    input:
        ENVIRONMENT,
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
    retries: 1
    conda:
        "../../envs/evaluation.yaml"
    threads: config["threads"]
    resources:
        gpu=gpus_of,
        mem_mb=needs("mem_mb", "perplexity"),
        runtime=needs("runtime_minutes", "perplexity"),
    params:
        python=PYTHON,
        window_tokens=protocol("window_tokens"),
        bos=protocol_switch("bos_every_window"),
        windows=protocol_flag("--windows", "windows"),
        device=config["device"],
    message:
        "{wildcards.model} × {wildcards.method}: perplexity"
    shell:
        "{params.python:q} -m quantharm.perplexity"
        " --quantization {input.quantization:q}"
        " --text {input.text:q}"
        " --window-tokens {params.window_tokens}"
        " --bos-every-window {params.bos}"
        " {params.windows}"
        " --device {params.device:q}"
        " --rows {output.rows:q}"
        " --output {output.record:q}"
        " > {log:q} 2>&1"
