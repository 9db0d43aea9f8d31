"""A `ServeError` as a gRPC status with the standard details.

ErrorInfo has the word for programs, BadRequest the field, RetryInfo the time to come back.
"""

from __future__ import annotations

import math

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from fit_serve.errors import ComeBackLater, ServeError, form_of

DOMAIN = "fit-serve"


def status_of(error: ServeError) -> grpc.Status:
    """Code, message and trailing metadata to end a call with."""
    form = form_of(error)
    code = grpc.StatusCode[form.grpc_status]
    info = error_details_pb2.ErrorInfo(reason=error.code or form.type, domain=DOMAIN)
    details: list[Message] = [info]
    if error.param is not None:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.param, description=error.message
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if isinstance(error, ComeBackLater):
        whole = math.ceil(max(1.0, error.retry_after_s))
        delay = duration_pb2.Duration(seconds=whole)
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    status = status_pb2.Status(code=code.value[0], message=error.message)
    status.details.extend(_packed(detail) for detail in details)
    return rpc_status.to_status(status)


def _packed(detail: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed
