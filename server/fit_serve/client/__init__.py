"""A client of a fit-serve server, for programs: pictures in a line, with retries and progress.

Needs httpx only; importing it loads neither torch nor a web framework.
"""

from fit_serve.client.answers import Accepted, Completed, Event, Picture, Preview, Progress
from fit_serve.client.asynchronous import AsyncClient
from fit_serve.client.synchronous import Client
from fit_serve.client.trouble import RequestFailed, ServerUnreachable

__all__ = [
    "Accepted",
    "AsyncClient",
    "Client",
    "Completed",
    "Event",
    "Picture",
    "Preview",
    "Progress",
    "RequestFailed",
    "ServerUnreachable",
]
