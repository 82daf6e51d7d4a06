"""A small Hub on the loopback interface: what huggingface_hub needs to publish and to load, and failures on demand.

It keeps everything in memory: repositories with branches and pull requests, each a list of commits, and large files by
their SHA-256. Tokens decide who asks: see `TOKENS`. Whatever is asked that it does not know ends up in `unknown`.
"""

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKENS = {"hf_writer": ("tester", "write"), "hf_reader": ("tester", "read"), "hf_stranger": ("stranger", "write")}
LARGE_SUFFIXES = (".safetensors", ".png", ".arrow", ".parquet", ".onnx")
KINDS = {"models": "", "datasets": "datasets/", "spaces": "spaces/"}


def git_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Commit:
    sha: str
    title: str
    files: dict[str, bytes]


@dataclass
class Repository:
    owner: str
    private: bool
    refs: dict[str, list[Commit]] = field(default_factory=dict)

    def find(self, revision: str) -> Commit | None:
        """The commit that a branch, a pull request or a SHA names."""
        if revision in self.refs:
            return self.refs[revision][-1]
        return next((c for commits in self.refs.values() for c in commits if c.sha == revision), None)

    def add(self, ref: str, title: str, files: dict[str, bytes]) -> Commit:
        commits = self.refs.setdefault(ref, [])
        content = repr([ref, len(commits), title, sorted((name, git_id(data)) for name, data in files.items())])
        commits.append(Commit(hashlib.sha1(content.encode()).hexdigest(), title, files))
        return commits[-1]


@dataclass
class Failure:
    """What to do, so many times, instead of answering: send a status with headers, or (None) cut the connection."""

    method: str
    path: str
    status: int | None
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)


