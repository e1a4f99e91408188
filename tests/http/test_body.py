"""How much the bodies of all requests together may hold."""

from __future__ import annotations

import asyncio
import select
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from starlette.types import Message

from byoc_server.errors import InvalidPayload, Overloaded, PayloadTooLarge
from byoc_server.http.body import BodyBudget, BodyLease, ClientGoneError, declared_length, read_rest
from tests.onnx_models import identity
from tests.server_process import running, wait_for


def read(parts: Sequence[bytes | None], budget: BodyBudget) -> tuple[bytes, BodyLease]:
    """Read a body that arrives in ``parts``; ``None`` = the client leaves."""
    messages: list[Message] = [
        {"type": "http.disconnect"}
        if part is None
        else {"type": "http.request", "body": part, "more_body": i + 1 < len(parts)}
        for i, part in enumerate(parts)
    ]
    lease = BodyLease(budget)

    async def receive() -> Message:
        return messages.pop(0)

    try:
        return asyncio.run(read_rest(receive, messages.pop(0), lease)), lease
    except BaseException:
        lease.release()
        raise


def test_a_body_in_pieces_holds_its_size_until_it_is_released() -> None:
    budget = BodyBudget(None, 100)
    body, lease = read([b"a" * 30, b"b" * 30], budget)
    assert (body, budget.held_bytes) == (b"a" * 30 + b"b" * 30, 60)
    lease.release()
    lease.release()
    assert budget.held_bytes == 0


def test_others_are_refused_when_the_budget_is_spent_but_a_lone_body_never_is() -> None:
    budget = BodyBudget(None, 100)
    _, lease = read([b"a" * 150, b"b" * 150], budget)
    with pytest.raises(Overloaded):
        read([b"c", b"d"], budget)
    assert budget.held_bytes == 300
    lease.release()
    assert read([b"c", b"d"], budget)[0] == b"cd"


def test_decoded_bytes_are_held_beside_those_that_came() -> None:
    budget = BodyBudget(1000, 100)
    _, lease = read([b"a" * 20, b"a" * 20], budget)
    lease.grow_decoded_to(30)
    lease.grow_decoded_to(50)
    assert budget.held_bytes == 90
    other = BodyLease(budget)
    with pytest.raises(Overloaded):
        other.grow_decoded_to(11)
    other.grow_decoded_to(10)
    lease.release()
    assert budget.held_bytes == 10


def test_a_body_nobody_waits_for_grows_no_more() -> None:
    """A thread that still decodes it ends with its next piece."""
    budget = BodyBudget(1000, 100)
    lease = BodyLease(budget)
    lease.release()
    with pytest.raises(ClientGoneError):
        lease.grow_decoded_to(1)
    assert budget.held_bytes == 0


@pytest.mark.parametrize(("limit", "decoded_limit"), [(1000, 1000), (None, 100)])
def test_decoded_bytes_are_never_without_a_limit(limit: int | None, decoded_limit: int) -> None:
    assert BodyBudget(limit, 100).decoded_limit_bytes == decoded_limit


def test_leases_that_grow_on_several_threads_are_all_counted() -> None:
    budget = BodyBudget(None, 10**9)
    leases = [BodyLease(budget) for _ in range(4)]

    def grow(lease: BodyLease) -> None:
        for size in range(20_000):
            lease.grow_decoded_to(size)

    with ThreadPoolExecutor(4) as executor:
        list(executor.map(grow, leases))
    assert budget.held_bytes == 4 * 19_999
    for lease in leases:
        lease.release()
    assert budget.held_bytes == 0


@pytest.mark.parametrize(
    ("parts", "error"),
    [
        ([b"a" * 11], PayloadTooLarge),
        ([b"a" * 6, b"b" * 6], PayloadTooLarge),
        ([b"a" * 6, None], ClientGoneError),
        ([None], ClientGoneError),
    ],
)
def test_a_body_that_is_not_taken_is_an_error(parts: Sequence[bytes | None], error: type[Exception]) -> None:
    """Checklist 36, 41."""
    with pytest.raises(error):
        read(parts, BodyBudget(10, 100))


@pytest.mark.parametrize("value", [b"", b"-1", b"1e3", b"9" * 19])
def test_a_length_that_is_none_is_refused(value: bytes) -> None:
    with pytest.raises(InvalidPayload):
        declared_length(value)


def test_a_stalled_large_body_does_not_let_others_fill_the_memory(tmp_path: Path) -> None:
    """Checklist 41, over real sockets: 503 for a second large body, small requests go on, room comes back."""
    large = b"[[" + b"1," * 500_000 + b"1]]"
    with running("--model", str(identity(tmp_path / "m.onnx")), "--max-queue-mib", "1") as server:
        head = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: 2000000\r\n\r\n"
        stalled = server.connect()
        stalled.sendall(head + b" " * 900_000)

        def is_spent() -> bool:
            nonlocal stalled
            if server.invoke(large).status_code == 503:
                return True
            if select.select([stalled], [], [], 0)[0]:  # the large one was there first, so this one was refused
                stalled.close()
                stalled = server.connect()
                stalled.sendall(head + b" " * 900_000)
            return False

        wait_for(is_spent, "the budget to be spent")
        assert server.invoke(large).headers["Retry-After"] == "1"
        assert server.invoke(b"[[1, 2, 3, 4]]").status_code == 200
        stalled.close()
        wait_for(lambda: server.invoke(large).status_code == 400, "the budget to be free again")
