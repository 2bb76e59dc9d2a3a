"""Questions to a server by HTTP, asked again where it is busy, away for a moment, or breaks its answer off.

The key is sent in the header of each request and written nowhere: messages repeat a server's words without it, and a
redirect, which would take it to another host, is refused.
"""

import contextlib
import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from quantharm.common.errors import UserError

T = TypeVar("T")
Question = Mapping[str, object]  # keys of the request's JSON
Json = dict[str, Any]  # as a server sent it, unchecked: each dialect asks for the keys that it needs
BUSY = (408, 425, 429, 500, 502, 503, 504)  # statuses after which the same is asked again
REDIRECTS = (301, 302, 303, 307, 308)
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds
LONGEST_ANSWER = 2**30  # bytes; 8,000 positions of 1,000 log-probabilities each take 400 MB
SHOWN = 300  # characters of a server's words in a message
# Connections refused, reset, timed out, cut off; a ValueError is a chunk without a length.
AWAY = (OSError, http.client.HTTPException, ValueError)


class RefusedError(UserError):
    """The server answered, but not what it was asked; status: of HTTP, where it is not 200."""

    def __init__(self, words: str, status: int | None = None):
        super().__init__(words)
        self.status = status


class BusyError(UserError):
    """The server was busy or away, or broke its answer off; wait: seconds after which it wants to be asked again."""

    def __init__(self, reason: str, wait: float | None = None):
        super().__init__(reason)
        self.wait = wait


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """Refuses redirects."""

    def redirect_request(self, *_):
        return None  # urllib then raises the redirect as an HTTPError


