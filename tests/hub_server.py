"""A small Hub on the loopback for tests: repositories in memory, tokens, faults.

    with HubServer() as hub:
        hub.url                                   # for HF_ENDPOINT
        hub.tokens["hf_..."] = ("anna", True)     # user, may write
        hub.fail("POST", "/commit/", 500)         # the next such request

It speaks what huggingface_hub, transformers and datasets ask for: repositories and their visibility, branches, tags, commits
(one POST, all or nothing), large files by Git LFS, downloads with ranges. Not the Hub's xet storage, pull requests or search.
"""

import base64
import contextlib
import hashlib
import json
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


LARGE = (".safetensors", ".parquet", ".bin", ".png")
CUT = "cut"  # a fault: the connection breaks off half-way through the answer


@dataclass
class Repository:
    private: bool
    commits: dict = field(default_factory=dict)  # commit -> {file name: content}
    branches: dict = field(default_factory=dict)
    tags: dict = field(default_factory=dict)
    messages: list = field(default_factory=list)

    def __post_init__(self):
        self.branches["main"] = self.add({".gitattributes": b""}, "initial commit", None)

    def add(self, files, message, branch):
        text = "".join(f"{name}{hashlib.sha1(content).hexdigest()}" for name, content in sorted(files.items()))
        commit = hashlib.sha1(f"{len(self.commits)}{message}{text}".encode()).hexdigest()
        self.commits[commit] = dict(files)
        self.messages.append(message)
        if branch:
            self.branches[branch] = commit
        return commit

    def resolve(self, revision):
        commit = self.branches.get(revision) or self.tags.get(revision) or revision
        return commit if commit in self.commits else None

    @property
    def files(self):
        return self.commits[self.branches["main"]]


@dataclass
class Answer(Exception):
    """Ends the handling of a request."""

    status: int
    body: object = b""
    headers: dict = field(default_factory=dict)


def refusal(status, code, message):
    return Answer(status, {"error": message}, {"X-Error-Code": code, "X-Error-Message": message})


def blob(name, content):
    """A file as the API describes it: large ones by their sha256."""
    entry = {"type": "file", "path": name, "size": len(content)}
    entry["oid"] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    if name.endswith(LARGE):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return entry


