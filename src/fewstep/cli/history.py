"""``fewstep history``: the pictures that a server kept, and its database made anew from them."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.cli import choices, output
from fewstep.cli.installed import require
from fewstep.cli.progress import progress
from fewstep.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from fewstep.server.history import History
    from fewstep.server.history_rows import Kept
    from fewstep.server.history_search import Search

ACTIONS = ("list", "search", "show", "export", "rebuild", "purge")
_FILTERS = frozenset(
    {"--tag", "--favourite", "--model", "--client", "--owner", "--since", "--until", "--trash", "--limit"}
)
_OPTIONS = {
    "list": _FILTERS,
    "search": _FILTERS | {"WORDS"},
    "show": frozenset({"ID"}),
    "export": _FILTERS | {"ID", "--out", "--replace"},
    "rebuild": frozenset({"--quiet"}),
    "purge": frozenset({"--days"}),
}
"""What each action takes beside --data, --database and --json."""
LIMIT = 20
DAYS = 30


def command(
    action: Annotated[
        str, typer.Argument(metavar="|".join(ACTIONS), help="What to do; list without any.")
    ] = "list",
    values: Annotated[
        list[str] | None,
        typer.Argument(metavar="[WORD|ID]...", help="Words of search; ids of show and export."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", help="Folder of the server; default the user's own."),
    ] = None,
    database: Annotated[
        str | None,
        typer.Option("--database", metavar="URL", help="SQLAlchemy URL; default SQLite in the folder."),
    ] = None,
    tag: Annotated[str | None, typer.Option("--tag", help="Only pictures with this tag.")] = None,
    favourite: Annotated[bool, typer.Option("--favourite", help="Only favourites.")] = False,
    model: Annotated[str | None, typer.Option("--model", help="Only of this model.")] = None,
    client: Annotated[
        str | None,
        typer.Option("--client", metavar="API", help="Only asked through a1111, openai, native or live."),
    ] = None,
    owner: Annotated[
        str | None, typer.Option("--owner", metavar="KEY", help="Only asked for with the key of this name.")
    ] = None,
    since: Annotated[
        str | None, typer.Option("--since", metavar="DATE", help="Only from this day (UTC) on: YYYY-MM-DD.")
    ] = None,
    until: Annotated[
        str | None, typer.Option("--until", metavar="DATE", help="Only up to this day, with it.")
    ] = None,
    trash: Annotated[bool, typer.Option("--trash", help="Look in the trash instead.")] = False,
    limit: Annotated[
        int | None,
        typer.Option("--limit", help=f"At most so many, the newest; default {LIMIT}, export 1000."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE.zip", help="Where export writes.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace the file of --out.")] = False,
    days: Annotated[
        int | None,
        typer.Option("--days", help=f"purge: what was thrown away before so many days; default {DAYS}."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List, search, show and export the pictures that fewstep serve kept, and rebuild its database.

    search finds pictures that have all WORDS, each at the beginning of a word of the prompts, the model or
    the adapters. list and search print id, time, size, model and prompt, newest first. show ID prints all
    that is known of a picture. export writes the files of the IDs, or of what the filters find, into a ZIP
    file.

    Pictures carry all that the database knows. rebuild makes it from them: after it was lost, or after files
    were deleted or brought back by hand. Files that it cannot read are counted and left alone. purge deletes
    for good what has been in the trash for a while; nothing else is deleted here.
    """
    choices.one_of("ACTION", action, ACTIONS)
    names = values or []
    for option, value in {
        "WORDS or ID": names, "--tag": tag, "--favourite": favourite, "--model": model, "--client": client,
        "--owner": owner, "--since": since, "--until": until, "--trash": trash, "--limit": limit,
        "--out": out, "--replace": replace, "--days": days, "--quiet": quiet,
    }.items():  # fmt: skip
        takes = _OPTIONS[action]
        if value in (None, False, []):
            continue
        if action == "export" and names and option in _FILTERS:
            raise UsageError(f"{option} is given beside ids: give either, to say which pictures are exported")
        if not takes & set(option.split(" or ")):
            takers = [one for one in ACTIONS if _OPTIONS[one] & set(option.split(" or "))]
            raise UsageError(f"{option} is given: it is for fewstep history {', '.join(takers)}")
    if action == "purge" and days is not None and days < 0:
        raise UsageError(f"--days is {days}: give 0 or more")
    require("serve", "sqlmodel", "the history")
    history = _open(data, database, make=action == "rebuild")
    try:
        if action == "show":
            _show(history, names, as_json=as_json)
        elif action == "rebuild":
            _rebuild(history, quiet=quiet, as_json=as_json)
        elif action == "purge":
            deleted = history.purge((DAYS if days is None else days) * 86_400.0)
            _say({"deleted": deleted}, f"{deleted} pictures deleted for good", as_json)
        elif action == "export" and names:
            _export(history, names, out, replace=replace, as_json=as_json)
        else:
            from fewstep.server.history_search import Search

            wanted = Search(
                text=" ".join(names) if action == "search" else "",
                owner=owner,
                favourite=True if favourite else None,
                tag=tag,
                model=model,
                client=client,
                since=None if since is None else _day("--since", since),
                until=None if until is None else _day("--until", until) + 86_400.0,
                trashed=trash,
                limit=1,
            )
            found = _found(
                history, wanted, (1000 if action == "export" else LIMIT) if limit is None else limit
            )
            if action == "export":
                _export(history, [one.id for one in found], out, replace=replace, as_json=as_json)
            else:
                _list(found, as_json=as_json)
    finally:
        history.database.close()


