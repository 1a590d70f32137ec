"""What this machine has."""

from typing import Any

import click

from regraft.cli.failure import fail
from regraft.core.progress import Progress, printable
from regraft.options import (
    with_json,
    with_settings,
)
from regraft.reporting import terminal


@click.command()
@click.argument("pattern", default="")
@click.option("--rank", metavar="DIR", help="Try every network on this machine on the photos in DIR.")
@with_settings("fit")
@with_json
def backbones(pattern: str, rank: str | None, fit: Any, as_json: bool) -> None:
    """Networks that can be used, and whether their weights are on this machine.

    Without PATTERN a short list; with it, every network of torchvision and timm whose name contains it. With --rank,
    those whose weights are here, at their own input size and a larger one, each cross-validated on your photos.

    \b
    regraft backbones
    regraft backbones resnet
    regraft backbones --rank photos/
    """
    if rank is not None:
        _rank(rank, fit, as_json)
        return
    from regraft.backbones import catalog

    rows = list(catalog.catalog_entries(pattern))
    if as_json:
        terminal.print_json([vars(row) for row in rows])
        return
    where = {True: "on this machine", False: "to be fetched"} | dict.fromkeys(catalog.BUILT_IN, "give --weights")
    terminal.print_table(
        ("backbone", "parameters", "input", "licence", "weights"),
        [
            (
                r.name,
                f"{r.num_params / 1e6:.1f} M",
                r.input_size,
                r.licence,
                where.get(r.name, where[r.on_this_machine]),
            )
            for r in rows
        ],
    )
    if not pattern:
        print(f"{len(rows)} of {catalog.num_known()} shown; more with: regraft backbones PATTERN")


def _rank(folder: str, fit: Any, as_json: bool) -> None:
    from regraft.commands.backbones import rank
    from regraft.core.config import TrainConfig

    rows = [row.to_json() for row in rank(folder, TrainConfig(fit=fit), Progress())]
    if as_json:
        terminal.print_json(rows)
        return
    terminal.print_ranked(rows)
    if rows:
        print("the best of several is a little worse on photos that had no part in the choice")


@click.command()
@with_json
def doctor(as_json: bool) -> None:
    """What this machine has for regraft: versions, processor, memory, cache, weights. Exit 1 where something is wrong.

    \b
    regraft doctor
    """
    from regraft.commands.doctor import check_machine

    checks = check_machine()
    if as_json:
        terminal.print_json([one.to_json() for one in checks])
    else:
        width = max(len(one.name) for one in checks)
        for one in checks:
            problem = f"   <- {one.problem}" if one.problem else ""
            print(printable(f"{one.name:{width}}  {one.value}{problem}"))
    if any(one.problem for one in checks):
        fail("error: some of it needs a look; see the arrows above.", 1)
