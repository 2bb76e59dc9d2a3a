# config → results/{model}/source.json, results/texts/{text}.txt. The only stages that use the network, besides the
# environment's: run them where there is one (on a cluster they stay on the login node).


localrules:
    fetch,
    fetch_pretrained,
    fetch_text,


rule fetch:
    """Resolve a model to files on this machine."""
    input:
        ENVIRONMENT,
        package("fetch"),
        source_files,
    output:
        "results/{model}/source.json",
    log:
        "results/logs/fetch/{model}.log",
    conda:
        "../../envs/evaluation.yaml"
    # The suite is no input: what a template can put is asked once, and an edited prompt fetches nothing again.
    params:
        python=PYTHON,
        source=lambda wildcards: source_flags(
            config["models"][wildcards.model] | {"source": source_of(wildcards.model)}
        ),
        prompts=prompts_of,
        chat_template=protocol("chat_template"),
        system_prompt=protocol_flag("--system-prompt", "system_prompt"),
    message:
        "{wildcards.model}: fetch"
    shell:
        "{params.python:q} -m quantharm.fetch"
        " --model {wildcards.model:q}"
        " {params.source}"
        " --prompts {params.prompts:q}"
        " --chat-template {params.chat_template:q}"
        " {params.system_prompt}"
        " --output {output:q}"
        " > {log:q} 2>&1"


rule fetch_pretrained:
    """Resolve a third party's quantized checkpoint."""
    input:
        ENVIRONMENT,
        package("fetch"),
        lambda wildcards: local_files(config["methods"][wildcards.method]["source"]),
    output:
        "results/{model}/{method}/source.json",
    log:
        "results/logs/fetch/{model}/{method}.log",
    conda:
        "../../envs/evaluation.yaml"
    params:
        python=PYTHON,
        source=lambda wildcards: source_flags(config["models"][wildcards.model] | config["methods"][wildcards.method]),
    message:
        "{wildcards.model} × {wildcards.method}: fetch"
    shell:
        "{params.python:q} -m quantharm.fetch"
        " --model {wildcards.model:q}"
        " {params.source}"
        " --output {output:q}"
        " > {log:q} 2>&1"


rule fetch_text:
    """Write an evaluation text as one file."""
    input:
        ENVIRONMENT,
        package("fetch_text"),
        lambda wildcards: config["texts"][wildcards.text].get("path", []),
    output:
        text="results/texts/{text}.txt",
        record="results/texts/{text}.json",
    log:
        "results/logs/fetch_text/{text}.log",
    conda:
        "../../envs/evaluation.yaml"
    params:
        python=PYTHON,
        source=lambda wildcards: shlex.join(
            word for key, value in config["texts"][wildcards.text].items() for word in (f"--{key}", str(value))
        ),
    message:
        "{wildcards.text}: fetch the text"
    shell:
        "{params.python:q} -m quantharm.fetch_text"
        " --text {wildcards.text:q}"
        " {params.source}"
        " --output {output.text:q}"
        " --record {output.record:q}"
        " > {log:q} 2>&1"
