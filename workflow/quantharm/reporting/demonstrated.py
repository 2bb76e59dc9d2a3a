"""The harm that a run demonstrates over all of its methods, and when to leave the model as it is."""

from quantharm.reporting.format import count, fixed, interval, listing, mean_kl, number, size
from quantharm.reporting.judgement import Judgement
from quantharm.reporting.limit_verdicts import largest
from quantharm.reporting.results import Results
from quantharm.reporting.verdicts import LEVELS


def demonstrated_harm(results: Results, judged: dict[str, Judgement]) -> list[str]:
    """Sentences on the harm that the run shows, with their figures, and on what it does not show."""
    believed = [judged[cell.method] for cell in results.believed_methods]
    if not believed:
        return ["No method of this run passed its checks: nothing is demonstrated."]
    sentences = []

    def say(sentence: str, shown: list[str], after: str = "") -> None:
        if shown:
            sentences.append(f"{sentence}: {listing(shown)}{after}.")

    def those(figure: str, levels: tuple[str, ...]) -> list[str]:
        verdicts = {j.method: getattr(j, figure) for j in believed}
        return [f"{method} {verdict.figure}" for method, verdict in verdicts.items() if verdict.level in levels]

    say("Perplexity rises measurably", those("perplexity", LEVELS))
    say("No measurable rise in perplexity", those("perplexity", ("none",)))
    say("The perplexity change is too uncertain to judge", those("perplexity", ("undecided",)))
    shifted = [j for j in believed if j.kl.level in LEVELS]
    shifts = [f"{j.method} {mean_kl(j.cell.row)} nats ({j.kl.words})" for j in shifted]
    say("The next-token distribution shifts", shifts)
    worst = [(j.method, *most) for j in shifted if (most := largest(j.cell.by_category))]
    few = f"; descriptive, {count(results.prompts_per_category[0], 'prompt')} are too few to single out a category"
    say(
        "Largest by category",
        [f"{method} in {category} ({number(nats)} nats {interval(ci95)})" for method, category, nats, ci95 in worst],
        few if results.categories_are_descriptive else "",
    )
    say("Decoding is measurably slower", those("decode", ("falls",)))
    say("Decoding is measurably faster", those("decode", ("rises",)))
    silent = [
        j.method for j in shifted if j.cell.row["succeeded"] == j.cell.row["prompts"] and j.harm.level in LEVELS[2:]
    ]
    if silent:
        sentences.append(
            f"The harm is silent: every prompt still succeeds with {listing(silent)}, so a monitor that counts "
            "failures sees nothing."
        )
    return sentences


def baseline_conditions(results: Results, judged: dict[str, Judgement]) -> list[str]:
    """When to leave the model as it is."""
    row = results.baseline.row
    conditions = [
        f"{size(results.baseline.weight_bytes)} of weights fit in memory",
        f"the answers must not change at all (perplexity {fixed(row['perplexity'], 2)} is the reference)",
    ]
    if judged and all(j.harm.level not in ("none", "negligible") for j in judged.values()):
        conditions.append("the harm measured here matters to your task: no method of this run is without it")
    if judged and all(j.decode.level == "falls" for j in judged.values()):
        conditions.append("speed matters: every method of this run decodes more slowly")
    return conditions
