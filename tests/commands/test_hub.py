"""A model that was pushed comes back byte for byte; what cannot be leaves nothing, and says why in one line."""

import json
import os
import shutil
import subprocess
import sys
import time
from http.server import HTTPServer

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.utils import are_progress_bars_disabled

import hub_server
from faults.processes import mostly_long
from hub_server import TOKEN, running
from regraft.bundle.bundle import load
from regraft.commands.hub import PUSHED, pull, push
from regraft.core.errors import BundleError, HubError, OutputError

# huggingface_hub gives its HTTP client the bytes of a large file in a way that this calls old
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")


@pytest.fixture
def hub(monkeypatch):
    """A hub on this machine that HF_ENDPOINT names, and on which this user has logged in."""
    with running() as hub:
        for name, value in {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "no_proxy": "*"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("REGRAFT_OFFLINE", raising=False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nonexistent/token")
        monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between attempts
        yield hub
        huggingface_hub.close_session()


@pytest.fixture
def pushed(hub, bundle):
    """The files of the main branch of me/pets, after a push."""
    push(bundle, "me/pets")
    return hub.repos["me/pets"].branches["main"]


def files(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_model_comes_back_byte_for_byte_and_says_the_same(hub, bundle, photos, tmp_path):
    assert push(bundle, "me/pets") == f"{hub.url}/me/pets"
    pulled = pull("me/pets", tmp_path / "pets")
    assert pulled.folder == tmp_path / "pets"
    assert files(tmp_path / "pets") == files(bundle.folder)
    paths = sorted(photos.rglob("*.jpg"))
    assert [pulled.predict(path) for path in paths] == [bundle.predict(path) for path in paths]
    assert os.listdir(tmp_path) == ["pets"]


def test_a_push_is_one_commit_to_a_private_repository_and_the_same_again_is_none(hub, bundle, pushed):
    push(bundle.folder, "me/pets")
    assert len(hub.repos["me/pets"].commits) == 1
    assert hub.repos["me/pets"].private
    assert set(pushed) == {*PUSHED, ".gitattributes"}


def test_a_run_folder_stands_for_its_bundle(hub, bundle):
    push(bundle.folder.parent, "me/pets")
    assert hub.repos["me/pets"].branches["main"]["model.onnx"] == (bundle.folder / "model.onnx").read_bytes()


def test_a_public_model_is_pulled_without_a_token(hub, bundle, tmp_path, monkeypatch):
    push(bundle, "me/pets", private=False)
    monkeypatch.delenv("HF_TOKEN")
    hub.asked.clear()
    assert pull("me/pets", tmp_path / "pets").classes == bundle.classes
    assert all("authorization" not in headers for _, _, headers in hub.asked)


@pytest.mark.parametrize(("was", "wanted", "cure"), [(False, True, "Give --public"), (True, False, "Leave out --pub")])
def test_a_repository_that_others_see_more_or_less_of_is_refused_before_anything_is_sent(
    hub, bundle, was, wanted, cure
):
    hub.repos["me/pets"] = hub_server.Repo(private=was)
    with pytest.raises(HubError, match=f"me/pets at {hub.url} is there already and .*Nothing was uploaded. {cure}"):
        push(bundle, "me/pets", private=wanted)
    assert hub.large == {}
    assert hub.repos["me/pets"].commits == []


def test_a_revision_is_a_branch_that_is_made(hub, bundle, tmp_path):
    for _ in range(2):
        assert push(bundle, "me/pets", revision="v/2") == f"{hub.url}/me/pets/tree/v/2"
    assert pull("me/pets", tmp_path / "pets", revision="v/2").classes == bundle.classes
    with pytest.raises(BundleError, match=r"me/pets at .* is no bundle: it has no regraft\.json"):
        pull("me/pets", tmp_path / "main")
    with pytest.raises(HubError, match=r"has no revision 'v3'. Expected a branch"):
        pull("me/pets", tmp_path / "v3", revision="v3")


def test_what_changes_while_it_is_pulled_is_pulled_as_it_was(hub, bundle, pushed, tmp_path):
    pull("me/pets", tmp_path / "pets")
    revisions = {path.split("/")[4] for path in hub.paths("GET") if "/resolve/" in path}
    assert revisions == {hub_server.commit_of(pushed)}


def test_other_files_of_a_repository_are_not_fetched(hub, pushed, tmp_path):
    pushed |= {"run_me.py": b"import os", "regraft.json.bak": b"{}", "sub/model.onnx": b"?"}
    pull("me/pets", tmp_path / "pets")
    assert sorted(os.listdir(tmp_path / "pets")) == sorted(PUSHED)
    assert not [path for path in hub.paths("GET") if "run_me" in path or "sub" in path]


def test_a_token_goes_to_the_hub_alone(hub, bundle, pushed, tmp_path):
    pull("me/pets", tmp_path / "pets")
    elsewhere = [headers for _, path, headers in hub.asked if path.startswith("/large/")]
    assert len(elsewhere) >= 4
    assert not [headers for headers in elsewhere if "authorization" in headers]


def test_nothing_phones_home_and_the_library_is_as_it_was(hub, bundle, pushed, tmp_path, monkeypatch, capfd):
    before = constants.HF_HUB_DISABLE_TELEMETRY, constants.HF_HUB_DISABLE_XET, are_progress_bars_disabled()
    pull("me/pets", tmp_path / "pets")
    agents = {headers["user-agent"] for _, path, headers in hub.asked if not path.startswith("/large/")}
    assert len(agents) == 1
    assert "torch" not in agents.pop()
    assert not [path for _, path, _ in hub.asked if "telemetry" in path or "agent" in path or "xet" in path]
    assert before == (constants.HF_HUB_DISABLE_TELEMETRY, constants.HF_HUB_DISABLE_XET, are_progress_bars_disabled())
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", PUSHED)
def test_a_file_that_was_damaged_on_the_hub_is_refused_and_nothing_is_kept(pushed, tmp_path, name):
    data = bytearray(pushed[name])
    data[len(data) // 2 if name != "regraft.json" else 0] ^= 1
    pushed[name] = bytes(data)
    with pytest.raises(BundleError, match=f"nothing was kept. me/pets/{name} is damaged") as caught:
        pull("me/pets", tmp_path / "pets")
    assert str(tmp_path) not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", PUSHED)
def test_a_repository_that_lacks_a_file_is_no_bundle(hub, pushed, tmp_path, name):
    del pushed[name]
    with pytest.raises(BundleError, match=f"me/pets at {hub.url} is no bundle: it has no {name}. Nothing was kept"):
        pull("me/pets", tmp_path / "pets")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["model.onnx", "regraft.json"])
def test_a_hub_that_dies_in_between_is_one_error_and_leaves_nothing(hub, pushed, tmp_path, name):
    hub.cut = name
    with pytest.raises(HubError, match=f"Cannot exchange files with me/pets at {hub.url}: .*Check connection"):
        pull("me/pets", tmp_path / "pets")
    assert hub.dead
    assert list(tmp_path.iterdir()) == []


def test_a_hub_that_dies_during_a_push_commits_nothing(hub, bundle):
    hub.answers["/large/"] = (500, "out of order")
    with pytest.raises(HubError, match=r"refuses what was asked for me/pets: 500, .*Try again later"):
        push(bundle, "me/pets")
    assert hub.repos["me/pets"].commits == []
    hub.answers.clear()
    push(bundle, "me/pets")
    assert len(hub.repos["me/pets"].commits) == 1


@pytest.mark.parametrize("do", [lambda bundle, out: push(bundle, "me/pets"), lambda bundle, out: pull("me/pets", out)])
def test_a_hub_that_is_not_there_is_one_error(hub, bundle, tmp_path, monkeypatch, do):
    with HTTPServer(("127.0.0.1", 0), hub_server.Handler) as closed:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed.server_port}")
    with pytest.raises(HubError, match=r"Cannot exchange files with me/pets at .*: Connection refused\. Check"):
        do(bundle, tmp_path / "pets")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ((400, '{"error": "the card\\nis too long"}'), r"me/pets: 400, the card is too long\. Mend what it says"),
        ((403, '{"error": "read-only token"}'), r"does not allow that for me/pets: read-only token\. Expected a token"),
        ((401, '{"error": "Invalid username or password."}'), "refuses the token for me/pets. Expected a token"),
        ((429, '{"error": "slow down"}'), r"me/pets: 429, slow down\. Try again later"),
        ((503, "<html>\x1b[2J" + "busy " * 1000), r"me/pets: 503, .{1,310}Try again later"),
        ((200, "this is not JSON"), "Cannot exchange files with me/pets"),
    ],
)
def test_what_a_hub_refuses_is_said_in_one_line(hub, bundle, answer, expected):
    hub.answers["/commit/"] = answer
    with pytest.raises(HubError, match=expected) as caught:
        push(bundle, "me/pets")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("token", [TOKEN, None])
