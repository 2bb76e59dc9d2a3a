"""The configuration: defaults, and one sentence for each mistake."""

import copy
import itertools
import json
import sys
import tracemalloc
import typing

import pytest
import yaml
from record_types import faults

from quantharm.common.errors import UserError
from quantharm.config.configuration import complete
from quantharm.config.derived_methods import noise_sweep
from quantharm.config.entries import Configuration, ModelEntry, ProtocolEntry, TextEntry
from quantharm.config.methods import method_schema, methods_of, quantizer_names, settings_of
from quantharm.config.validation import check_config_file, with_defaults
from quantharm.reporting.thresholds import Thresholds

FILES = ("text.txt", "data/prompts.jsonl", "data/calibration.txt")
REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def schema_path(root):
    return root / "workflow" / "schemas" / "config.schema.yaml"


@pytest.fixture(scope="module")
def schema(schema_path):
    return yaml.safe_load(schema_path.read_text(encoding="utf-8"))


@pytest.fixture
def shipped(root, monkeypatch):
    monkeypatch.chdir(root)  # the config names folders from the working directory, as Snakemake sees them
    return yaml.safe_load((root / "config.yaml").read_text(encoding="utf-8"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with a folder that looks like a model."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"hidden_size": 256, "intermediate_size": 768}))
    (tmp_path / "data").mkdir()
    for file in FILES:
        (tmp_path / file).write_text("some text")
    monkeypatch.chdir(tmp_path)
    return model


def minimal() -> dict:
    return {
        "evaluate": {"models": ["m"], "methods": ["baseline", "nf4"]},
        "models": {"m": {"source": "model", "protocol": "p"}},
        "methods": {"baseline": {"quantizer": "unquantized"}, "nf4": {"quantizer": "bitsandbytes_4bit"}},
        "protocols": {"p": {"text": "t"}},
        "texts": {"t": {"path": "text.txt"}},
    }


def changed(path: str, value) -> dict:
    """The minimal config with one key set, by a dotted path; `...` removes it."""
    config = minimal()
    *parents, last = path.split("/")
    place = config
    for part in parents:
        place = place[part]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return config


def sentence_for(config, schema_path) -> str:
    with pytest.raises(UserError) as caught:
        complete(config, schema_path)
    message = str(caught.value)
    assert "\n" not in message
    assert 20 < len(message) < 400, message
    assert not message.endswith((" ", ",", ":", ";")), message
    return message


# ---------------------------------------------------------------- what is right


def test_the_shipped_config_is_valid(shipped, schema_path):
    config = complete(shipped, schema_path)
    assert methods_of(config, "reference")[0] == "baseline"


def test_a_minimal_config_is_completed_with_all_defaults(folder, schema_path):
    config = complete(minimal(), schema_path)
    assert config["models"]["m"] == {
        "source": "model",
        "protocol": "p",
        "tasks": None,
        "revision": None,
        "signature": None,
        "public_key": None,
        "dtype": "bfloat16",
        "gpus": 1,
        "billion_parameters": None,
        "trust_remote_code": False,
        "allow_pickle": False,
    }
    assert config["methods"]["nf4"] == {
        "quantizer": "bitsandbytes_4bit",
        "quant_type": "nf4",
        "double_quantization": True,
    }
    assert config["protocols"]["p"]["benchmark"] == {
        "prompt_tokens": 256,
        "prefill_tokens": [2048],
        "batch_sizes": [1, 8, 32],
        "compile": False,
        "new_tokens": 64,
        "repetitions": 10,
        "seconds": 4,
    }
    assert config["device"] == "auto"
    assert config["on_failed_check"] == "stop"


def test_completing_changes_neither_its_argument_nor_what_is_set(folder, schema_path):
    config = minimal()
    config["protocols"]["p"]["benchmark"] = {"seconds": 0.5}
    before = copy.deepcopy(config)
    completed = complete(config, schema_path)
    assert config == before
    assert completed["protocols"]["p"]["benchmark"] == {
        "prompt_tokens": 256,
        "prefill_tokens": [2048],
        "batch_sizes": [1, 8, 32],
        "compile": False,
        "new_tokens": 64,
        "repetitions": 10,
        "seconds": 0.5,
    }
    assert complete(completed, schema_path) == completed


def test_two_entries_do_not_share_their_defaults(folder, schema_path):
    config = minimal()
    config["protocols"]["q"] = {"text": "t"}
    completed = complete(config, schema_path)
    completed["protocols"]["p"]["benchmark"]["seconds"] = 99
    assert completed["protocols"]["q"]["benchmark"]["seconds"] == 4


def test_settings_of_a_method_are_what_its_quantizer_is_given(folder, schema_path):
    config = minimal()
    config["methods"]["nf4"] |= {"description": "words", "models": ["m"]}
    assert settings_of(complete(config, schema_path), "nf4") == {"quant_type": "nf4", "double_quantization": True}


def test_methods_of_a_model_leave_out_those_of_others_and_begin_with_the_baseline(folder, schema_path):
    config = minimal()
    config["evaluate"]["methods"] = ["nf4", "theirs", "baseline"]
    config["models"]["other"] = {"source": "model", "protocol": "p"}
    config["methods"]["theirs"] = {
        "quantizer": "pretrained",
        "source": "a/b",
        "revision": REVISION,
        "models": ["other"],
    }
    completed = complete(config, schema_path)
    assert methods_of(completed, "m") == ["baseline", "nf4"]
    assert methods_of(completed, "other") == ["baseline", "nf4", "theirs"]


NOISES = {
    "plain": {},
    "newer": {"relative_to": "half_step"},
    "older": {"relative_to": "half_width"},
    "other": {"relative_to": "absolute"},
}


def test_a_name_with_noise_is_an_entry(folder, schema_path):
    names = ["baseline", "nf4", "nf4+noise-0.3", "noise-0.5", "noise-2-int8", "nf4+noise-1e-05"]
    config = complete(changed("evaluate/methods", names) | {"defense": {"seed": 7}}, schema_path)
    entries = {name: config["methods"][name] for name in names[2:]}
    assert entries["nf4+noise-0.3"] == config["methods"]["nf4"] | {
        "noise": {"sigma": 0.3, "relative_to": "half_step", "target": None, "seed": 7}
    }
    assert entries["noise-0.5"]["quantizer"] == "unquantized"
    targets = [(entry["noise"]["sigma"], entry["noise"]["target"]) for entry in entries.values()]
    assert targets == [(0.3, None), (0.5, "nf4"), (2.0, "int8"), (1e-05, None)]
    assert settings_of(config, "noise-0.5") == {"noise": entries["noise-0.5"]["noise"]}


def test_the_older_word_for_half_a_step_means_the_same(folder, schema_path):
    entries = {
        name: {"quantizer": "bitsandbytes_4bit", "noise": {"sigma": 1} | given} for name, given in NOISES.items()
    }
    config = minimal()
    config["methods"] |= entries
    completed = complete(config, schema_path)["methods"]
    assert completed["older"] == completed["plain"] == completed["newer"]
    assert completed["plain"]["noise"]["relative_to"] == "half_step"
    assert completed["other"]["noise"]["relative_to"] == "absolute"


def test_an_entry_that_is_written_out_is_taken_as_it_is(folder, schema_path):
    config = changed("methods/noise-0.3", {"quantizer": "unquantized", "noise": {"sigma": 9, "target": "fp4"}})
    config["evaluate"]["methods"] = ["baseline", "noise-0.3"]
    assert complete(config, schema_path)["methods"]["noise-0.3"]["noise"]["sigma"] == 9


def test_the_noise_sweep_is_made_of_ordinary_methods(folder, schema_path):
    config = complete(minimal() | {"defense": {"sigmas": [0.1, 1.0]}}, schema_path)
    assert noise_sweep(config) == [
        {"method": "nf4", "sigma": 0.1, "alone": "noise-0.1-nf4", "quantized": "nf4+noise-0.1"},
        {"method": "nf4", "sigma": 1.0, "alone": "noise-1-nf4", "quantized": "nf4+noise-1"},
    ]
    assert {"noise-0.1-nf4", "nf4+noise-0.1", "noise-1-nf4", "nf4+noise-1"} < set(config["methods"])
    assert methods_of(config, "m") == ["baseline", "nf4"]  # the default run is what it was


# ---------------------------------------------------------------- the shipped config and the defaults agree


def test_the_full_protocol_is_the_schemas_default(shipped, schema):
    properties = schema["properties"]["protocols"]["additionalProperties"]["properties"]
    defaults = with_defaults({}, {"properties": properties})
    full = shipped["protocols"]["full"]
    assert {key: defaults[key] for key in full if key != "text"} == {k: v for k, v in full.items() if k != "text"}
    missing = set(defaults) - set(full) - {"windows"}
    assert not missing, f"config.yaml does not show {missing}"


def test_top_level_settings_are_the_schemas_defaults(shipped, schema):
    defaults = with_defaults({}, schema)
    for key, value in defaults.items():
        assert shipped[key] == value, key
    assert len(defaults) >= 5


def test_methods_in_the_config_show_every_setting_of_their_quantizer(shipped):
    for name, entry in shipped["methods"].items():
        own = method_schema(entry["quantizer"])["properties"]
        for key, value in entry.items():
            if key != "quantizer" and not key.startswith("calibration"):
                assert value == own[key]["default"], f"{name}.{key}"


def test_a_complete_configuration_is_of_its_types(shipped, schema_path):
    """Every key and every kind of value, so that the types cannot drift from the schema."""
    completed = complete(shipped, schema_path)
    report = completed.pop("report")  # its types are the reporting room's
    types = typing.get_type_hints(Configuration, include_extras=True)
    assert set(types) == {"report", *completed}
    wrong = [fault for key, value in completed.items() for fault in faults(value, types[key], key)]
    assert wrong == []
    assert faults(report, Thresholds) == []


def test_every_key_of_the_schema_has_a_type(schema):
    entries = {"models": ModelEntry, "protocols": ProtocolEntry, "texts": TextEntry}
    for name, kind in (typing.get_type_hints(Configuration) | entries).items():
        section = schema["properties"][name]
        keys = (section["additionalProperties"] if name in entries else section).get("properties")
        if keys is not None and name != "report":
            assert set(keys) - {"<<"} == set(typing.get_type_hints(kind)), name


def test_every_key_of_the_schema_has_a_description(schema):
    def walk(part: dict, path: str):
        for key, sub in part.get("properties", {}).items():
            assert sub.get("description"), f"{path}.{key}"
            walk(sub, f"{path}.{key}")
            if isinstance(sub.get("additionalProperties"), dict):
                walk(sub["additionalProperties"], f"{path}.{key}.*")

    walk(schema, "config")


# ---------------------------------------------------------------- what is wrong


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("devcie", "cpu", ["devcie", "did you mean `device`?"]),
        ("models/m/sorce", "x", ["models.m", "sorce", "did you mean `source`?"]),
        ("methods/nf4/quant_typ", "nf4", ["methods.nf4", "quant_typ", "did you mean `quant_type`?"]),
        ("methods/nf4/zzz", 1, ["zzz", "it takes"]),
        ("protocols/p/benchmark", {"repititions": 3}, ["protocols.p.benchmark", "did you mean `repetitions`?"]),
        ("models/m/dtype", "int4", ["models.m.dtype", "'int4'", "bfloat16, float16, float32"]),
        ("models/m/gpus", "two", ["models.m.gpus", "'two'", "integer"]),
        ("models/m/gpus", 0, ["models.m.gpus", "0"]),
        ("models/m/allow_pickle", "yes", ["models.m.allow_pickle", "boolean"]),
        ("models/m/source", ..., ["models.m", "lacks the key `source`"]),
        ("models/m", None, ["`models` in the config", "non-empty"]),
        ("models", [], ["models", "object"]),
        ("evaluate", ..., ["lacks the key `evaluate`"]),
        ("evaluate/models", [], ["evaluate.models"]),
        ("evaluate/models", ["n"], ["evaluate.models", "`n`", "not under `models`"]),
        ("evaluate/models", ["mm"], ["`mm`", "did you mean `m`?"]),
        ("evaluate/methods", ["baseline", "nf"], ["`nf`", "did you mean `nf4`?"]),
        ("evaluate/methods", ["nf4"], ["lacks `baseline`"]),
        ("methods/baseline", ..., ["methods.baseline", "must exist"]),
        ("methods/baseline", {"quantizer": "awq"}, ["methods.baseline", "unquantized"]),
        ("methods/baseline", {"quantizer": "unquantized", "noise": {"sigma": 1, "target": "nf4"}}, ["without noise"]),
        ("methods/nf4/noise", {"sigma": 0}, ["methods.nf4.noise.sigma", "0"]),
        ("methods/nf4/noise", {"sgima": 1}, ["methods.nf4.noise", "sgima", "did you mean `sigma`?"]),
        ("methods/noisy", {"quantizer": "unquantized", "noise": {"sigma": 1}}, ["`noisy`", "name a `target`"]),
        (
            "methods/theirs",
            {"quantizer": "pretrained", "source": "a/b", "noise": {"sigma": 1}},
            ["`theirs`", "quantized already"],
        ),
        ("evaluate/methods", ["baseline", "nf+noise-0.3"], ["`nf+noise-0.3`", "not under `methods`"]),
        ("evaluate/methods", ["baseline", "nf4+noise-0"], ["nf4+noise-0.noise.sigma"]),
        ("defense", {"models": ["n"]}, ["defense.models", "`n`"]),
        ("defense", {"methods": ["n"]}, ["defense.methods", "`n`"]),
        ("defense", {"methods": ["baseline"]}, ["defense.methods", "`baseline`", "rounds to no grid"]),
        ("methods/nf4/quantizer", "exl3", ["methods.nf4.quantizer", "'exl3'", "bitsandbytes_4bit"]),
        ("methods/nf4/quant_type", "int3", ["methods.nf4.quant_type", "'int3'", "nf4, fp4"]),
        ("methods/nf4/double_quantization", 1, ["methods.nf4.double_quantization", "boolean"]),
        ("methods/nf4/models", ["nobody"], ["methods.nf4.models", "`nobody`"]),
        ("methods/theirs", {"quantizer": "pretrained"}, ["methods.theirs", "lacks the key `source`"]),
        ("protocols/p/text", "wiki", ["protocols.p.text", "`wiki`", "not under `texts`"]),
        ("protocols/p/chat_template", "maybe", ["chat_template", "auto, never, required"]),
        ("protocols/p/window_tokens", 1, ["protocols.p.window_tokens", "1"]),
        ("protocols/p/window_tokens", 2.5, ["protocols.p.window_tokens", "integer"]),
        ("models/m/protocol", "quick", ["models.m.protocol", "`quick`"]),
        ("texts/t", {"path": "a", "dataset": "b", "revision": REVISION}, ["texts.t", "either `path` or `dataset`"]),
        ("texts/t", {}, ["texts.t", "either `path` or `dataset`"]),
        ("texts/t", {"dataset": "a/b"}, ["texts.t", "revision"]),
        ("models/m/source", "no/such/folder", ["models.m.source", "no folder with a config.json"]),
        ("models/m/source", "../elsewhere", ["models.m.source", "no folder"]),
        ("models/m/source", "owner/name", ["models.m.revision", "pin the hub model to a commit"]),
        ("models/m/source", "a" * 300, ["models.m.source"]),
        ("models/m/source", "x\0y", ["models.m.source"]),
        ("models/m/revision", "main", ["models.m.revision", "'main'", "commit"]),
        ("device", "gpu", ["device", "auto, cpu, cuda"]),
        ("threads", 0, ["threads"]),
        ("on_failed_check", "ignore", ["on_failed_check", "stop, report"]),
    ],
)
def test_a_mistake_ends_in_one_sentence_that_names_it(folder, schema_path, path, value, words):
    message = sentence_for(changed(path, value), schema_path)
    for word in words:
        assert word in message, message


