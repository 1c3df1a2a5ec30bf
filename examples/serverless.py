"""A chat log on AWS Lambda, behind a function URL: any instance of the function answers for any session.

pip install 'holdfast[dynamodb]'
HOLDFAST_URL='dynamodb://sessions?verify=false', handler: serverless.handler

    POST /                     begin a session; its id
    POST /<id>                 append the body; the event's id
    GET  /<id>?after=<event>   what has been said since
"""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from typing import Any

import holdfast
from holdfast.errors import InvalidInput, SessionNotFound

# Once per process: the event loop, the store and its connections are kept from one invocation to the next.
runner = asyncio.Runner()
# A session lives for a day. Then DynamoDB removes all of it by itself: there is no janitor here.
opening = holdfast.open(background=False, ttl_s=None, lifetime_s=24 * 3600)
store = runner.run(AsyncExitStack().enter_async_context(opening))


def handler(event: dict[str, Any], context: object) -> dict[str, Any]:
    """What it has answered is stored: the process may be frozen, or ended, as soon as it returns."""
    try:
        return runner.run(answer(event))
    except SessionNotFound as error:
        return response(404, {"error": str(error)})
    except InvalidInput as error:
        return response(400, {"error": str(error)})


async def answer(event: dict[str, Any]) -> dict[str, Any]:
    method, session_id = event["requestContext"]["http"]["method"], event["rawPath"].strip("/")
    if method == "POST" and not session_id:
        session = await store.create()
        return response(201, {"id": session.id})
    session = await store.require(session_id)
    if method == "POST":
        said = await session.append(event["body"])
        return response(201, {"id": said.id})
    after = event.get("queryStringParameters", {}).get("after")
    return response(200, [{"id": said.id, "text": said.data} for said in await session.events(after=after)])


def response(status: int, body: object) -> dict[str, Any]:
    return {"statusCode": status, "headers": {"content-type": "application/json"}, "body": json.dumps(body)}
