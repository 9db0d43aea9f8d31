"""`/v1/models` and what benchmark clients ask before they begin."""

import time

from fastapi import APIRouter
from pydantic import BaseModel

from fit_serve.errors import NotFound
from fit_serve.http_api.error_body import ErrorBody
from fit_serve.limits import shown_text
from fit_serve.service import GenerationService


class ModelAnswer(BaseModel):
    """A model, as OpenAI's clients know it."""

    id: str
    object: str = "model"
    created: int
    owned_by: str = "fit-serve"


class ModelsAnswer(BaseModel):
    """All that are served."""

    object: str = "list"
    data: list[ModelAnswer]


class ModelInfoAnswer(BaseModel):
    """What SGLang's benchmark asks for."""

    model_path: str


class VersionAnswer(BaseModel):
    """The version of the server."""

    version: str


def build_openai_models(service: GenerationService, version: str) -> APIRouter:
    """Build the routes on a service."""
    router = APIRouter(tags=["OpenAI"])
    created = int(time.time())

    async def models() -> ModelsAnswer:
        return ModelsAnswer(data=[ModelAnswer(id=service.limits.name, created=created)])

    async def model(model_id: str) -> ModelAnswer:
        if model_id != service.limits.name:
            raise NotFound(
                f"model {shown_text(model_id)} is not served here; {service.limits.name} is",
                param="model",
                code="model_not_found",
            )
        return ModelAnswer(id=model_id, created=created)

    async def model_info() -> ModelInfoAnswer:
        return ModelInfoAnswer(model_path=service.limits.name)

    async def told_version() -> VersionAnswer:
        return VersionAnswer(version=version)

    unknown = {404: {"model": ErrorBody, "description": "No such model."}}
    router.add_api_route("/v1/models", models, summary="The models that are served")
    router.add_api_route(
        "/v1/models/{model_id}", model, summary="One of the models", responses={**unknown}
    )
    router.add_api_route("/v1/model_info", model_info, summary="The model, for benchmark clients")
    router.add_api_route("/version", told_version, summary="The version of the server")
    return router