class Hub:
    """The state of the server, for tests to look at and to arrange."""

    def __init__(self):
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.failures: list[Failure] = []
        self.unknown: list[tuple[str, str]] = []
        self.endpoint = ""
        self._lock = threading.Lock()

    def fail(self, method: str, path: str, status: int | None, times: int = 1, **headers: str) -> None:
        """Fail the next requests whose path matches the regular expression."""
        self.failures.append(Failure(method, path, status, times, headers))

    def due_failure(self, method: str, path: str) -> Failure | None:
        with self._lock:
            for failure in self.failures:
                if failure.times > 0 and failure.method == method and re.search(failure.path, path):
                    failure.times -= 1
                    return failure
        return None

    def files(self, repo_id: str, kind: str = "models", revision: str = "main") -> dict[str, bytes]:
        """Files of a repository, without the one that every new repository has."""
        commit = self.repositories[kind, repo_id].find(revision)
        assert commit is not None
        return {name: content for name, content in commit.files.items() if name != ".gitattributes"}

    def titles(self, repo_id: str, kind: str = "models", revision: str = "main") -> list[str]:
        """Titles of the commits after the initial one."""
        return [commit.title for commit in self.repositories[kind, repo_id].refs[revision]][1:]

    def count(self, method: str, path: str) -> int:
        """How many requests so far had such a path."""
        return sum(1 for m, p in self.requests if m == method and re.search(path, p))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "Server"

    def log_message(self, *arguments) -> None:
        """Say nothing on stderr."""

    def answer(self, status: int, content: object = b"", **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        if not isinstance(content, bytes):
            headers.setdefault("Content_Type", "application/json")
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str, message: str = "", **headers: str) -> None:
        self.answer(status, {"error": message or code}, X_Error_Code=code, X_Error_Message=message or code, **headers)

    def read_body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        pieces = []
        while size := int(self.rfile.readline().strip() or b"0", 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def who(self) -> tuple[str, str] | None:
        return TOKENS.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def route(self) -> None:
        hub, url = self.server.hub, urlsplit(self.path)
        path, self.query = unquote(url.path), parse_qs(url.query)
        hub.requests.append((self.command, path))
        failure = hub.due_failure(self.command, path)
        if failure is not None and failure.status is None:
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        self.body = self.read_body()
        if failure is not None:
            self.refuse(failure.status, "Arranged", "arranged by the test", **failure.headers)
            return
        for pattern, respond in ROUTES:
            match = re.fullmatch(pattern, path)
            if match:
                respond(self, hub, *match.groups())
                return
        hub.unknown.append((self.command, path))
        self.refuse(404, "Unknown", f"this Hub does not know {path}")

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = route

    def repository(self, hub: Hub, kind: str, repo_id: str, *, write: bool = False) -> Repository | None:
        """The repository, if whoever asks may do so; otherwise the refusal is sent."""
        repository, user = hub.repositories.get((kind, repo_id)), self.who()
        name = user[0] if user else None
        if repository is None or (repository.private and name != repository.owner):
            self.refuse(404 if user else 401, "RepoNotFound", "Repository not found")
            return None
        if write and user is None:
            self.refuse(401, "Unauthorized", "Invalid username or password.")
            return None
        if write and (name != repository.owner or user[1] != "write") and not self.query.get("create_pr"):
            self.refuse(403, "Forbidden", f"{name} has no write access to {repo_id}")
            return None
        return repository

    def commit(
        self, hub: Hub, kind: str, repo_id: str, revision: str, *, write: bool = False
    ) -> tuple[Repository, Commit] | tuple[None, None]:
        """The repository and what a revision names in it; otherwise the refusal is sent."""
        repository = self.repository(hub, kind, repo_id, write=write)
        if repository is None:
            return None, None
        found = repository.find(revision)
        if found is None:
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None, None
        return repository, found


def whoami(request: Handler, hub: Hub) -> None:
    user = request.who()
    if user is None:
        request.refuse(401, "Unauthorized", "Invalid username or password.")
        return
    token = {"displayName": "test", "role": user[1]}
    request.answer(200, {"type": "user", "name": user[0], "orgs": [], "auth": {"accessToken": token}})


def validate_card(request: Handler, hub: Hub) -> None:
    """Some of the rules of the Hub: fields have their types, and a license is one that it knows."""
    content = json.loads(request.body)["content"]
    match = re.match(r"^\s*---\n(.*?)\n---\n", content, re.DOTALL)
    fields = yaml.safe_load(match[1]) if match else {}
    errors = []
    if fields.get("license") not in (None, "apache-2.0", "mit", "other", "cc-by-4.0"):
        errors.append({"message": f'"license" must be one of [apache-2.0, mit, ...], not {fields["license"]}'})
    for name in ("tags", "datasets"):
        if not isinstance(fields.get(name, []), list):
            errors.append({"message": f'"{name}" must be an array'})
    if fields.get("base_model_relation") not in (None, "adapter", "merge", "quantized", "finetune"):
        errors.append({"message": '"base_model_relation" is unknown'})
    status = 400 if errors else 200
    if errors and request.headers.get("Accept") == "text/plain":
        request.answer(status, "\n".join(error["message"] for error in errors).encode())
    else:
        request.answer(status, {"errors": errors, "warnings": []})


def create_repository(request: Handler, hub: Hub) -> None:
    user, wanted = request.who(), json.loads(request.body)
    if user is None:
        request.refuse(401, "Unauthorized", "Invalid username or password.")
        return
    kind = f"{wanted.get('type') or 'model'}s"
    owner = wanted.get("organization") or user[0]
    repo_id = f"{owner}/{wanted['name']}"
    address = f"{hub.endpoint}/{KINDS[kind]}{repo_id}"
    if user != (owner, "write"):
        request.refuse(403, "Forbidden", f"{user[0]} may not create {repo_id}")
    elif (kind, repo_id) in hub.repositories:
        request.answer(409, {"error": "You already created this repo", "url": address})
    else:
        repository = hub.repositories[kind, repo_id] = Repository(
            owner, wanted.get("private") is True or wanted.get("visibility") == "private"
        )
        repository.add("main", "initial commit", {".gitattributes": b"*.safetensors filter=lfs\n"})
        request.answer(200, {"url": address, "name": repo_id, "id": repo_id})


def information(request: Handler, hub: Hub, kind: str, repo_id: str, revision: str | None) -> None:
    repository, commit = request.commit(hub, kind, repo_id, revision or "main")
    if commit is None:
        return
    request.answer(
        200,
        {
            "_id": "0",
            "id": repo_id,
            "modelId": repo_id,
            "sha": commit.sha,
            "private": repository.private,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "siblings": [{"rfilename": name} for name in sorted(commit.files)],
        },
    )


def preupload(request: Handler, hub: Hub, kind: str, repo_id: str, revision: str) -> None:
    _, commit = request.commit(hub, kind, repo_id, revision, write=True)
    if commit is None:
        return
    answers = []
    for file in json.loads(request.body)["files"]:
        old, large = commit.files.get(file["path"]), file["path"].endswith(LARGE_SUFFIXES)
        mode = {"uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
        if old is not None:
            mode["oid"] = hashlib.sha256(old).hexdigest() if large else git_id(old)
        answers.append({"path": file["path"], **mode})
    request.answer(200, {"files": answers})


def commit(request: Handler, hub: Hub, kind: str, repo_id: str, revision: str) -> None:
    repository, parent = request.commit(hub, kind, repo_id, revision, write=True)
    if parent is None:
        return
    files, lines = dict(parent.files), [json.loads(line) for line in request.body.splitlines()]
    header = lines[0]["value"]
    create_pr = bool(request.query.get("create_pr"))
    if header.get("parentCommit") not in (None, parent.sha) and not create_pr:
        request.refuse(412, "PreconditionFailed", "A commit has happened since. Please refresh and try again.")
        return
    for line in lines[1:]:
        key, value = line["key"], line["value"]
        if key == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif key == "lfsFile":
            files[value["path"]] = hub.large[value["oid"]]
        elif key == "deletedFile":
            del files[value["path"]]
        else:
            raise AssertionError(f"unknown operation {key}")
    answer = {"success": True, "hookOutput": ""}
    if create_pr:
        number = 1 + sum(1 for ref in repository.refs if ref.startswith("refs/pr/"))
        revision = f"refs/pr/{number}"
        repository.refs[revision] = list(repository.refs["main"])
        answer["pullRequestUrl"] = f"{hub.endpoint}/{KINDS[kind]}{repo_id}/discussions/{number}"
    made = repository.add(revision, header["summary"], files)
    address = f"{hub.endpoint}/{KINDS[kind]}{repo_id}/commit/{made.sha}"
    request.answer(200, answer | {"commitOid": made.sha, "commitUrl": address})


def tree(request: Handler, hub: Hub, kind: str, repo_id: str, revision: str, folder: str | None) -> None:
    _, found = request.commit(hub, kind, repo_id, revision)
    if found is None:
        return
    entries = [file_entry(name, found) for name in sorted(found.files) if name.startswith(folder or "")]
    request.answer(200, entries)


def paths_info(request: Handler, hub: Hub, kind: str, repo_id: str, revision: str) -> None:
    _, found = request.commit(hub, kind, repo_id, revision)
    if found is None:
        return
    entries = []
    for path in wanted_paths(request):
        if path in found.files:
            entries.append(file_entry(path, found))
        elif any(name.startswith(f"{path}/") for name in found.files):
            entries.append({"type": "directory", "path": path, "oid": git_id(path.encode())})
    request.answer(200, entries)


def wanted_paths(request: Handler) -> list[str]:
    """The paths of a request, which a client sends as JSON or as a form."""
    if "json" in request.headers.get("Content-Type", ""):
        return json.loads(request.body)["paths"]
    return parse_qs(request.body.decode())["paths"]


def file_entry(name: str, commit: Commit) -> dict[str, object]:
    content = commit.files[name]
    entry: dict[str, object] = {"type": "file", "path": name, "size": len(content), "oid": git_id(content)}
    if name.endswith(LARGE_SUFFIXES):
        oid = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 130}
    return entry


def create_branch(request: Handler, hub: Hub, kind: str, repo_id: str, branch: str) -> None:
    repository = request.repository(hub, kind, repo_id, write=True)
    if repository is None:
        return
    if branch in repository.refs:
        request.refuse(409, "Conflict", "Reference already exists")
        return
    repository.refs[branch] = list(repository.refs["main"])
    request.answer(200, {})


def list_refs(request: Handler, hub: Hub, kind: str, repo_id: str) -> None:
    repository = request.repository(hub, kind, repo_id)
    if repository is not None:
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commits[-1].sha}
            for name, commits in repository.refs.items()
            if not name.startswith("refs/")
        ]
        request.answer(200, {"branches": branches, "tags": [], "converts": []})


