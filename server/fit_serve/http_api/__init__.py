"""The HTTP door: parse, call the service, answer."""

from fit_serve.http_api.application import build_http_api

__all__ = ["build_http_api"]
