# SPDX-License-Identifier: Apache-2.0
"""A stand-in for oraid on a unix socket, for tests of the command line alone.

It answers what a test tells it to, and keeps what it was asked. Every answer and every request is checked against
src/host/openapi.json's paths, so that the command line cannot agree with this stand-in about an API that is not there.
"""

import contextlib
import http.server
import json
import os
import pathlib
import re
import socketserver
import threading

SPEC = json.loads((pathlib.Path(__file__).parents[2] / "src/host/openapi.json").read_text())


def operation_in_spec(method, path):
    """The specification's entry for a request, or None."""
    for template, methods in SPEC["paths"].items():
        pattern = re.sub(r"\{[^}]+\}", "[^/]+", template)
        if re.fullmatch(pattern, path) and method.lower() in methods:
            return methods[method.lower()]
    return None


def resolve(schema):
    while "$ref" in schema:
        schema = SPEC["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
    return schema


TYPES = {"integer": int, "number": (int, float), "string": str, "boolean": bool, "object": dict, "array": list}


def check(value, schema, where):
    """As much of JSON schema as the requests use."""
    schema = resolve(schema)
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds:
        fits = any(value is None if k == "null" else isinstance(value, TYPES[k]) for k in kinds)
        assert fits and not (isinstance(value, bool) and "boolean" not in kinds), f"{where}: {value!r} is no {kinds}"
    if "enum" in schema:
        assert value in schema["enum"], f"{where}: {value!r}"
    if "pattern" in schema and isinstance(value, str):
        assert re.search(schema["pattern"], value), f"{where}: {value!r}"
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        for name in schema.get("required", []):
            assert name in value, f"{where}: {name} is missing"
        for name, member in value.items():
            assert name in properties or schema.get("additionalProperties", True) is not False, f"{where}.{name}"
            if name in properties:
                check(member, properties[name], f"{where}.{name}")
    if isinstance(value, list) and "items" in schema:
        for i, item in enumerate(value):
            check(item, schema["items"], f"{where}[{i}]")


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def address_string(self):
        return "unix"

    def log_message(self, *args):
        pass

    def answer(self):
        length = int(self.headers.get("Content-Length") or 0)
        text = self.rfile.read(length)
        path, _, query = self.path.partition("?")
        self.server.oraid.handle(self, self.command, path, query, json.loads(text) if text else None)

    do_GET = do_POST = do_PUT = do_DELETE = answer

    def send(self, status, body):
        text = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def send_lines(self, lines):
        """A stream without a length: chunks, then the end of the connection."""
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Connection", "close")
        self.end_headers()
        for line in lines:
            self.wfile.write(json.dumps(line).encode() + b"\n")
            self.wfile.flush()
        self.close_connection = True


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


class FakeOraid:
    def __init__(self, path):
        self.path = str(path)
        self.answers = {}  # (method, path): (status, body), or a list of them, or a function of (query, body)
        self.requests = []  # (method, path, query, body)
        self.problems = []
        self.start()

    def start(self):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
        self.server = Server(self.path, Handler)
        self.server.oraid = self
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)

    def on(self, method, path, body, status=200):
        self.answers[method, path] = (status, body)

    def refuse(self, method, path, status, **error):
        self.answers[method, path] = (status, {"error": {"code": "EIO", "text": "because", **error}})

    def asked(self, method, path):
        """The bodies that were sent there."""
        return [body for m, p, _, body in self.requests if (m, p) == (method, path)]

    def check_request(self, method, path, body):
        spec = operation_in_spec(method, path)
        if spec is None:
            self.problems.append(f"{method} {path} is not in openapi.json")
        elif body is not None:
            schema = spec["requestBody"]["content"]["application/json"]["schema"]
            try:
                check(body, schema, "body")
            except AssertionError as problem:
                self.problems.append(f"{method} {path}: {problem}")

    def handle(self, handler, method, path, query, body):
        self.requests.append((method, path, query, body))
        self.check_request(method, path, body)
        answer = self.answers.get((method, path), (404, {"error": {"code": "ENOENT", "text": f"there is no {path}"}}))
        if callable(answer):
            answer = answer(query, body)
        if isinstance(answer, list):
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        status, content = answer
        if callable(content):
            content(handler)
        elif content is None:
            handler.connection.close()  # an oraid that dies in the middle of an answer
            handler.close_connection = True
        else:
            handler.send(status, content)
