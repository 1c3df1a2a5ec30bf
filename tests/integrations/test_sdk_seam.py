"""The private parts of the SDK that `holdfast.integrations.mcp._sdk` relies on are still as they were.

If one of these fails with a new version of mcp, look at `_sdk` before anything else.
"""

from __future__ import annotations

import inspect
from typing import Any

import mcp.server.streamable_http as sdk_transport
import mcp.server.streamable_http_manager as sdk_manager
import pytest
from mcp.server import Server
from mcp.server.mcpserver import MCPServer
from mcp.server.streamable_http import EventMessage, EventStore, StreamableHTTPServerTransport
from mcp.server.streamable_http_manager import StreamableHTTPASGIApp, StreamableHTTPSessionManager
from mcp.shared.jsonrpc_dispatcher import JSONRPCDispatcher
from mcp_types import JSONRPCNotification
from starlette.routing import Route

from holdfast.integrations.mcp import _sdk
from holdfast.integrations.mcp.keys import STANDALONE


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_the_manager_keeps_its_state_where_we_look_for_it() -> None:
    manager = StreamableHTTPSessionManager(Server("x"))
    assert manager._server_instances == {}
    assert manager._task_group is None
    assert manager._lifespan_state is None
    assert manager.max_sessions is not None
    assert parameters(manager._handle_stateful_request) == ["scope", "receive", "send"]


def test_the_manager_serves_every_request_of_the_older_era_by_one_method() -> None:
    source = inspect.getsource(StreamableHTTPSessionManager._handle_request)
    assert "await self._handle_stateful_request(scope, receive, send)" in source
    assert "handle_modern_request" in source


def test_our_manager_hides_nothing_of_the_sdks() -> None:
    """A new attribute of the SDK's must not collide with one of ours."""
    own = {name for name in vars(_sdk.ManagerSeam) if not name.startswith("__")}
    theirs = vars(StreamableHTTPSessionManager(Server("x"))).keys() | vars(StreamableHTTPSessionManager).keys()
    assert own & theirs == {"_handle_stateful_request"}
    from holdfast.integrations.mcp import HoldfastSessionManager

    own = {name for name in vars(HoldfastSessionManager) if not name.startswith("__")}
    assert own & theirs == {"run"}


def test_the_transport_takes_and_keeps_what_we_rely_on() -> None:
    assert parameters(StreamableHTTPServerTransport.__init__)[1:] == [
        "mcp_session_id",
        "is_json_response_enabled",
        "event_store",
        "security_settings",
        "retry_interval",
        "idle_timeout",
    ]
    transport = StreamableHTTPServerTransport("x", retry_interval=5, idle_timeout=3)
    assert (transport._retry_interval, transport._idle_timeout) == (5, 3)
    assert (transport._terminated, transport._requests_in_flight, transport.idle_scope) == (False, 0, None)
    message = JSONRPCNotification(jsonrpc="2.0", method="x")
    assert transport._create_event_data(EventMessage(message, "7"))["id"] == "7"


def test_the_transport_stores_before_it_sends_and_primes_before_it_dispatches() -> None:
    post = inspect.getsource(StreamableHTTPServerTransport._handle_post_request)
    assert post.index("_mint_priming_event(") < post.rindex("writer.send(session_message)")
    router = inspect.getsource(StreamableHTTPServerTransport.connect)
    assert router.index("store_event(") < router.index(".send(EventMessage(")


def test_what_a_client_posts_reaches_its_server_by_the_stream_that_we_write_to() -> None:
    post = inspect.getsource(StreamableHTTPServerTransport._handle_post_request)
    assert "writer = self._read_stream_writer" in post
    assert "await writer.send(session_message)" in post
    assert StreamableHTTPServerTransport("x")._read_stream_writer is None


def test_a_resume_is_answered_by_the_event_store_alone() -> None:
    source = inspect.getsource(StreamableHTTPServerTransport._replay_events)
    assert "stream_id = await event_store.replay_events_after(last_event_id, send_event)" in source
    assert "if stream_id and" in source
    assert EventStore.__abstractmethods__ == {"store_event", "replay_events_after"}


def test_the_standalone_stream_has_the_name_that_we_store() -> None:
    assert sdk_transport.GET_STREAM_KEY == STANDALONE


def test_the_dispatcher_counts_where_we_set_it() -> None:
    dispatcher: Any = JSONRPCDispatcher(None, None)  # type: ignore[arg-type]
    assert dispatcher._next_id == 0
    assert dispatcher._allocate_id() == dispatcher._next_id == 1
    assert parameters(JSONRPCDispatcher.run) == [
        "self",
        "on_request",
        "on_notify",
        "on_notify_intercept",
        "task_status",
    ]


@pytest.mark.parametrize("server", [Server("x"), MCPServer("x")])
def test_the_sdks_app_has_one_endpoint_that_we_can_put_a_manager_into(server: Any) -> None:
    app = server.streamable_http_app()
    endpoints = [route.endpoint for route in app.routes if isinstance(route, Route)]
    assert [type(endpoint) for endpoint in endpoints] == [StreamableHTTPASGIApp]
    assert endpoints[0].session_manager is server.session_manager
    ours = sdk_manager.StreamableHTTPSessionManager(Server("y"))
    _sdk.put_manager(app, _sdk.lowlevel(server), ours)
    assert endpoints[0].session_manager is server.session_manager is ours
