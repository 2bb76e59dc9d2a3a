"""Questions to a server by HTTP, asked again where it is busy or away for a moment.

The key is sent in the header of each request and written nowhere: messages repeat a server's words without it, and a
redirect, which would take it to another host, is refused.
"""

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from quantharm.common.errors import UserError

Question = Mapping[str, object]  # keys of the request's JSON
Json = dict[str, Any]  # as a server sent it, unchecked: each dialect asks for the keys that it needs
BUSY = (408, 425, 429, 500, 502, 503, 504)  # statuses after which the same is asked again
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds
LONGEST_ANSWER = 2**30  # bytes; 8,000 positions of 1,000 log-probabilities each take 400 MB
SHOWN = 300  # characters of a server's words in a message
AWAY = (OSError, http.client.HTTPException)  # connections refused, reset, timed out, cut off


class RefusedError(UserError):
    """The server answered, but not what it was asked."""


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
        pause = FIRST_PAUSE
        for attempt in range(self.retries + 1):
            try:
                with self.open(path, question) as response:
                    return json.loads(body_of(response))
            except urllib.error.HTTPError as error:
                words, wait = self.error_text(error), asked_to_wait(error)
                if error.code not in BUSY:
                    raise RefusedError(f"{self.url}{path} answered {error.code}: {words}") from None
                reason = f"it answered {error.code}: {words}"
            except ValueError:
                raise RefusedError(f"{self.url}{path} answered with something that is no JSON") from None
            except AWAY as error:
                reason, wait = self.failure_text(error), None
            if attempt < self.retries:
                time.sleep(min(LONGEST_PAUSE, wait or pause))
                pause *= 2
        raise self.no_answer(reason)

    def stream(self, path: str, question: Question) -> Iterator[Json]:
        """The parts of an answer as they come (server-sent events). A question that fails is not asked again."""
        try:
            with self.open(path, {**question, "stream": True}) as response:
                for line in response:
                    event = line.decode(errors="replace").strip().removeprefix("data:").strip()
                    if line.startswith(b"data:") and event != "[DONE]":
                        yield json.loads(event)
        except urllib.error.HTTPError as error:
            raise RefusedError(f"{self.url}{path} answered {error.code}: {self.error_text(error)}") from None
        except ValueError:
            raise RefusedError(f"{self.url}{path} sent a part that is no JSON") from None
        except AWAY as error:
            raise self.no_answer(self.failure_text(error)) from None

    def open(self, path: str, question: Question | None) -> Any:
        """The response to one request; raises what urllib raises."""
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        body = None if question is None else json.dumps(question).encode()
        request = urllib.request.Request(f"{self.url}{path}", body, headers)
        return urllib.request.build_opener(NoRedirect()).open(request, timeout=self.timeout_seconds)

    def no_answer(self, reason: str) -> UserError:
        """The message for a server that does not answer."""
        return UserError(
            f"the server {self.url} does not answer ({reason}; asked {self.retries + 1} times); what it answered "
            "before is kept: see that it runs, then run the same command again"
        )

    def failure_text(self, error: Exception) -> str:
        """The reason why a request failed, as one line."""
        return self.one_line(str(getattr(error, "reason", error)) or type(error).__name__)

    def error_text(self, error: urllib.error.HTTPError) -> str:
        """A server's own words for an error, as one line."""
        try:
            text = error.read(2**16).decode(errors="replace")
        except AWAY:
            return error.reason
        try:
            answer = json.loads(text)
            error_part = answer.get("error", answer) if isinstance(answer, dict) else answer
            text = str(error_part.get("message", error_part) if isinstance(error_part, dict) else error_part)
        except ValueError:
            pass
        return self.one_line(text) or error.reason

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
