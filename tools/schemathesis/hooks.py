"""What a request must be beyond what JSON Schema can say, for `make test-api`: these requests are sent in a form that the
operator accepts, so that a refusal is a finding."""

import itertools
import re
from datetime import datetime, timedelta, timezone

import schemathesis

KEY = re.compile(r'^([!#-~]([ -~]{0,126}[!-~])?|"([ !#-\[\]-~]|\\["\\]){1,128}")$')

keys = itertools.count()


@schemathesis.hook
def before_call(context, case, kwargs):
    body = case.body
    if case.method != "POST" or not isinstance(body, dict):
        return
    plan(request_in(body))
    key_once(case, body)


def request_in(body):
    """The request, which is the data of a CloudEvent."""
    is_event = "specversion" in body and isinstance(body.get("data"), dict)
    return body["data"] if is_event else body


def plan(body):
    """No moment more than a year ahead, and a window that is open."""
    moments = {name: moment(body.get(name)) for name in ("not_before", "not_after")}
    for name, at in moments.items():
        if at and at > datetime.now(timezone.utc) + timedelta(days=365):
            del body[name]
    begin, end = moments["not_before"], moments["not_after"]
    if begin and end and begin >= end:
        body.pop("not_after", None)


def moment(text):
    try:
        return datetime.fromisoformat(text.upper().replace("Z", "+00:00"))
    except (AttributeError, ValueError):
        return None


def key_once(case, body):
    """An Idempotency-Key names one request; for another one it is refused with 422. So each request gets a key of its own."""
    for name, key in list((case.headers or {}).items()):
        if name.lower() == "idempotency-key" and isinstance(key, str) and KEY.match(key.strip()):
            case.headers[name] = f"key-{next(keys)}"
