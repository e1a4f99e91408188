"""What is refused before a port is opened or a model looked for."""

from __future__ import annotations

import pytest

from byoc_server.config import Settings
from byoc_server.errors import SettingsError
from byoc_server.server.serve import serve


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(default_accept="text/cvs"), "default_accept=text/cvs: this server has no such format; use one of "),
        (Settings(default_accept="text/libsvm"), "default_accept=text/libsvm: this server has no such format"),
        (Settings(default_content_type="text/cvs; header=present"), "default_content_type=text/cvs; header=present: "),
    ],
)
def test_a_default_format_that_there_is_not_is_refused(settings: Settings, message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        serve(settings, {})
    assert caught.value.message.startswith(message)
