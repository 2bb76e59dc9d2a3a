"""Finding a model or a text on this machine, and one sentence when it is not here. No network is used."""

import http.server
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time

import pandas
import pytest
import torch
from huggingface_hub import constants

from quantharm import fetch
from quantharm.common.errors import UserError
from quantharm.models.hub import ask_hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"

UNREACHABLE_SECONDS = 20  # the hub's own client alone would try for 23; Python and its libraries take 2 to 5 of these


def run_stage(module: str, *arguments, cache=None, seconds=600, **environment):
    """A stage in a process of its own, without a network: the hub's address is a closed port of this machine."""
    env = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy") and not k.startswith("HF_")}
    env |= {"PYTHONPATH": str(fetch.Path(fetch.__file__).parents[1]), "HF_ENDPOINT": "http://127.0.0.1:9"}
    env |= {"HF_HUB_CACHE": str(cache), "HF_DATASETS_CACHE": str(cache)} if cache else {}
    return subprocess.run(
        [sys.executable, "-m", f"quantharm.{module}", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=env | environment,
        timeout=seconds,
    )


def one_sentence(run) -> str:
    assert run.returncode == 1, run.stdout + run.stderr
    assert "Traceback" not in run.stderr
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    return last


# ---------------------------------------------------------------- models


def test_a_folder_is_taken_as_it_is(root):
    folder = root / "data" / "reference-model"
    assert fetch.resolve(str(folder), None, False, False) == (folder, None)


@pytest.mark.parametrize("source", ["no-such-folder", "./owner/name", "/owner/name", "a/b/c", "owner/na me", "a" * 300])
def test_what_is_neither_a_folder_nor_a_hub_id_is_refused(source):
    with pytest.raises(UserError, match="neither a folder here nor a hub id"):
        fetch.resolve(source, None, False, False)


@pytest.fixture
def hub_cache(tmp_path, root):
    """A hub cache as huggingface_hub lays it out, with the reference model as owner/name."""
    model = tmp_path / "cache" / "models--owner--name"
    snapshot = model / "snapshots" / COMMIT
    for folder in (snapshot, model / "blobs", model / "refs"):
        folder.mkdir(parents=True)
    (model / "refs" / "main").write_text(COMMIT)
    for i, path in enumerate(sorted((root / "data" / "reference-model").glob("*"))):
        if path.suffix in (".json", ".safetensors"):
            (model / "blobs" / f"{i:040x}").write_bytes(path.read_bytes())
            (snapshot / path.name).symlink_to(f"../../blobs/{i:040x}")
    return tmp_path / "cache", snapshot


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{"HF_HUB_OFFLINE": "1"}, {}], ids=["offline", "unreachable"])
def test_a_hub_model_is_found_in_the_local_cache(hub_cache, tmp_path, reference_source, environment):
    cache, snapshot = hub_cache
    output = tmp_path / "source.json"
    arguments = ("--model", "m", "--source", "owner/name", "--revision", COMMIT, "--output", output)
    run = run_stage("fetch", *arguments, cache=cache, **environment)
    assert run.returncode == 0, run.stderr
    record = json.loads(output.read_text())
    assert record["path"] == str(snapshot)
    assert record["revision"] == COMMIT
    for key in ("weights_sha256", "tokenizer_sha256", "checkpoint_bytes", "architecture"):
        assert record[key] == reference_source[key]


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{"HF_HUB_OFFLINE": "1"}, {}], ids=["offline", "unreachable"])
@pytest.mark.parametrize(("source", "revision"), [("owner/name", "f" * 40), ("owner/other", COMMIT)])
def test_a_model_that_is_not_here_ends_in_one_sentence(hub_cache, tmp_path, source, revision, environment):
    output = tmp_path / "source.json"
    arguments = ("--model", "m", "--source", source, "--revision", revision, "--output", output)
    message = one_sentence(
        run_stage("fetch", *arguments, cache=hub_cache[0], seconds=UNREACHABLE_SECONDS, **environment)
    )
    assert f"{source} is not in the hub cache and the hub cannot be reached" in message
    assert not output.exists()


@pytest.mark.slow
def test_a_pickled_folder_ends_in_one_sentence(tmp_path, copy_of_reference, reference_weights):
    folder = copy_of_reference
    for path in folder.glob("model*"):
        path.unlink()
    torch.save(reference_weights, folder / "pytorch_model.bin")
    arguments = ("--model", "m", "--source", folder, "--output", tmp_path / "source.json")
    assert "allow_pickle" in one_sentence(run_stage("fetch", *arguments))
    run = run_stage("fetch", *arguments, "--allow-pickle")
    assert run.returncode == 0, run.stderr
    record = json.loads((tmp_path / "source.json").read_text())
    assert [f["name"] for f in record["weight_files"]] == ["pytorch_model.bin"]


