"""What machines ask: does it live, may traffic come, how is it doing.

* `/livez`   fails only when a restart helps: the step loop is wedged or dead.
* `/readyz`  and `/health` fail while starting, draining or dead.
* `/metrics` Prometheus text.
"""

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client.exposition import choose_encoder

from fit_serve.errors import NotReady
from fit_serve.http_api.error_body import ErrorBody, error_answer
from fit_serve.service import GenerationService

RETRY_AFTER_S = 5.0


def build_probes(service: GenerationService) -> APIRouter:
    """Build the probe routes on a service."""
    router = APIRouter(tags=["operations"])
    engine, telemetry = service.engine, service.telemetry

    async def live() -> Response:
        return _verdict(engine.alive(), "the step loop is wedged or dead")

    async def ready() -> Response:
        return _verdict(engine.alive() and engine.ready(), "starting, draining or dead")

    def metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(telemetry.registry), headers={"content-type": content_type})

    for path, endpoint, summary in (
        ("/livez", live, "Whether the step loop moves; 503 means that a restart helps"),
        ("/readyz", ready, "Whether requests are taken"),
        ("/health", ready, "The same as /readyz, by the name that benchmark clients ask for"),
    ):
        router.add_api_route(path, endpoint, summary=summary, responses={503: {"model": ErrorBody}})
    router.add_api_route("/metrics", metrics, summary="Prometheus text", response_class=Response)
    return router


def _verdict(good: bool, otherwise: str) -> Response:
    if good:
        return JSONResponse({"status": "ok"})
    return error_answer(NotReady(f"not available: {otherwise}", RETRY_AFTER_S))
