import pytest

from byoc_server.http.priority import is_urgent


@pytest.mark.parametrize(
    ("attributes", "urgent"),
    [
        (b"priority=high", True),
        (b"trace=1-5759e988, priority=high", True),
        (b"tfs-model-name=m,priority=high,tfs-method=predict", True),
        (b"a; Priority = High ;b", True),
        (b"\tpriority=high\t", True),
        (b"", False),
        (b"priority=low", False),
        (b"priority=highest", False),
        (b"priority=", False),
        (b"low-priority=high", False),
        (b"note=priority=high", False),
        (b'{"priority": "high"}', False),
        (b"priority high", False),
    ],
)
def test_one_item_among_others_says_that_a_request_is_urgent(attributes: bytes, urgent: bool) -> None:
    assert is_urgent(attributes) is urgent