@pytest.mark.parametrize("name", ["../x", "a;b", "a b", "ü", "x" * 300, "", ".hidden", "-flag", "a/b", "$(id)", "a\nb"])
@pytest.mark.parametrize("kind", ["models", "methods", "protocols", "texts"])
def test_names_that_are_no_file_names_are_refused(folder, schema_path, kind, name):
    config = minimal()
    config[kind][name] = next(iter(config[kind].values()))
    message = sentence_for(config, schema_path)
    assert "letters, digits and ._+- (1 to 64, the first a letter or digit)" in message


@pytest.mark.parametrize("name", ["qwen2.5-0.5b", "A_1+x", "7b", "x" * 64])
def test_names_that_are_file_names_are_accepted(folder, schema_path, name):
    config = minimal()
    config["models"][name] = config["models"]["m"]
    assert name in complete(config, schema_path)["models"]


@pytest.mark.parametrize("name", ["logs", "benchmarks", "texts"])
def test_names_of_the_workflows_own_folders_are_refused(folder, schema_path, name):
    config = minimal()
    config["models"][name] = config["models"]["m"]
    assert f"`{name}`" in sentence_for(config, schema_path)


def test_revision_of_a_hub_model_is_accepted(folder, schema_path):
    config = minimal()
    config["models"]["m"] |= {"source": "owner/name", "revision": REVISION}
    assert complete(config, schema_path)["models"]["m"]["revision"] == REVISION


