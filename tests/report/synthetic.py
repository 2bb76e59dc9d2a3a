"""Results of three models × five methods, made up: plausible figures, stated here, in the formats of the real files.

Nothing here was measured. Texts are hostile on purpose: markup, pipes, new lines, control and bidirectional characters.
`bad-int4` failed its check `kernel`; `gamma-0.5b` ran on another device than the other two models.
"""

import hashlib
import json
from pathlib import Path

import numpy
import pandas

from quantharm.common.accuracy import Pairs, accuracy_interval, compare
from quantharm.common.files import write_json, write_parquet
from quantharm.common.medians import describe
from quantharm.common.paired import flat
from quantharm.common.statistics import category_intervals, stratified_mean
from quantharm.reporting.summary_row import summarise_cell
from quantharm.reporting.summary_tasks import task_figures
from quantharm.scoring.depth import kl_by_depth
from quantharm.scoring.text_divergence import TextDivergence

HOSTILE = (
    "<script>alert('owned')</script> | a **b** `c` [x](javascript:y)\n"
    "line 2\x07 \u202egnihton\u202c \u2066iso\u2069 & end"
)
CATEGORIES = [
    "Code Generation",
    "Mathematical Reasoning",
    "Text Summarization",
    "Question Answering",
    "Creative Writing",
    "Logical Reasoning",
    "Translation",
    "Sentiment Analysis",
    "Information Extraction",
    "Instruction Following",
    "Common Sense Reasoning",
    "Domain Knowledge (Science)",
]
PROMPTS_PER_CATEGORY = 8
POSITIONS = 20  # a prompt
WINDOWS = 30
# name: (weights in quantized matrices, other weights, perplexity, decode tokens/s, device)
MODELS = {
    "alpha-7b": (6.98e9, 0.26e9, 5.9, 42.0, "NVIDIA H200"),
    "beta-4b": (3.62e9, 0.20e9, 6.2, 60.0, "NVIDIA H200"),
    "gamma-0.5b": (0.36e9, 0.14e9, 14.2, 110.0, "NVIDIA L4"),
}
# name: (quantizer, bits, mean KL in nats, ΔPPL in %, decode rate relative to the baseline)
METHODS = {
    "baseline": ("unquantized", None, 3e-7, 0.0, 1.0),
    "int8": ("bitsandbytes_int8", 8.01, 0.0015, 0.01, 0.25),
    "nf4": ("bitsandbytes_4bit", 4.127, 0.031, 2.6, 0.66),
    "awq": ("awq", 4.156, 0.024, 1.9, 1.3),
    "bad-int4": ("awq", 4.156, 1.15, 180.0, 2.2),
}
ANSWERS = {  # {task: {method: right in both, lost, gained, wrong in both}}
    "arithmetic": {
        "int8": (700, 5, 4, 291),
        "nf4": (630, 75, 20, 275),
        "awq": (690, 15, 12, 283),
        "bad-int4": (20, 685, 0, 295),
    },
    "own|letters <b>": {
        "int8": (40, 0, 0, 20),
        "nf4": (38, 2, 1, 19),
        "awq": (39, 1, 3, 17),
        "bad-int4": (10, 30, 5, 15),
    },
}
CAPTURED = {"baseline": 3.0, "nf4": 5.0, "awq": 3.0}  # of the eager rate: NF4 is slower eager, faster captured
MIXED_TYPES = {
    "q_proj": {"Q4_K": {"matrices": 2, "weights": 100, "bits_per_weight": 4.5}},
    "v_proj": {"Q6_K": {"matrices": 2, "weights": 100, "bits_per_weight": 6.5625}},
}
LIMITS = {"self_divergence": 1e-5, "reload": 1e-6, "method_is_real": 0.9, "bits_per_weight": 0.03, "kernel": 0.02}


def digest(*parts: str) -> str:
    return hashlib.sha256("|".join(parts).encode()).hexdigest()


