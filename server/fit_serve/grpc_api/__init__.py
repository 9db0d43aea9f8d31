"""The gRPC door: the same service as over HTTP, typed, with progress."""

from fit_serve.grpc_api.door import DoorConfig, GrpcDoor

__all__ = ["DoorConfig", "GrpcDoor"]
