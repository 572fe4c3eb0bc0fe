"""The hub's own client against a hub of ours on this machine, in processes of their own (settings are read once)."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from sparsehpc.models.snapshot import open_snapshot

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Handler(http.server.BaseHTTPRequestHandler):
    """As much of the hub's protocol as fetching one repository takes."""

    protocol_version = "HTTP/1.1"
    repository: Path
    requests: list[str]

    def log_message(self, *args):
        pass

    def _answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.partition("?")[0]
        self.requests.append(path)
        files = sorted(p.name for p in self.repository.iterdir())
        if not path.removeprefix("/api/models").startswith("/tester/tiny/"):
            self._answer(404, X_Error_Code="RepoNotFound")
        elif path in (f"/api/models/tester/tiny/revision/{revision}" for revision in ("main", COMMIT)):
            info = {"id": "tester/tiny", "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
            self._answer(200, json.dumps(info).encode(), Content_Type="application/json")
        elif path.startswith("/api/models/tester/tiny/revision/"):
            self._answer(404, X_Error_Code="RevisionNotFound")
        elif path.startswith("/api/models/tester/tiny/tree/"):
            tree = [self._entry(name) for name in files]
            self._answer(200, json.dumps(tree).encode(), Content_Type="application/json")
        elif path.startswith(f"/tester/tiny/resolve/{COMMIT}/"):
            body = (self.repository / path.rpartition("/")[2]).read_bytes()
            self._answer(200, body, ETag=f'"{hashlib.sha1(body).hexdigest()}"', X_Repo_Commit=COMMIT)
        else:
            self._answer(404, X_Error_Code="EntryNotFound")

    def _entry(self, name):
        body = (self.repository / name).read_bytes()
        return {"type": "file", "path": name, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}


@pytest.fixture
def hub(saved, tiny, tmp_path, home):
    """A running hub with one repository; gives a function that runs a command against it."""
    folder, model = saved(tiny["opt"])
    handler = type("H", (Handler,), {"repository": folder, "requests": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()

    class Hub:
        repository, weights, requests = folder, model, handler.requests

        @staticmethod
        def prepare(name="tester/tiny", revision=None, **environment):
            code = (
                "import sys\n"
                "from sparsehpc.core.errors import UserError\n"
                "from sparsehpc.models.sources import prepare\n"
                "try:\n"
                f"    snapshot = prepare({name!r}, {revision!r}, progress=print)\n"
                "except UserError as error:\n"
                "    sys.exit(str(error))\n"
                "print(snapshot.revision, snapshot.path)\n"
            )
            # Whatever ran before in this process may have switched the network off for itself.
            inherited = {name: value for name, value in os.environ.items() if not name.endswith("_OFFLINE")}
            values = {
                **inherited,
                "HF_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}",
                "HF_HOME": str(tmp_path / "hf"),
                "HF_HUB_DISABLE_XET": "1",
                "HF_HUB_DISABLE_TELEMETRY": "1",
                "NO_PROXY": "127.0.0.1",
                **environment,
            }
            return subprocess.run(
                [sys.executable, "-c", code], env=values, capture_output=True, text=True, timeout=120, check=False
            )

    yield Hub
    server.shutdown()
    server.server_close()
    thread.join()


def weights_equal(snapshot, model):
    state = model.state_dict()
    read = snapshot.read(p.name for p in snapshot.structure.parameters)
    return read.keys() == state.keys() and all(torch.equal(state[n], t) for n, t in read.items())


def test_safetensors_at_a_pinned_commit(hub):
    done = hub.prepare()
    assert done.returncode == 0, done.stderr
    snapshot = open_snapshot("tester/tiny")
    assert snapshot.revision == COMMIT
    assert snapshot.path.name == COMMIT
    assert snapshot.source == {"kind": "hub", "repository": "tester/tiny", "asked_for": "main"}
    assert weights_equal(snapshot, hub.weights)
    assert not any(p.is_symlink() for p in snapshot.path.iterdir())
    # By its commit it is the same snapshot; and nothing is fetched twice.
    assert open_snapshot("tester/tiny", COMMIT).digest == snapshot.digest
    hub.requests.clear()
    assert hub.prepare().returncode == 0
    assert not hub.requests


def test_pickle_is_fetched_only_without_safetensors(hub):
    state = {n.removeprefix("model."): t.half() for n, t in hub.weights.state_dict().items()}
    torch.save(state, hub.repository / "pytorch_model.bin")
    assert hub.prepare().returncode == 0
    assert not any(path.endswith(".bin") for path in hub.requests)


def test_pickle_is_converted(hub):
    (hub.repository / "model.safetensors").unlink()
    (hub.repository / "flax_model.msgpack").write_bytes(b"of no use")
    state = {n.removeprefix("model."): t.half() for n, t in hub.weights.state_dict().items()}
    torch.save(state, hub.repository / "pytorch_model.bin")
    done = hub.prepare()
    assert done.returncode == 0, done.stderr
    snapshot = open_snapshot("tester/tiny")
    assert weights_equal(snapshot, hub.weights.half())
    assert snapshot.published_dtype == "float16"
    assert snapshot.source_bytes == (hub.repository / "pytorch_model.bin").stat().st_size
    assert not any("flax" in path for path in hub.requests)


@pytest.mark.parametrize("other", [None, "pytorch_model.bin"])
def test_offline_takes_the_hubs_cache(hub, home, other):
    import shutil

    if other:
        (hub.repository / other).write_bytes(b"not fetched, so the cache lacks it")
    assert hub.prepare().returncode == 0
    shutil.rmtree(home)
    hub.requests.clear()
    done = hub.prepare(HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert "taking tester/tiny from its cache" in done.stdout
    assert not hub.requests
    assert open_snapshot("tester/tiny").revision == COMMIT


@pytest.mark.parametrize(
    ("environment", "reason"),
    [({"HF_HUB_OFFLINE": "1"}, "offline mode is enabled"), ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "refused")],
    ids=["offline", "unreachable"],
)
def test_one_clear_error_without_a_network(hub, environment, reason):
    done = hub.prepare(**environment)
    assert done.returncode == 1
    assert "tester/tiny cannot be fetched, and the hub's cache does not hold it" in done.stderr
    assert reason in done.stderr
    assert "where there is internet and with the same SPARSEHPC_HOME: sparsehpc prepare tester/tiny" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "tester/other"}, "there is no model 'tester/other' on the hub"),
        ({"revision": "no-such-branch"}, "tester/tiny has no revision 'no-such-branch'"),
    ],
)
def test_names_that_do_not_exist(hub, arguments, words):
    done = hub.prepare(**arguments)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_half_a_cache_is_not_taken(hub, home, tmp_path):
    """A download that broke off left the cache without the weights."""
    import shutil

    assert hub.prepare().returncode == 0
    shutil.rmtree(home)
    for file in (tmp_path / "hf").rglob("model.safetensors"):
        file.unlink()
    done = hub.prepare(HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    assert "does not hold it" in done.stderr


def test_unsupported_family(hub):
    (hub.repository / "config.json").write_text(json.dumps({"model_type": "bert"}))
    done = hub.prepare()
    assert done.returncode == 1
    assert "unknown model family (model_type) 'bert'" in done.stderr
