"""Tables of the run itself: configuration of the cells, checks, environment, files."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from quantharm.common.records.checks import CheckRecord
from quantharm.common.records.generation import GenerationRecord
from quantharm.common.records.parts import Provenance
from quantharm.reporting.format import MISSING, number, size, thousands
from quantharm.reporting.results import Cell, Results
from quantharm.reporting.tables.columns import METHOD, by_method, figure, named, text
from quantharm.reporting.tables.table import Column, Field, Table, table_of, text_field

FILES = {
    "quantization.json": "method, settings, sizes and hashes of the checkpoint",
    "generation.parquet": "answers, one row a prompt",
    "generation.json": "times, lengths, success, benchmark, memory",
    "trace.parquet": "token ids on which every method is compared",
    "logits.parquet": "what the baseline predicts along the trace and the text",
    "output_head.safetensors": "the matrix that makes the baseline's logits of it",
    "perplexity.parquet": "losses, one row a window",
    "perplexity.json": "perplexity",
    "divergence.parquet": "divergences, one row a position",
    "divergence.json": "divergences and the worst positions",
    "integrity.json": "whether the checkpoint is what it is said to be",
    "checks.json": "whether the figures may be believed",
}
STAGES = ("quantization", "generation", "perplexity", "divergence", "checks")
MODEL_FILES = {
    "summary.parquet": "all figures, one row a method",
    "summary.csv": "the same",
    "summary.json": "the same",
}


def configuration_table(results: Results) -> Table:
    def settings(cell: Cell) -> str:
        given = cell.quantization["settings"].items()
        left = {"resolved", *cell.quantization.get("settings_without_effect", [])}
        return ", ".join(f"{key} {v}" for key, v in given if key not in left and v is not None) or MISSING

    columns = [
        METHOD,
        text("quantizer", "Quantizer", lambda cell: cell.quantization["quantizer"].replace("_", " ")),
        text("settings", "Settings", settings),
        text("classes", "Layers loaded as", lambda c: ", ".join(c.quantization["linear_classes"]) or "Linear"),
        text("dtype", "Computes in", lambda cell: cell.generation["provenance"]["compute_dtype"]),
        figure("parameters", "Parameters", thousands),
        figure("quantize_seconds", "Quantized in, s"),
        text("finished", "Finished (UTC)", lambda cell: cell.checks["provenance"]["finished"]),
    ]
    return table_of("configuration", columns, results.cells)


def checks_table(results: Results) -> Table:
    """A row a check, a column a method: status, value and limit."""
    ran = {cell.method: {check["name"]: check for check in cell.checks["checks"]} for cell in results.cells}
    names = dict.fromkeys(name for checks in ran.values() for name in checks)

    def of(name: str) -> list[CheckRecord]:
        return [checks[name] for checks in ran.values() if name in checks]

    def explanation(name: str) -> str:
        """Of the first that failed, else of the last."""
        return next(
            (check["explanation"] for check in of(name) if check["status"] == "fail"), of(name)[-1]["explanation"]
        )

    columns = [
        Column("check", "Check", "left", lambda name: Field(name.replace("_", " "), name, header=True)),
        *by_method("status", results.cells, lambda cell, name: check_field(ran[cell.method].get(name)), align="left"),
        text("limit", "Limit", lambda name: " or ".join(sorted({shown(c["limit"]) for c in of(name)})), align="right"),
        text("explanation", "What was compared", explanation),
    ]
    return table_of("checks", columns, names)


def shown(value: Any) -> str:
    return number(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def check_field(check: CheckRecord | None) -> Field:
    if check is None:
        return text_field("not run", "unknown")
    tone = {"pass": "pass", "fail": "fail", "skipped": "unknown"}[check["status"]]
    aside = "" if check["value"] is None else shown(check["value"])
    return Field(check["status"], check["status"], aside=aside, tone=tone, rule=check["explanation"])


def environment_table(results: Results) -> Table:
    first = results.baseline
    ran = first.generation["provenance"]
    source = first.quantization["source"]
    generation, perplexity = first.generation, first.perplexity
    of_methods = [cell.generation["provenance"].get("versions_of_method", {}) for cell in results.cells]
    facts = {
        "Model": results.model,
        "Source": f"{source['source']}{' at ' + source['revision'] if source['revision'] else ''}",
        "Architecture": f"{source['architecture']}, {source['layers']} layers, width {source['hidden_size']}, "
        f"vocabulary {source['vocabulary']:,}, context {source['context'] or 'not stated'}",
        "Weights, sha256": source["weights_sha256"],
        "Tokenizer, sha256": source["tokenizer_sha256"],
        "Chat template, sha256": source["chat_template_sha256"] or "the model has none",
        "Device": results.device,
        "Instruction set": ran.get("onednn_instruction_set") or ran.get("instruction_set") or "a GPU's",
        "Driver and CUDA": f"{ran.get('driver')}, CUDA {ran.get('cuda')}" if ran.get("cuda") else "no GPU used",
        "Host CPU": all_of(results, ["generation"], hosts),
        **{package: version for versions in (ran["versions"], *of_methods) for package, version in versions.items()},
        "Evaluation text": f"{perplexity['dataset']}, sha256 {perplexity['dataset_sha256']}",
        "Prompts": f"{generation['prompts']} of {generation['suite']}, sha256 {generation['suite_sha256']}",
        "Chat template": chat_template(generation, source["chat_template_sha256"] is not None),
        "Longest answer": f"{generation['max_new_tokens']} tokens, greedy, batch 1, KV cache on",
        "Code of the workflow": all_of(results, STAGES, lambda ran: ran["git_commit"] or "commit not known"),
        "Finished": max(cell.checks["provenance"]["finished"] for cell in results.cells),
    }
    columns = [named("fact", "What"), text("value", "Value", facts.get)]
    return table_of("environment", columns, facts)


def all_of(results: Results, stages: Sequence[str], fact: Callable[[Provenance], str]) -> str:
    """A fact of the records of every cell and of these stages; each once, as cells may have been made apart."""
    ran = [getattr(cell, name)["provenance"] for cell in results.cells for name in stages]
    return "; ".join(dict.fromkeys(map(fact, ran)))


def hosts(ran: Provenance) -> str:
    return f"{ran['host_cpu']}, {ran['threads']} threads{', warm start' if ran.get('warm_start') else ''}"


def chat_template(generation: GenerationRecord, has_one: bool) -> str:
    """The use of the chat template, with the values that it was given; has_one: whether the model has one."""
    used = generation["chat_template"] != "never" and has_one
    words = [f"{'' if used else 'not '}used: {generation['chat_template']}"]
    words += [f"told that today is {generation.get('template_date', MISSING)}"] if used else []
    if generation.get("thinking_switch"):
        state = "on" if generation["thinking"] else "off; set `thinking: true` to measure with it"
        words.append(f"it has a switch for thinking, which was {state}")
    if generation.get("system_prompt"):
        words.append(f"system prompt: {generation['system_prompt']}")
    return "; ".join(words)


def files_table(results: Results) -> Table:
    """Every result file of the model that exists, with its size."""

    def entries(folder: Path, contents: dict[str, str]) -> list[tuple[str, str, str, int]]:
        paths = [(folder / name, words) for name, words in contents.items()]
        parent = results.folder.parent
        return [
            (str(path.relative_to(parent)), str(path), words, path.stat().st_size)
            for path, words in paths
            if path.is_file()
        ]

    files = entries(results.folder, MODEL_FILES)
    for cell in results.cells:
        files += [*entries(cell.folder, FILES), *checkpoint_entry(cell)]
    columns = [
        Column("file", "File", "left", lambda entry: Field(entry[0], entry[1], header=True)),
        text("content", "Content", lambda entry: entry[2]),
        figure("bytes", "Size", size, lambda entry: entry[3]),
    ]
    return table_of("files", columns, files)


def checkpoint_entry(cell: Cell) -> list[tuple[str, str, str, int]]:
    """None of a cell that is behind an address."""
    record = cell.quantization
    if record["checkpoint_bytes"] is None:
        return []
    hashes = ", ".join(f"{file['name']} {file['sha256'][:12]}…" for file in record["weight_files"][:4])
    more = len(record["weight_files"]) - 4
    words = f"checkpoint, sha256 {hashes}{f' and {more} more' if more > 0 else ''}"
    return [(record["checkpoint"], record["checkpoint"], words, record["checkpoint_bytes"])]
