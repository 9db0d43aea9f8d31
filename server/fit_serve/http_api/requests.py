"""`DELETE /requests/{id}`: stop what has been accepted, from any connection."""

from fastapi import APIRouter, Response

from fit_serve.errors import NotFound
from fit_serve.http_api.error_body import ErrorBody
from fit_serve.limits import shown_text
from fit_serve.service import GenerationService


def build_requests(service: GenerationService) -> APIRouter:
    """Build the route on a service."""
    router = APIRouter(tags=["generation"])

    async def cancel(request_id: str) -> Response:
        if not service.cancel(request_id):
            raise NotFound(
                f"there is no request {shown_text(request_id)}, or it has ended",
                param="request_id",
                code="request_not_found",
            )
        return Response(status_code=204)

    router.add_api_route(
        "/requests/{request_id}",
        cancel,
        methods=["DELETE"],
        status_code=204,
        summary="Cancel a request; its tokens are free at the next step",
        description=(
            "The id is that of the `accepted` event. Whoever waits for the request is told that it "
            "was cancelled (499). An image that was all but done may still arrive."
        ),
        responses={404: {"model": ErrorBody, "description": "No such request, or it has ended."}},
    )
    return router
