"""A model hub on this machine: what huggingface_hub asks of huggingface.co to push and pull a model, and no more."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_aSecretOfThisTest"  # of "me", who may write to me/...
LARGE = (".onnx", ".safetensors")  # such files go another way, as on the real hub


@dataclass
class Repo:
    """branches: for each, the files of its last commit.  commits: their messages."""

    private: bool
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {".gitattributes": b"*.onnx lfs"}})
    commits: list[str] = field(default_factory=list)

    def files(self, revision: str) -> dict[str, bytes] | None:
        return next((files for name, files in self.branches.items() if revision in (name, commit_of(files))), None)


class Hub(ThreadingHTTPServer):
    """asked: method, path and headers of every request.  answers: status and text instead of what a path would give.

    cut: a file after half of which the hub is dead.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.elsewhere = f"http://localhost:{self.server_port}"  # where large files lie: another origin
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.answers: dict[str, tuple[int, str]] = {}
        self.cut: str | None = None
        self.dead = False

    def paths(self, method: str) -> list[str]:
        return [path for asked, path, _ in self.asked if asked == method]

    def handle_error(self, request, client_address):
        pass


@contextmanager
def running() -> Iterator[Hub]:
    with Hub() as hub:
        thread = threading.Thread(target=lambda: hub.serve_forever(poll_interval=0.01))
        thread.start()
        yield hub
        hub.shutdown()
        thread.join()