class HubServer:
    """See the module's docstring; `repositories` is keyed by `"models/user/name"`, `"datasets/user/name"`."""

    def __init__(self):
        self.repositories, self.objects, self.tokens = {}, {}, {}
        self.requests, self.faults, self.lock = [], [], threading.RLock()

    def __enter__(self):
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def fail(self, method, pattern, action, times=1):
        """The next `times` such requests get a status (`int`), wait (`float`, seconds), or are cut (`CUT`)."""
        self.faults.append([method, pattern, action, times])

    def fault(self, method, path):
        with self.lock:
            for fault in self.faults:
                if fault[3] and fault[0] == method and re.search(fault[1], path):
                    fault[3] -= 1
                    return fault[2]

    def repository(self, kind, name):
        return self.repositories[f"{kind}/{name}"]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.handle_request()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def handle_request(self):
        self.body = (
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if "chunked" not in self.headers.get("Transfer-Encoding", "")
            else self.read_chunks()
        )
        address = urlsplit(self.path)
        path, self.query = address.path, parse_qs(address.query)
        self.hub.requests.append((self.command, path))
        action = self.hub.fault(self.command, path)
        if isinstance(action, float):
            time.sleep(action)
        if isinstance(action, int):
            return self.send(refusal(action, "", f"fault {action}"))
        try:
            with self.hub.lock:
                self.route([unquote(part) for part in path.strip("/").split("/")])
            answer = refusal(404, "", f"no such endpoint: {self.command} {path}")
        except Answer as given:
            answer = given
        with contextlib.suppress(ConnectionError):
            self.send(answer, cut=action == CUT)

    def read_chunks(self):
        found = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def send(self, answer, cut=False):
        body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        self.send_response(answer.status)
        for name, value in {"Content-Type": "application/json", "Content-Length": len(body), **answer.headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.wfile.flush()
            self.close_connection = True

    # --- who asks ---

    @property
    def user(self):
        """Name and right to write of who asks; refuses an unknown token."""
        given = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if not given:
            return None, False
        if given not in self.hub.tokens:
            raise refusal(401, "", "Invalid credentials in Authorization header")
        return self.hub.tokens[given]

    def repository(self, kind, name):
        user, found = self.user[0], self.hub.repositories.get(f"{kind}/{name}")
        if found is None or (found.private and user != name.split("/")[0]):
            raise refusal(404 if user else 401, "RepoNotFound", "Repository not found")
        return found

    def check_write(self, name):
        user, may_write = self.user
        if user is None:
            raise refusal(401, "", "Invalid username or password.")
        if not may_write or user != name.split("/")[0]:
            raise refusal(
                403, "", f"You don't have the rights to create a model under the namespace {name.split('/')[0]!r}"
            )

    # --- where to ---

    def route(self, parts):
        if parts[0] == "api" and len(parts) > 4 and parts[1] in ("models", "datasets"):
            name = "/".join(parts[2:4])
            self.route_repository(parts[1], name, parts[4], parts[5:])
        elif parts[0] == "api" and len(parts) == 4:
            self.send_info(parts[1], "/".join(parts[2:4]), "main")
        elif parts == ["api", "whoami-v2"]:
            user = self.user[0]
            if user is None:
                raise refusal(401, "", "Invalid username or password.")
            token = {"role": "write" if self.user[1] else "read"}
            auth = {"type": "access_token", "accessToken": token}
            raise Answer(200, {"name": user, "type": "user", "orgs": [], "auth": auth})
        elif parts == ["api", "validate-yaml"]:
            raise Answer(200, {"errors": [], "warnings": []})
        elif parts == ["api", "repos", "create"]:
            self.create(json.loads(self.body))
        elif "info" in parts and parts[-1] == "batch":
            self.batch(json.loads(self.body))
        elif parts[0] == "upload":
            if hashlib.sha256(self.body).hexdigest() != parts[1]:
                raise refusal(400, "", "not the announced content")
            self.hub.objects[parts[1]] = self.body
            raise Answer(200)
        elif "resolve" in parts:
            kind = parts.pop(0) if parts[0] == "datasets" else "models"
            self.download(kind, "/".join(parts[:2]), parts[3], "/".join(parts[4:]))

    def route_repository(self, kind, name, verb, rest):
        if verb == "revision":
            self.send_info(kind, name, rest[0])
        elif verb == "tree":
            self.tree(kind, name, rest[0], "/".join(rest[1:]))
        elif verb == "paths-info":
            self.paths_info(kind, name, rest[0])
        elif verb == "refs":
            repository = self.repository(kind, name)
            refs = {"branches": ("heads", repository.branches), "tags": ("tags", repository.tags)}
            listed = {
                title: [
                    {"name": ref, "ref": f"refs/{place}/{ref}", "targetCommit": commit}
                    for ref, commit in found.items()
                ]
                for title, (place, found) in refs.items()
            }
            raise Answer(200, {**listed, "converts": []})
        elif verb in ("branch", "tag", "preupload", "commit"):
            repository = self.repository(kind, name)
            self.check_write(name)
            getattr(self, verb)(repository, kind, name, rest[0])

    # --- what is done ---

    def create(self, wanted):
        user = self.user[0]
        name = f"{wanted.get('organization') or user}/{wanted['name']}"
        kind = f"{wanted.get('type') or 'model'}s"
        url = f"{self.hub.url}/{'datasets/' if kind == 'datasets' else ''}{name}"
        if f"{kind}/{name}" in self.hub.repositories and user == name.split("/")[0]:
            raise Answer(
                409,
                {"error": "You already created this repo", "url": url},
                {"X-Error-Message": "You already created this repo"},
            )
        self.check_write(name)
        private = wanted.get("private") or wanted.get("visibility") == "private"
        self.hub.repositories[f"{kind}/{name}"] = Repository(bool(private))
        raise Answer(200, {"url": url, "name": name, "id": "1"})

    def branch(self, repository, kind, name, branch):
        if branch in repository.branches:
            raise refusal(409, "", f"Reference already exists: {branch}")
        start = json.loads(self.body or b"{}").get("startingPoint", "main")
        repository.branches[branch] = repository.resolve(start)
        raise Answer(200, {})

    def tag(self, repository, kind, name, revision):
        tag = json.loads(self.body)["tag"]
        if tag in repository.tags:
            raise refusal(409, "", f"Tag already exists: {tag}")
        repository.tags[tag] = repository.resolve(revision)
        raise Answer(200, {})

    def preupload(self, repository, kind, name, revision):
        there = repository.commits[repository.resolve(revision)]
        files = []
        for file in json.loads(self.body)["files"]:
            large, path = file["path"].endswith(LARGE), file["path"]
            entry = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
            if path in there:
                known = blob(path, there[path])
                entry["oid"] = known["lfs"]["oid"] if large else known["oid"]
            files.append(entry)
        raise Answer(200, {"files": files})

    def batch(self, wanted):
        objects = []
        for item in wanted["objects"]:
            if item["oid"] not in self.hub.objects:
                item["actions"] = {"upload": {"href": f"{self.hub.url}/upload/{item['oid']}", "header": {}}}
            objects.append(item)
        raise Answer(200, {"transfer": "basic", "objects": objects})

    def commit(self, repository, kind, name, branch):
        parent = repository.branches.get(branch)
        if parent is None:
            raise refusal(404, "RevisionNotFound", f"Invalid rev id: {branch}")
        files, message = dict(repository.commits[parent]), ""
        for line in self.body.splitlines():
            entry = json.loads(line)
            value, path = entry["value"], entry["value"].get("path")
            if entry["key"] == "header":
                message = value["summary"]
                if value.get("parentCommit") not in (None, parent):
                    raise refusal(412, "", "A commit has happened since. Please refresh and try again.")
            elif entry["key"] == "file":
                files[path] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    raise refusal(400, "", f"{path} was not uploaded")
                files[path] = self.hub.objects[value["oid"]]
            elif entry["key"] == "deletedFile":
                del files[path]
        oid = repository.add(files, message, branch)
        raise Answer(
            200,
            {"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{name}/commit/{oid}", "hookOutput": ""},
        )

    def commit_of(self, repository, revision):
        commit = repository.resolve(revision)
        if commit is None:
            raise refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def send_info(self, kind, name, revision):
        repository = self.repository(kind, name)
        commit = self.commit_of(repository, revision)
        siblings = [{"rfilename": file} for file in sorted(repository.commits[commit])]
        raise Answer(
            200,
            {
                "id": name,
                "modelId": name,
                "sha": commit,
                "private": repository.private,
                "siblings": siblings,
                "tags": [],
                "downloads": 0,
                "lastModified": "2026-01-01T00:00:00.000Z",
            },
        )

    def tree(self, kind, name, revision, folder):
        repository = self.repository(kind, name)
        files = repository.commits[self.commit_of(repository, revision)]
        prefix = f"{folder}/" if folder else ""
        inside = [file for file in sorted(files) if file.startswith(prefix)]
        if folder and not inside:
            raise refusal(404, "EntryNotFound", f"{folder} does not exist")
        entries = {}
        for file in inside:
            below = file[len(prefix) :].split("/")
            for depth in range(1, len(below)):
                path = prefix + "/".join(below[:depth])
                entries[path] = {
                    "type": "directory",
                    "path": path,
                    "size": 0,
                    "oid": hashlib.sha1(path.encode()).hexdigest(),
                }
            entries[file] = blob(file, files[file])
        recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        raise Answer(200, [entry for path, entry in entries.items() if recursive or "/" not in path[len(prefix) :]])

    def paths_info(self, kind, name, revision):
        repository = self.repository(kind, name)
        files = repository.commits[self.commit_of(repository, revision)]
        text = self.body.decode()
        paths = json.loads(text)["paths"] if text.startswith("{") else parse_qs(text)["paths"]
        raise Answer(200, [blob(path, files[path]) for path in paths if path in files])

    def download(self, kind, name, revision, file):
        repository = self.repository(kind, name)
        commit = self.commit_of(repository, revision)
        if file not in repository.commits[commit]:
            raise Answer(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        content = repository.commits[commit][file]
        described = blob(file, content)
        etag = described.get("lfs", described)["oid"]
        headers = {
            "ETag": f'"{etag}"',
            "X-Repo-Commit": commit,
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }
        if "lfs" in described:
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": len(content)}
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(wanted[1]), int(wanted[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            raise Answer(206, content[first : last + 1], headers)
        raise Answer(200, content, headers)