def provenance(device: str) -> dict:
    return {
        "device": device,
        "device_type": "cuda",
        "dtype": "bfloat16",
        "compute_dtype": "bfloat16",
        "compute_capability": ["9.0"],
        "tf32": False,
        "versions": {"python": "3.12.0", "torch": "0.0.0+synthetic"},
        "git_commit": "0123456789ab",
        "host_cpu": "synthetic CPU",
        "threads": 8,
        "command": ["synthetic.py"],
        "finished": "2026-01-01T00:00:00+00:00",
        "driver": "000.00",
        "cuda": "0.0",
        "gpus": 1,
    }


def write_cell(folder: Path, model: str, method: str, seed: int) -> None:
    """All result files of one cell; the same seed gives the same prompts and windows to every method of a model."""
    quantized, other, perplexity, rate, device = MODELS[model]
    quantizer, bits, kl, change, speed = METHODS[method]
    shared, own = numpy.random.default_rng(seed), numpy.random.default_rng([seed, *method.encode()])
    ran = provenance(device)
    identity = {"model": model, "method": method}
    weight_bytes = int(2 * other + (2 * quantized if bits is None else quantized * bits / 8))
    matrices = [f"layers.{i}.linear" for i in range(8)]
    source = {
        "source": f"synthetic/{model}",
        "revision": "0" * 40,
        "synthetic": False,
        "architecture": "SyntheticForCausalLM",
        "layers": 8,
        "hidden_size": 64,
        "vocabulary": 1000,
        "context": 4096,
        "weights_sha256": digest(model),
        "tokenizer_sha256": digest(model, "tokenizer"),
        "chat_template_sha256": None,
    }
    write_json(
        folder / "quantization.json",
        identity
        | {
            "synthetic": False,
            "quantizer": quantizer,
            "settings": {} if bits is None else {"bits": round(bits)},
            "dtype": "bfloat16",
            "gpus": 1,
            "source": source,
            "checkpoint": f"results/{model}/{method}/checkpoint",
            "checkpoint_bytes": int(weight_bytes * 1.001),
            "weight_files": [{"name": "model.safetensors", "bytes": weight_bytes, "sha256": digest(model, method)}],
            "seconds": 60.0,
            "weight_bytes": weight_bytes,
            "parameters": int(quantized + other),
            "bits_per_weight": bits,
            "bits_per_weight_formula": bits,
            "linear_classes": [] if bits is None else [f"{quantizer.title()}Linear"],
            "quantized_modules": [] if bits is None else matrices,
            "by_layer_kind": MIXED_TYPES if method == "nf4" else {},
            "quantized_weights": 0 if bits is None else int(quantized),
            "kept_modules": [*matrices, "lm_head"] if bits is None else ["lm_head"],
            "provenance": ran,
        },
    )
    targets = numpy.full(WINDOWS, 2047)
    losses = targets * (numpy.log(perplexity) + shared.normal(0, 0.15, WINDOWS))
    losses += targets * (numpy.log1p(change / 100) + (0 if bits is None else own.normal(0, 0.003, WINDOWS)))
    write_parquet(
        folder / "perplexity.parquet",
        pandas.DataFrame({"window": range(WINDOWS), "nll_sum_nats": losses, "targets": targets}),
    )
    value = float(numpy.exp(losses.sum() / targets.sum()))
    write_json(
        folder / "perplexity.json",
        identity
        | {
            "protocol": "concat-2048",
            "dataset": "results/texts/synthetic.txt",
            "dataset_sha256": digest("text"),
            "tokens_sha256": digest("tokens", model),
            "tokens_scored": int(targets.sum()),
            "windows": WINDOWS,
            "perplexity": value,
            "perplexity_ci95": [value * 0.95, value * 1.05],
            "bits_per_byte": value**0.2,
            **text_figures(kl, own),
            "provenance": ran,
        },
    )
    write_divergence(folder, identity, kl, own, ran)
    write_generation(folder, identity, rate * speed, shared, own, ran, weight_bytes)
    failed = ["kernel"] if method == "bad-int4" else []
    checks = [
        {
            "name": name,
            "status": "fail" if name in failed else "skipped" if bits is None and name == "kernel" else "pass",
            "value": limit * (57 if name in failed else 0.1),
            "limit": limit,
            "explanation": f"synthetic {name}",
        }
        for name, limit in LIMITS.items()
    ]
    write_json(folder / "checks.json", identity | {"checks": checks, "failed": failed, "provenance": ran})
    write_integrity(folder, identity, kl, bits is None)


