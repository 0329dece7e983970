"""`/api/v1/images`: find pictures again, mark them, throw them away and take that back."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.responses import StreamingResponse

from fewstep.prompt import infotext
from fewstep.server import grids, history_files, media
from fewstep.server.history_rows import Kept
from fewstep.server.history_search import Search
from fewstep.server.routes.jobs import ERRORS
from fewstep.server.schemas.images import (
    Deleted,
    GridBody,
    IdsBody,
    ImageList,
    ImageView,
    LineageView,
    MarkBody,
    Restored,
    TagList,
    UndoBody,
)
from fewstep.server.security import owner
from fewstep.server.services import Services, services_of

router = APIRouter(prefix="/api/v1/images", tags=["images"], responses=ERRORS)
Given = Annotated[Services, Depends(services_of)]
ImageId = Annotated[str, Path(pattern=r"^[0-9a-f]{32}$")]

_FILES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/png": {}, "image/jpeg": {}, "image/webp": {}}, "description": "The picture"}
}
# A picture never changes under its id, and is its owner's alone.
_FOREVER = {"Cache-Control": "private, max-age=31536000, immutable"}


@router.get("", summary="Search")
def search(
    request: Request,
    services: Given,
    text: Annotated[str, Query(max_length=1000, description="Beginnings of words")] = "",
    favourite: bool | None = None,
    tag: Annotated[str | None, Query(max_length=64)] = None,
    model: Annotated[str | None, Query(max_length=255)] = None,
    client: Annotated[str | None, Query(max_length=32)] = None,
    since: Annotated[float | None, Query(allow_inf_nan=False)] = None,
    until: Annotated[float | None, Query(allow_inf_nan=False)] = None,
    trashed: bool = False,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    before: Annotated[str | None, Query(max_length=128)] = None,
) -> ImageList:
    """Those of the key that asks; the newest first, page by page."""
    page = services.history.search(
        Search(
            text=text, owner=services.sees(owner(request)), favourite=favourite, tag=tag, model=model,
            client=client,
            since=since, until=until, trashed=trashed, limit=limit, before=before,
        )
    )  # fmt: skip
    return ImageList(images=[_view(kept) for kept in page.images], next=page.next)


@router.get("/tags", summary="Tags in use")
def tags(request: Request, services: Given) -> TagList:
    """With the number of pictures of each."""
    return TagList(tags=services.history.tags(services.sees(owner(request))))


@router.post("/delete", summary="Throw pictures away")
def delete(body: IdsBody, request: Request, services: Given) -> Deleted:
    """Into the trash; `undo` takes it back."""
    token = services.history.trash(body.ids, services.sees(owner(request)))
    return Deleted(deleted=len(set(body.ids)), undo=token)


@router.post("/undo", summary="Take a deletion back")
def undo(body: UndoBody, request: Request, services: Given) -> Restored:
    """With what the deletion gave."""
    return Restored(ids=services.history.undo(body.token, services.sees(owner(request))))


@router.post("/restore", summary="Take pictures out of the trash")
def restore(body: IdsBody, request: Request, services: Given) -> Restored:
    """By id."""
    services.history.restore(body.ids, services.sees(owner(request)))
    return Restored(ids=list(body.ids))


@router.post("/zip", summary="Several pictures in one file", response_class=StreamingResponse)
def archive(body: IdsBody, request: Request, services: Given) -> StreamingResponse:
    """A ZIP file with the pictures as they were kept."""
    pieces = services.history.archive(body.ids, services.sees(owner(request)))
    head = {"Content-Disposition": 'attachment; filename="fewstep.zip"'}
    return StreamingResponse(pieces, media_type="application/zip", headers=head)


@router.post("/grid", status_code=201, summary="Several pictures as one, with labels")
def grid(body: GridBody, request: Request, services: Given) -> ImageView:
    """A new picture of the history, whose record has the axes and the cells."""
    history, mine = services.history, services.sees(owner(request))
    axes = [grids.Axis(one.name, one.values) for one in body.axes]
    limits = services.settings.limits
    limits = limits.model_copy(update={"max_pixels": max(limits.max_pixels, limits.max_output)})
    known: dict[str, Kept] = {}

    def load(image_id: str) -> grids.Pixels:
        known[image_id] = history.get(image_id, mine)
        return media.decode_image(history.open(image_id, mine), what="cell", limits=limits)

    pixels = grids.draw(axes, body.cells, load, most=limits.max_output)
    first = next(iter(known.values()))
    said = dict(first.record)
    said.pop(history_files.KEY, None)
    kept = history.add(
        pixels, grids.record(axes, body.cells, said), parent=first.id, owner=owner(request),
        parameters=grids.parameters(axes, infotext.from_record(said) if "seed" in said else ""),
    )  # fmt: skip
    return _view(kept)


@router.get("/{image_id}", summary="One picture's facts")
def image(image_id: ImageId, request: Request, services: Given) -> ImageView:
    """Prompt, settings, hashes, times, and where it came from."""
    return _view(services.history.get(image_id, services.sees(owner(request))))


@router.patch("/{image_id}", summary="Mark a picture")
def mark(image_id: ImageId, body: MarkBody, request: Request, services: Given) -> ImageView:
    """As a favourite, or with tags."""
    mine, history = services.sees(owner(request)), services.history
    kept = history.get(image_id, mine)
    if body.add_tags or body.remove_tags:
        kept = history.tag(image_id, mine, add=body.add_tags, remove=body.remove_tags)
    if body.favourite is not None:
        kept = history.favourite(image_id, mine, body.favourite)
    return _view(kept)


@router.get("/{image_id}/file", summary="The picture", response_class=Response, responses=_FILES)
def file(image_id: ImageId, request: Request, services: Given) -> Response:
    """As it was kept, with its settings inside."""
    mine = services.sees(owner(request))
    kept = services.history.get(image_id, mine)
    data = services.history.open(image_id, mine)
    return Response(data, media_type=kept.media_type, headers=_FOREVER)


@router.get("/{image_id}/thumbnail", summary="A small one", response_class=Response, responses=_FILES)
def thumbnail(image_id: ImageId, request: Request, services: Given) -> Response:
    """At most 256 pixels a side, WebP."""
    data = services.history.thumbnail(image_id, services.sees(owner(request)))
    return Response(data, media_type="image/webp", headers=_FOREVER)


@router.get("/{image_id}/lineage", summary="Where it came from, and what came from it")
def lineage(image_id: ImageId, request: Request, services: Given) -> LineageView:
    """Parents up to the first, and children."""
    found = services.history.lineage(image_id, services.sees(owner(request)))
    return LineageView(
        parents=[_view(kept) for kept in found.parents], children=[_view(kept) for kept in found.children]
    )


def _view(kept: Kept) -> ImageView:
    facts = kept.facts()
    del facts["owner"]
    return ImageView(
        **facts, url=f"/api/v1/images/{kept.id}/file", thumbnail=f"/api/v1/images/{kept.id}/thumbnail"
    )
