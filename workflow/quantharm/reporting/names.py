"""What a report is made of: the figures and tables by name, with their titles. Needs no library, so rules read it."""

FIGURES = {
    "quality-against-size": "Quality against size",
    "perplexity": "Perplexity with 95 % intervals",
    "kl-by-category": "KL divergence by category",
    "kl-distribution": "KL divergence of single positions",
    "time-by-category": "Generation time by category",
    "speed": "Speed of prefill and decode",
    "rate-by-batch": "Decoding rate by batch",
    "sizes": "Sizes against the formula",
}
TABLES = {
    "executive-summary": "What each method costs and gains",
    "perplexity": "Perplexity",
    "divergence": "KL divergence from the baseline",
    "divergence-by-category": "KL divergence by category",
    "sizes": "Size and compression",
    "memory": "Memory when generating",
    "time-by-category": "Generation time by category",
    "length-by-category": "Response length by category",
    "success-by-category": "Success by category",
    "answers": "Right answers and changed responses",
    "overall": "Overall performance",
    "benchmark": "Prefill and decode",
    "batches": "Decoding rate and memory by batch",
    "decode-limits": "Decoding against the hardware's limits",
    "trade-off": "The price of a saved byte",
    "trade-off-pairs": "One method's price against another's",
    "harm": "Harm by method",
    "deployment-risk": "Deployment risks",
    "defense": "Defense criteria",
    "defenses": "Defenses",
    "checks": "Checks",
    "calibration": "Calibration",
    "integrity": "Integrity",
    "integrity-detection": "What the scan catches and what evades it",
    "configuration": "Configuration of the cells",
    "environment": "Technical environment",
    "files": "Files",
}
OVERVIEW_FIGURES = {
    "overview-perplexity": "Perplexity change, all models",
    "overview-divergence": "KL divergence, all models",
    "overview-quality-against-size": "Quality against size, all models",
}
OVERVIEW_TABLES = {
    "overview": "All models and methods",
    "overview-harm": "Harm, model by method",
    "overview-defense": "Defense criteria",
    "overview-risk": "Deployment risks",
}
