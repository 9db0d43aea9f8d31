"""The FastAPI application: routes, errors and middleware, in one visible list."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from fastapi import FastAPI

from fit_serve.http_api.error_body import install_error_handlers
from fit_serve.http_api.generations import build_generations
from fit_serve.http_api.openai_images import build_openai_images
from fit_serve.http_api.openai_models import build_openai_models
from fit_serve.http_api.probes import build_probes
from fit_serve.http_api.request_scope import RequestScope
from fit_serve.http_api.requests import build_requests
from fit_serve.http_api.stored_images import StoredImages
from fit_serve.service import GenerationService

STORED_IMAGE_BYTES = 64 * 2**20
Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def build_http_api(
    service: GenerationService,
    lifespan: Lifespan | None = None,
    version: str = "0",
    stored_image_bytes: int = STORED_IMAGE_BYTES,
) -> FastAPI:
    """Build the HTTP door of a service; what starts and stops with it comes as `lifespan`."""
    app = FastAPI(
        title="fit-serve",
        version=version,
        description=f"Images of any size from {service.limits.name}.",
        lifespan=lifespan,
    )
    app.include_router(build_generations(service))
    app.include_router(build_requests(service))
    app.include_router(build_openai_images(service, StoredImages(stored_image_bytes)))
    app.include_router(build_openai_models(service, version))
    app.include_router(build_probes(service))
    install_error_handlers(app)
    app.add_middleware(RequestScope)
    return app
