"""Questions to an OpenAI-compatible endpoint: paced, tried again with growing waits, counted. The key stays in here."""

import hashlib
import json
import os
import random
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from longshot.errors import UserError

TRY_AGAIN = frozenset({408, 409, 425, 429})
"""Answers of a server that another try may change; so do all from 500 on."""
HOPELESS = frozenset({401, 402, 403, 404, 405})
"""Answers that every other scene would get as well: the key, the address or the model is wrong."""


class Hopeless(UserError):
    """The endpoint refuses whoever asks: nothing else is sent to it in this run."""


@dataclass(frozen=True)
class Endpoint:
    """Where to ask and how patiently. Times are seconds; `requests_per_minute` None asks as fast as answers come."""

    url: str
    model: str
    timeout_s: float
    attempts: int
    first_wait_s: float
    longest_wait_s: float
    requests_per_minute: float | None
    key: str = field(default="", repr=False)


@dataclass(frozen=True)
class Reply:
    """What came back for one question: the text, and what it cost in requests and tokens."""

    text: str
    finish: str
    tokens_in: int
    tokens_out: int
    requests: int
    model: str


class Asker:
    """Sends questions from any number of threads. All of them wait when the server says that it is asked too often."""

    def __init__(self, endpoint: Endpoint) -> None:
        try:
            import openai
        except ModuleNotFoundError:
            raise UserError(
                "captions need the openai package: pip install 'longshot[captions]', or bring captions with --import"
            ) from None
        self._openai = openai
        self.endpoint = endpoint
        # What the client would else read from the environment is given, so that nothing of it reaches a foreign server.
        self._client = openai.OpenAI(
            base_url=endpoint.url,
            api_key=endpoint.key or "none",
            organization="",
            project="",
            timeout=endpoint.timeout_s,
            max_retries=0,
        )
        self._lock = threading.Lock()
        self._next = 0.0  # when the next request may leave
        self._hopeless: Hopeless | None = None
        self._random = random.Random()

    def ask(self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any], spent: "Spent") -> Reply:
        """Return the reply to a conversation. UserError, with the last reason, when no attempt brought one."""
        endpoint, reason = self.endpoint, ""
        for attempt in range(1, endpoint.attempts + 1):
            self._wait_for_turn()
            try:
                reply = self._send(messages, options, attempt)
                spent.add(reply.tokens_in, reply.tokens_out, reply.model)
                return reply
            except _Again as again:
                spent.add(0, 0, endpoint.model, again.reason)
                reason = again.reason
                if attempt < endpoint.attempts:
                    self._back_off(attempt, again.wait_s, again.for_all)
        tries = f"{endpoint.attempts} attempt{'s' if endpoint.attempts > 1 else ''}"
        raise UserError(
            f"no answer from {endpoint.url} after {tries}; the last: {reason}. Run the stage again later"
        )

    def _send(self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any], attempt: int) -> Reply:
        openai = self._openai
        try:
            create: Any = self._client.chat.completions.create
            got = create(model=self.endpoint.model, messages=list(messages), extra_body=dict(options))
        except openai.APITimeoutError:
            raise _Again(f"nothing came within {self.endpoint.timeout_s:g} s") from None
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            raise _Again(
                f"the connection failed ({self._safe(str(cause)) or type(cause).__name__})"
            ) from None
        except openai.APIStatusError as error:
            raise self._refusal(error) from None
        except (openai.OpenAIError, ValueError) as error:
            raise _Again(f"its answer isn't JSON ({self._safe(str(error))})") from None
        try:
            choice = got.choices[0]
            text, finish = choice.message.content, choice.finish_reason or ""
            refusal = getattr(choice.message, "refusal", None)
        except (AttributeError, TypeError, IndexError):
            raise _Again("its answer holds no choices: is this an OpenAI-compatible endpoint?") from None
        if refusal or finish == "content_filter":
            raise UserError(f"{self.endpoint.model} refuses the scene ({self._safe(refusal or finish)})")
        usage = getattr(got, "usage", None)
        tokens = [getattr(usage, name, None) or 0 for name in ("prompt_tokens", "completion_tokens")]
        return Reply(text or "", finish, tokens[0], tokens[1], attempt, got.model or self.endpoint.model)

    def _refusal(self, error: Any) -> Exception:
        status = error.status_code
        said = f"{status} {self._safe(_message(error))}".strip()
        if status in TRY_AGAIN or status >= 500:
            return _Again(said, _retry_after(error.response.headers), for_all=status == 429)
        if status in HOPELESS:
            hints = {401: "is the API key right?", 404: f"does it serve the model {self.endpoint.model!r}?"}
            hint = hints.get(status, "see what your account may do")
            self._hopeless = Hopeless(f"{self.endpoint.url} answers {said}; {hint}")
            return self._hopeless
        hint = "; try json_mode: object, or text" if "response_format" in said or "schema" in said else ""
        return UserError(f"{self.endpoint.url} answers {said}{hint}")

    def _wait_for_turn(self) -> None:
        """Wait until this request may leave. Raises what made all further ones hopeless."""
        rate = self.endpoint.requests_per_minute
        while True:
            with self._lock:
                if self._hopeless:
                    raise Hopeless(str(self._hopeless))
                now = time.monotonic()
                if now >= self._next:
                    self._next = max(self._next, now) + (60 / rate if rate else 0.0)
                    return
                wait = self._next - now
            time.sleep(min(wait, 0.5))

    def _back_off(self, attempt: int, wait_s: float | None, for_all: bool) -> None:
        """Wait before another attempt: as long as the server says, else twice as long each time, up to the longest wait."""
        grown = self.endpoint.first_wait_s * 2 ** (attempt - 1) * self._random.uniform(0.75, 1.25)
        wait = min(grown if wait_s is None else wait_s, self.endpoint.longest_wait_s)
        if for_all:
            with self._lock:
                self._next = max(self._next, time.monotonic() + wait)
        else:
            time.sleep(wait)

    def _safe(self, text: str) -> str:
        """One short line of a server's words, without the key: some servers repeat it."""
        line = " ".join(text.split())
        line = line.replace(self.endpoint.key, "[key]") if self.endpoint.key else line
        return line if len(line) <= 200 else line[:199] + "…"


