"""Every flag and environment variable of the server, once.

A setting `max_num_seqs` is the variable `FIT_SERVE_MAX_NUM_SEQS` and the flag `--max-num-seqs`; the
flag wins. Several values are one variable, with commas between them. Settings are read by the
command line and taken apart by `app.py`; no other part of the server knows them.
"""

import difflib
import os
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

ENV_PREFIX = "FIT_SERVE_"
REPEATED_FLAGS = {"adapters": "--adapter"}
"""Settings of several values whose flag is given once for each."""


class Settings(BaseSettings):
    """What can be set, with defaults. Raises `ValidationError`; `load_settings` says it in a line.

    None means that the part concerned chooses by itself and logs what it chose.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_ignore_empty=True, extra="forbid", frozen=True
    )

    model: Annotated[str, Field(description='Folder of a bundle, or "embedded".')] = "embedded"
    adapters: Annotated[
        tuple[str, ...],
        NoDecode,
        Field(description="Folder of an adapter to merge into the model; may be given again."),
    ] = ()
    host: Annotated[str, Field(description="Address to listen on.")] = "127.0.0.1"
    port: Annotated[
        int, Field(ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    ] = 8000
    grpc_port: Annotated[
        int | None,
        Field(ge=0, le=65535, description="Port for gRPC beside HTTP; 0 takes a free one."),
    ] = None
    grpc_reflection: Annotated[
        bool, Field(description="Tell gRPC clients the contract, for grpcurl and the like.")
    ] = True
    device: Annotated[
        Literal["auto", "cpu", "cuda"],
        Field(description="Where the network runs; auto takes a GPU if there is one."),
    ] = "auto"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"],
        Field(description="Precision; auto is bfloat16 on a GPU, and on a CPU if it is faster."),
    ] = "auto"
    quantization: Annotated[
        Literal["none", "int8"],
        Field(description="Products of the blocks; int8 on a CPU only, faster and less exact."),
    ] = "none"
    operators: Annotated[
        Literal["auto", "reference", "compiled", "fused"],
        Field(description="Form of the operators; auto takes fused kernels where they can run."),
    ] = "auto"
    attention: Annotated[
        Literal[
            "auto",
            "grouped",
            "torch-varlen",
            "fused",
            "flash-attn-2",
            "flash-attn-3",
            "flash-attn-4",
            "xformers",
        ],
        Field(description="Attention over the packed batch; fit-serve doctor says what is here."),
    ] = "auto"
    execution: Annotated[
        Literal["auto", "eager", "graphs", "compile"],
        Field(description="How the network runs: CUDA graphs by bucket, torch.compile, or plain."),
    ] = "auto"
    calibration: Annotated[
        Literal["auto", "stored", "off"],
        Field(description="auto measures steps at the first start, some seconds, and keeps it."),
    ] = "auto"
    overlap: Annotated[
        Literal["auto", "on", "off"],
        Field(description="Plan the next step while one runs; auto does so on a GPU."),
    ] = "auto"
    batch_invariant: Annotated[
        bool, Field(description="The same bits whatever runs beside a request; slower.")
    ] = False
    scheduling_policy: Annotated[
        Literal["fcfs", "deadline"],
        Field(description="Who runs first: by arrival, or by the last moment to be in time."),
    ] = "fcfs"
    priority_step_s: Annotated[
        float,
        Field(ge=0, allow_inf_nan=False, description="Waiting that one priority level outweighs."),
    ] = 10.0
    patience_s: Annotated[
        float,
        Field(ge=0, allow_inf_nan=False, description="Deadline of requests that give none."),
    ] = 60.0
    quality: Annotated[
        Literal["exact", "balanced", "fast"],
        Field(description="Quality of requests that give none."),
    ] = "exact"
    step_cache_rule: Annotated[
        Literal["plan", "change"],
        Field(description="What decides which evaluations are reused below exact quality."),
    ] = "plan"
    step_cache_order: Annotated[
        int, Field(ge=0, le=1, description="1 extrapolates reused predictions, 0 repeats them.")
    ] = 1
    max_num_batched_tokens: Annotated[
        int | None, Field(ge=1, description="Most tokens in an engine step, both branches.")
    ] = None
    max_num_seqs: Annotated[int, Field(ge=1, description="Most sequences in an engine step.")] = 64
    max_queued_requests: Annotated[
        int, Field(ge=1, description="Most sequences that wait; beyond, 429.")
    ] = 256
    max_state_bytes: Annotated[
        int, Field(ge=1, description="Memory for the state of sequences that have begun.")
    ] = 2**30
    prompt_cache_bytes: Annotated[
        int, Field(ge=1, description="Memory for states of prompts, of models that read any.")
    ] = 2**28
    caption_cache_bytes: Annotated[
        int,
        Field(
            ge=1, description="Memory for captions' keys and values; those in use may exceed it."
        ),
    ] = 2**30
    max_prompt_characters: Annotated[
        int, Field(ge=1, description="Most characters of a prompt; beyond, 400.")
    ] = 4000
    max_image_tokens: Annotated[
        int,
        Field(ge=4, description="Most tokens of one image, of 16 x 16 pixels each; beyond, 400."),
    ] = 4096
    token_buckets: Annotated[
        tuple[int, ...] | None,
        NoDecode,
        Field(description="Totals of tokens that steps are padded to, as 512,1024,2048."),
    ] = None
    num_threads: Annotated[
        int, Field(ge=0, description="Threads of the network on a CPU; 0 is torch's own choice.")
    ] = 0
    decode_workers: Annotated[
        int, Field(ge=1, description="Threads that turn latents into pixels.")
    ] = 1
    encode_workers: Annotated[
        int, Field(ge=1, description="Threads that turn pixels into PNG, JPEG or WebP.")
    ] = 2
    stored_image_bytes: Annotated[
        int, Field(ge=0, description="Memory for images that are answered by URL.")
    ] = 64 * 2**20
    request_timeout_s: Annotated[
        float | None,
        Field(gt=0, allow_inf_nan=False, description="Seconds a request may take; beyond, 504."),
    ] = None
    grace_time_s: Annotated[
        float,
        Field(
            ge=0,
            allow_inf_nan=False,
            description="Seconds that running requests get to finish after SIGTERM.",
        ),
    ] = 20.0
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Field(description="Least level logged.")
    ] = "info"

    @field_validator("adapters", "token_buckets", mode="before")
    @classmethod
    def _split_at_commas(cls, value: object) -> object:
        return value.split(",") if isinstance(value, str) else value

    @field_validator("token_buckets")
    @classmethod
    def _rising(cls, buckets: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if buckets is not None and (not buckets or buckets[0] < 1 or _falls(buckets)):
            raise ValueError("buckets must be positive and rising")
        return buckets


def load_settings(flags: Mapping[str, object]) -> Settings:
    """Read settings from flags (by name of the setting) and `FIT_SERVE_*` variables.

    Raises `ValueError` in one line that names flag, variable, value and what is allowed, also for
    a variable with our prefix that sets nothing: it is a typing error, or belongs to a Kubernetes
    service called `fit-serve` (then set `enableServiceLinks: false`).
    """
    known = {f"{ENV_PREFIX}{name.upper()}" for name in Settings.model_fields}
    for variable in os.environ:
        if variable.upper().startswith(ENV_PREFIX) and variable.upper() not in known:
            near = difflib.get_close_matches(variable.upper(), known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"environment variable {variable} is no setting{hint}")
    try:
        return Settings(**dict(flags))  # pyright: ignore[reportArgumentType]
    except ValidationError as error:
        raise ValueError(_in_one_line(error)) from None


def flag_of(setting: str) -> str:
    """Name the flag of a setting."""
    return REPEATED_FLAGS.get(setting, "--" + setting.replace("_", "-"))


def _in_one_line(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    setting = str(first["loc"][0])
    said = first["msg"].removeprefix("Value error, ")
    where = f"{flag_of(setting)} ({ENV_PREFIX}{setting.upper()})"
    return f"{where} is {first['input']!r}: {said[0].lower()}{said[1:]}"


def _falls(numbers: tuple[int, ...]) -> bool:
    return any(after <= before for before, after in pairwise(numbers))