def _open(data: Path | None, url: str | None, *, make: bool) -> History:
    from fewstep.server.database import Database
    from fewstep.server.history import History
    from fewstep.server.settings import ServerSettings

    server = ServerSettings(**({} if data is None else {"data": data}), database=url)
    if url is None and not make and not (server.data / "fewstep.db").is_file():
        raise NotFoundError(
            f"{server.data}: no server kept anything here; give its folder with --data, or run fewstep "
            "history rebuild if only the database is lost"
        )
    if make and not server.outputs.is_dir():
        # Against a wrong folder every picture would be gone, and so would be its row.
        raise NotFoundError(f"{server.outputs}: no such folder; give the server's with --data")
    return History(Database(server.database_url), server.outputs)


def _found(history: History, wanted: Search, limit: int) -> list[Kept]:
    if limit < 1:
        raise UsageError(f"--limit is {limit}: give 1 or more")
    found: list[Kept] = []
    before: str | None = None
    while len(found) < limit:
        size = min(limit - len(found), 500)
        page = history.search(dataclasses.replace(wanted, limit=size, before=before))
        found += page.images
        before = page.next
        if before is None:
            break
    return found


def _list(found: list[Kept], *, as_json: bool) -> None:
    if as_json:
        output.result_json({"images": [one.facts() for one in found]}, indent=2)
        return
    for one in found:
        marks = ("*" if one.favourite else "") + "".join(f" #{tag}" for tag in one.tags)
        prompt = " ".join(one.prompt.split())
        line = f"{one.id}  {_time(one.created)}  {one.width}x{one.height}  {one.model}  {prompt[:100]}"
        output.result(f"{line}  {marks}".rstrip())
    if not found:
        output.note("no picture found")


def _show(history: History, ids: list[str], *, as_json: bool) -> None:
    if len(ids) != 1:
        raise UsageError(f"fewstep history show: give one ID, not {len(ids)}")
    one = history.get(ids[0], None)
    tree = history.lineage(one.id, None)
    facts: dict[str, Any] = {
        **one.facts(),
        "path": str(history.path(one.id, None)),
        "parents": [parent.id for parent in tree.parents],
        "children": [child.id for child in tree.children],
    }
    if as_json:
        output.result_json(facts, indent=2)
        return
    record = facts.pop("record")
    facts["created"] = _time(one.created)
    if one.trashed is not None:
        facts["trashed"] = _time(one.trashed)
    for name, value in {**facts, **{key: record[key] for key in record if key not in facts}}.items():
        if value not in (None, "", [], {}, False):
            shown = ", ".join(map(str, value)) if isinstance(value, list) else value
            output.result(f"{name.replace('_', ' ')}: {shown}")


def _export(history: History, ids: list[str], out: Path | None, *, replace: bool, as_json: bool) -> None:
    from fewstep.checkpoint import atomic

    if out is None:
        raise UsageError("fewstep history export: give the file to write with --out FILE.zip")
    if out.exists() and not replace:
        raise UsageError(f"--out {out} exists already: give another name, or --replace")
    if not ids:
        raise NotFoundError("no picture found: nothing is exported")
    pieces = history.archive(ids, None)
    with atomic.file(out) as temporary, temporary.open("xb") as file:
        for piece in pieces:
            file.write(piece)
    _say({"path": str(out), "images": len(set(ids))}, str(out), as_json)


def _rebuild(history: History, *, quiet: bool, as_json: bool) -> None:
    from fewstep.server import history_files
    from fewstep.server.history_rebuild import rebuild

    output.show_logs(quiet=quiet)
    total = sum(1 for _ in history_files.pictures(history.root))
    with progress("picture", quiet=quiet) as report:
        made = rebuild(history, on_image=lambda number: report(number, total))
    text = (
        f"{made.images} pictures, {made.added} of them new; {made.removed} forgotten whose files are gone; "
        f"left out: {made.broken} broken or from elsewhere, {made.foreign} other files"
    )
    _say(dataclasses.asdict(made), text, as_json)


def _say(facts: dict[str, Any], text: str, as_json: bool) -> None:
    if as_json:
        output.result_json(facts)
    else:
        output.result(text)


def _day(option: str, value: str) -> float:
    try:
        return datetime.strptime(value, "%Y-%m-%d").replace(tzinfo=UTC).timestamp()
    except ValueError:
        example = (datetime.now(UTC) - timedelta(days=7)).strftime("%Y-%m-%d")
        raise UsageError(f"{option} is {value!r}: give a day such as {example}") from None


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