def test_a_group_size_that_does_not_divide_the_width_is_refused(folder, schema_path):
    (folder / "config.json").write_text(json.dumps({"hidden_size": 200, "intermediate_size": 768}))
    config = minimal()
    config["methods"]["awq"] = {"quantizer": "awq"}
    complete(config, schema_path)  # not evaluated, so no matter
    config["evaluate"]["methods"].append("awq")
    message = sentence_for(config, schema_path)
    assert "`awq` cannot be applied to model `m`" in message
    assert "group_size 128 does not divide the model's hidden_size 200" in message
    config["methods"]["awq"]["models"] = []
    complete(config, schema_path)  # it applies to no model


def test_a_required_chat_template_must_exist(folder, schema_path):
    config = minimal()
    config["protocols"]["p"]["chat_template"] = "required"
    assert "requires a chat template but the model `m` has none" in sentence_for(config, schema_path)
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    complete(config, schema_path)
    (folder / "tokenizer_config.json").unlink()
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    complete(config, schema_path)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_a_damaged_model_folder_is_refused(folder, schema_path, file):
    (folder / file).write_text("{")
    config = minimal()
    config["protocols"]["p"]["chat_template"] = "required"
    message = sentence_for(config, schema_path)
    assert f"{file} is damaged" in message


def test_quantizers_are_the_modules_of_their_folder(root):
    """What quantizers share lies in the same room and is none of them."""
    files = (root / "workflow" / "quantharm" / "quantizers").glob("*.py")
    makers = {path.stem for path in files if "\ndef quantize(" in path.read_text(encoding="utf-8")}
    assert set(quantizer_names()) == makers
    assert {"unquantized", "awq"} < makers


