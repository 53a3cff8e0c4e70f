"""A small Hub on 127.0.0.1: enough of its protocol for the real client to make repositories, push and load.

Repositories live in memory as commits, each a whole tree of files. Large files go through the LFS endpoints.
"""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml

TOKENS = {"hf_writer": ("ann", True), "hf_reader": ("ann", False), "hf_other": ("bob", True)}
"""Token to the user and whether it may write."""
LARGE = (".safetensors", ".png")


class Hub:
    """State of a server.

    Attributes:
        repos: `user/name` to its commits, each a mapping from path to bytes; and whether it is private.
        objects: LFS objects by their SHA-256.
        requests: What was asked, method and path.
        fail: Part of a path at whose next request the connection breaks.
    """

    def __init__(self):
        self.repos, self.private, self.objects, self.requests, self.fail = {}, {}, {}, [], None
        self.headers = []

    def files(self, repo):
        return self.repos[repo][-1]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Else the body of an answer waits until the client has acknowledged the head.
    disable_nagle_algorithm = True

    def log_message(self, *args):
        pass

    @property
    def hub(self):
        return self.server.hub

    def user(self):
        return TOKENS.get(self.headers.get("authorization", "").removeprefix("Bearer "), (None, False))

    def answer(self, content=b"", status=200, **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        given = {"Content-Length": str(len(body)), "Content-Type": "application/json"}
        for name, value in {**given, **{key.replace("_", "-"): value for key, value in headers.items()}}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status, message, code=None):
        headers = {"X_Error_Code": code} if code else {}
        self.answer({"error": message}, status, X_Error_Message=message, **headers)

    def handle_any(self):
        path, body = unquote(urlsplit(self.path).path), b""
        if "chunked" in self.headers.get("transfer-encoding", ""):
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.hub.requests.append((self.command, path))
        if self.hub.fail and self.hub.fail in path:
            self.close_connection = True
            self.connection.close()
            return
        for method, pattern, action in ROUTES:
            found = re.fullmatch(pattern, path)
            if found and self.command in method:
                return action(self, body, *found.groups())
        self.refuse(404, f"no such endpoint: {self.command} {path}")

    do_GET = do_POST = do_PUT = do_HEAD = handle_any

    # What each endpoint does.

    def create(self, body):
        user, writes = self.user()
        asked = json.loads(body)
        owner = asked.get("organization") or user
        repo = f"{owner}/{asked['name']}"
        if user is None:
            return self.refuse(401, "Invalid username or password.")
        if not writes:
            return self.refuse(403, "Forbidden: you must use a write token to upload to a repository.")
        if owner != user:
            return self.refuse(403, f'You don\'t have the rights to create a model under the namespace "{owner}"')
        if repo in self.hub.repos:
            return self.answer({"error": "You already created this model repo", "url": f"{self.root}/{repo}"}, 409)
        self.hub.repos[repo], self.hub.private[repo] = (
            [{}],
            asked.get("visibility") == "private" or asked.get("private", False),
        )
        self.answer({"url": f"{self.root}/{repo}", "name": repo, "id": repo})

    @property
    def root(self):
        return f"http://127.0.0.1:{self.server.server_port}"

    def whoami(self, body):
        user, _ = self.user()
        if user is None:
            return self.refuse(401, "Invalid username or password.")
        self.answer({"name": user, "type": "user", "orgs": [], "auth": {"accessToken": {"role": "write"}}})

    def validate(self, body):
        text = json.loads(body)["content"]
        head = yaml.safe_load(text.split("---\n")[1])
        good = isinstance(head, dict) and bool(head["tags"])
        self.answer({"errors": [] if good else [{"message": "no metadata"}], "warnings": []}, 200 if good else 400)

    def may_read(self, repo):
        if repo not in self.hub.repos or (self.hub.private[repo] and self.user()[0] != repo.partition("/")[0]):
            self.refuse(401 if self.user()[0] is None else 404, "Repository not found", "RepoNotFound")
            return False
        return True

    def may_write(self, repo):
        user, writes = self.user()
        if user is None:
            return self.refuse(401, "Invalid username or password.")
        if not writes or user != repo.partition("/")[0]:
            return self.refuse(403, "Forbidden: pass a write token of the owner.")
        return True

    def preupload(self, body, repo, revision):
        if self.may_write(repo):
            files = json.loads(body)["files"]
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                    "shouldIgnore": False,
                }
                for file in files
            ]
            self.answer({"files": modes})

    def lfs_batch(self, body, repo):
        if self.may_write(repo):
            objects = []
            for asked in json.loads(body)["objects"]:
                actions = {"upload": {"href": f"{self.root}/lfs/{asked['oid']}"}}
                objects.append(asked | ({} if asked["oid"] in self.hub.objects else {"actions": actions}))
            self.answer({"transfer": "basic", "objects": objects})

    def lfs_put(self, body, oid):
        if hashlib.sha256(body).hexdigest() != oid:
            return self.refuse(400, "other bytes than announced")
        self.hub.objects[oid] = body
        self.answer()

    def commit(self, body, repo, revision):
        if not self.may_write(repo):
            return
        tree = dict(self.hub.files(repo))
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                tree[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                tree[value["path"]] = self.hub.objects[value["oid"]]
            elif item["key"] == "deletedFile":
                del tree[value["path"]]
        self.hub.repos[repo].append(tree)
        self.answer({"commitUrl": f"{self.root}/{repo}/commit/{self.sha(repo)}", "commitOid": self.sha(repo)})

    def sha(self, repo):
        return hashlib.sha1(f"{repo} {len(self.hub.repos[repo])}".encode()).hexdigest()

    def info(self, body, repo, revision=None):
        if self.may_read(repo):
            siblings = [{"rfilename": path} for path in self.hub.files(repo)]
            about = {"id": repo, "modelId": repo, "sha": self.sha(repo), "siblings": siblings, "tags": []}
            self.answer(about | {"private": self.hub.private[repo]})

    def tree(self, body, repo, revision, folder=""):
        if not self.may_read(repo):
            return
        under = folder.strip("/") + "/" if folder.strip("/") else ""
        items = [
            {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for path, content in self.hub.files(repo).items()
            if path.startswith(under)
        ]
        if under and not items:
            return self.refuse(404, "no such folder", "EntryNotFound")
        self.answer(items)

    def resolve(self, body, repo, revision, path):
        if not self.may_read(repo):
            return
        content = self.hub.files(repo).get(path)
        if content is None:
            return self.refuse(404, "Entry not found", "EntryNotFound")
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        self.answer(content, X_Repo_Commit=self.sha(repo), ETag=etag, Content_Type="application/octet-stream")


NAME = r"([\w.-]+/[\w.-]+)"
ROUTES = [
    (("POST",), "/api/repos/create", Handler.create),
    (("GET",), "/api/whoami-v2", Handler.whoami),
    (("POST",), "/api/validate-yaml", Handler.validate),
    (("POST",), rf"/api/models/{NAME}/preupload/(.+)", Handler.preupload),
    (("POST",), rf"/{NAME}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    (("PUT",), r"/lfs/(\w+)", Handler.lfs_put),
    (("POST",), rf"/api/models/{NAME}/commit/(.+)", Handler.commit),
    (
        ("GET",),
        rf"/api/models/{NAME}/tree/([^/]+)(/.*)?",
        lambda self, body, *found: self.tree(body, *found[:2], found[2] or ""),
    ),
    (("GET",), rf"/api/models/{NAME}(?:/revision/(.+))?", Handler.info),
    (("GET", "HEAD"), rf"/{NAME}/resolve/([^/]+)/(.+)", Handler.resolve),
]


@contextmanager
def running():
    """A server; yields its state and its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.hub, server.daemon_threads = Hub(), True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server.hub, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
