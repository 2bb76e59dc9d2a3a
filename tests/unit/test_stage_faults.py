"""Faults that reach a stage through its files, its model or its machine: one sentence, and nothing half-written."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas
import pyarrow.parquet
import pytest
import torch
import transformers
from limits import HUNG_SECONDS
from stage_chain import Chain

from quantharm import fetch, generation, perplexity
from quantharm.common.errors import UserError
from quantharm.models import safety
from quantharm.scoring import stored_logits
from quantharm.scoring.store_format import METADATA_KEY

CHAT = (
    "{{ bos_token }}{% for m in messages %}[{{ m['content'] }}]{% endfor %}{% if add_generation_prompt %}>{% endif %}"
)


@pytest.fixture
def chain_of(tmp_path, monkeypatch, byte_tokenizer):
    """chain_of(model, **tokenizer): the model saved as a user has it, and its chain of stages."""

    def build(model, **tokenizer) -> Chain:
        folder = tmp_path / "model"
        model.save_pretrained(folder)
        byte_tokenizer(**tokenizer).save_pretrained(folder)
        (tmp_path / "run").mkdir()
        source = fetch.describe("tiny", str(folder), folder, None, False, False)
        return Chain(tmp_path / "run", source, monkeypatch)

    return build


@pytest.fixture(scope="session")
def finished_chain(tmp_path_factory, tiny, byte_tokenizer):
    """The files of a baseline and of nf4, up to what divergence needs; do not change them, take `chain`."""
    folder = tmp_path_factory.mktemp("chain")
    with pytest.MonkeyPatch.context() as monkeypatch:
        tiny("llama").save_pretrained(folder / "model")
        byte_tokenizer().save_pretrained(folder / "model")
        (folder / "run").mkdir()
        source = fetch.describe("tiny", str(folder / "model"), folder / "model", None, False, False)
        made = Chain(folder / "run", source, monkeypatch).baseline()
        made.call("quantize", "nf4")
    return folder / "run", source


@pytest.fixture
def chain(finished_chain, tmp_path, monkeypatch):
    """A copy of a finished baseline and a quantized nf4, free to be damaged."""
    folder, source = finished_chain
    shutil.copytree(folder, tmp_path / "run")
    copy = Chain(tmp_path / "run", source, monkeypatch)
    for path in copy.folder.glob("*/quantization.json"):  # their checkpoints are copied, too
        path.write_text(path.read_text().replace(str(folder), str(copy.folder)).replace('"record_sha256"', '"was"'))
    return copy


# ---------------------------------------------------------------- models that are unlike the built-in one


@pytest.mark.parametrize(
    ("kind", "settings", "tokenizer"),
    [
        ("llama_tied", {}, {}),
        ("gpt2", {}, {}),
        ("llama", {"vocab_size": 512}, {}),
        ("qwen2", {"pad_token_id": None}, {"template": CHAT}),
        ("mistral", {}, {"bos": True}),
        ("mistral", {}, {"bos": True, "template": CHAT}),
    ],
    ids=["tied", "tied gpt2", "padded vocabulary", "template, no pad token", "BOS, no template", "BOS and template"],
)
def test_every_stage_takes_it_and_its_checks_pass(chain_of, tiny, kind, settings, tokenizer):
    model = tiny(kind, **settings)
    if model.config.tie_word_embeddings:  # or what goes in would drown what the layers add to it
        model.get_output_embeddings().weight.div_(10)
    chain = chain_of(model, **tokenizer).baseline()
    for stage in ("integrity", "checks"):
        chain.call(stage)
    for stage in ("quantize", "generation", "perplexity", "divergence", "integrity", "checks"):
        chain.call(stage, "nf4")
    for method in ("baseline", "nf4"):
        status = {check["name"]: check["status"] for check in chain.read(f"{method}/checks.json")["checks"]}
        for name in ("self_divergence", "reload", "method_is_real", "finite", "same_text"):
            assert status[name] == "pass", (method, name)
        assert chain.read(f"{method}/integrity.json")["manifest"]["verified"]
    assert chain.read("nf4/divergence.json")["kl_nats"]["mean"] > 1e-6
    assert chain.read("baseline/logits.json")["vocabulary"] == model.get_output_embeddings().weight.shape[0]
    prompts = pandas.read_parquet(chain / "baseline/generation.parquet")["prompt_token_ids"]
    has_bos = bool(tokenizer)  # a template writes its own, and none is added to it
    assert all(list(ids).count(0) == has_bos == (ids[0] == 0) for ids in prompts)


def test_a_model_that_is_quantized_already_is_no_baseline(chain, tmp_path, monkeypatch):
    """Its divergence from itself is zero, so only `method_is_real` and the bits a weight say so."""
    folder = chain / "nf4/checkpoint"
    shutil.copytree(folder, tmp_path / "model")
    for path in Path(json.loads(chain.source.read_text())["path"]).glob("tokenizer*"):
        shutil.copy(path, tmp_path / "model")
    (tmp_path / "baseline").mkdir()
    source = fetch.describe("tiny", "tiny", tmp_path / "model", None, False, False)
    quantized = Chain(tmp_path / "baseline", source, monkeypatch).baseline()
    message = quantized.fails("checks", on_failure="stop")
    assert "tiny × baseline failed method_is_real (" in message
    assert "14 of them quantized, as nothing should be in this cell" in message
    assert "; bits_per_weight (" in message
    assert message.count(", limit ") == 2


# ---------------------------------------------------------------- logits that are no numbers


@pytest.fixture(params=[math.nan, math.inf], ids=["NaN", "infinity"])
def broken_chain(request, tiny, chain_of):
    """A model that is well until its last layer."""
    model = tiny("llama")
    model.get_output_embeddings().weight[7] = request.param
    return chain_of(model)


def test_logits_that_are_not_finite_are_told_where_they_are_measured(broken_chain):
    broken_chain.call("quantize")
    broken_chain.call("generation")  # counts them: the prompts did not succeed
    record = broken_chain.read("baseline/generation.json")
    assert record["not_finite"] == record["prompts"] == 2
    assert record["succeeded"] == 0
    message = broken_chain.fails("perplexity")  # without a store
    assert "have a NaN or infinite loss in tiny × baseline, the first in window 0" in message
    message = broken_chain.fails("logits")
    assert "the baseline of tiny gives NaN or infinite logits on text-01" in message


def test_a_quantized_model_whose_logits_are_not_finite_is_not_compared(chain):
    from safetensors.torch import load_file, save_file

    path = chain / "nf4/checkpoint/model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"][3] = math.nan
    save_file(tensors, path, metadata={"format": "pt"})
    record = json.loads((chain / "nf4/quantization.json").read_text())
    record["weight_files"] = safety.hash_weights(path.parent)
    (chain / "nf4/quantization.json").write_text(json.dumps(record))
    message = chain.fails("divergence", "nf4")
    assert "tiny × nf4: " in message
    assert "have a NaN or infinite divergence, the first in one at " in message


# ---------------------------------------------------------------- prompts


def test_prompts_that_the_model_cannot_take_end_before_the_first_answer(chain, monkeypatch):
    monkeypatch.setattr(generation, "answer_suite", None)
    good = chain.prompts.read_text()
    long = {"id": "endless", "category": "First", "prompt": "x" * 128}
    chain.prompts.write_text(good + json.dumps(long) + "\n")
    message = chain.fails("generation")
    assert "prompt endless has 128 tokens, which leaves no room in the model's context of 128" in message
    for text in ("", " \n "):
        chain.prompts.write_text(good + json.dumps(long | {"prompt": text}) + "\n")
        assert "line 3: `prompt` is missing or empty" in chain.fails("generation")
    chain.prompts.write_text(good)
    with pytest.MonkeyPatch.context() as other:  # a tokenizer that makes nothing of it
        other.setattr(generation.chat, "encode_prompt", lambda tokenizer, prompt, asking: [])
        assert "prompt one has no tokens" in chain.fails("generation")
    message = chain.fails("generation", benchmark_prompt_tokens=126)
    assert "the benchmark needs 126 + 3 tokens but the model's context is 128; lower `benchmark:`" in message


def test_half_a_character_is_refused(chain):
    chain.prompts.write_text('{"id": "\\ud800", "category": "First", "prompt": "x"}\n')
    assert "line 1: `id` holds half a character" in chain.fails("generation")


# ---------------------------------------------------------------- a store of something else


def with_metadata(path, **changed) -> None:
    """The same rows, said to be made of something else."""
    file = pyarrow.parquet.ParquetFile(path)
    metadata = json.loads(file.schema_arrow.metadata[METADATA_KEY]) | changed
    groups = [file.read_row_group(i) for i in range(file.num_row_groups)]
    schema = file.schema_arrow.with_metadata({METADATA_KEY: json.dumps(metadata)})
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for group in groups:
            writer.write_table(group.replace_schema_metadata(schema.metadata))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model", "another-model"),
        ("revision", "f" * 40),
        ("weights_sha256", "1" * 64),
        ("tokenizer_sha256", "2" * 64),
        ("chat_template_sha256", "3" * 64),
        ("dtype", "bfloat16"),
        ("device", "NVIDIA H200"),
        ("trace_sha256", "4" * 64),
    ],
)
def test_a_store_of_something_else_is_refused_naming_both(chain, key, value):
    path = chain / "baseline/logits.parquet"
    own = stored_logits.store_metadata(path)[key]
    with_metadata(path, **{key: value})
    message = chain.fails("divergence", "nf4")
    assert f"was made with {key} {value!r}, but this cell has {own!r}" in message
    if key != "trace_sha256":
        assert f"was made with {key} {value!r}" in chain.fails("perplexity", "nf4")


def test_a_store_of_other_windows_is_refused(chain):
    message = chain.fails("perplexity", "nf4", window_tokens=32)
    assert "of the text (protocol 'concat-64') than this cell is scored on ('concat-32')" in message
    chain.call("logits", text_windows=3)
    chain.call("perplexity", "nf4")
    rows = pandas.read_parquet(chain / "nf4/perplexity.parquet")
    assert rows["kl_nats_mean"].notna().tolist() == [i < 3 for i in range(len(rows))]
    assert chain.read("nf4/perplexity.json")["text"]["windows"] == 3


def test_a_store_whose_metadata_are_rewritten_alone_is_accepted(chain):
    """So it is the difference that the test above sees."""
    with_metadata(chain / "baseline/logits.parquet")
    chain.call("divergence", "nf4")
    assert chain.read("nf4/divergence.json")["positions"] > 0


# ---------------------------------------------------------------- files that are damaged between two stages

INPUTS = [
    ("generation", "nf4/quantization.json"),
    ("logits", "baseline/generation.parquet"),
    ("divergence", "baseline/logits.parquet"),
    ("divergence", "baseline/trace.parquet"),
    ("divergence", "baseline/output_head.safetensors"),
    ("perplexity", "baseline/output_head.safetensors"),
    ("perplexity", "nf4/checkpoint/model.safetensors"),
    ("integrity", "baseline/divergence.json"),
    ("checks", "baseline/perplexity.json"),
]


def flip(path) -> None:
    """One bit of a figure."""
    data = path.read_bytes()
    if path.suffix == ".parquet":  # the last column that is a list: the end of its page
        group = pyarrow.parquet.read_metadata(path).row_group(0)
        columns = [group.column(i) for i in range(group.num_columns)]
        column = [c for c in columns if ".list" in c.path_in_schema or c.path_in_schema == "hidden_states"][-1]
        place = column.data_page_offset + column.total_compressed_size - 20
    elif path.name.startswith("output_head"):
        place = len(data) - 20
    else:
        place = next(i for i in range(len(data) // 2, len(data)) if data[i : i + 1].isdigit())
    path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])


def empty(path) -> None:
    path.write_bytes(b"")


def halve(path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [empty, halve, flip])
@pytest.mark.parametrize(("stage", "file"), INPUTS, ids=[file for _, file in INPUTS])
def test_a_damaged_input_ends_in_one_sentence_that_names_it(chain, stage, file, damage):
    method = "baseline" if file.startswith("baseline/") and stage not in ("divergence", "perplexity") else "nf4"
    for path in chain.folder.glob("*/quantization.json"):  # with its digest again
        fetch.write_json(path, json.loads(path.read_text()))
    damage(chain / file)
    message = chain.fails(stage, method)
    assert str(chain / file) in message
    assert any(word in message for word in ("damaged", "changed after", "is not the output head")), message
    assert "delete" in message


def test_a_model_that_changed_after_it_was_fetched_is_not_quantized(chain, tmp_path):
    shutil.copytree(json.loads(chain.source.read_text())["path"], tmp_path / "model")
    record = fetch.describe("tiny", "tiny", tmp_path / "model", None, False, False)
    fetch.write_json(chain.source, record)
    path = tmp_path / "model/model.safetensors"
    flip(path)
    message = chain.fails("quantize", "nf4")
    assert (
        f"{path} changed after it was recorded (its sha256 is no longer {record['weight_files'][0]['sha256'][:12]}"
        in message
    )


# ---------------------------------------------------------------- machines that are too small


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 14.00 GiB. GPU 0 has a total of 8 GiB."),
            "the GPU's memory is too small (CUDA out of memory); use a larger GPU or `gpus:`",
        ),
        (MemoryError(), "out of memory; give the job more (`billion_parameters:`"),
        (OSError(28, "No space left on device", "rows.parquet"), "is full while writing rows.parquet; free some space"),
        (OSError(122, "Disk quota exceeded"), "the disk (or your quota) is full; free some space"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "the disk (or your quota) is full"),
    ],
)
def test_a_machine_that_is_too_small(chain, monkeypatch, error, words):
    def fail(*_):
        raise error

    monkeypatch.setattr(perplexity, "score_against_store", fail)
    assert words in chain.fails("perplexity", "nf4")


def test_more_memory_than_there_is(chain, monkeypatch):
    """torch's own exception, not one of ours."""
    monkeypatch.setattr(perplexity, "score_against_store", lambda *_: torch.empty(2**52))
    assert "out of memory; give the job more" in chain.fails("perplexity", "nf4")


