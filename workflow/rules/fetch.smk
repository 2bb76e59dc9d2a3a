# config → results/{model}/source.json, results/texts/{text}.txt, results/{model}/task_data.json. The only stages that use the network, besides the
# environment's: run them where there is one (on a cluster they stay on the login node).


use rule stage as fetch with:
    """Resolve a model to files on this machine."""
    input:
        ENVIRONMENT,
        package("fetch"),
        source_files,
    output:
        "results/{model}/source.json",
    log:
        "results/logs/fetch/{model}.log",
    localrule: True
    # The suite is no input: what a template can put is asked once, and an edited prompt fetches nothing again.
    params:
        **command(
            "fetch",
            model="{wildcards.model}",
            source=source_flags,
            prompts=prompts_of,
            chat_template=protocol("chat_template"),
            system_prompt=protocol("system_prompt"),
            output="{output}",
        ),


use rule stage as fetch_pretrained with:
    """Resolve a third party's quantized checkpoint."""
    input:
        ENVIRONMENT,
        package("fetch"),
        lambda wildcards: local_files(config["methods"][wildcards.method]["source"]),
    output:
        "results/{model}/{method}/source.json",
    log:
        "results/logs/fetch/{model}/{method}.log",
    localrule: True
    params:
        **command(
            "fetch",
            model="{wildcards.model}",
            source=source_flags,
            device=config["device"],
            output="{output}",
        ),
    message:
        "{wildcards.model} × {wildcards.method}: fetch"


use rule stage as fetch_text with:
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
    localrule: True
    params:
        **command(
            "fetch_text",
            text="{wildcards.text}",
            path=lambda wildcards: config["texts"][wildcards.text],  # or dataset, name, split, …
            output="{output.text}",
            record="{output.record}",
        ),
    message:
        "{wildcards.text}: fetch the text"


use rule stage as fetch_tasks with:
    """Bring the data of a model's tasks onto this machine."""
    input:
        ENVIRONMENT,
        package("fetch_tasks"),
        own_task_files,
    output:
        "results/{model}/task_data.json",
    log:
        "results/logs/fetch_tasks/{model}.log",
    localrule: True
    params:
        **command(
            "fetch_tasks",
            tasks=tasks_as_json,
            folder=task_option("folder"),
            seed=task_option("seed"),
            output="{output}",
        ),
    message:
        "{wildcards.model}: fetch the tasks' data"
