"""Settings: sources, their order, parsing, the reference page."""

from __future__ import annotations

import contextlib
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from byoc_server.config import MIB, SETTINGS, Settings, SettingSpec, load_settings, parse_value, reference_page
from byoc_server.errors import SettingsError

SPECS = {spec.name: spec for spec in SETTINGS}


def test_defaults() -> None:
    assert load_settings({}, {}) == Settings()
    for spec in SETTINGS:
        assert spec.default == "" or parse_value(spec, str(spec.default), "default") == spec.default


def test_names() -> None:
    assert [spec.name for spec in SETTINGS] == [f.name for f in fields(Settings)]
    assert SPECS["max_batch_size"].flag == "--max-batch-size"
    assert SPECS["max_batch_size"].variable == "BYOC_MAX_BATCH_SIZE"


def test_a_flag_is_stronger_than_the_platform_than_byoc_than_sagemaker() -> None:
    """Checklist 15."""
    variables = {"BYOC_PORT": "2", "SAGEMAKER_BIND_TO_PORT": "3"}
    assert load_settings({"port": "1"}, variables).port == 1
    assert load_settings({}, variables).port == 3
    assert load_settings({}, {"BYOC_PORT": "2"}).port == 2
    weak = {"SAGEMAKER_MODEL_SERVER_WORKERS": "4"}
    assert load_settings({}, weak).workers == 4
    assert load_settings({}, {**weak, "BYOC_WORKERS": "5"}).workers == 5


@pytest.mark.parametrize(
    ("variable", "text", "name", "value"),
    [
        ("SAGEMAKER_BIND_TO_PORT", "8081", "port", 8081),
        ("SAGEMAKER_MODEL_SERVER_WORKERS", "2", "workers", 2),
        ("SAGEMAKER_MODEL_SERVER_TIMEOUT", "90", "request_timeout_s", 90.0),
        ("SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS", "90.5", "request_timeout_s", 90.5),
        ("SAGEMAKER_MAX_PAYLOAD_IN_MB", "100", "max_payload_mib", 100),
        ("SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT", "text/csv", "default_accept", "text/csv"),
        ("SAGEMAKER_CONTAINER_LOG_LEVEL", "20", "log_level", "info"),
        ("SAGEMAKER_CONTAINER_LOG_LEVEL", "50", "log_level", "error"),
        ("SAGEMAKER_CONTAINER_LOG_LEVEL", "15", "log_level", "info"),
        ("SAGEMAKER_CONTAINER_LOG_LEVEL", "0", "log_level", "debug"),
        ("SAGEMAKER_CONTAINER_LOG_LEVEL", "WARNING", "log_level", "warning"),
        ("BYOC_LOG_LEVEL", "critical", "log_level", "error"),
        ("BYOC_LOG_FORMAT", "JSON", "log_format", "json"),
        ("BYOC_FINAL_NEWLINE", " Off ", "final_newline", False),
        ("BYOC_ECHO_CUSTOM_ATTRIBUTES", "yes", "echo_custom_attributes", True),
        ("BYOC_HOST", " ::1 ", "host", "::1"),
        ("BYOC_DEFAULT_CONTENT_TYPE", "text/csv; header=present", "default_content_type", "text/csv; header=present"),
    ],
)
def test_variables(variable: str, text: str, name: str, value: object) -> None:
    """Checklist 15, 34 and 65: the SAGEMAKER_* names that are read."""
    assert getattr(load_settings({}, {variable: text}), name) == value


def test_unknown_names() -> None:
    """Checklist 15: unknown SAGEMAKER_* names are ignored; a misspelt name of our own is refused."""
    assert load_settings({}, {"SAGEMAKER_SOMETHING_NEW": "x", "PATH": "y"}) == Settings()
    with pytest.raises(SettingsError, match="BYOC_WORKER is not a setting; did you mean BYOC_WORKERS"):
        load_settings({}, {"BYOC_WORKER": "1"})
    with pytest.raises(SettingsError, match="BYOC_ZZZZZZZZ is not a setting; run `byoc settings`"):
        load_settings({}, {"BYOC_ZZZZZZZZ": "1"})


def test_an_empty_variable_is_not_set() -> None:
    assert load_settings({}, {"BYOC_PORT": " ", "SAGEMAKER_BIND_TO_PORT": ""}) == Settings()
    assert load_settings({}, {"BYOC_PORT": "1", "SAGEMAKER_BIND_TO_PORT": ""}).port == 1


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("port", "65536", "expected a whole number from 0 to 65535"),
        ("port", "-1", "expected a whole number from 0 to 65535"),
        ("port", "http", "expected a whole number from 0 to 65535"),
        ("port", "1.0", "expected a whole number from 0 to 65535"),
        ("port", "9" * 5000, "expected a whole number from 0 to 65535"),
        ("workers", "-1", "expected a whole number from 0 to 256"),
        ("request_timeout_s", "nan", "expected a number from 0.1 to 3600"),
        ("request_timeout_s", "inf", "expected a number from 0.1 to 3600"),
        ("request_timeout_s", "soon", "expected a number from 0.1 to 3600"),
        ("final_newline", "maybe", "expected true or false"),
        ("log_format", "xml", "expected one of auto, json, text"),
        ("log_level", "loud", "expected one of debug, info, warning, error"),
        ("log_level", "\u00b2", "expected one of debug, info, warning, error"),
        ("default_accept", "csv", "expected a media type such as application/json"),
        ("default_accept", "*/*", "expected a media type such as application/json"),
        ("default_content_type", "text/", "expected a media type such as application/json"),
    ],
)
def test_values_that_do_not_parse(name: str, text: str, expected: str) -> None:
    """Checklist 13: the message names the source, the value and what was expected."""
    spec = SPECS[name]
    for source, flags, environ in ((spec.flag, {name: text}, {}), (spec.variable, {}, {spec.variable: text})):
        with pytest.raises(SettingsError) as caught:
            load_settings(flags, environ)
        assert caught.value.message == f"{source}={text}: {expected}"


@settings(deadline=None, max_examples=200, derandomize=True)
@given(st.sampled_from(SETTINGS), st.text() | st.integers().map(str) | st.floats().map(str))
def test_any_text_is_a_value_or_a_settings_error(spec: SettingSpec, text: str) -> None:
    with contextlib.suppress(SettingsError):
        parse_value(spec, text, spec.flag)


def test_the_payload_limit_in_bytes() -> None:
    assert load_settings({}, {}).max_payload_bytes == 25 * MIB
    assert load_settings({"max_payload_mib": "0"}, {}).max_payload_bytes is None


def test_the_reference_page_names_everything() -> None:
    page = reference_page()
    for spec in SETTINGS:
        line = next(line for line in page.splitlines() if line.startswith(f"| `{spec.flag}` | `{spec.variable}` |"))
        assert line.count("|") == 6
        assert spec.help in line
        for name in (*spec.platform, *spec.sagemaker):
            assert f"`{name}`" in line
    assert "`SAGEMAKER_BIND_TO_PORT` (*platform*)" in page
    assert "| `true` |" in page
    assert "|  |" in page


def test_the_reference_page_in_the_docs_is_the_one_the_settings_make() -> None:
    assert (Path(__file__).parent.parent / "docs" / "settings.md").read_text() == reference_page()
