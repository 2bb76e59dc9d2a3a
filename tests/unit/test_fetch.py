"""Finding a model or a text on this machine, and one sentence when it is not here. No network is used."""

import contextlib
import http.server
import json
import os
import re
import socket
import subprocess
import sys
import threading

import pandas
import pytest
import torch
from huggingface_hub import HfApi, constants
from limits import HUNG_SECONDS

from quantharm import fetch
from quantharm.common import stage
from quantharm.common.errors import UserError
from quantharm.common.files import sha256_of_text
from quantharm.common.text import read_text
from quantharm.models.hub import ANSWER_SECONDS, ask_hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CLOSED_PORT = "http://127.0.0.1:9"


def run_stage(module: str, *arguments, cache=None, **environment):
    """A stage in a process of its own, without a network: the hub's address is a closed port of this machine."""
    env = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy") and not k.startswith("HF_")}
    env |= {"PYTHONPATH": str(fetch.Path(fetch.__file__).parents[1]), "HF_ENDPOINT": CLOSED_PORT}
    env |= {"HF_HUB_CACHE": str(cache), "HF_DATASETS_CACHE": str(cache)} if cache else {}
    return subprocess.run(
        [sys.executable, "-m", f"quantharm.{module}", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=env | environment,
        timeout=HUNG_SECONDS,
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


@pytest.fixture(params=["offline", "unreachable", "hangs up"])
def no_hub(request, hub_cache, monkeypatch):
    """Why there is no hub: Python is told so, nothing listens there, or it hangs up, which it is asked to once."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub_cache[0]))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", request.param == "offline")
    monkeypatch.setattr(constants, "ENDPOINT", CLOSED_PORT)
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    if request.param != "hangs up":
        yield
        return
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as rude:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{rude.getsockname()[1]}")

        def hang_up() -> None:
            with contextlib.suppress(OSError):  # the test is over
                while True:
                    asked.append(rude.accept()[0].close())

        threading.Thread(target=hang_up, daemon=True).start()
        yield
        rude.shutdown(socket.SHUT_RDWR)
    assert len(asked) == 1


@pytest.fixture
def fetch_stage(monkeypatch):
    """fetch_stage(flag, value, …): the stage in this process, as its command line calls it."""

    def run(*arguments) -> None:
        monkeypatch.setattr("quantharm.common.stage.leave", lambda: None)
        monkeypatch.setattr(sys, "argv", ["fetch", *map(str, arguments)])
        stage.run_stage(fetch.main)

    return run


def test_a_hub_model_is_found_in_the_local_cache(fetch_stage, hub_cache, tmp_path, reference_source, no_hub):
    snapshot = hub_cache[1]
    output = tmp_path / "source.json"
    fetch_stage("--model", "m", "--source", "owner/name", "--revision", COMMIT, "--output", output)
    record = json.loads(output.read_text())
    assert record["path"] == str(snapshot)
    assert record["revision"] == COMMIT
    for key in ("weights_sha256", "tokenizer_sha256", "checkpoint_bytes", "architecture"):
        assert record[key] == reference_source[key]


@pytest.mark.parametrize(("source", "revision"), [("owner/name", "f" * 40), ("owner/other", COMMIT)])
def test_a_model_that_is_not_here_ends_in_one_sentence(fetch_stage, tmp_path, source, revision, no_hub):
    output = tmp_path / "source.json"
    with pytest.raises(SystemExit) as ended:
        fetch_stage("--model", "m", "--source", source, "--revision", revision, "--output", output)
    words = re.escape(f"error: {source} is not in the hub cache and the hub cannot be reached")
    assert re.match(words, ended.value.code)
    assert "\n" not in ended.value.code
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
    limits, little = [], 0.2
    repo_info = HfApi.repo_info

    def watched(*arguments, timeout=None, **keywords):
        limits.append(timeout)
        return repo_info(*arguments, timeout=little, **keywords)

    monkeypatch.setattr(HfApi, "repo_info", watched)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert "timed out" in ask_hub("owner/name", COMMIT, "model")
        assert silent.accept()
        silent.setblocking(False)
        with pytest.raises(BlockingIOError):  # it was asked once
            silent.accept()
    assert limits == [ANSWER_SECONDS]


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
    rows = ["", " = Title = \r\n", "Some words.\n", "größer\ras"]
    folder = tmp_path / "set"
    folder.mkdir()
    pandas.DataFrame({"text": rows, "other": range(4)}).to_parquet(folder / "test-00000-of-00001.parquet")
    cache = tmp_path / "cache"
    run = fetch_text(tmp_path, "--dataset", folder, cache=cache, HF_HUB_OFFLINE="1")
    assert run.returncode == 0, run.stderr
    written = (tmp_path / "text.txt").read_bytes().decode("utf-8")
    assert written == "\n\n".join(["", " = Title = \n", "Some words.\n", "größer\nas"])
    # Stages read the file as text, so with other ends of lines they would score, and hash, another text.
    assert json.loads((tmp_path / "text.json").read_text())["sha256"] == sha256_of_text(
        read_text(tmp_path / "text.txt")
    )
    message = one_sentence(fetch_text(tmp_path, "--dataset", folder, "--column", "words", cache=cache))
    assert "has no column 'words'" in message


@pytest.mark.slow  # in a process of its own: `datasets` decides as it is imported whether there is a hub
@pytest.mark.parametrize("environment", [{"HF_HUB_OFFLINE": "1"}, {}], ids=["offline", "unreachable"])
def test_a_data_set_that_is_not_here_ends_in_one_sentence(tmp_path, environment):
    arguments = ("--dataset", "owner/name", "--revision", COMMIT)
    run = fetch_text(tmp_path, *arguments, cache=tmp_path / "cache", **environment)
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
