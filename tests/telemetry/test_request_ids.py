"""Ids of requests whose clients give them none."""

from __future__ import annotations

import os

from byoc_server.telemetry.request_ids import RequestIds


def test_no_number_is_given_out_twice() -> None:
    ids = RequestIds()
    numbers = [ids.next() for _ in range(1000)]
    assert len({ids.text(number) for number in numbers}) == 1000
    assert numbers == list(range(1, 1001))


def test_an_id_names_the_process_and_its_number() -> None:
    """Processes of one server, and a server that took the place of another, give out no equal ones."""
    ids = RequestIds()
    process, began, number = ids.text(255).split("-")
    assert (process, number) == (f"{os.getpid():x}", "ff")
    assert int(began, 16) > 1_700_000_000
    assert ids.text(255) == f"{ids.prefix}ff"


def test_the_id_of_a_client_is_left_as_it_is() -> None:
    assert RequestIds().text("5") == "5"
