"""A hub of data sets on this machine, for what its client asks when a data set is loaded.

`HF_ENDPOINT=<url>` has a program use it. Its repositories are invented: {id: {path: text}}.
"""

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"

EASY = [  # question, endings, the right one
    ("Which animal can fly?", ["a cow", "a crow", "a carp", "a crab"], 1),
    ("What does a plant take from the soil?", ["water", "light", "sound", "wool"], 0),
    ("What is ice made of?", ["sand", "salt", "iron", "water"], 3),
    ("Which of these gives light by itself?", ["the moon", "a mirror", "the sun", "a window"], 2),
    ("What do lungs take in?", ["air", "blood", "bread", "stones"], 0),
    ("Which season follows winter?", ["autumn", "summer", "spring", "winter"], 2),
]
SUMS = [(f"Ida has {a} apples and buys {a + 7} more. How many has she now?", a, a + 7) for a in range(2, 12)]


def lines_of(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def card_of(configuration: str, splits: list[str]) -> str:
    files = "".join(f"  - split: {split}\n    path: {configuration}/{split}.jsonl\n" for split in splits)
    return f"---\nconfigs:\n- config_name: {configuration}\n  data_files:\n{files}---\nInvented.\n"


def multiple_choice() -> dict[str, str]:
    """A data set with the columns of ARC."""
    rows = [
        {
            "id": f"q{i}",
            "question": question,
            "choices": {"text": endings, "label": list("ABCD")},
            "answerKey": "ABCD"[k],
        }
        for i, (question, endings, k) in enumerate(EASY)
    ]
    splits = {"train": rows[:1], "validation": rows[1:2], "test": rows}
    files = {f"ARC-Easy/{split}.jsonl": lines_of(part) for split, part in splits.items()}
    return {"README.md": card_of("ARC-Easy", list(splits)), **files}


def word_problems() -> dict[str, str]:
    """A data set with the columns of GSM8K: enough for five examples and three questions."""
    rows = [{"question": q, "answer": f"{a} + {b} = <<{a}+{b}={a + b}>>{a + b}\n#### {a + b}"} for q, a, b in SUMS]
    files = {"main/train.jsonl": lines_of(rows[:7]), "main/test.jsonl": lines_of(rows[7:])}
    return {"README.md": card_of("main", ["train", "test"]), **files}


INVENTED = {"allenai/ai2_arc": multiple_choice(), "openai/gsm8k": word_problems()}


class Answers(BaseHTTPRequestHandler):
    """/datasets/<id>/resolve/<revision>/<path>, and of the API a revision, a tree and paths."""

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, code: int, body: str = "", **headers: str) -> None:
        content = body.encode()
        self.send_response(code)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def send_json(self, value: object) -> None:
        self.answer(200, json.dumps(value), Content_Type="application/json")

    def do_GET(self) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        self.server.asked.append(self.path)
        if parts == [""]:
            return self.answer(200)
        api = parts[0] == "api"
        name = "/".join(parts[2:4] if api else parts[1:3])
        files = self.server.repositories.get(name)
        if files is None:
            return self.answer(404, X_Error_Code="RepoNotFound")
        if api:
            return self.api(name, files, parts[4:])
        path = "/".join(parts[5:])
        if path not in files:
            return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
        tag = hashlib.sha256(files[path].encode()).hexdigest()
        return self.answer(200, files[path], ETag=f'"{tag}"', X_Repo_Commit=COMMIT)

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.do_GET()

    def api(self, name: str, files: dict[str, str], rest: list[str]) -> None:
        what, folder = (rest or ["revision"])[0], "/".join(rest[2:])
        if what == "revision":
            return self.send_json({"id": name, "sha": COMMIT, "siblings": [{"rfilename": path} for path in files]})
        inside = {path: text for path, text in files.items() if not folder or path.startswith(f"{folder}/")}
        if what == "tree" and not inside:
            return self.answer(404, X_Error_Code="EntryNotFound")
        return self.send_json(
            [
                {
                    "type": "file",
                    "path": path,
                    "size": len(text.encode()),
                    "oid": hashlib.sha1(text.encode()).hexdigest(),
                }
                for path, text in inside.items()
            ]
        )


@contextlib.contextmanager
def stand_in_hub(repositories: dict[str, dict[str, str]] = INVENTED) -> Iterator[ThreadingHTTPServer]:
    """`hub.url` is its address, `hub.asked` what it was asked."""
    hub = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    hub.repositories, hub.asked = repositories, []
    hub.url = f"http://127.0.0.1:{hub.server_address[1]}"
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