# ---------------------------------------------------------------- sources that are no model


@pytest.mark.parametrize(
    ("revision", "words"),
    [
        (None, "`methods.theirs.revision` in the config is missing: pin the hub checkpoint to a commit"),
        ("main", "`methods.theirs.revision` in the config is 'main'; it must be a whole commit"),
        (REVISION, None),
    ],
)
def test_a_pretrained_checkpoint_from_the_hub_is_pinned(folder, schema_path, revision, words):
    entry = {"quantizer": "pretrained", "source": "owner/name", "revision": revision}
    if words is None:
        complete(changed("methods/theirs", entry), schema_path)
    else:
        assert words in sentence_for(changed("methods/theirs", entry), schema_path)


@pytest.mark.parametrize("source", ["./nowhere", "text.txt", "a/b/c", "nowhere"])
def test_a_pretrained_checkpoint_that_is_neither_here_nor_on_the_hub_is_refused(folder, schema_path, source):
    entry = {"quantizer": "pretrained", "source": source, "revision": REVISION}
    assert "no folder with a config.json" in sentence_for(changed("methods/theirs", entry), schema_path)


@pytest.mark.parametrize(("config_json", "source"), [(False, "model"), (True, "model/m.gguf")])
def test_a_gguf_file_is_a_method_and_no_model(folder, schema_path, config_json, source):
    if not config_json:
        (folder / "config.json").unlink()
    (folder / "m.gguf").write_bytes(b"GGUF")
    config = minimal()
    config["models"]["m"] |= {"source": source, "revision": REVISION}
    message = sentence_for(config, schema_path)
    assert all(word in message for word in ["models.m.source", "GGUF", "safetensors", "quantizer: pretrained"])