def large_batch(request: Handler, hub: Hub, repo_id: str) -> None:
    objects = []
    for wanted in json.loads(request.body)["objects"]:
        entry = {"oid": wanted["oid"], "size": wanted["size"]}
        if wanted["oid"] not in hub.large:
            entry["actions"] = {"upload": {"href": f"{hub.endpoint}/large/{wanted['oid']}"}}
        objects.append(entry)
    request.answer(200, {"transfer": "basic", "objects": objects})


def receive_large_file(request: Handler, hub: Hub, oid: str) -> None:
    if hashlib.sha256(request.body).hexdigest() != oid:
        request.refuse(400, "BadDigest", "the content has another SHA-256")
        return
    hub.large[oid] = request.body
    request.answer(200)


def resolve(request: Handler, hub: Hub, prefix: str | None, repo_id: str, revision: str, name: str) -> None:
    repository = request.repository(hub, (prefix or "models/").rstrip("/"), repo_id)
    if repository is None:
        return
    commit = repository.find(unquote(revision))
    if commit is None:
        request.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
    elif name not in commit.files:
        request.answer(
            404, b"", X_Error_Code="EntryNotFound", X_Error_Message="Entry not found", X_Repo_Commit=commit.sha
        )
    else:
        content = commit.files[name]
        headers = {"ETag": f'"{git_id(content)}"'}
        if name.endswith(LARGE_SUFFIXES):
            digest = hashlib.sha256(content).hexdigest()
            headers = {"ETag": f'"{digest}"', "X_Linked_ETag": f'"{digest}"', "X_Linked_Size": str(len(content))}
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
        status = 200
        if part is not None:
            first, last = int(part[1]), min(int(part[2] or len(content)), len(content) - 1)
            headers["Content_Range"] = f"bytes {first}-{last}/{len(content)}"
            status, content = 206, content[first : last + 1]
        request.answer(status, content, X_Repo_Commit=commit.sha, Accept_Ranges="bytes", **headers)