def commit_of(files: dict[str, bytes]) -> str:
    return hashlib.sha1(b"".join(name.encode() + sha256(data).encode() for name, data in files.items())).hexdigest()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def front_matter(card: str) -> dict:
    """What stands between the first two lines of dashes of a card."""
    begin, text, _ = card.split("---\n", 2)
    assert begin == ""
    return yaml.safe_load(text)


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def handle_one(self) -> None:
        self.data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlsplit(self.path).path
        self.server.asked.append((self.command, path, {k.lower(): v for k, v in self.headers.items()}))
        answers = [answer for part, answer in self.server.answers.items() if part in path]
        if self.server.dead:
            self.close_connection = True
        elif answers:
            self.answer(answers[0][1].encode(), answers[0][0])
        else:
            self.route(path)

    do_GET = do_HEAD = do_POST = do_PUT = handle_one  # noqa: N815

    def route(self, path: str) -> None:
        match [unquote(part) for part in path.strip("/").split("/")]:
            case ["api", "repos", "create"]:
                self.create()
            case ["api", "validate-yaml"]:
                self.validate(json.loads(self.data)["content"])
            case ["api", "models", owner, name, *rest]:
                self.in_repo(f"{owner}/{name}", rest)
            case [owner, name, "info", "lfs", "objects", "batch"]:
                self.in_repo(f"{owner}/{name.removesuffix('.git')}", ["batch"])
            case ["large", oid]:
                self.large(oid)
            case [owner, name, "resolve", revision, file]:
                self.in_repo(f"{owner}/{name}", ["resolve", revision, file])
            case _:
                self.answer({"error": f"no such page: {path}"}, 404)

    def create(self) -> None:
        asked = json.loads(self.data)
        repo_id = f"{asked['organization']}/{asked['name']}"
        private = asked.get("visibility", "private" if asked.get("private") else "public") == "private"
        if not self.is_owner():
            self.answer({"error": "Invalid username or password."}, 401)
        elif not repo_id.startswith("me/"):
            self.answer({"error": "You do not have the rights to create a model there"}, 403)
        elif repo_id in self.server.repos:
            self.answer({"error": "You already created this model repo", "url": f"{self.server.url}/{repo_id}"}, 409)
        else:
            self.server.repos[repo_id] = Repo(private)
            self.answer({"url": f"{self.server.url}/{repo_id}"})

    def validate(self, card: str) -> None:
        known = {"license", "license_name", "library_name", "pipeline_tag", "tags", "model-index"}
        wrong = set(front_matter(card)) - known
        errors = [{"message": f"{key} is not allowed"} for key in wrong]
        self.answer({"errors": errors, "warnings": []}, 400 if errors else 200)

    def in_repo(self, repo_id: str, rest: list[str]) -> None:
        repo = self.server.repos.get(repo_id)
        revision = rest[1] if len(rest) > 1 else "main"
        if self.headers.get("Authorization") not in (None, f"Bearer {TOKEN}"):
            self.answer({"error": "Invalid credentials in Authorization header"}, 401)
        elif repo is None or (repo.private and not self.is_owner()):
            self.answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        elif rest[:1] == ["branch"]:
            self.branch(repo, revision)
        elif rest == ["batch"]:
            self.batch()
        elif (files := repo.files(revision)) is None:
            self.answer({"error": "Invalid rev id"}, 404, {"X-Error-Code": "RevisionNotFound"})
        else:
            self.in_revision(repo_id, repo, files, rest)

    def in_revision(self, repo_id: str, repo: Repo, files: dict[str, bytes], rest: list[str]) -> None:
        match rest:
            case [] | ["revision", _]:
                siblings = [{"rfilename": name, "size": len(data)} for name, data in files.items()]
                about = {"id": repo_id, "private": repo.private, "sha": commit_of(files), "siblings": siblings}
                self.answer(about)
            case ["preupload", _]:
                self.answer({"files": [self.mode(files, file) for file in json.loads(self.data)["files"]]})
            case ["commit", branch]:
                self.commit(repo, branch)
                self.answer({"commitUrl": f"{self.server.url}/{repo_id}/commit/x", "commitOid": commit_of(files)})
            case ["resolve", _, name]:
                self.resolve(files, name)

    def branch(self, repo: Repo, branch: str) -> None:
        is_new = branch not in repo.branches
        repo.branches.setdefault(branch, dict(repo.branches["main"]))
        self.answer({}, 200 if is_new else 409)

    def mode(self, files: dict[str, bytes], file: dict) -> dict:
        is_large = file["path"].endswith(LARGE)
        found = files.get(file["path"])
        oid = None if found is None else sha256(found) if is_large else git_hash(found)
        mode = "lfs" if is_large else "regular"
        return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid}

    def batch(self) -> None:
        objects = json.loads(self.data)["objects"]
        for item in objects:
            item["actions"] = {"upload": {"href": f"{self.server.elsewhere}/large/{item['oid']}"}}
        self.answer({"transfer": "basic", "objects": objects})

    def large(self, oid: str) -> None:
        if self.command == "PUT":
            self.server.large[sha256(self.data)] = self.data
            self.answer({}, 200 if sha256(self.data) == oid else 400)
        else:
            self.answer(self.server.large[oid], name=oid)

    def commit(self, repo: Repo, branch: str) -> None:
        for line in map(json.loads, self.data.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                repo.commits.append(value["summary"])
            elif line["key"] == "file":
                repo.branches[branch][value["path"]] = base64.b64decode(value["content"])
            else:
                repo.branches[branch][value["path"]] = self.server.large[value["oid"]]

    def resolve(self, files: dict[str, bytes], name: str) -> None:
        data = files.get(name, b"")
        headers = {"X-Repo-Commit": commit_of(files), "ETag": f'"{sha256(data)}"'}
        if name not in files:
            self.answer({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        elif not name.endswith(LARGE):
            self.answer(data, 200, headers, name)
        else:
            self.server.large[name] = data
            moved = {"Location": f"{self.server.elsewhere}/large/{name}", "X-Linked-Size": str(len(data))}
            self.answer(b"", 302, {**headers, **moved})

    def is_owner(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def answer(self, body: bytes | dict, status: int = 200, headers: dict | None = None, name: str = "") -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if name and name == self.server.cut and self.command == "GET":
            self.server.dead = self.close_connection = True
            data = data[: len(data) // 2]
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *args):
        pass