IN_A_SMALL_FOLDER = """
mount -t tmpfs -o size=64k tmpfs "$1" || exit 77
shift
"$@"
code=$?
find "$SMALL" -mindepth 1 >&2
exit $code
"""


def on_a_full_disk(folder, *command) -> subprocess.CompletedProcess:
    """A command in a mount namespace of its own, where `folder` is a disk of 64 KB; what is left there follows."""
    folder.mkdir()
    run = subprocess.run(
        ["unshare", "--mount", "--map-root-user", "sh", "-c", IN_A_SMALL_FOLDER, "sh", str(folder), *command],
        capture_output=True,
        text=True,
        env=os.environ | {"SMALL": str(folder), "PYTHONPATH": str(fetch.Path(fetch.__file__).parents[1])},
        timeout=HUNG_SECONDS,
    )
    if run.returncode == 77 or "unshare failed" in run.stderr:
        pytest.skip(f"this machine lets no user mount a small disk: {run.stderr.strip()}")
    return run


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("unshare") is None, reason="no unshare on this machine")
@pytest.mark.parametrize("writes", ["text", "safetensors", "Parquet"])
def test_a_full_disk_ends_in_one_sentence_and_leaves_nothing(chain, tmp_path, writes):
    small = tmp_path / "small"
    if writes == "text":
        chain.text.write_text("many words " * 10_000)
        arguments = [
            "fetch_text",
            "--text",
            "t",
            "--path",
            chain.text,
            "--output",
            small / "t",
            "--record",
            small / "r",
        ]
    elif writes == "safetensors":
        outputs = {"checkpoint": small / "checkpoint", "output": small / "quantization.json"}
        arguments = ["quantize", *chain.arguments("quantize", "nf4", **outputs)]
    else:
        outputs = {"trace": small / "trace.parquet", "output": small / "logits.parquet", "record": small / "r"}
        arguments = ["logits", *chain.arguments("logits", "baseline", **outputs)]
    run = on_a_full_disk(small, sys.executable, "-m", f"quantharm.{arguments[0]}", *map(str, arguments[1:]))
    assert run.returncode == 1, run.stderr
    assert "Traceback" not in run.stderr
    last = run.stderr.strip().splitlines()[-1]  # nothing was found in the folder after it
    assert last.startswith("error: the disk (or your quota) is full"), run.stderr
    assert last.endswith("free some space and run the same command again")


