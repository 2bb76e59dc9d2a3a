# a cell's files, weights and divergence → {method}/integrity.json


rule integrity:
    """Whether the checkpoint is what it is said to be: files, traces of quantization, behaviour."""
    input:
        ENVIRONMENT,
        package("integrity"),
        checkpoint="results/{model}/{method}/checkpoint",
        quantization="results/{model}/{method}/quantization.json",
        divergence="results/{model}/{method}/divergence.json",
        floor="results/{model}/baseline/divergence.json",
        baseline=baseline_integrity,
        signature=signature_of,
    output:
        "results/{model}/{method}/integrity.json",
    log:
        "results/logs/integrity/{model}/{method}.log",
    benchmark:
        "results/benchmarks/integrity/{model}/{method}.tsv"
    retries: 1
    conda:
        "../../envs/evaluation.yaml"
    threads: config["threads"]
    resources:
        gpu=gpus_of,
        mem_mb=needs("mem_mb", "integrity"),
        runtime=needs("runtime_minutes", "integrity"),
    params:
        python=PYTHON,
        cell=subpath(output[0], parent=True),
        baseline=lambda wildcards, input: f"--baseline {shlex.quote(input.baseline)}" if input.baseline else "",
        signature=lambda wildcards, input: (
            shlex.join(["--signature", input.signature[0], "--public-key", input.signature[1]])
            if input.signature
            else ""
        ),
        device=config["device"],
    message:
        "{wildcards.model} × {wildcards.method}: integrity"
    shell:
        "{params.python:q} -m quantharm.integrity"
        " --cell {params.cell:q}"
        " --floor {input.floor:q}"
        " {params.baseline}"
        " {params.signature}"
        " --device {params.device:q}"
        " --output {output:q}"
        " > {log:q} 2>&1"
