"""The id of a call: the client's own if it is short and plain, else a new one."""

import re
import uuid

VALID_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


def request_id_of(given: str) -> str:
    """Give the client's id, or one of ours if there is none that can be echoed."""
    return given if VALID_REQUEST_ID.fullmatch(given) else f"req-{uuid.uuid4().hex}"