def test_any_other_fault_keeps_its_traceback(chain, monkeypatch):
    """It is ours to mend, so it is not to be hidden behind a sentence."""
    monkeypatch.setattr(perplexity, "score_against_store", lambda *_: [][0])
    with pytest.raises(IndexError):
        chain.call("perplexity", "nf4")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("stage", ["quantize", "generation", "logits", "perplexity", "divergence", "checks"])
def test_a_gpu_that_is_not_there(chain, stage):
    message = chain.fails(stage, device="cuda")
    assert "`device: cuda` is asked for but PyTorch sees no GPU here" in message


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_for_what_integrity_loads(chain):
    chain.call("divergence", "nf4")
    chain.call("integrity")  # loads no model: files and weights of the baseline
    message = chain.fails("integrity", "nf4", device="cuda")
    assert "`device: cuda` is asked for but PyTorch sees no GPU here" in message


# ---------------------------------------------------------------- what models write

HOSTILE = "\x1b[2J\x1b]0;title\x07\r\b\0‮<script>alert(1)</script>|\n# `x`\n=1+1\ufeff\U0010ffff"


def test_what_a_model_writes_comes_back_as_it_was_and_never_reaches_a_log(chain, monkeypatch, capfd):
    monkeypatch.setattr(transformers.PreTrainedTokenizerFast, "decode", lambda self, *_, **__: HOSTILE)
    chain.call("generation")
    assert set(pandas.read_parquet(chain / "baseline/generation.parquet")["text"]) == {HOSTILE}
    chain.call("divergence", "nf4")  # its record shows the text around the worst positions
    assert chain.read("nf4/divergence.json")["worst_positions"]
    shown = "".join(capfd.readouterr()).replace("\r", "")  # the bar's own
    assert "2 of 2 prompts" in shown or "prompts succeeded" in shown
    assert all(c.isprintable() or c == "\n" for c in shown.replace("\x1b[A", "")), ascii(shown)