def coding_agents(request: Handler, hub: Hub) -> None:
    """A list that the client asks for now and then; it does without."""
    request.refuse(404, "EntryNotFound")


_REPO = r"/api/(models|datasets|spaces)/([^/]+/[^/]+)"
ROUTES: list[tuple[str, Callable]] = [
    (r"/api/whoami-v2", whoami),
    (r"/api/validate-yaml", validate_card),
    (r"/api/agent-harnesses", coding_agents),
    (r"/api/repos/create", create_repository),
    (_REPO + r"(?:/revision/(.+))?", information),
    (_REPO + r"/preupload/(.+)", preupload),
    (_REPO + r"/commit/(.+)", commit),
    (_REPO + r"/paths-info/(.+)", paths_info),
    (_REPO + r"/tree/(refs/pr/\d+|[^/]+)(?:/(.*))?", tree),
    (_REPO + r"/branch/(.+)", create_branch),
    (_REPO + r"/refs", list_refs),
    (r"/(.+)\.git/info/lfs/objects/batch", large_batch),
    (r"/large/([0-9a-f]{64})", receive_large_file),
    (r"/(datasets/|spaces/)?([^/]+/[^/]+)/resolve/(refs/pr/\d+|[^/]+)/(.+)", resolve),
]


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.hub = Hub()
        self.hub.endpoint = f"http://127.0.0.1:{self.server_port}"


def serve() -> Server:
    """Start a server in a thread of its own; `server.shutdown()` ends it."""
    server = Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