@pytest.mark.parametrize("key", ["models.m.source", "methods.theirs.source"])
@pytest.mark.parametrize(
    ("files", "source", "words"),
    [
        ({"adapter_config.json": b"{}", "config.json": None}, "model", ["adapter", "merge"]),
        ({"adapter_config.json": b"{}"}, "model", ["adapter", "beside a model"]),
        ({}, "owner/name-GGUF", ["GGUF", "safetensors"]),
        ({"model.safetensors": b"version https://git-lfs.github.com/spec/v1"}, "model", ["git lfs pull"]),
        ({"model-00001-of-00002.safetensors": b"x"}, "model", ["neither model.safetensors nor"]),
        (
            {"model.safetensors.index.json": b'{"weight_map": {"a": "model-00001-of-00001.safetensors"}}'},
            "model",
            ["lacks 1 of the 1 weight files"],
        ),
    ],
    ids=["adapter", "adapter beside", "GGUF hub", "pointer", "no index", "missing shard"],
)
def test_what_is_no_whole_model_says_what_to_do_before_any_job(folder, schema_path, key, files, source, words):
    for name, content in files.items():
        if content is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(content)
    config = minimal()
    if key.startswith("methods"):
        (folder.parent / "good").mkdir()
        (folder.parent / "good" / "config.json").write_text("{}")
        config["models"]["m"]["source"] = "good"
        config["methods"]["theirs"] = {"quantizer": "pretrained", "source": source, "revision": REVISION}
    else:
        config["models"]["m"] |= {"source": source, "revision": REVISION}
    message = sentence_for(config, schema_path)
    assert f"`{key}` in the config" in message
    for word in words:
        assert word in message


