# quantization.json, checkpoint/, prompts → {method}/generation.parquet, {method}/generation.json


use rule model_stage as generation with:
    """Answer the prompt suite, then time prefill and decode."""
    input:
        ENVIRONMENT,
        extra_packages,
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
    threads: threads_of_timed_job  # so that nothing runs beside what is timed
    resources:
        **needs("generation"),
    params:
        **command(
            "generation",
            quantization="{input.quantization}",
            prompts="{input.prompts}",
            prompts_per_category=protocol("prompts_per_category"),
            max_new_tokens=protocol("max_new_tokens"),
            chat_template=protocol("chat_template"),
            thinking=protocol("thinking"),
            template_date=protocol("template_date"),
            system_prompt=protocol("system_prompt"),
            benchmark_prompt_tokens=protocol("benchmark.prompt_tokens"),
            benchmark_prefill_tokens=protocol("benchmark.prefill_tokens"),
            benchmark_compile=protocol("benchmark.compile"),
            benchmark_batch_sizes=protocol("benchmark.batch_sizes"),
            benchmark_new_tokens=protocol("benchmark.new_tokens"),
            benchmark_repetitions=protocol("benchmark.repetitions"),
            benchmark_seconds=protocol("benchmark.seconds"),
            device=config["device"],
            rows="{output.rows}",
            output="{output.record}",
        ),