def test_what_a_checkpoint_calls_itself_cannot_command_a_terminal(chain, tmp_path, monkeypatch, capfd):
    folder = tmp_path / "model"
    shutil.copytree(json.loads(chain.source.read_text())["path"], folder)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"architectures": [HOSTILE]}))
    monkeypatch.setattr(
        "sys.argv", ["fetch", "--model", "m", "--source", str(folder), "--output", str(chain / "s.json")]
    )
    fetch.main()
    shown = capfd.readouterr().out
    assert "⟨U+001B⟩[2J" in shown
    assert all(c.isprintable() or c == "\n" for c in shown)


# ---------------------------------------------------------------- how a text and a prompt are put


def test_bos_in_front_of_every_window_is_a_protocol_of_its_own(chain):
    message = chain.fails("perplexity", bos_every_window="true")  # the store is of the other one
    assert "of the text (protocol 'concat-64') than this cell is scored on ('concat-64-bos')" in message
    chain.call("logits", bos_every_window="true")
    chain.call("perplexity", bos_every_window="true")
    assert chain.read("baseline/perplexity.json")["protocol"] == "concat-64-bos"
    chain.call("divergence")
    trace = pandas.read_parquet(chain / "baseline/trace.parquet").set_index("prompt_id")
    assert all(trace["token_ids"][f"text-0{i}"][0] == 0 for i in (1, 2))
    assert chain.read("baseline/divergence.json")["text"]["log_perplexity_ratio"] == 0