def test_a_missing_repository_is_named(hub, tmp_path, monkeypatch, token):
    monkeypatch.setenv("HF_TOKEN", token or "")
    seen = "its token may not see it" if token else "it is private and there was no token"
    with pytest.raises(HubError, match=f"There is no me/none at {hub.url}, or {seen}. Check the name"):
        pull("me/none", tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_token_and_a_foreign_owner_are_refused(hub, bundle, pushed, tmp_path):
    with pytest.raises(HubError, match="refuses the token for me/pets"):
        pull("me/pets", tmp_path / "pets", token="hf_another")
    with pytest.raises(HubError, match="refuses the token for me/more"):
        push(bundle, "me/more", token="hf_another")
    with pytest.raises(HubError, match=r"does not allow that for you/pets: .*the rights"):
        push(bundle, "you/pets")


@pytest.mark.parametrize("given", [{"HF_TOKEN": ""}, {"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}])
def test_a_push_without_a_token_asks_for_one_and_nothing_else(hub, bundle, monkeypatch, given):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", "HF_TOKEN" not in given)
    with pytest.raises(HubError, match=f"cannot be pushed to without a token. .*{hub.url}/settings/tokens"):
        push(bundle, "me/pets")
    assert hub.asked == []


@pytest.mark.parametrize("token", ["hf_two words", "hf_né", "hf_new\nline", "hf_\x00"])
def test_a_token_that_cannot_be_one_is_refused_and_not_shown(hub, bundle, token):
    with pytest.raises(HubError, match=r"has characters that no token has. Copy it again") as caught:
        push(bundle, "me/pets", token=token)
    assert token not in str(caught.value)
    assert hub.asked == []


def test_a_hub_that_repeats_the_token_does_not_show_it(hub, bundle):
    hub.answers["/commit/"] = (400, json.dumps({"error": f"Bearer {TOKEN} is bad"}))
    with pytest.raises(HubError, match=r"Bearer \*\*\* is bad"):
        push(bundle, "me/pets")


@pytest.mark.parametrize(
    "name",
    [
        "pets",
        "",
        "/",
        "me/",
        "/pets",
        "a/b/c",
        "../../etc",
        "me/..",
        "me/pe ts",
        "me/-x",
        "me/x--y",
        "me/x.git",
        "mé/x",
    ],
)
def test_a_name_that_no_repository_has_is_refused(hub, bundle, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for do in (lambda: push(bundle, name), lambda: pull(name)):
        with pytest.raises(HubError, match=r"is no name of a repository. Expected OWNER/NAME"):
            do()
    assert hub.asked == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("switch", "said"), [("REGRAFT_OFFLINE", "REGRAFT_OFFLINE"), (None, "HF_HUB_OFFLINE")])
def test_offline_nothing_is_asked_for(hub, bundle, tmp_path, monkeypatch, switch, said):
    monkeypatch.setenv(switch, "1") if switch else monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for do in (lambda: push(bundle, "me/pets"), lambda: pull("me/pets", tmp_path / "pets")):
        with pytest.raises(HubError, match=f"{said} forbids to ask for me/pets at {hub.url}. Unset it"):
            do()
    assert hub.asked == []
    assert list(tmp_path.iterdir()) == []


def test_what_is_in_the_folder_is_never_replaced(pushed, tmp_path):
    (tmp_path / "mine.txt").write_bytes(b"mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for out in (tmp_path, tmp_path / "mine.txt", tmp_path / "link"):
        with pytest.raises(OutputError, match=f"{out} is there already. Nothing was fetched. Remove it, or"):
            pull("me/pets", out)
    assert sorted(os.listdir(tmp_path)) == ["link", "mine.txt"]


def test_an_empty_folder_is_filled(pushed, bundle, tmp_path):
    (tmp_path / "pets").mkdir()
    assert files(pull("me/pets", tmp_path / "pets").folder) == files(bundle.folder)


def test_a_damaged_bundle_is_not_pushed(hub, bundle, tmp_path):
    copy = shutil.copytree(bundle.folder, tmp_path / "bundle")
    (copy / "model.onnx").write_bytes(b"other")
    with pytest.raises(BundleError, match=r"model\.onnx is damaged"):
        push(copy, "me/pets")
    assert hub.asked == []


def test_the_card_is_one_that_the_hub_reads(hub, default_bundle):
    bundle = default_bundle
    push(bundle, "me/pets")
    card = huggingface_hub.ModelCard(hub.repos["me/pets"].branches["main"]["README.md"].decode())
    assert card.data.license == "apache-2.0"
    assert card.data.library_name == "timm"
    assert card.data.pipeline_tag == "image-classification"
    (row,) = card.data.eval_results
    assert row.metric_value == pytest.approx(bundle.manifest["metrics"]["accuracy"]["value"], abs=1e-4)
    assert row.metric_args["n"] == bundle.manifest["metrics"]["accuracy"]["n"]


def test_commands_push_and_pull(run, hub, bundle, tmp_path):
    done = run("push", bundle.folder.parent, "me/pets", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"repository": "me/pets", "revision": None, "url": f"{hub.url}/me/pets"}
    done = run("pull", "me/pets", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "regraft predict pets PHOTO" in done.stdout
    assert load(tmp_path / "pets").classes == bundle.classes
    done = run("pull", "me/pets", "--out", tmp_path / "again", "--json")
    assert json.loads(done.stdout) == {"bundle": str(tmp_path / "again"), "classes": list(bundle.classes)}
    assert run("push", bundle.folder, "me/open", "--public").stdout.startswith(f"model    {hub.url}/me/open\n")
    assert not hub.repos["me/open"].private
    assert not [path for _, path, _ in hub.asked if "agent" in path or "xet" in path]


@pytest.mark.parametrize(
    ("arguments", "environment", "expected"),
    [
        (("push", "BUNDLE", "me/pets"), {"HF_TOKEN": "hf_wrong"}, "refuses the token"),
        (("push", "BUNDLE", "me/pets"), {"HF_TOKEN": "", "HF_HOME": "/nonexistent"}, "without a token"),
        (("push", "BUNDLE", "me/pets"), {"HF_TOKEN": f"{TOKEN} x"}, "Copy it again"),
        (("push", "BUNDLE", "pets"), {}, "Expected OWNER/NAME"),
        (("push", "nothing", "me/pets"), {}, "There is no bundle"),
        (("pull", "me/none"), {}, "There is no me/none"),
        (("pull", "me/pets"), {"REGRAFT_OFFLINE": "1"}, "REGRAFT_OFFLINE forbids"),
        (("pull", "me/pets"), {"HF_ENDPOINT": "http://127.0.0.1:9"}, "Connection refused"),
        (("pull", "me/pets"), {"HF_ENDPOINT": "nonsense"}, "Cannot exchange files with me/pets at nonsense"),
        (("pull", "me/pets"), {"forbid": "huggingface_hub"}, "pip install 'regraft[hub]'"),
    ],
)
def test_errors_are_one_line_and_never_show_the_token(
    run, regraft_main, hub, bundle, tmp_path, monkeypatch, arguments, environment, expected
):
    command = [bundle.folder if argument == "BUNDLE" else argument for argument in arguments]
    if "forbid" in environment:
        done = run(*command, cwd=tmp_path, **environment)
    else:
        monkeypatch.chdir(tmp_path)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        done = regraft_main(*command)
    assert done.returncode == 1, done.stdout
    assert expected in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "environment",
    mostly_long([{}, {"HF_TOKEN": f"{TOKEN} x"}, {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_DEBUG": "1"}], {}),
)
def test_a_traceback_does_not_show_the_token(run, hub, bundle, environment):
    done = run("--debug", "push", bundle.folder, "you/pets", **environment)
    assert "Traceback" in done.stderr
    assert TOKEN not in done.stdout + done.stderr


@pytest.mark.parametrize("command", ["push", "pull"])
def test_help_has_an_example(regraft_main, command):
    done = regraft_main(command, "--help")
    assert done.returncode == 0
    assert f"\n  regraft {command} " in done.stdout


def test_the_library_of_the_hub_is_imported_when_it_is_needed():
    code = "import sys, regraft.cli, regraft.commands.hub; print('huggingface_hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