@dataclass(frozen=True)
class Server:
    """A server, and how patiently it is asked."""

    url: str  # without `/v1`
    key: str | None = field(default=None, repr=False)
    timeout_seconds: float = 300.0
    retries: int = 5

    def get(self, path: str) -> Any:
        """The JSON at a path; raises as post()."""
        return self.ask(path, None)

    def post(self, path: str, question: Question) -> Any:
        """The answer's JSON; raises RefusedError for any other answer and UserError where none comes."""
        return self.ask(path, question)

    def ask(self, path: str, question: Question | None) -> Any:
        """get() where `question` is None, else post()."""
        return self.patiently(lambda: self.ask_once(path, question))

    def patiently(self, ask: Callable[[], T]) -> T:
        """ask(), called again with pauses where it raises BusyError; raises UserError where it does each time."""
        pause = FIRST_PAUSE
        for attempt in range(self.retries + 1):
            try:
                return ask()
            except BusyError as error:
                reason, wait = str(error), error.wait
            if attempt < self.retries:
                time.sleep(min(LONGEST_PAUSE, wait or pause))
                pause *= 2
        raise UserError(
            f"the server {self.url} does not answer ({reason}; asked {self.retries + 1} times); what it answered "
            "before is kept: see that it runs, then run the same command again"
        )

    def ask_once(self, path: str, question: Question | None) -> Any:
        """The JSON of one answer; raises RefusedError for any other, BusyError where the same may be asked again."""
        with self.faults_of(path), self.open(path, question) as response:
            body = body_of(response)
        try:
            return json.loads(body)
        except ValueError:
            if body.lstrip()[:1] in (b"{", b"["):
                raise BusyError("its answer breaks off") from None
            raise RefusedError(f"{self.url}{path} answered with something that is no JSON") from None

    def stream(self, path: str, question: Question) -> Iterator[Json]:
        """The parts of one answer as they come (server-sent events); raises as ask_once().

        An answer has its end marked: without the mark the connection broke, and what came is no whole answer.
        """
        ended = False
        with self.faults_of(path), self.open(path, {**question, "stream": True}) as response:
            for line in response:
                event = line.decode(errors="replace").strip().removeprefix("data:").strip()
                if not line.startswith(b"data:") or not event:
                    continue
                if event == "[DONE]":
                    return
                part = self.part_of(event, path)
                ended = ended or ends_answer(part)
                yield part
        if not ended:
            raise BusyError("its answer breaks off")

    def part_of(self, event: str, path: str) -> Json:
        """One part of a streamed answer; raises RefusedError for what is none, BusyError where it tells of a fault."""
        try:
            part = json.loads(event)
        except ValueError:
            part = None
        if not isinstance(part, dict):
            raise RefusedError(f"{self.url}{path} sent a part that is no JSON object")
        if part.get("error") or part.get("object") == "error":
            raise BusyError(f"it broke an answer off: {self.words_of(part)}")
        return part

    @contextlib.contextmanager
    def faults_of(self, path: str) -> Iterator[None]:
        """Within the block the faults of urllib become BusyError, RefusedError and, for a redirect, UserError."""
        try:
            yield
        except urllib.error.HTTPError as error:
            words = f"answered {error.code}: {self.error_text(error)}"
            if error.code in BUSY:
                raise BusyError(f"it {words}", asked_to_wait(error)) from None
            if error.code in REDIRECTS:
                raise UserError(
                    f"{self.url}{path} answered {error.code}: it sends its callers on to "
                    f"{self.one_line(str(error.headers.get('Location')))}, where the key would go too; write the "
                    "address that answers itself as `url`"
                ) from None
            raise RefusedError(f"{self.url}{path} {words}", error.code) from None
        except AWAY as error:
            raise BusyError(self.failure_text(error)) from None

    def open(self, path: str, question: Question | None) -> Any:
        """The response to one request; raises what urllib raises."""
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        body = None if question is None else json.dumps(question).encode()
        request = urllib.request.Request(f"{self.url}{path}", body, headers)
        return urllib.request.build_opener(NoRedirect()).open(request, timeout=self.timeout_seconds)

    def failure_text(self, error: Exception) -> str:
        """The reason why a request failed, as one line."""
        return self.one_line(str(getattr(error, "reason", error)) or type(error).__name__)

    def error_text(self, error: urllib.error.HTTPError) -> str:
        """A server's own words for an error, as one line."""
        try:
            text = error.read(2**16).decode(errors="replace")
        except AWAY:
            return error.reason
        with contextlib.suppress(ValueError):
            return self.words_of(json.loads(text)) or error.reason
        return self.one_line(text) or error.reason

    def words_of(self, answer: Any) -> str:
        """The words in an answer that tells of an error, as one line."""
        told = answer.get("error", answer) if isinstance(answer, dict) else answer
        return self.one_line(str(told.get("message", told) if isinstance(told, dict) else told))

    def one_line(self, text: str) -> str:
        """One line of a server's words, without the key."""
        if self.key:
            text = text.replace(self.key, "…")
        line = "".join(c if c.isprintable() else " " for c in " ".join(text.split()))
        return line[:SHOWN]


def body_of(response: Any) -> bytes:
    """The body of an answer; raises RefusedError where it has more than LONGEST_ANSWER bytes."""
    body = response.read(LONGEST_ANSWER + 1)
    if len(body) > LONGEST_ANSWER:
        raise RefusedError(f"an answer has more than {LONGEST_ANSWER >> 20} MB")
    return body


def ends_answer(part: Json) -> bool:
    """Whether a part of a streamed answer is its last, in any dialect."""
    choices = part.get("choices")
    told = [*(choices if isinstance(choices, list) else []), part.get("meta_info")]
    return part.get("stop") is True or any(isinstance(each, dict) and each.get("finish_reason") for each in told)


def asked_to_wait(error: urllib.error.HTTPError) -> float | None:
    """Seconds of a Retry-After header."""
    try:
        return max(0.0, float(error.headers.get("Retry-After", "")))
    except (ValueError, AttributeError):
        return None


def key_of(variable: str | None) -> str | None:
    """The key in an environment variable, None where no variable is named; raises UserError where it is not set."""
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(f"the environment variable {variable} (`api_key_variable` of a method) is not set; set it")
    if not key.isascii() or not key.isprintable():
        raise UserError(f"the environment variable {variable} holds characters that no key has; set it again")
    return key