def text_figures(kl: float, random: numpy.random.Generator) -> dict:
    """Divergence on the text, less where the made-up baseline is sure."""
    text = TextDivergence(WINDOWS, 2047)
    position = numpy.arange(1, 2048)
    for window in range(WINDOWS):
        sure = random.random(2047)
        one = kl * (1.5 - sure) * random.lognormal(-0.5, 1.0, 2047)
        values = {"kl_nats": one, "reverse_kl_nats": one, "js_nats": one / 4, "baseline_top1_p": sure}
        values |= {"delta_p": random.normal(0, kl**0.5 / 4, 2047), "delta_nll_nats": random.normal(kl, kl**0.5, 2047)}
        text.add(window, position, values | {"top1_agrees": random.random(2047) > min(0.5, kl * 2)})
    return dict(text.figures())


def write_integrity(folder: Path, identity: dict, kl: float, baseline: bool) -> None:
    """nf4's model has a finding, in hostile words; what awq's weights stand for would not be noticed."""
    method = identity["method"]
    forged, hidden = method == "nf4", method == "awq"
    scan = {"matrices_scanned": 8, "matrices_with_trace": 0 if hidden else 8, "matrices": []}
    seen = scan | {"verdict": "no trace" if hidden else "dequantized", "method": "NF4", "group_size": 64}
    record = {
        "manifest": {"verified": True, "files": 2, "explanation": "2 weight files are as recorded"},
        "signed_manifest": {"verified": False, "files": 3, "explanation": f"wrong: {HOSTILE}"} if forged else None,
        "scan": scan | {"verdict": "no trace", "matrices_with_trace": 0}
        if baseline
        else {"verdict": "packed", "method": "<b>bitsandbytes</b>", "matrices": []},
        "if_dequantized": None if baseline else seen,
        "behaviour": {
            "kl_nats_mean": kl,
            "kl_nats_ci95": [0.9 * kl, 1.1 * kl],
            "limit_kl_nats": 1e-5,
            "verdict": "same" if baseline else "different",
            "same_as_original": baseline,
        },
        "verified": not forged,
        "explanation": "looks dequantized <b>from nf4</b>" if forged else "nothing",
    }
    write_json(folder / "integrity.json", identity | record)


def write_divergence(folder: Path, identity: dict, kl: float, random, ran: dict) -> None:
    rows = [
        {"prompt_id": f"{c.split()[0].lower()}-{p:02d}", "category": c, "position": i}
        for c in CATEGORIES
        for p in range(1, PROMPTS_PER_CATEGORY + 1)
        for i in range(POSITIONS)
    ]
    rows += [{"prompt_id": "text-01", "category": "text", "position": i} for i in range(100)]
    table = pandas.DataFrame(rows)
    table["kl_nats"] = kl * random.lognormal(-0.5, 1.0, len(table))
    table["top1_agrees"] = random.random(len(table)) > min(0.5, kl * 2)
    write_parquet(folder / "divergence.parquet", table)
    prompts = table[table["category"] != "text"]
    means = prompts.groupby(["category", "prompt_id"], sort=False)["kl_nats"].mean()
    intervals = dict(zip(CATEGORIES, category_intervals([means[c].to_numpy() for c in CATEGORIES]), strict=True))
    by_category = {}
    for category in [*CATEGORIES, "text"]:
        part = table[table["category"] == category]
        by_category[category] = {
            "kl_nats_mean": float(part.groupby("prompt_id")["kl_nats"].mean().mean()),
            "ci95": intervals.get(category),
            "top1_agreement": float(part["top1_agrees"].mean()),
            "prompts": part["prompt_id"].nunique(),
            "positions": len(part),
        }
    worst = prompts.nlargest(20, "kl_nats")
    top = [[7, 0.5], [8, 0.2], [9, 0.1], [10, 0.05], [11, 0.01]]
    record = {
        "kl_nats": stratified_mean([means[c].to_numpy() for c in CATEGORIES])
        | {q: float(prompts["kl_nats"].quantile(v)) for q, v in (("median", 0.5), ("p90", 0.9), ("p99", 0.99))}
        | {"p99_9": float(prompts["kl_nats"].quantile(0.999)), "max": float(prompts["kl_nats"].max())},
        "reverse_kl_nats_mean": kl,
        "js_nats_mean": kl / 4,
        "top1_agreement": float(prompts["top1_agrees"].mean()),
        "delta_p": {"mean": 0.0, "rms": kl**0.5 / 4},
        "by_category": by_category,
        "by_depth": kl_by_depth(table),
        "positions": len(prompts),
        "text": {
            "positions": 100,
            "kl_nats_mean": kl,
            "log_perplexity_ratio": kl,
            "log_perplexity_ratio_standard_error": kl / 10,
            "top1_agreement": 0.9,
        },
        "worst_positions": [
            {
                "prompt_id": row.prompt_id,
                "category": row.category,
                "position": int(row.position),
                "kl_nats": float(row.kl_nats),
                "target_id": 7,
                "baseline_top5": top,
                "method_top5": top[::-1],
                "context": f"before {HOSTILE}",
                "context_is_cut": True,
                "target": "<script>",
                "token_texts": {"7": "<script>", "8": "|", "9": "\n", "10": "\u202e", "11": ""},
            }
            for row in worst.itertuples()
        ],
        "trace_sha256": digest("trace"),
        "store": {"dtype": ran["dtype"], "device": ran["device"], "hardware_floor": None},
        "provenance": ran,
    }
    write_json(folder / "divergence.json", identity | record)


