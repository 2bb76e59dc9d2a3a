# source.json, calibration text → {method}/checkpoint/, {method}/quantization.json


use rule model_stage as quantize with:
    """Quantize, save, load what was saved, and measure it."""
    input:
        ENVIRONMENT,
        extra_packages,
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
    resources:
        **needs("quantize"),
    params:
        **command(
            "quantize",
            source="{input.source}",
            method="{wildcards.method}",
            quantizer=lambda wildcards: config["methods"][wildcards.method]["quantizer"],
            settings=lambda wildcards: json.dumps(methods.settings_of(config, wildcards.method), sort_keys=True),
            calibration="{input.calibration}",
            pretrained_source="{input.pretrained}",
            dtype=model_value("dtype"),
            device=config["device"],
            gpus=model_value("gpus"),
            checkpoint="{output.checkpoint}",
            output="{output.record}",
        ),