def test_what_was_asked_is_kept_with_the_answers_and_with_the_store(chain_of, tiny):
    chain = chain_of(tiny("llama"), template=CHAT + "{{ strftime_now('%Y') }}{% if enable_thinking %}!{% endif %}")
    for stage in ("quantize", "generation", "logits"):
        chain.call(stage)
    kept, store = chain.read("baseline/generation.json"), chain.read("baseline/logits.json")["metadata"]
    assert (kept["thinking"], kept["thinking_switch"], kept["template_date"]) == (False, True, "2025-01-01")
    assert store["prompt_tokens_sha256"] == kept["prompt_tokens_sha256"]
    chain.call("generation", template_date="2031-05-14")
    assert chain.read("baseline/generation.json")["prompt_tokens_sha256"] != kept["prompt_tokens_sha256"]


def test_a_template_that_cannot_put_a_prompt_is_refused_when_the_model_is_fetched(chain_of, tiny, monkeypatch):
    chain = chain_of(tiny("llama"), template="{{ raise_exception('say who you are') }}")
    folder = json.loads(chain.source.read_text())["path"]
    words = ["fetch", "--model", "m", "--source", folder, "--output", str(chain / "s.json")]
    words += ["--prompts", str(chain.prompts)]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(UserError, match=r"cannot put a prompt \(say who you are\); set `chat_template: never`"):
        fetch.main()
    assert not (chain / "s.json").exists()
    monkeypatch.setattr("sys.argv", [*words, "--chat-template", "never"])
    fetch.main()
    assert (chain / "s.json").exists()


