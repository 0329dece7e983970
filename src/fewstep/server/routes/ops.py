"""For whoever runs the server: is it alive, is it ready, what does it count."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from fewstep.server import metrics
from fewstep.server.services import Services

router = APIRouter(tags=["operations"])


@router.get("/healthz", summary="The process is alive")
async def healthz() -> dict[str, str]:
    """Always 200; open without a key."""
    return {"status": "ok"}


@router.get("/readyz", summary="Orders are taken", responses={503: {"description": "not now"}})
async def readyz(request: Request) -> JSONResponse:
    """200 once the first picture was drawn, else 503; open without a key."""
    services: Services = request.app.state.services
    if services.ready:
        return JSONResponse({"status": "ready"})
    # Open to everybody, so it does not say why.
    return JSONResponse({"status": "not ready"}, status_code=503, headers={"Retry-After": "1"})


@router.get("/metrics", summary="Counters in Prometheus' format", response_class=Response)
def read_metrics(request: Request) -> Response:
    """Queue depth, running orders, outcomes, seconds per phase, batch sizes."""
    services: Services = request.app.state.services
    return Response(services.metrics.text(), media_type=metrics.CONTENT_TYPE)
