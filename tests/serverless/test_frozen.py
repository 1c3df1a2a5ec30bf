"""The example as a function's instances: frozen between two events or in the midst of one, killed, several at once."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import pytest

from tests.serverless.cold_start import measure, new_table
from tests.serverless.function import Function
from tests.servers.dynamodb import fast_endpoint
from tests.servers.http_proxy import Failing, HttpProxy
from tests.servers.processes import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

IDLE_S = 0.3
"""Of the server: how long it keeps a connection that nobody uses."""
REQUEST_TIMEOUT_S = 0.5


@pytest.fixture
def proxy() -> Iterator[HttpProxy]:
    with HttpProxy(fast_endpoint()) as proxy:
        yield proxy


@pytest.fixture
def url(proxy: HttpProxy) -> str:
    return new_table(proxy.url)


@pytest.fixture
def function(url: str) -> Iterator[Function]:
    with Function(url) as function:
        yield function


def test_opening_sends_nothing_and_a_connection_is_used_again(proxy: HttpProxy, function: Function) -> None:
    """A request each for a new session and a first event; no DescribeTable, ever."""
    assert proxy.actions.total() == 0
    session_id = function.begin()
    assert proxy.actions == {"PutItem": 1}
    ids = [function.say(session_id, str(number)) for number in range(3)]
    assert function.texts(session_id, after=ids[0]) == ["1", "2"]
    assert set(proxy.actions) == {"PutItem", "GetItem"}
    assert proxy.actions["PutItem"] == 4
    assert len(proxy.connections) == 1


def test_what_is_wrong_with_an_event_is_answered(function: Function) -> None:
    session_id = function.begin()
    function.call("GET", "/nobody", status=404)
    function.call("POST", "/nobody", "text", status=404)
    function.call("GET", f"/{session_id}", status=400, after="nonsense")
    assert function.texts(session_id) == []


@pytest.mark.parametrize("heard_of_it", [True, False])
def test_frozen_for_longer_than_connections_live(heard_of_it: bool) -> None:
    """The server has closed them all by then; nothing is lost, nothing comes twice.

    If a whole machine was frozen, it learns of that only when it uses the connection.
    """
    with (
        HttpProxy(fast_endpoint(), idle_s=IDLE_S if heard_of_it else 60.0) as proxy,
        Function(new_table(proxy.url)) as function,
    ):
        session_id = function.begin()
        for number in range(3):
            function.say(session_id, str(number))
            function.freeze()
            if heard_of_it:
                wait_until(lambda: proxy.open_connections == 0, what="the server has not closed the connection")
            else:
                proxy.inject(Failing.RESET_BEFORE)
            function.thaw()
        assert function.texts(session_id) == ["0", "1", "2"]
        assert len(proxy.connections) >= 4


@pytest.mark.parametrize("failing", [Failing.SILENT_BEFORE, Failing.SILENT_AFTER])
def test_frozen_in_the_midst_of_a_write(proxy: HttpProxy, failing: Failing) -> None:
    """Past its time-out. Whether it was done or not, it is done once."""
    with Function(new_table(proxy.url, request_timeout_s=REQUEST_TIMEOUT_S)) as function:
        session_id = function.begin()
        function.say(session_id, "before")
        fault = proxy.inject(failing, "PutItem")
        function.send("POST", f"/{session_id}", "in the midst")
        wait_until(lambda: fault.hits == 1, what="the write has not been sent")
        function.freeze()
        time.sleep(REQUEST_TIMEOUT_S)
        function.thaw()
        assert function.answer()["statusCode"] == 201
        function.say(session_id, "after")
        assert function.texts(session_id) == ["before", "in the midst", "after"]


def test_killed_as_soon_as_it_has_answered(url: str) -> None:
    """Nothing is pending then: the next instance has it all."""
    with Function(url) as first:
        session_id = first.begin()
        first.say(session_id, "one")
        first.kill()
    with Function(url) as second:
        second.say(session_id, "two")
        second.kill()
    with Function(url) as third:
        assert third.texts(session_id) == ["one", "two"]


def test_two_instances_take_turns(function: Function, url: str) -> None:
    """Each knows an older state of the session than the other made: no event is lost, and the order is one."""
    with Function(url) as other:
        session_id = function.begin()
        for number in range(6):
            (function, other)[number % 2].say(session_id, str(number))
        assert function.texts(session_id) == other.texts(session_id) == list("012345")


def test_a_cold_start_can_be_measured() -> None:
    figures = measure(rounds=1)
    assert all(ms > 0 for ms in figures.values())
    assert figures["its second answer"] < figures["cold start to first answer"]
