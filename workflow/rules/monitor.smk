# an approved cell, the log-prob store → results/{model}/monitor/{history.parquet,chart.svg,chart.png}. Runs when named.

MONITORED = f"results/{config['monitor']['model']}"
APPROVED = f"{MONITORED}/{config['monitor']['method']}"


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
        f"{MONITORED}/baseline/output_head.safetensors",
        f"{APPROVED}/quantization.json",
        *filter(None, [config["monitor"]["signature"], config["monitor"]["public_key"]]),
        divergence=f"{APPROVED}/divergence.parquet",
        store=f"{MONITORED}/baseline/logits.parquet",
    log:
        "results/logs/monitor.log",
    conda:
        "../../envs/evaluation.yaml"
    threads: config["threads"]
    resources:
        **needs("divergence", config["monitor"]["model"]),
    params:
        **command(
            "monitor",
            approved=APPROVED,
            baseline=f"{MONITORED}/baseline",
            checkpoint=config["monitor"]["checkpoint"],
            signature=config["monitor"]["signature"],
            public_key=config["monitor"]["public_key"],
            settings=json.dumps(config["monitor"]),
            device=config["device"],
            history=f"{MONITORED}/monitor/history.parquet",
        ),
        python=PYTHON,
    message:
        f"{config['monitor']['model']} × {config['monitor']['method']}: monitor"
    shell:
        "{params.python:q} -m quantharm.{params.command} 2>&1 | tee {log:q}"
