"""How a model gets to where it is used."""

import os
import sys
from contextlib import suppress
from typing import Any

import click

from regraft.core.progress import Progress, printable
from regraft.options import (
    with_coverage,
    with_inference,
    with_json,
    with_keeping,
)
from regraft.reporting import terminal


@click.command()
@click.argument("bundle")
@click.option("--format", "kind", type=click.Choice(["onnx", "openvino", "torch"]), default="onnx", show_default=True)
@click.option("--out", required=True, help="The model's file; a program that feeds it gets the same name with .py.")
@click.option("--photos", metavar="DIR", help="Photos to prove it on.  [default: those kept for judging]")
@click.option("--int8", is_flag=True, help="In whole numbers of eight bits: smaller and faster, nearly the same.")
@with_json
def export(bundle: str, kind: Any, out: str, photos: str | None, int8: bool, as_json: bool) -> None:
    """A model for another runtime, which proves first that it says what the bundle says.

    It takes photos as uint8 of the network's size and gives probabilities; the program beside it, which needs numpy,
    Pillow and the runtime, makes that of a photo's file. Nothing is written unless both agree with the bundle, from
    file bytes to probabilities.

    \b
    regraft export runs/pets --out pets.onnx
    regraft export runs/pets --format openvino --out pets.xml --photos new_photos/
    regraft export runs/pets --int8 --out small.onnx
    python pets.py cat.jpg
    """
    from regraft.bundle.bundle import load
    from regraft.commands.export import export as export_bundle

    result = export_bundle(load(bundle), out, format=kind, photos=photos, int8=int8, progress=Progress())
    if as_json:
        terminal.print_json(result.to_json())
        return
    print(result)
    for path in result.files:
        print(printable(f"  {path}   ({path.stat().st_size / 2**20:.1f} MB)"))


@click.command()
@click.argument("bundle")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, help="0 for any that is free.")
@click.option("--allow-host", "hosts", multiple=True, metavar="NAME", help="A further name it may be called by.")
@click.option("--allow-origin", "origins", multiple=True, metavar="ORIGIN", help="A site whose pages may ask it.")
@click.option("--token", help="What requests have to bear; better in REGRAFT_TOKEN.")
@click.option("--workers", default=-1, help="Processes.  [default: cores + 1]")
@with_keeping
@with_inference
@with_coverage
def serve(
    bundle: str,
    host: str,
    port: int,
    hosts: tuple[str, ...],
    origins: tuple[str, ...],
    token: str | None,
    workers: int,
    **more: Any,
) -> None:
    """An HTTP API and a page to drop photos on, until Ctrl-C.

    The page is at http://127.0.0.1:8000/, the API at /v1/predict, its description at /openapi.json. Only this machine
    reaches it unless --host says otherwise; then give a --token too. After `kill -HUP` it answers with what the folder
    then holds; until then with the model that it began with. Photos are not kept, unless --keep says where.

    \b
    regraft serve runs/pets
    regraft serve runs/pets --keep kept/ --keep-bytes 500MB
    curl --data-binary @cat.jpg -H 'Content-Type: image/jpeg' http://127.0.0.1:8000/v1/predict
    curl -F photo=@cat.jpg -F photo=@dog.jpg 'http://127.0.0.1:8000/v1/predict?top=3&heatmap=1'
    """
    from pathlib import Path

    from regraft.bundle.bundle import load
    from regraft.serving.access import Access
    from regraft.serving.keeping import KINDS, Keep
    from regraft.serving.limits import Limits
    from regraft.serving.server import LOCAL
    from regraft.serving.server import serve as serve_bundle

    def say(sentence: str) -> None:
        with suppress(OSError, ValueError):  # nobody may be listening
            print(printable(sentence), file=sys.stderr, flush=True)

    def ready(address: str) -> None:
        say(f"serving {bundle} at {address}   (Ctrl-C ends it)")
        if host not in LOCAL and token is None:
            say("anyone who reaches this address can use it: --token asks for one")
        if keep is not None:
            say(f"photos are kept in {keep.folder}: {', '.join(KINDS)}, {keep.max_bytes / 1e6:.4g} MB at most")

    folder, num_bytes = more.pop("keep"), more.pop("keep_bytes")
    keep = Keep(Path(folder), num_bytes) if folder else None
    token = os.environ.get("REGRAFT_TOKEN") if token is None else token
    loaded = load(bundle, **more)
    access, limits = Access(hosts, origins, token), Limits(workers=workers)
    serve_bundle(loaded, host=host, port=port, access=access, limits=limits, keep=keep, on_ready=ready, on_reload=say)


@click.command()
@click.argument("bundle")
@click.argument("repository", metavar="OWNER/NAME")
@click.option("--public", is_flag=True, help="Let everyone see it.  [default: its owner alone]")
@click.option("--revision", metavar="BRANCH", help="Branch, made where it is missing.  [default: the main one]")
@with_json
def push(bundle: str, repository: str, public: bool, revision: str | None, as_json: bool) -> None:
    """Upload a model to the Hugging Face Hub, in one commit, with its card.

    The token is that of `hf auth login`, or in HF_TOKEN; HF_ENDPOINT names another hub.

    \b
    regraft push runs/pets me/pets
    regraft push runs/pets me/pets --public
    """
    from regraft.commands import hub

    url = hub.push(bundle, repository, private=not public, revision=revision, progress=Progress())
    if as_json:
        terminal.print_json({"repository": repository, "revision": revision, "url": url})
        return
    print(f"model    {printable(url)}\n\nNext:\n\n    regraft pull {repository}")


@click.command()
@click.argument("repository", metavar="OWNER/NAME")
@click.option("--out", metavar="DIR", help="Folder for the model.  [default: NAME]")
@click.option("--revision", help="Branch, tag or commit.  [default: the main branch]")
@with_json
def pull(repository: str, out: str | None, revision: str | None, as_json: bool) -> None:
    """Download a model that `regraft push` has uploaded; it is verified, or not there.

    A private one needs the token of `hf auth login`, or in HF_TOKEN; HF_ENDPOINT names another hub.

    \b
    regraft pull me/pets
    regraft pull me/pets --out models/pets --revision v2
    """
    from regraft.commands import hub

    bundle = hub.pull(repository, out, revision=revision, progress=Progress())
    if as_json:
        terminal.print_json({"bundle": str(bundle.folder), "classes": list(bundle.classes)})
        return
    where = printable(str(bundle.folder))
    print(f"model    {where}, {len(bundle.classes)} classes\n\nNext:\n\n    regraft predict {where} PHOTO...")
