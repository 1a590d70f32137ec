"""What begins with photos: a first look, labels, checks, other forms."""

import shlex
from typing import Any

import click

from regraft.cli.failure import fail
from regraft.core.config import READING
from regraft.core.progress import Progress, printable, talk
from regraft.options import (
    with_json,
    with_settings,
)
from regraft.reporting import terminal


@click.command()
@click.option("--out", default="regraft-demo", show_default=True, help="Folder for photos, pictures and the model.")
@click.option(
    "--data",
    type=click.Choice(["orchard", "hymenoptera"]),
    default="orchard",
    show_default=True,
    help="Drawn photos that come with regraft, or the tutorial's ants and bees, fetched once.",
)
@with_json
def demo(out: str, data: str, as_json: bool) -> None:
    """The main job on photos that need no download: unpack, look, train, predict.

    \b
    regraft demo
    regraft demo --data hymenoptera
    """
    from regraft.commands import demo as demo_command

    result = demo_command.demo(out, data=data)
    if as_json:
        terminal.print_json(result.run.summary)
        return
    terminal.print_summary(result.run.summary)
    print(f"\nthe photos     {result.grid}\nsix predicted  {result.predictions}")
    print("\nNow your own photos, one folder for each class:\n\n    regraft train photos/")


@click.command()
@click.argument("folder", metavar="DIR")
@click.option("--out", help="Folder for pictures of the photos and of each kind of finding, and for scan.json.")
@click.option("--fix", metavar="DIR2", help="Write a copy without what --drop names, by links; DIR is not touched.")
@click.option(
    "--drop",
    default="leaks,conflicts,duplicates",
    show_default=True,
    help="Kinds of findings that the copy leaves out, separated by commas; all, or none.",
)
@click.option("--strict", is_flag=True, help="Exit 1 if any file cannot be used.")
@click.option(
    "--deep/--fast",
    default=None,
    help="Whether to doubt labels and look for outliers, by a pass through the "
    "backbone.  [default: unless it takes long]",
)
@click.option("--backbone", default="tf_efficientnet_lite0", show_default=True, help="Network that doubts labels.")
@click.option("--weights", help="A .safetensors, .pth or .pth.tar file.")
@with_settings("fit", "class_level", "follow_links", *READING)
@click.option("--offline", is_flag=True, help="Never download anything.")
@with_json
def scan(
    folder: str,
    out: str | None,
    fix: str | None,
    drop: str,
    strict: bool,
    deep: bool | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """What is there, and what may be wrong with it.

    Classes, counts, files that cannot be used; copies, also across splits and under two labels; doubtful labels;
    photos unlike all others; blurred, dark, blank, tiny and odd-shaped ones; classes that file format, size or camera
    alone would tell. DIR is DIR/<class>/<image>, DIR/train/<class>/<image> with val and optionally test, an archive of
    these, a list, or whatever else holds photos with classes (docs/photos.md).

    \b
    regraft scan photos/
    regraft scan photos/ --out findings/
    regraft scan photos/ --fix cleaned/ --drop leaks,duplicates,blurred
    """
    from pathlib import Path

    from regraft.commands import scan as scan_command
    from regraft.core.config import TrainConfig

    kinds = scan_command.chosen_kinds(drop)
    scan_command.check_places(Path(folder), Path(out) if out else None, Path(fix) if fix else None)
    config = TrainConfig(**settings)
    result = scan_command.find_issues(folder, config, with_features=deep, progress=Progress())
    if out:
        scan_command.write_scan(result, Path(out))
    left_out = scan_command.write_fixed(result, Path(fix), kinds, config.folder_options) if fix else {}
    if as_json:
        terminal.print_json(result.to_json())
    else:
        terminal.print_photos(result.dataset)
        lines = scan_command.in_words(result)
        print("\n" + "\n".join(map(printable, lines)) if lines else "nothing suspicious was found")
        print(f"\npictures in {out}" if out else "\nsee them with --out FOLDER; leave them out with --fix FOLDER")
        if fix:
            kept = f"{result.dataset.num_found - len(left_out)} photos are in {fix}"
            print(printable(f"{kept}; {len(left_out)} are not, and listed in {fix}.left-out.csv"))
    if strict and result.dataset.quarantine:
        fail(f"error: {len(result.dataset.quarantine)} files cannot be used; --strict refuses that.", 1)


@click.command()
@click.argument("folder", metavar="PHOTOS")
@click.option("--to", required=True, metavar="PLACE", help="A folder, or a file: pets.zip, pets.parquet, pets.tar.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["folder", "zip", "parquet", "webdataset"]),
    help="How photos are written.  [default: what the name of PLACE says; else class folders]",
)
@click.option("--split", "with_split", is_flag=True, help="Split photos that are not, as a training would.")
@with_settings("val_fraction", "seed", "class_level", "follow_links", *READING)
@with_json
def data(folder: str, to: str, kind: Any, with_split: bool, as_json: bool, **settings: Any) -> None:
    """Write photos as they were read, with classes and splits, for other programs, and for regraft.

    Class folders by hard links, or copies; a zip archive of them; Parquet as the library `datasets` has it; WebDataset.
    What was written is read back: unless every photo has its class and split again, nothing is kept. Files that cannot
    be used are told and left out.

    \b
    regraft data photos/ --to photos.zip
    regraft data photos/ --to photos.parquet
    regraft data photos/ --to split_photos/ --split
    regraft data split_photos/ --to shards/ --format webdataset
    regraft data labels.csv --to hub/ --format parquet
    """
    from regraft.commands import data as command
    from regraft.core.config import TrainConfig

    config = TrainConfig(**settings)
    done = command.write_data(folder, to, kind=kind, with_split=with_split, config=config, progress=Progress())
    if as_json:
        terminal.print_json(done.to_json())
        return
    terminal.print_photos(done.dataset)
    print(f"written  {printable(str(done.place))}, and read back the same")
    print(f"\nNext:\n\n    regraft train {printable(shlex.quote(str(done.read_as)))}")


@click.command()
@click.argument("photos", metavar="DIR")
@click.option("--out", metavar="RUN", help="Folder for the labels and the model.  [default: in runs/]")
@click.option("--classes", default="", metavar="NAMES", help="Names of the classes, separated by commas.")
@click.option(
    "--from", "start", metavar="RUN", help="Go on from a run: its photos, labels and model, and these photos."
)
@click.option("--sort", metavar="DIR2", help="Also put the photos into a folder for each class, by links or copies.")
@click.option("--page/--no-page", "with_page", default=True, help="Without a page: train on the labels that are there.")
@with_settings("backbone", "weights", "follow_links", "every_s", "offline")
@click.option("--mode", type=click.Choice(["frozen", "auto"]), default="frozen", show_default=True, help="What learns.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address of the page.")
@click.option("--port", default=8010, show_default=True, help="0 for any that is free.")
@with_json
def label(
    photos: str,
    out: str | None,
    classes: str,
    start: str | None,
    sort: str | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Label a heap of photos on a page that learns meanwhile, and train on the labels.

    DIR is a heap, a tree, or partly sorted: photos in folders that --classes names are labelled already. The page is
    for this machine alone. Every answer is on disk at once; the same command goes on where the last one ended. DIR
    itself is only read.

    \b
    regraft label photos/
    regraft label photos/ --classes ant,bee --sort sorted/
    regraft label new_photos/ --from runs/photos
    regraft label clips/ --every 1s
    """
    from pathlib import Path

    from regraft.commands import label as label_command
    from regraft.commands import train as train_command

    with_page, host, port = (settings.pop(name) for name in ("with_page", "host", "port"))

    def show(sitting: Any) -> None:
        from regraft.labelling.server import serve_sitting

        serve_sitting(sitting, host=host, port=port, on_address=lambda url: talk(f"label at {url}   (Ctrl-C ends it)"))

    options = label_command.SittingOptions(
        tuple(name.strip() for name in classes.split(",") if name.strip()),
        Path(start) if start else None,
        Path(sort) if sort else None,
        train_command.configure(**{name: value for name, value in settings.items() if value is not None}),
    )
    done = label_command.label(photos, out, options=options, show=show if with_page else None, progress=Progress())
    if as_json:
        terminal.print_json(done.to_json())
        return
    print(f"labelled {done.num_labelled} of {done.num_photos} photos, {done.num_set_aside} set aside")
    print(printable(f"labels   {done.labels}"))
    if done.num_sorted is not None:
        print(printable(f"sorted   {done.num_sorted} photos in {sort}"))
    if done.summary is not None:
        terminal.print_summary(done.summary)