# ---------------------------------------------------------------- files that it names


AWQ = {"baseline": {"quantizer": "unquantized"}, "nf4": {"quantizer": "awq"}}


@pytest.mark.parametrize(
    ("file", "key", "config"),
    [
        ("text.txt", "texts.t.path", minimal()),
        ("data/prompts.jsonl", "protocols.p.prompts", minimal()),
        ("data/calibration.txt", "calibration", minimal() | {"methods": AWQ}),
    ],
)
def test_files_that_are_not_here_or_too_large_are_named(folder, schema_path, file, key, config):
    complete(config, schema_path)
    with open(file, "r+b") as text:
        text.truncate(2**30)  # a gigabyte that takes no space
    message = sentence_for(config, schema_path)
    assert f"`{key}` in the config is '{file}', which is larger than 64 MB" in message
    (folder.parent / file).unlink()
    assert f"`{key}` in the config is '{file}', which is no file here" in sentence_for(config, schema_path)
    (folder.parent / file).symlink_to("/dev/zero")  # it would never end
    assert "which is no file here" in sentence_for(config, schema_path)


@pytest.mark.parametrize("where", ["monitor", "models/m"])
@pytest.mark.parametrize("given", ["signature", "public_key"])
def test_a_signature_and_its_key_go_together_and_are_files(folder, schema_path, where, given):
    def signed(**keys):
        config = minimal()
        entry = config.setdefault("monitor", {}) if where == "monitor" else next(iter(config["models"].values()))
        entry |= keys
        return config

    name = where if where == "monitor" else f"models.{next(iter(minimal()['models']))}"
    for other in ({}, {"signature": None, "public_key": None}):
        alone = sentence_for(signed(**(other | {given: "x"})), schema_path)
        assert f"`{name}`" in alone
        assert "public_key" in alone
    both = {"signature": "x.sig", "public_key": "x.pub"}
    (folder.parent / "x.sig").write_text("x")
    (folder.parent / "x.pub").write_text("x")
    complete(signed(**both), schema_path)
    (folder.parent / both[given]).unlink()
    assert f"`{name}.{given}` in the config is '{both[given]}', which is no file here" in sentence_for(
        signed(**both), schema_path
    )


def test_a_calibration_text_that_nothing_uses_may_be_missing(folder, schema_path):
    (folder.parent / "data/calibration.txt").unlink()
    complete(minimal(), schema_path)


# ---------------------------------------------------------------- a file that is broken or hostile

