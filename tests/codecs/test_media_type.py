"""Media types as they are spelt in headers."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from byoc_server.codecs.base import codecs_by_media_type
from byoc_server.codecs.media_type import parse_media_type

LAWS = settings(deadline=None, max_examples=400, derandomize=True)
TOKENS = st.text("abcxyzABC019!#$%&'*+.^_`|~-", min_size=1, max_size=8)


@LAWS
@given(
    st.sampled_from(sorted(codecs_by_media_type())), st.lists(st.tuples(TOKENS, st.text('ab \\";,=/\t', max_size=6)))
)
def test_quoted_parameters_are_read_as_written(name: str, parameters: list[tuple[str, str]]) -> None:
    """Checklist 29."""
    first: dict[str, str] = {}
    text = name.upper()
    for key, value in parameters:
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        text += f' ; {key}="{escaped}"'
        first.setdefault(key.lower(), value)
    parsed = parse_media_type(text)
    if len(text) > 1024:
        assert parsed is None
    else:
        assert parsed is not None
        assert parsed.essence == name
        assert parsed.parameters == first