class _Again(Exception):
    """An attempt that failed in a way that another may not."""

    def __init__(self, reason: str, wait_s: float | None = None, for_all: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.wait_s, self.for_all = reason, wait_s, for_all


def _message(error: Any) -> str:
    """The server's own words in an error's body."""
    body = error.body
    inner = body.get("error", body) if isinstance(body, dict) else body
    words = inner.get("message") if isinstance(inner, dict) else inner
    return str(words or "")


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait, from a number or a date."""
    value = headers.get("retry-after", "")
    try:
        return max(float(value), 0.0)
    except ValueError:
        pass
    try:
        return max(parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError):
        return None


# -- what was spent -----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Spent:
    """A file with one line a request, so that nothing paid for is forgotten, whatever became of the answer."""

    path: Path

    def add(self, tokens_in: int, tokens_out: int, model: str, failed: str = "") -> None:
        row = {"tokens_in": tokens_in, "tokens_out": tokens_out, "model": model, "failed": failed}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = (json.dumps({k: v for k, v in row.items() if v}) + "\n").encode()
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, line)  # one write: lines of several threads and processes don't mix
        finally:
            os.close(handle)

    def total(self) -> dict[str, int]:
        """Requests, failed ones among them, and tokens in and out, over all runs."""
        total = {"requests": 0, "failed": 0, "tokens_in": 0, "tokens_out": 0}
        for line in self.path.read_text("utf-8").splitlines() if self.path.exists() else []:
            try:
                row = json.loads(line)
            except ValueError:  # a run that was killed
                continue
            total["requests"] += 1
            total["failed"] += "failed" in row
            for name in ("tokens_in", "tokens_out"):
                total[name] += row.get(name, 0)
        return total


def digest(value: Any) -> str:
    """A hash of JSON values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()