def write_generation(folder: Path, identity: dict, rate: float, shared, random, ran: dict, weight_bytes: int) -> None:
    baseline = identity["method"] == "baseline"
    rows = []
    for category in CATEGORIES:
        for p in range(1, PROMPTS_PER_CATEGORY + 1):
            same = int(shared.integers(3, 60))
            tokens = [*range(same), *([] if baseline else [999]), *range(same, 99)]
            words = " ".join(f"w{t}" for t in tokens)
            rows.append(
                {
                    "prompt_id": f"{category.split()[0].lower()}-{p:02d}",
                    "category": category,
                    "prompt_token_ids": [1, 2, 3],
                    "token_ids": tokens,
                    "text": f"Start {HOSTILE} {words}",
                    "new_tokens": len(tokens),
                    "seconds": len(tokens) / rate * float(random.uniform(0.97, 1.03)),
                    "time_to_first_token_seconds": 0.05,
                    "stop_reason": "length",
                    "finite": True,
                    "degenerate": False,
                    "succeeded": True,
                    "correct": bool(shared.random() < 0.6) if p <= 6 else None,
                }
            )
    table = pandas.DataFrame(rows).astype({"correct": "boolean"})
    write_parquet(folder / "generation.parquet", table)
    decode = describe(rate * random.normal(1, 0.01, 12))
    record = {
        "suite": "data/prompts.jsonl",
        "suite_sha256": digest("suite"),
        "prompts_per_category": PROMPTS_PER_CATEGORY,
        "max_new_tokens": 100,
        "chat_template": "auto",
        **totals(table),
        "not_finite": 0,
        "by_category": {c: totals(part) for c, part in table.groupby("category", sort=False)},
        "benchmark": {
            "prompt_tokens": 256,
            "new_tokens": 64,
            "repetitions": 12,
            "prefill_seconds": describe(2 / rate * random.normal(1, 0.01, 12)),
            "decode_tokens_per_second": decode,
        },
        "model_load_seconds": 5.0,
        "memory": {
            "allocated_bytes": weight_bytes,
            "reserved_bytes": int(weight_bytes * 1.2),
            "peak_bytes": int(weight_bytes * 1.1),
            "host_peak_bytes": 2_000_000_000,
        },
        "provenance": ran,
    }
    record["benchmark"] |= {
        "host_wait_share": 0.6,
        "joules_per_new_token": 9.5,
        "energy_reason": None,
        "roofline": {
            "bytes_per_token": weight_bytes,
            "copy_bytes_per_second": 4e12,
            "eager_share_of_copy_bandwidth": weight_bytes * rate / 4e12,
            "captured_share_of_copy_bandwidth": None,
        },
    }
    if identity["method"] in ("baseline", "nf4", "awq"):
        record["benchmark"]["captured"] = {
            "decode_tokens_per_second": describe(CAPTURED[identity["method"]] * numpy.array(decode["values"])),
            "joules_per_new_token": 3.25,
        }
    if identity["method"] == "int8":
        record["benchmark"]["captured"] = {"reason": "LLM.int8 with a threshold cannot be captured"}
    timings = record["benchmark"].get("captured", {"reason": "not here"})
    reason = timings.get("reason")
    record |= {"decoding": "eager" if reason else "captured", "decoding_reason": reason, "decoding_check": None}
    alone = timings.get("decode_tokens_per_second", decode)
    record["benchmark"]["processor_wait_share"] = 0.001
    record["benchmark"]["batches"] = [
        {
            "batch_size": size,
            "prompt_tokens": 256,
            "decoding": record["decoding"],
            "decoding_reason": reason,
            "prefill_seconds": describe(size * numpy.array(record["benchmark"]["prefill_seconds"]["values"])),
            "decode_tokens_per_second": describe(gain * numpy.array(alone["values"])),
            "peak_memory_bytes": int(weight_bytes * (1 + size / 50)),
            "reason": None,
        }
        for size, gain in ((1, 1), (8, 7 if identity["method"] == "baseline" else 5), (32, 20))
    ]
    if identity["method"] == "int8":
        record["benchmark"]["batches"][2] |= dict.fromkeys(
            ("decoding", "decoding_reason", "prefill_seconds", "decode_tokens_per_second", "peak_memory_bytes")
        ) | {"reason": "out of memory (CUDA out of memory)"}
    write_json(folder / "generation.json", identity | record)