LEVELS = range(1, 30)
MOST_STEPS = 10_000_000  # calls and returns of functions; a million are taken
BOMBS = {
    "lists of aliases": "\n".join(
        ["a0: &a0 [x, x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in LEVELS)]
    ),
    "mappings of aliases": "\n".join(
        ["a0: &a0 {x: 1}", *(f"a{i}: &a{i} {{{', '.join(f'k{j}: *a{i - 1}' for j in range(9))}}}" for i in LEVELS)]
    ),
    "merged mappings": "\n".join(
        ["a0: &a0 {x: 1}", *(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in LEVELS)]
    ),
    "a list within itself": "a: &a [*a]",
    "a mapping within itself": "a: &a {b: *a}",
}


def sentence_for_file(path, content: str | bytes) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as caught:
        check_config_file(path)
    message = str(caught.value)
    assert str(path) in message
    assert len(message) < 400 + len(str(path))
    return message


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_yaml_bomb_ends_early(tmp_path, bomb):
    """In little memory, and after few steps: to write the largest out would take 9 to the power of 29."""
    steps = itertools.count()

    def count(*_) -> None:
        assert next(steps) < MOST_STEPS

    tracemalloc.start()
    sys.setprofile(count)
    try:
        message = sentence_for_file(tmp_path / "config.yaml", BOMBS[bomb])
    finally:
        sys.setprofile(None)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert "has more than 100,000 values once its aliases" in message
    assert peak < 50e6


@pytest.mark.parametrize("bomb", ["lists of aliases", "mappings of aliases", "a list within itself"])
def test_a_yaml_bomb_by_another_way_ends_early_too(folder, schema_path, bomb):
    """Snakemake's own --configfile."""
    config = minimal() | yaml.safe_load(BOMBS[bomb])
    assert "has more than 100,000 values" in sentence_for(config, schema_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("models:\n  a: [unclosed\n", "line 3: this is not YAML"),
        ("models:\n\tm: 1\n", "line 2: this is not YAML"),
        ("a: !!python/object/apply:os.system ['touch pwned']", "line 1: this is not YAML"),
        ("a: *missing", "line 1: this is not YAML (found undefined alias"),
        (b"\xff\xfe\xff", "is not YAML"),
        ("a: \x1b[31m", "is not YAML"),
        ("[" * 100_000, "is not YAML"),
        ("a: " + "x" * 300_000, "is larger than 256 KB"),
        ("__use_yte__: true\n?print(1): 1", "`__use_yte__`, by which it could run code"),
    ],
)
def test_a_file_that_is_no_configuration_ends_in_one_sentence(tmp_path, monkeypatch, content, words):
    monkeypatch.chdir(tmp_path)
    assert words in sentence_for_file(tmp_path / "config.yaml", content)
    assert not (tmp_path / "pwned").exists()


def test_the_shipped_file_and_aliases_are_accepted(root, tmp_path):
    check_config_file(root / "config.yaml")
    check_config_file(tmp_path / "no-such-file.yaml")  # Snakemake says so, unless another is named
    (tmp_path / "config.yaml").write_text("a: &a {x: 1}\nb: {<<: *a}\nc: [*a, *a]\n")
    check_config_file(tmp_path / "config.yaml")


def test_a_message_cannot_command_a_terminal(folder, schema_path):
    """A key with an escape sequence and a new line, as YAML can write them."""
    message = sentence_for(minimal() | {"x\x1b[2J\nerror: all is well\u202e": 1}, schema_path)
    assert "x⟨U+001B⟩[2J⏎error: all is well⟨U+202E⟩" in message


def synthetic(**source) -> dict:
    return changed("models/m/source", {"architecture": "mistral-7b"} | source)


def test_a_shape_to_fill_with_random_weights_is_accepted(folder, schema_path):
    assert complete(synthetic(), schema_path)["models"]["m"]["source"] == {"architecture": "mistral-7b", "seed": 0}
    path = {"architecture": "model/config.json"}
    (folder / "config.json").write_text(json.dumps({"model_type": "mistral", "hidden_size": 96}))
    assert complete(synthetic(**path), schema_path)["models"]["m"]["source"] == path | {"seed": 0}
    config = synthetic(**path)
    config["methods"]["awq"] = {"quantizer": "awq"}
    config["evaluate"]["methods"] = ["baseline", "awq"]
    assert "hidden_size 96" in sentence_for(config, schema_path)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"architecture": "mistral-8b"}, "did you mean `mistral-7b`"),
        ({"seed": -1}, "-1"),
        ({"size": 7}, "`size` that does not exist"),
    ],
)
def test_mistakes_in_a_shape(folder, schema_path, source, words):
    assert words in sentence_for(synthetic(**source), schema_path)


