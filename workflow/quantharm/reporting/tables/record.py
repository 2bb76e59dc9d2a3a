"""Tables of what was run: configuration of the cells, checks, environment, files."""

from pathlib import Path
from typing import Any

from quantharm.reporting.format import MISSING, number, size
from quantharm.reporting.results import Cell as MethodCell
from quantharm.reporting.results import Results
from quantharm.reporting.tables.columns import METHOD, figure, text, thousands
from quantharm.reporting.tables.quality import mark
from quantharm.reporting.tables.table import Cell, Column, Table, table_of, text_cell

FILES = {
    "quantization.json": "method, settings, sizes and hashes of the checkpoint",
    "generation.parquet": "answers, one row a prompt",
    "generation.json": "times, lengths, success, benchmark, memory",
    "trace.parquet": "token ids on which every method is compared",
    "logits.parquet": "the baseline's log-probabilities over the trace",
    "perplexity.parquet": "losses, one row a window",
    "perplexity.json": "perplexity",
    "divergence.parquet": "divergences, one row a position",
    "divergence.json": "divergences and the worst positions",
    "integrity.json": "whether the checkpoint is what it is said to be",
    "checks.json": "whether the figures may be believed",
}
MODEL_FILES = {
    "summary.parquet": "all figures, one row a method",
    "summary.csv": "the same",
    "summary.json": "the same",
}


def configuration_table(results: Results) -> Table:
    def settings(cell: MethodCell) -> str:
        given = cell.quantization["settings"].items()
        return ", ".join(f"{key} {v}" for key, v in given if key != "resolved" and v is not None) or MISSING

    columns = [
        METHOD,
        text("quantizer", "Quantizer", lambda cell: cell.quantization["quantizer"].replace("_", " ")),
        text("settings", "Settings", settings),
        text("classes", "Layers loaded as", lambda c: ", ".join(c.quantization["linear_classes"]) or "Linear"),
        text("dtype", "Computes in", lambda cell: cell.generation["provenance"]["compute_dtype"]),
        figure("parameters", "Parameters", lambda cell: cell.quantization["parameters"], thousands),
        figure("quantize_seconds", "Quantized in, s", lambda cell: cell.quantization["seconds"]),
        text("finished", "Finished (UTC)", lambda cell: cell.checks["provenance"]["finished"]),
    ]
    return table_of("configuration", "Configuration of the cells", columns, results.cells)


def checks_table(results: Results) -> Table:
    """A row a check, a column a method: status, value and limit."""
    names = list(dict.fromkeys(c["name"] for cell in results.cells for c in cell.checks["checks"]))
    rows = []
    for name in names:
        found = [next((c for c in cell.checks["checks"] if c["name"] == name), None) for cell in results.cells]
        limits = sorted({shown(c["limit"]) for c in found if c})
        explanation = next((c["explanation"] for c in found if c and c["status"] == "fail"), None)
        explanation = explanation or next((c["explanation"] for c in reversed(found) if c), MISSING)
        cells = [check_cell(c) for c in found]
        line = [Cell(name.replace("_", " "), name, header=True), *cells, text_cell(" or ".join(limits))]
        rows.append([*line, text_cell(explanation)])
    columns = [
        Column("check", "Check", "left"),
        *[Column(f"status/{cell.method}", f"{cell.method}{mark(cell)}", "left") for cell in results.cells],
        Column("limit", "Limit"),
        Column("explanation", "What was compared", "left"),
    ]
    return Table("checks", "Checks", columns, rows)


def shown(value: Any) -> str:
    return number(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def check_cell(check: dict[str, Any] | None) -> Cell:
    if check is None:
        return text_cell("not run", "unknown")
    tone = {"pass": "pass", "fail": "fail", "skipped": "unknown"}[check["status"]]
    aside = "" if check["value"] is None else shown(check["value"])
    return Cell(check["status"], check["status"], aside=aside, tone=tone, rule=check["explanation"])


def environment_table(results: Results) -> Table:
    first = results.baseline
    ran = first.generation["provenance"]
    source = first.quantization["source"]
    generation, perplexity = first.generation, first.perplexity
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
        "Host CPU": f"{ran['host_cpu']}, {ran['threads']} threads",
        **{package: version for package, version in ran["versions"].items() if version},
        "Evaluation text": f"{perplexity['dataset']}, sha256 {perplexity['dataset_sha256']}",
        "Prompts": f"{generation['prompts']} of {generation['suite']}, sha256 {generation['suite_sha256']}",
        "Chat template": chat_template(generation),
        "Longest answer": f"{generation['max_new_tokens']} tokens, greedy, batch 1, KV cache on",
        "Code of the workflow": ran["git_commit"] or "not under git",
        "Finished": max(cell.checks["provenance"]["finished"] for cell in results.cells),
    }
    rows = [[Cell(name, name, header=True), text_cell(str(value))] for name, value in facts.items()]
    columns = [Column("fact", "What", "left"), Column("value", "Value", "left")]
    return Table("environment", "Technical environment", columns, rows)


def chat_template(generation: dict[str, Any]) -> str:
    """How it was used, with what it was told."""
    words = [f"used: {generation['chat_template']}", f"told that today is {generation.get('template_date', MISSING)}"]
    if generation.get("thinking_switch"):
        state = "on" if generation["thinking"] else "off; set `thinking: true` to measure with it"
        words.append(f"it has a switch for thinking, which was {state}")
    if generation.get("system_prompt"):
        words.append(f"system prompt: {generation['system_prompt']}")
    return "; ".join(words)


def files_table(results: Results) -> Table:
    """Every result file of the model that exists, with its size."""
    rows = []

    def add(path: Path, words: str) -> None:
        if path.is_file():
            rows.append(
                [
                    Cell(str(path.relative_to(results.folder.parent)), str(path), header=True),
                    text_cell(words),
                    Cell(size(path.stat().st_size), path.stat().st_size),
                ]
            )

    for name, words in MODEL_FILES.items():
        add(results.folder / name, words)
    for cell in results.cells:
        for name, words in FILES.items():
            add(cell.folder / name, words)
        rows.append(checkpoint_row(cell))
    columns = [
        Column("file", "File", "left"),
        Column("content", "Content", "left"),
        Column("bytes", "Size"),
    ]
    return Table("files", "Files", columns, rows)


def checkpoint_row(cell: MethodCell) -> list[Cell]:
    record = cell.quantization
    hashes = ", ".join(f"{file['name']} {file['sha256'][:12]}…" for file in record["weight_files"][:4])
    more = len(record["weight_files"]) - 4
    words = f"checkpoint, sha256 {hashes}{f' and {more} more' if more > 0 else ''}"
    path = record["checkpoint"]
    return [
        Cell(path, path, header=True),
        text_cell(words),
        Cell(size(record["checkpoint_bytes"]), record["checkpoint_bytes"]),
    ]