def test_losses_of_a_cell_with_a_quantized_cache_are_laid_to_the_cache_first():
    with_cache = {"settings": {"kv_cache": {"backend": "fp8"}}}
    assert "quantized cache overflows" in perplexity.remedy(with_cache)
    assert "cache" not in perplexity.remedy({"settings": {}})


def begun_beside(folder, library: str, source: str) -> subprocess.CompletedProcess:
    """What a stage says that finds a module of this name, with this source, before the real one; it fails."""
    (folder / f"{library}.py").write_text(source)
    path = os.pathsep.join([str(folder), str(Path(fetch.__file__).parents[1])])
    command = [sys.executable, "-m", "quantharm.checks"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode != 0
    return done


@pytest.mark.parametrize("library", ["argparse", "torch"])
def test_ctrl_c_while_a_stage_imports_its_libraries_ends_in_a_sentence(tmp_path, library):
    done = begun_beside(tmp_path, library, "raise KeyboardInterrupt")
    assert done.stderr == "error: interrupted; run the same command again to go on\n"


@pytest.mark.parametrize("library", ["argparse", "torch"])
def test_a_library_that_an_interpreter_lacks_is_named(tmp_path, library):
    """Of `python:` in the config; found when a stage begins, or inside a quantizer."""
    done = begun_beside(tmp_path, library, "import a_library_that_is_not_there")
    assert done.stderr.startswith(
        f"error: the interpreter {sys.executable} (`python:` in the config) lacks a module (No"
    )
    assert "'a_library_that_is_not_there'); install envs/evaluation.txt" in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_interpreter_that_is_too_old_is_named(tmp_path):
    """By a sentence; else by a traceback of the first line that it cannot read."""
    old = "import sys; sys.version_info = (3, 9, 18); sys.version = '3.9.18 (x)'"
    done = begun_beside(tmp_path, "sitecustomize", old)
    assert done.stderr == (
        f"error: the interpreter {sys.executable} (`python:` in the config) is Python 3.9.18; "
        "name one of Python 3.11 or newer\n"
    )


def test_a_module_of_the_project_that_is_not_there_is_our_fault(tmp_path):
    """No advice to install anything: a traceback."""
    package = tmp_path / "quantharm"
    package.mkdir()
    (package / "__init__.py").symlink_to(Path(fetch.__file__).with_name("__init__.py"))
    (package / "stage.py").write_text("import quantharm.not_there")
    command = [sys.executable, "-m", "quantharm.stage"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert "Traceback" in done.stderr


def test_a_configuration_that_changes_between_stages_ends_in_a_sentence(chain_of, tiny):
    """Its weights are still those recorded, but the records would describe two models."""
    chain = chain_of(tiny("llama"))
    chain.call("quantize")
    chain.call("quantize", "nf4")
    model = Path(chain.read("baseline/quantization.json")["checkpoint"])
    for method, folder in (("nf4", chain / "nf4/checkpoint"), ("baseline", model)):
        path = folder / "config.json"
        path.write_text(path.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-02'))
        assert f"{path} was changed after the checkpoint was recorded" in chain.fails("perplexity", method)
    assert "was changed after" in chain.fails("quantize", "int8")


def test_a_setting_that_changes_nothing_is_recorded_as_one(chain_of, tiny):
    chain = chain_of(tiny("llama"))
    flags = {"quantizer": "compressed_tensors", "settings": json.dumps({"scheme": "FP8_DYNAMIC", "group_size": 64})}
    chain.call("quantize", "nf4", **flags)
    assert chain.read("nf4/quantization.json")["settings_without_effect"] == ["group_size"]
    chain.call("quantize", "nf4", **flags | {"settings": json.dumps({"scheme": "W4A16", "group_size": 32})})
    assert "settings_without_effect" not in chain.read("nf4/quantization.json")
