# quantization.json, checkpoint/, task_data.json → {method}/tasks.parquet, {method}/tasks.json, where tasks are named

TASK_FILES = ["tasks.json", "tasks.parquet"]


use rule model_stage as tasks with:
    """Answer tasks of lm-evaluation-harness, and compare each answer with the baseline's."""
    input:
        ENVIRONMENT,
        package("tasks"),
        own_task_files,
        checkpoint="results/{model}/{method}/checkpoint",
        quantization="results/{model}/{method}/quantization.json",
        data="results/{model}/task_data.json",
        baseline=baseline_answers,
    output:
        rows="results/{model}/{method}/tasks.parquet",
        record="results/{model}/{method}/tasks.json",
    log:
        "results/logs/tasks/{model}/{method}.log",
    benchmark:
        "results/benchmarks/tasks/{model}/{method}.tsv"
    resources:
        **needs("tasks"),
    params:
        **command(
            "tasks",
            quantization="{input.quantization}",
            tasks=tasks_as_json,
            folder=task_option("folder"),
            seed=task_option("seed"),
            ask_by_template=task_option("chat_template"),
            template_date=protocol("template_date"),
            system_prompt=protocol("system_prompt"),
            answer_tokens=task_option("answer_tokens"),
            baseline="{input.baseline}",
            device=config["device"],
            rows="{output.rows}",
            output="{output.record}",
        ),
