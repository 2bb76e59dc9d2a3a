"""One method beats another when it is at most as large and measurably closer to the baseline."""

from quantharm.reporting.format import listing
from quantharm.reporting.judgement import Judgement
from quantharm.reporting.results import Results

MOST_PAIRS = 6  # that a sentence lists


def is_closer(results: Results, first: str, second: str) -> bool:
    """Whether the first's KL is measurably smaller than the second's.

    The baseline is the reference: it is closer than a method whose KL, with its interval, is above what says nothing.
    """
    if second == results.baseline.method:
        return False
    if first == results.baseline.method:
        row = next(cell.row for cell in results.methods if cell.method == second)
        return row["kl_nats_ci95"] is not None and row["kl_nats_ci95"][0] > results.least_kl
    difference = results.kl_differences[first, second]
    return difference.measurable and difference.nats < 0


def beaten_by(results: Results, method: str) -> list[str]:
    """Methods at most as large as this one and measurably closer to the baseline; failed ones do not count."""
    weights = {cell.method: cell.weight_bytes for cell in results.sized}
    if method not in weights:
        return []
    return [m for m, w in weights.items() if m != method and w <= weights[method] and is_closer(results, m, method)]


def front_of(results: Results) -> list[str]:
    """Methods that passed their checks and are not beaten, by size."""
    believed = sorted(results.sized, key=lambda cell: cell.weight_bytes)
    return [cell.method for cell in believed if not beaten_by(results, cell.method)]


def front_sentence(results: Results) -> str:
    """The methods that are worth their size, by what could be measured."""
    front = [method for method in front_of(results) if method != results.baseline.method]
    if not front:
        return "No method of this run is on the Pareto front of size against divergence."
    beaten = {cell.method: beaten_by(results, cell.method) for cell in results.methods}
    parts = [f"On the Pareto front of size against divergence: {listing(front)}"] + [
        f"{method} is not: {listing(others)} is at most as large and measurably closer"
        for method, others in beaten.items()
        if others
    ]
    return "; ".join(parts) + "." + same_sentence(results, front)


def same_sentence(results: Results, front: list[str]) -> str:
    """Which methods of the front have no measurable difference in KL; their number, where there are many."""
    pairs = {
        pair: difference
        for pair, difference in results.kl_differences.items()
        if pair[0] < pair[1] and pair[0] in front and pair[1] in front
    }
    if pairs and all(difference.ci95 is None for difference in pairs.values()):
        return " Whether two of them differ in KL cannot be told: one prompt a category gives no interval."
    same = [f"{a} and {b}" for (a, b), difference in pairs.items() if not difference.measurable]
    if len(same) > MOST_PAIRS:
        return f" Of their {len(pairs)} pairs {len(same)} have no measurable difference in KL."
    return f" No measurable difference in KL between {listing(same)}." if same else ""


def best_use(results: Results, judged: dict[str, Judgement]) -> dict[str, str]:
    """A phrase a method, by rank among the cells that passed their checks."""
    believed = [cell for cell in results.sized if cell is not results.baseline]
    smallest = min(believed, key=lambda cell: cell.weight_bytes, default=None)
    closest = min(believed, key=lambda cell: cell.row["kl_nats_mean"], default=None)
    fastest = max(believed, key=lambda cell: cell.decode_change[0], default=None)
    front = front_of(results)
    words = {results.baseline.method: "quality first (the reference)"}
    for cell in results.methods:
        claims = {
            "closest to the baseline": cell is closest and not results.synthetic,
            "smallest": cell is smallest and cell.saved_bytes > 0,
            "fastest": cell is fastest and judged[cell.method].decode.level == "rises",
        }
        other = "in between" if cell.method in front else "none: another is as small and closer"
        words[cell.method] = (
            "none: failed checks"
            if cell.failed
            else "not ranked: weights not seen"
            if cell.served
            else listing([claim for claim, holds in claims.items() if holds])
            if any(claims.values())
            else "–"
            if results.synthetic
            else other
        )
    return words
