"""The composition root: settings in, a served model out.

The only module that knows every part: it loads the bundle, builds engine, service and HTTP
application from it, and orders their start and stop. Parts know each other through constructors.
"""

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector

from fit_kernels import use_attention, use_backend
from fit_kernels.attention import chosen_attention
from fit_models.bundle import Bundle, load_bundle
from fit_models.families import family_of, samplers_of
from fit_models.host_memory import bound_product_caches, keep_freed_memory
from fit_models.int8 import quantize_int8
from fit_serve.engine import EngineConfig, EngineHandle
from fit_serve.limits import Defaults, ModelLimits
from fit_serve.service import GenerationService, ServiceConfig
from fit_serve.settings import Settings, load_settings
from fit_serve.telemetry import Telemetry

if TYPE_CHECKING:
    from fastapi import FastAPI

SMALLEST_GRID = 2
"""Tokens a side of the smallest image: below, rotary positions of an axis are all zero."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Assembly:
    """The parts of one server, built and not yet started."""

    settings: Settings
    bundle: Bundle
    engine: EngineHandle
    service: GenerationService

    def start(self) -> None:
        """Warm up and take requests. Blocks until ready."""
        self.engine.start()

    def stop(self) -> None:
        """Let what runs finish within the grace time, then stop every thread."""
        self.engine.drain(self.settings.grace_time_s)
        self.engine.stop()
        self.service.close()


def assemble(settings: Settings, say: Callable[[str], None] = _log.info) -> Assembly:
    """Load the model and build all parts around it; `say` is told what takes time.

    Raises `ValueError` or `OSError` if the bundle cannot be loaded, or kernels asked for by name
    cannot run.
    """
    bound_product_caches()
    keep_freed_memory()
    say(f"loading {settings.model}")
    bundle = load_bundle(settings.model, settings.device, settings.dtype, settings.adapters)
    if settings.quantization == "int8":
        quantize_int8(bundle.network)
    use_backend(settings.operators, bundle.device)
    use_attention(settings.attention)
    chosen_attention(bundle.dtype, bundle.device, bundle.model_config.head_dim)
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    telemetry = Telemetry(registry, bundle.name)
    telemetry.model_info(
        {
            "version": version("fit-serve"),
            "device": str(bundle.device),
            "dtype": str(bundle.dtype).removeprefix("torch."),
        }
    )
    engine = EngineHandle(bundle, engine_config(settings), telemetry)
    telemetry.watch_queue(
        running=lambda: engine.state().running, waiting=lambda: engine.state().waiting
    )
    config = ServiceConfig(
        software=f"fit-serve {version('fit-serve')}",
        request_timeout_s=settings.request_timeout_s,
        encode_workers=settings.encode_workers,
    )
    service = GenerationService(engine, limits_of(bundle, settings), telemetry, config)
    return Assembly(settings, bundle, engine, service)


def engine_config(settings: Settings) -> EngineConfig:
    """Take from the settings what the engine needs."""
    return EngineConfig(
        max_num_batched_tokens=settings.max_num_batched_tokens,
        max_num_seqs=settings.max_num_seqs,
        max_queued_requests=settings.max_queued_requests,
        token_buckets=settings.token_buckets,
        num_threads=settings.num_threads or None,
        max_state_bytes=settings.max_state_bytes,
        prompt_cache_bytes=settings.prompt_cache_bytes,
        caption_cache_bytes=settings.caption_cache_bytes,
        decode_workers=settings.decode_workers,
        policy=settings.scheduling_policy,
        priority_step_s=settings.priority_step_s,
        patience_s=settings.patience_s,
        step_cache_rule=settings.step_cache_rule,
        step_cache_order=settings.step_cache_order,
        batch_invariant=settings.batch_invariant,
        overlap={"auto": None, "on": True, "off": False}[settings.overlap],
        calibration=settings.calibration,
        execution=settings.execution,
    )


def limits_of(bundle: Bundle, settings: Settings) -> ModelLimits:
    """Say what a bundle can be asked for on this server."""
    model = bundle.model_config
    token_side = model.patch_size * bundle.autoencoder.downsampling
    trained_side = family_of(model).trained_side(model)
    default_side = min(trained_side, math.isqrt(settings.max_image_tokens)) * token_side
    return ModelLimits(
        name=bundle.name,
        class_names=tuple(bundle.class_names),
        size_multiple=token_side,
        min_side=SMALLEST_GRID * token_side,
        max_tokens=settings.max_image_tokens,
        samplers=samplers_of(bundle.model_config),
        max_prompt_characters=(
            None if bundle.text_encoder is None else settings.max_prompt_characters
        ),
        defaults=Defaults(
            num_inference_steps=bundle.defaults.num_inference_steps,
            guidance_scale=bundle.defaults.guidance_scale,
            guidance_interval=bundle.defaults.guidance_interval,
            sampler=bundle.defaults.sampler,
            quality=settings.quality,
        ),
        default_side=default_side,
    )


def build_app() -> "FastAPI":
    """Build everything from the environment, as a factory for any ASGI server."""
    return http_app(assemble(load_settings({})))


def http_app(assembly: Assembly) -> "FastAPI":
    """Put the HTTP door on an assembly; it starts and stops with the application."""
    from fit_serve.http_api import build_http_api

    @asynccontextmanager
    async def lifespan(app: "FastAPI") -> AsyncIterator[None]:
        _log.info("warming up")
        await asyncio.to_thread(assembly.start)
        async with grpc_door(assembly):
            yield
        await asyncio.to_thread(assembly.stop)

    return build_http_api(
        assembly.service,
        lifespan,
        version("fit-serve"),
        stored_image_bytes=assembly.settings.stored_image_bytes,
    )


@asynccontextmanager
async def grpc_door(assembly: Assembly) -> AsyncIterator[None]:
    """Answer gRPC calls meanwhile, if there is a port for them.

    Raises `ValueError` if the port is taken, or the extra `grpc` is not installed.
    """
    settings = assembly.settings
    if settings.grpc_port is None:
        yield
        return
    try:
        from fit_serve.grpc_api import DoorConfig, GrpcDoor
    except ImportError as error:
        raise ValueError(
            f"--grpc-port needs the extra grpc (pip install 'fit-serve[grpc]'): {error}"
        ) from error
    config = DoorConfig(settings.host, settings.grpc_port, settings.grpc_reflection)
    door = GrpcDoor(assembly.service, config)
    await door.start()
    try:
        yield
    finally:
        await door.stop()