def test_no_method_may_be_called_like_the_folder_of_random_weights(folder, schema_path):
    config = minimal()
    config["methods"]["synthetic"] = {"quantizer": "bitsandbytes_4bit"}
    assert "a method in the config is called `synthetic`" in sentence_for(config, schema_path)


def test_awq_without_zero_points_is_refused(folder, schema_path):
    config = minimal()
    config["methods"]["awq"] = {"quantizer": "awq", "zero_point": False}
    config["evaluate"]["methods"] = ["baseline", "awq"]
    assert "zero_point: false" in sentence_for(config, schema_path)


MERGED = {  # entries as they are once a user's file was merged over the shipped one
    "path over a data set": (
        "texts/t",
        {"path": "text.txt", "dataset": "a/b", "name": "n", "revision": REVISION},
        "texts.t",
        "path: null",
        {"dataset": None},
    ),
    "a data set over a path": (
        "texts/t",
        {"path": "text.txt", "dataset": "a/b", "revision": REVISION},
        "texts.t",
        "path: null",
        {"path": None},
    ),
    "another quantizer": (
        "methods/nf4",
        {"quantizer": "bitsandbytes_int8", "quant_type": "nf4"},
        "methods.nf4",
        "quant_type: null",
        {"quant_type": None},
    ),
    "a quantizer in place of somebody's checkpoint": (
        "methods/nf4",
        {"quantizer": "bitsandbytes_4bit", "source": "model", "revision": None},
        "methods.nf4",
        "source: null",
        {"source": None},
    ),
    "random weights over a hub model": (
        "models/m",
        {"source": {"architecture": "mistral-7b"}, "revision": REVISION, "protocol": "p"},
        "models.m.revision",
        "revision: null",
        {"revision": None},
    ),
    "noise on a checkpoint that is taken as it is": (
        "methods/nf4",
        {"quantizer": "pretrained", "source": "model", "noise": {"sigma": 0.3}},
        "method `nf4`",
        "noise: null",
        {"noise": None},
    ),
}


@pytest.mark.parametrize(("path", "entry", "where", "remedy", "nulls"), MERGED.values(), ids=MERGED)
def test_what_another_config_file_set_is_removed_by_null_and_the_message_says_so(
    folder, schema_path, path, entry, where, remedy, nulls
):
    with pytest.raises(UserError) as error:
        complete(changed(path, entry), schema_path)
    assert where in str(error.value)
    assert f"config files are merged key by key, so what another one sets stays until yours says `{remedy}`" in str(
        error.value
    )
    config = complete(changed(path, entry | nulls), schema_path)
    kind, name = path.split("/")
    assert not {key for key in nulls if config[kind][name].get(key) is not None}


def test_null_removes_an_entry_a_setting_and_a_nested_key(folder, schema_path):
    config = minimal()
    config["methods"]["awq"] = None
    config["methods"]["nf4"]["quant_type"] = None
    config["texts"]["other"] = None
    config["protocols"]["p"] |= {"benchmark": {"repetitions": None, "seconds": 3}, "window_tokens": None}
    config["report"] = None
    completed, plain = complete(config, schema_path), complete(minimal(), schema_path)
    assert completed["protocols"]["p"].pop("benchmark") == plain["protocols"]["p"].pop("benchmark") | {"seconds": 3}
    assert completed == plain


def test_null_stays_where_it_is_a_value(folder, schema_path):
    config = minimal()
    config["protocols"]["p"] |= {"prompts_per_category": None, "windows": None}
    protocol = complete(config, schema_path)["protocols"]["p"]
    assert protocol["prompts_per_category"] is None
    assert protocol["windows"] is None


@pytest.mark.parametrize(
    ("path", "words"), [("protocols/p/winodws", "winodws"), ("methods/nf4/quant_tipe", "quant_tipe")]
)
def test_null_for_a_key_that_does_not_exist_is_a_mistake(folder, schema_path, path, words):
    with pytest.raises(UserError, match=words):
        complete(changed(path, None), schema_path)
