# source.json, calibration text → {method}/checkpoint/, {method}/quantization.json


rule quantize:
    """Quantize, save, load what was saved, and measure it."""
    input:
        ENVIRONMENT,
        package("quantize"),
        source="results/{model}/source.json",
        calibration=calibration_of,
        pretrained=pretrained_source,
    output:
        checkpoint=directory("results/{model}/{method}/checkpoint"),
        record="results/{model}/{method}/quantization.json",
    log:
        "results/logs/quantize/{model}/{method}.log",
    benchmark:
        "results/benchmarks/quantize/{model}/{method}.tsv"
    retries: 1
    conda:
        "../../envs/evaluation.yaml"
    threads: config["threads"]
    resources:
        gpu=gpus_of,
        mem_mb=needs("mem_mb", "quantize"),
        runtime=needs("runtime_minutes", "quantize"),
    params:
        python=PYTHON,
        quantizer=lambda wildcards: config["methods"][wildcards.method]["quantizer"],
        settings=lambda wildcards: json.dumps(methods.settings_of(config, wildcards.method), sort_keys=True),
        calibration=lambda wildcards, input: (
            f"--calibration {shlex.quote(input.calibration)}" if input.calibration else ""
        ),
        pretrained=lambda wildcards, input: (
            f"--pretrained-source {shlex.quote(input.pretrained)}" if input.pretrained else ""
        ),
        dtype=model_value("dtype"),
        gpus=model_value("gpus"),
        device=config["device"],
    message:
        "{wildcards.model} × {wildcards.method}: quantize"
    shell:
        "{params.python:q} -m quantharm.quantize"
        " --source {input.source:q}"
        " --method {wildcards.method:q}"
        " --quantizer {params.quantizer:q}"
        " --settings {params.settings:q}"
        " {params.calibration}"
        " {params.pretrained}"
        " --dtype {params.dtype:q}"
        " --device {params.device:q}"
        " --gpus {params.gpus}"
        " --checkpoint {output.checkpoint:q}"
        " --output {output.record:q}"
        " > {log:q} 2>&1"
