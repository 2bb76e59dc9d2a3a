# an approved cell, the log-prob store → results/{model}/monitor/{history.parquet,chart.svg,chart.png}. Runs when named.

MONITORED = f"results/{config['monitor']['model']}"
MODEL = config["models"][config["monitor"]["model"]]
APPROVED = f"{MONITORED}/{config['monitor']['method']}"
SIGNATURE = {key: config["monitor"][key] for key in ("signature", "public_key") if config["monitor"][key]}


rule monitor:
    """One run of the control chart: no output is declared, so each call of this target adds a run to the history."""
    input:
        ENVIRONMENT,
        modules(
            "monitor",
            f"quantizers.{config['methods'][config['monitor']['method']]['quantizer']}",
            "quantizers.pretrained",
        ),
        f"{APPROVED}/checkpoint",
        f"{MONITORED}/baseline/trace.parquet",
        f"{APPROVED}/quantization.json",
        *SIGNATURE.values(),
        divergence=f"{APPROVED}/divergence.parquet",
        store=f"{MONITORED}/baseline/logits.parquet",
    log:
        "results/logs/monitor.log",
    conda:
        "../../envs/evaluation.yaml"
    threads: config["threads"]
    resources:
        gpu=0 if config["device"] == "cpu" else MODEL["gpus"],
        mem_mb=lambda wildcards, attempt: resources.mem_mb("divergence", MODEL, attempt),
        runtime=lambda wildcards, attempt: resources.runtime_minutes("divergence", MODEL, attempt),
    params:
        python=PYTHON,
        approved=subpath(input.divergence, parent=True),
        baseline=subpath(input.store, parent=True),
        checkpoint=shlex.join(
            ["--checkpoint", config["monitor"]["checkpoint"]] if config["monitor"]["checkpoint"] else []
        ),
        signature=shlex.join([word for key, path in SIGNATURE.items() for word in (f"--{key.replace('_', '-')}", path)]),
        settings=json.dumps(config["monitor"]),
        device=config["device"],
        history=f"{MONITORED}/monitor/history.parquet",
    message:
        f"{config['monitor']['model']} × {config['monitor']['method']}: monitor"
    shell:
        "{params.python:q} -m quantharm.monitor"
        " --approved {params.approved:q}"
        " --baseline {params.baseline:q}"
        " {params.checkpoint}"
        " {params.signature}"
        " --settings {params.settings:q}"
        " --device {params.device:q}"
        " --history {params.history:q}"
        " 2>&1 | tee {log:q}"
