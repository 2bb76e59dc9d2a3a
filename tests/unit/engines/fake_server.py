"""A server on the loopback that speaks one dialect over a model of transformers, and errs where it is told to."""

import contextlib
import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

KEY = "sk-secret-0123456789"


@dataclass
class Raw:
    """The bytes that are sent in place of a response, after which the connection ends."""

    content: bytes


@dataclass
class Fake:
    """What the server does; `change` takes (path, question, answer) and gives the answer to send, a status or Raw."""

    model: Any
    dialect: str
    change: Any = None
    most: int = 1000  # log-probabilities of a position
    questions: list[tuple[str, dict]] = field(default_factory=list)
    headers: list[str | None] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def text(self, token: int) -> str:
        return f"<{token}>"

    def log_probabilities(self, ids: list[int]) -> torch.Tensor:
        """[T, vocabulary]; one pass at a time, as the model's own test does it."""
        with self.lock, torch.no_grad():
            return self.model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)

    def top(self, row: torch.Tensor, count: int, *more: int) -> dict[int, float]:
        ids = [*more, *row.topk(count).indices.tolist()]
        return {i: float(row[i]) for i in dict.fromkeys(ids)}

    def greedy(self, ids: list[int], count: int) -> list[int]:
        new: list[int] = []
        for _ in range(count):
            new.append(int(self.log_probabilities([*ids, *new])[-1].argmax()))
        return new

    def answer(self, path: str, question: dict) -> Any:
        """The answer to a question, a status, or a list: the parts of a stream."""
        if path == "/v1/models":
            return {"data": [{"id": "tiny"}]}
        if path == "/version":
            return {"version": "1.2.3"}
        spoken = {"/v1/completions": ("prompt_logprobs", "echo")}
        spoken |= {"/generate": ("generate",), "/completion": ("position",)}
        if self.dialect not in spoken.get(path, ()):
            return 404
        if question.get("stream"):
            return self.stream(path, question)
        return getattr(self, self.dialect)(question)

    def stream(self, path: str, question: dict) -> list[dict]:
        ids = question.get("prompt") or question.get("input_ids")
        count = question.get("max_tokens") or question.get("n_predict") or question["sampling_params"]["max_new_tokens"]
        new = self.greedy(ids, count)
        texts = [self.text(token) for token in new]
        if path == "/generate":
            return [{"output_ids": new[: i + 1]} for i in range(count)]
        if path == "/completion":
            parts = [{"content": t, "tokens": [i], "stop": False} for i, t in zip(new, texts, strict=True)]
            return [*parts, {"content": "", "tokens": [], "stop": True, "tokens_evaluated": len(ids)}]
        return [
            {"choices": [{"text": t, "token_ids": [i], "logprobs": {"tokens": [t]}}]}
            for i, t in zip(new, texts, strict=True)
        ]

    def prompt_logprobs(self, question: dict) -> Any:
        ids, count = question["prompt"], question.get("prompt_logprobs")
        choice: dict[str, Any] = {"text": ""}
        if count and count > self.most:
            return 400
        if count:
            rows = self.log_probabilities(ids)
            entries = [self.top(rows[i - 1], count, ids[i]) for i in range(1, len(ids))]
            choice["prompt_logprobs"] = [None, *({str(i): {"logprob": v} for i, v in e.items()} for e in entries)]
        return {"choices": [choice], "usage": {"prompt_tokens": len(ids)}}

    def echo(self, question: dict) -> Any:
        ids, count = question["prompt"], question.get("logprobs")
        if not question.get("echo"):
            return {"choices": [{"text": ""}], "usage": {"prompt_tokens": len(ids)}}
        rows = self.log_probabilities(ids)
        tops = [self.top(rows[i - 1], count) for i in range(1, len(ids))]
        told = {
            "token_logprobs": [None, *(float(rows[i - 1, ids[i]]) for i in range(1, len(ids))), -1.0],
            "top_logprobs": [None, *({self.text(i): v for i, v in top.items()} for top in tops), {}],
        }
        return {"choices": [{"text": "", "logprobs": told}], "usage": {"prompt_tokens": len(ids)}}

    def generate(self, question: dict) -> Any:
        ids, count = question["input_ids"], question["top_logprobs_num"]
        rows = self.log_probabilities(ids)
        given = [[None, ids[0], None], *([float(rows[i - 1, ids[i]]), ids[i], None] for i in range(1, len(ids)))]
        others = [None, *([[v, t, None] for t, v in self.top(rows[i - 1], count).items()] for i in range(1, len(ids)))]
        return {"output_ids": [1], "meta_info": {"input_token_logprobs": given, "input_top_logprobs": others}}

    def position(self, question: dict) -> Any:
        ids, token = question["prompt"], question["logit_bias"][0][0]
        row = self.log_probabilities(ids)[-1]
        top = [{"id": i, "logprob": v} for i, v in self.top(row, question["n_probs"]).items()]
        chosen = {"id": token, "logprob": float(row[token]), "top_logprobs": top}
        return {"tokens_evaluated": len(ids), "truncated": False, "completion_probabilities": [chosen]}


class Handler(http.server.BaseHTTPRequestHandler):
    fake: Fake
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.reply({})

    def do_POST(self) -> None:
        self.reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def reply(self, question: dict) -> None:
        fake = self.fake
        fake.questions.append((self.path, question))
        fake.headers.append(self.headers.get("Authorization"))
        answer = fake.answer(self.path, question)
        if fake.change and not isinstance(answer, int):
            answer = fake.change(self.path, question, answer)
        if answer is None or isinstance(answer, Raw):  # it dies
            self.close_connection = True
            self.connection.sendall(answer.content if answer else b"")
            self.connection.close()
            return
        status, extra = (answer, {}) if isinstance(answer, int) else (200, {})
        if isinstance(answer, tuple):
            status, extra, answer = answer
        parts = [f"data: {json.dumps(part)}\n\n" for part in answer] if isinstance(answer, list) else None
        body = ("".join([*parts, "data: [DONE]\n\n"]) if parts is not None else json.dumps(answer)).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in extra.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_) -> None:
        pass


@contextlib.contextmanager
def serving(fake: Fake) -> Iterator[str]:
    """The address of a server in threads of this process."""
    handler = type("OfOne", (Handler,), {"fake": fake})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