def totals(rows: pandas.DataFrame) -> dict:
    judged = rows["correct"].dropna()
    return {
        "prompts": len(rows),
        "succeeded": int(rows["succeeded"].sum()),
        "seconds_mean": float(rows["seconds"].mean()),
        "time_to_first_token_seconds_mean": 0.05,
        "new_tokens_mean": float(rows["new_tokens"].mean()),
        "tokens_per_second": float(rows["new_tokens"].sum() / rows["seconds"].sum()),
        "degenerate": 0,
        "judged": len(judged),
        "correct": int(judged.astype(bool).sum()),
    }


def write_tasks(folder: Path, method: str) -> None:
    tables = {task: Pairs(*answers.get(method, answers["int8"])) for task, answers in ANSWERS.items()}

    def figures(tables: list[Pairs]) -> dict:
        right = [t.both + (t.lost if method == "baseline" else t.gained) for t in tables]
        items = [t.items for t in tables]
        compared = compare(tables)
        return {
            "items": sum(items),
            "correct": sum(right),
            "accuracy": float(numpy.mean(numpy.divide(right, items))),
            "accuracy_ci95": accuracy_interval(right, items),
            **(dict.fromkeys(compared) if method == "baseline" else compared),
        }

    tasks = {task: figures([table]) for task, table in tables.items()}
    write_json(folder / "tasks.json", {"tasks": tasks, "overall": figures(list(tables.values()))})


def write_summary(folder: Path, methods: list[str]) -> None:
    for method in methods:
        write_tasks(folder / method, method)
    tasks = task_figures([folder / method for method in methods])
    rows = [summarise_cell(folder / method, folder / "baseline", tasks=tasks[method]) for method in methods]
    write_json(folder / "summary.json", {"cells": rows})
    pandas.DataFrame([flat(row) for row in rows]).to_csv(folder / "summary.csv", index=False)


def make_model(results: Path, model: str, methods: list[str] | None = None) -> Path:
    methods = methods or list(METHODS)
    for method in methods:
        write_cell(results / model / method, model, method, list(MODELS).index(model))
    write_summary(results / model, methods)
    return results / model


def make_prompts(path: Path) -> Path:
    lines = [
        {"id": f"{c.split()[0].lower()}-{p:02d}", "category": c, "prompt": f"Ask {HOSTILE}"}
        for c in CATEGORIES
        for p in range(1, PROMPTS_PER_CATEGORY + 1)
    ]
    path.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    return path