# ---------------------------------------------------------------- what a hub may answer


@pytest.fixture
def hub(monkeypatch):
    """A hub on this machine; `hub.answer` is (status, the error code that the real one sends with it)."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if "owner/name" in self.path:  # the client has questions of its own, too
                server.asked.append(self.path)
            status, code = server.answer
            self.send_response(status)
            if code:
                self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        server.asked = []
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize("kind", ["model", "dataset"])
@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((404, "RevisionNotFound"), f"owner/name has no revision {COMMIT} on the hub; correct `revision:`"),
        ((404, "RepoNotFound"), "owner/name does not exist on the hub"),
        ((403, "GatedRepo"), "owner/name is gated: accept its terms"),
    ],
    ids=["revision", "name", "gated"],
)
def test_what_the_hub_does_not_have_ends_in_one_sentence(hub, kind, answer, words):
    hub.answer = answer
    with pytest.raises(UserError, match=re.escape(words)):
        ask_hub("owner/name", COMMIT, kind)
    assert hub.asked == [f"/api/{kind}s/owner/name/revision/{COMMIT}"]


def test_a_hub_that_is_out_of_order_is_asked_once(hub, hub_cache, monkeypatch):
    """And what the cache has is taken, although the hub's client would ask again and again."""
    hub.answer = (503, None)
    cache, snapshot = hub_cache
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    assert fetch.resolve("owner/name", COMMIT, False, False) == (snapshot, COMMIT)
    assert len(hub.asked) == 1


def test_a_hub_that_does_not_answer_is_given_up(hub, monkeypatch):
    monkeypatch.setattr("quantharm.models.hub.ANSWER_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        begin = time.monotonic()
        assert ask_hub("owner/name", COMMIT, "model")
        assert time.monotonic() - begin < 2


# ---------------------------------------------------------------- texts


def fetch_text(tmp_path, *arguments, **keywords):
    outputs = ("--output", tmp_path / "text.txt", "--record", tmp_path / "text.json")
    return run_stage("fetch_text", "--text", "t", *arguments, *outputs, **keywords)


def test_a_text_from_a_file(tmp_path):
    source = tmp_path / "in.txt"
    source.write_text("Grüße\n\nund Küsse\n", encoding="utf-8")
    run = fetch_text(tmp_path, "--path", source)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "text.txt").read_text(encoding="utf-8") == "Grüße\n\nund Küsse\n"
    record = json.loads((tmp_path / "text.json").read_text())
    assert record["bytes"] == source.stat().st_size
    assert record["source"] == str(source)


@pytest.mark.slow
def test_rows_of_a_data_set_are_joined_by_blank_lines(tmp_path):
    rows = ["", " = Title = \n", "Some words.\n", "größer"]
    folder = tmp_path / "set"
    folder.mkdir()
    pandas.DataFrame({"text": rows, "other": range(4)}).to_parquet(folder / "test-00000-of-00001.parquet")
    cache = tmp_path / "cache"
    run = fetch_text(tmp_path, "--dataset", folder, cache=cache, HF_HUB_OFFLINE="1")
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "text.txt").read_text(encoding="utf-8") == "\n\n".join(rows)
    message = one_sentence(fetch_text(tmp_path, "--dataset", folder, "--column", "words", cache=cache))
    assert "has no column 'words'" in message


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{"HF_HUB_OFFLINE": "1"}, {}], ids=["offline", "unreachable"])
def test_a_data_set_that_is_not_here_ends_in_one_sentence(tmp_path, environment):
    arguments = ("--dataset", "owner/name", "--revision", COMMIT)
    run = fetch_text(tmp_path, *arguments, cache=tmp_path / "cache", seconds=UNREACHABLE_SECONDS, **environment)
    assert "the data set owner/name cannot be loaded" in one_sentence(run)
    assert not (tmp_path / "text.txt").exists()


@pytest.mark.parametrize(
    ("content", "words"), [(None, "is not a file"), (b"\xff", "is not UTF-8"), (b"\n", "is empty")]
)
def test_a_file_that_is_no_text_ends_in_one_sentence(tmp_path, content, words):
    source = tmp_path / "in.txt"
    if content is not None:
        source.write_bytes(content)
    assert words in one_sentence(fetch_text(tmp_path, "--path", source))
    assert not (tmp_path / "text.txt").exists()
