"""A captioner on this machine: a real HTTP server that speaks the OpenAI protocol, and misbehaves on request."""

import base64
import io
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image

Act = Callable[["Request"], None]


class Server(ThreadingHTTPServer):
    daemon_threads = True
    book: "Book"


class Request(BaseHTTPRequestHandler):
    """One request: `body` is what was asked; an act of the book answers."""

    server: Server
    protocol_version = "HTTP/1.1"
    body: dict[str, Any]

    def do_POST(self) -> None:
        self.body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        book = self.server.book
        with book.lock:
            book.requests.append(self.body)
            book.headers.append(dict(self.headers))
            book.times.append(time.monotonic())
            book.at_once += 1
            book.most_at_once = max(book.most_at_once, book.at_once)
            act = book.acts.pop(0) if book.acts else book.usual
        try:
            act(self)
        finally:
            with book.lock:
                book.at_once -= 1

    def send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {
            "content-type": "application/json",
            "content-length": str(len(content)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def say(self, text: str, finish: str = "stop") -> None:
        """Answer as a chat model does."""
        reply = {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": "little-captioner-1",
            "choices": [
                {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}
            ],
            "usage": {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100},
        }
        self.send(200, json.dumps(reply).encode())

    def log_message(self, *args: Any) -> None:
        pass


@dataclass
class Book:
    """What the server does next (`acts`, then `usual`), and what it was asked."""

    usual: Act
    acts: list[Act] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    url: str = ""


@contextmanager
def captioner(usual: Act | None = None) -> Iterator[Book]:
    """A server on a free port of this machine."""
    server = Server(("127.0.0.1", 0), Request)
    server.book = Book(usual or describe)
    server.book.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server.book
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


# -- acts ---------------------------------------------------------------------------------------------------------------
def describe(request: Request) -> None:
    """Look at the pictures and tell the colour of each shot, in the schema."""
    request.say(json.dumps(described(request.body)))


def described(body: dict[str, Any]) -> dict[str, Any]:
    shots: list[list[str]] = []
    for part in body["messages"][1]["content"]:
        if part["type"] == "text" and re.match(r"Shot \d+ of", part["text"]):
            shots.append([])
        elif part["type"] == "image_url":
            shots[-1].append(colour_of(part["image_url"]["url"]))
    return {
        "characters": [{"id": 1, "description": "A figure"}],
        "environment": f"A {shots[0][0]} room.",
        "story": "Character 1 waits.",
        "shots": [
            {"shot": k, "prompt": f"Character 1 in {', then '.join(dict.fromkeys(colours))}."}
            for k, colours in enumerate(shots, start=1)
        ],
    }


def colour_of(url: str) -> str:
    """The name of a picture's mean colour."""
    image = Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/jpeg;base64,"))))
    mean = np.asarray(image.convert("RGB"), float).mean((0, 1))
    return "grey" if mean.max() - mean.min() < 30 else ("red", "green", "blue")[int(mean.argmax())]


def fails(status: int, message: str = "no", headers: dict[str, str] | None = None) -> Act:
    return lambda request: request.send(status, json.dumps({"error": {"message": message}}).encode(), headers)


def says(text: str, finish: str = "stop") -> Act:
    return lambda request: request.say(text, finish)


def sends(content: bytes, kind: str = "application/json") -> Act:
    return lambda request: request.send(200, content, {"content-type": kind})


def hangs(seconds: float) -> Act:
    def act(request: Request) -> None:
        time.sleep(seconds)
        request.close_connection = True

    return act


def hangs_up(request: Request) -> None:
    """Promise more than is sent, and close."""
    request.send_response(200)
    request.send_header("content-length", "1000")
    request.end_headers()
    request.wfile.write(b'{"choices": [')
    request.close_connection = True


def changes(edit: Callable[[dict[str, Any]], None]) -> Act:
    """Answer as usual, but for an edit of the answer."""

    def act(request: Request) -> None:
        answer = described(request.body)
        edit(answer)
        request.say(json.dumps(answer))

    return act
