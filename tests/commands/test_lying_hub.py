"""A hub that lies: what it sends is bounded by what it said, and nothing of it is kept. (Row S2.)"""

import json
import os
import time
import zlib

import huggingface_hub
import pytest
from huggingface_hub import constants

from faults.processes import record
from hub_server import Handler, Repo, commit_of, running, sha256
from regraft.commands.hub import PUSHED, pull
from regraft.commands.hub_bounds import ANSWER_BYTES, SLACK_BYTES
from regraft.core.errors import BundleError, HubError
from tiny_bundle import write_tiny

BLOCK = b"x" * 2**20
ENDLESS = 100  # blocks that an endless body has where nobody ends it
LIES = {
    "longer than it said": (HubError, "sends more than it said"),
    "without an end": (HubError, "sends more than it said"),
    "packed": (HubError, r"packed as 'gzip', expected one that is not"),
    "other content": (BundleError, r"me/pets/model\.onnx is damaged"),
    "shorter": (HubError, "Cannot exchange files"),
    "a file of this machine": (HubError, "missing an 'http://' or 'https://' protocol"),
    "a place that is not there": (HubError, "Connection refused"),
    "round and round": (HubError, "Exceeded 20 redirects"),
    "a mark that leads out": (HubError, "No such file"),
    "an answer without an end": (HubError, "sends more than it said"),
    "a packed answer": (HubError, r"packed as 'gzip', expected one that is not"),
    "a commit that leads out": (HubError, r"is at '\.\./\.\./etc', expected the hash of a commit"),
    "sizes that no disk has": (BundleError, "says that regraft.json has 1152921504606846976 bytes, expected at most"),
    "sizes that are none": (BundleError, "says that regraft.json has 'much' bytes|has much bytes"),
    "an answer of something else": (HubError, "does not answer as a hub does"),
    "a deep answer": (HubError, "does not answer as a hub does|Cannot exchange files"),
}


class Liar(Handler):
    """A hub that tells one of LIES about me/pets. sent: bytes of bodies."""

    protocol_version = "HTTP/1.1"
    lie = ""
    sent = 0

    def in_revision(self, repo_id, repo, files, rest):
        if rest[:1] == ["resolve"]:
            return self.resolve(files, rest[2])
        sizes = {name: len(data) for name, data in files.items()}
        said = {"id": repo_id, "private": False, "sha": commit_of(files)}
        match self.lie:
            case "an answer without an end":
                return self.endless()
            case "a packed answer":
                return self.answer(self.packed(), 200, {"Content-Encoding": "gzip"})
            case "a commit that leads out":
                said["sha"] = "../../etc"
            case "sizes that no disk has":
                sizes = dict.fromkeys(sizes, 2**60)
            case "sizes that are none":
                sizes = dict.fromkeys(sizes, "much")
            case "an answer of something else":
                return self.answer(b'["pets"]')
            case "a deep answer":
                return self.answer(b"[" * 200_000)
        return self.answer({**said, "siblings": [{"rfilename": name, "size": size} for name, size in sizes.items()]})

    def resolve(self, files, name):
        data = files[name]
        headers = {"X-Repo-Commit": commit_of(files), "ETag": f'"{sha256(data)}"', "X-Linked-Size": str(len(data))}
        if name == "model.onnx":
            match self.lie:
                case "longer than it said":
                    data += BLOCK * 4
                case "without an end":
                    return self.endless(headers)
                case "packed":
                    data, headers = self.packed(), {**headers, "Content-Encoding": "gzip"}
                case "other content":
                    data = bytes(len(data))
                case "shorter":
                    data = data[:-1]
                case "a file of this machine":
                    return self.answer(b"", 302, {**headers, "Location": "file:///etc/passwd"})
                case "a place that is not there":
                    return self.answer(b"", 302, {**headers, "Location": "http://127.0.0.1:9/x"})
                case "round and round":
                    return self.answer(b"", 302, {**headers, "Location": self.path})
                case "a mark that leads out":
                    headers["ETag"] = '"x/../../../../../evil"'
        return self.answer(data, 200, headers)

    def packed(self) -> bytes:
        """A thousandth of what it unpacks to."""
        squeeze = zlib.compressobj(9, zlib.DEFLATED, 31)
        return b"".join(squeeze.compress(BLOCK) for _ in range(ENDLESS)) + squeeze.flush()

    def endless(self, headers=None) -> None:
        self.send_response(200)
        for key, value in {**(headers or {}), "Transfer-Encoding": "chunked"}.items():
            self.send_header(key, value)
        self.end_headers()
        try:
            for _ in range(ENDLESS if self.command == "GET" else 0):
                self.wfile.write(b"%x\r\n" % len(BLOCK) + BLOCK + b"\r\n")
                Liar.sent += len(BLOCK)
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            self.close_connection = True


@pytest.fixture
def liar(tmp_path, monkeypatch):
    with running() as hub:
        for name, value in {"HF_ENDPOINT": hub.url, "HF_TOKEN": "", "no_proxy": "*"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("REGRAFT_OFFLINE", raising=False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nonexistent/token")
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
        monkeypatch.setattr(Liar, "lie", "")
        monkeypatch.setattr(Liar, "sent", 0)
        hub.RequestHandlerClass = Liar
        whole = write_tiny(tmp_path / "bundle")
        hub.repos["me/pets"] = Repo(False, {"main": {name: (whole / name).read_bytes() for name in PUSHED}})
        yield hub
        huggingface_hub.close_session()


def test_without_a_lie_it_is_a_hub(liar, tmp_path):
    assert pull("me/pets", tmp_path / "pets").classes == ("blue", "green", "red")


@pytest.mark.parametrize("lie", LIES)
def test_a_hub_that_lies_is_cut_off_and_nothing_is_kept(liar, tmp_path, monkeypatch, capfd, lie):
    monkeypatch.setattr(Liar, "lie", lie)
    expected, text = LIES[lie]
    with pytest.raises(expected, match=text) as caught:
        pull("me/pets", tmp_path / "pets")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert sorted(os.listdir(tmp_path)) == ["bundle"]
    assert Liar.sent < max(ANSWER_BYTES, SLACK_BYTES) + 40 * len(BLOCK)  # what was under way when it was cut off
    assert capfd.readouterr().err == "", "the hub's library speaks for itself"


def test_the_client_of_the_library_is_as_it_was(liar, tmp_path, monkeypatch):
    """Whoever uses huggingface_hub in the same process is not bound by what holds for `pull`."""
    client = huggingface_hub.utils.get_session()
    before = json.dumps({kind: list(map(str, hooks)) for kind, hooks in client.event_hooks.items()})
    pull("me/pets", tmp_path / "pets")
    monkeypatch.setattr(Liar, "lie", "packed")
    with pytest.raises(HubError):
        pull("me/pets", tmp_path / "again")
    assert json.dumps({kind: list(map(str, hooks)) for kind, hooks in client.event_hooks.items()}) == before


def test_the_figures_are_recorded(record_property):
    record(record_property, "S2", lies=len(LIES), kept=0)
