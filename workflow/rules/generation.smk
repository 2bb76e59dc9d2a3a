# quantization.json, checkpoint/, prompts → {method}/generation.parquet, {method}/generation.json


rule generation:
    """Answer the prompt suite, then time prefill and decode."""
    input:
        ENVIRONMENT,
        package("generation"),
        checkpoint="results/{model}/{method}/checkpoint",
        quantization="results/{model}/{method}/quantization.json",
        prompts=prompts_of,
    output:
        rows="results/{model}/{method}/generation.parquet",
        record="results/{model}/{method}/generation.json",
    log:
        "results/logs/generation/{model}/{method}.log",
    benchmark:
        "results/benchmarks/generation/{model}/{method}.tsv"
    retries: 1
    conda:
        "../../envs/evaluation.yaml"
    threads: config["threads"]
    resources:
        gpu=gpus_of,
        mem_mb=needs("mem_mb", "generation"),
        runtime=needs("runtime_minutes", "generation"),
    params:
        python=PYTHON,
        per_category=protocol_flag("--prompts-per-category", "prompts_per_category"),
        max_new_tokens=protocol("max_new_tokens"),
        chat_template=protocol("chat_template"),
        thinking=lambda wildcards: "--thinking" if protocol("thinking")(wildcards) else "",
        template_date=protocol("template_date"),
        system_prompt=protocol_flag("--system-prompt", "system_prompt"),
        prompt_tokens=protocol("benchmark.prompt_tokens"),
        prefill_tokens=protocol("benchmark.prefill_tokens"),
        compile_too=lambda wildcards: "--benchmark-compile" if protocol("benchmark.compile")(wildcards) else "",
        new_tokens=protocol("benchmark.new_tokens"),
        repetitions=protocol("benchmark.repetitions"),
        seconds=protocol("benchmark.seconds"),
        device=config["device"],
    message:
        "{wildcards.model} × {wildcards.method}: generation"
    shell:
        "{params.python:q} -m quantharm.generation"
        " --quantization {input.quantization:q}"
        " --prompts {input.prompts:q}"
        " {params.per_category}"
        " --max-new-tokens {params.max_new_tokens}"
        " --chat-template {params.chat_template:q}"
        " {params.thinking}"
        " --template-date {params.template_date:q}"
        " {params.system_prompt}"
        " --benchmark-prompt-tokens {params.prompt_tokens}"
        " --benchmark-prefill-tokens {params.prefill_tokens}"
        " {params.compile_too}"
        " --benchmark-new-tokens {params.new_tokens}"
        " --benchmark-repetitions {params.repetitions}"
        " --benchmark-seconds {params.seconds}"
        " --device {params.device:q}"
        " --rows {output.rows:q}"
        " --output {output.record:q}"
        " > {log:q} 2>&1"
