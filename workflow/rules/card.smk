# summary.json and a cell's records → {method}/card.md, {method}/card.svg. Not in the default run.


rule cards:
    """A card for every method of the default run's models."""
    input:
        [
            f"results/{model}/{method}/card.md"
            for model in models_of_default_run()
            for method in methods.methods_of(config, model)
            if method != "baseline"
        ],
    message:
        "finished: see results/<model>/<method>/card.md"


use rule stage as card with:
    """A section for a model card, metadata for a hub, and a badge."""
    input:
        ENVIRONMENT,
        modules("card"),
        expand("results/{{model}}/{{method}}/{stage}.json", stage=CELL_RECORDS + ["checks"]),
        summary="results/{model}/summary.json",
        text=lambda wildcards: text_of(wildcards).removesuffix(".txt") + ".json",
    output:
        card="results/{model}/{method}/card.md",
        badge="results/{model}/{method}/card.svg",
    log:
        "results/logs/card/{model}/{method}.log",
    localrule: True
    params:
        **command(
            "card",
            cell="results/{wildcards.model}/{wildcards.method}",
            summary="{input.summary}",
            text_record="{input.text}",
            thresholds=json.dumps(config["report"], ensure_ascii=False),
            badge="{output.badge}",
            output="{output.card}",
        ),
    message:
        "{wildcards.model} × {wildcards.method}: card"
