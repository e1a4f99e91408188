"""Every setting of the server, each defined once.

A field of ``Settings`` carries its unit (in the name), range, help and SageMaker aliases. The command line flag, the
``BYOC_*`` variable, ``byoc serve --help`` and ``docs/settings.md`` are all made from that one definition.

A value comes from, strongest first: a flag, a variable that the *platform* sets for this very container (such as
``SAGEMAKER_BIND_TO_PORT``), a ``BYOC_*`` variable, another ``SAGEMAKER_*`` variable, the default. Unknown
``SAGEMAKER_*`` variables are ignored (new ones appear without notice); unknown ``BYOC_*`` variables are refused,
because a misspelt setting that is silently ignored is found out in production.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from typing import Any

from byoc_server.errors import SettingsError

PREFIX = "BYOC_"
MIB = 1024 * 1024

_BOOLEANS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
_MEDIA_TYPE = re.compile(r"[^\s/;,*]+/[^\s/;,*]+\s*(;.*)?\Z")
_LOG_LEVELS = ("debug", "info", "warning", "error")


def _text(raw: str) -> str:
    return raw


def _folder(raw: str) -> str:
    if not raw.startswith("/") or ":" in raw or ";" in raw:
        raise ValueError("expected an absolute path without ':' and ';', which LD_LIBRARY_PATH cannot hold")
    return raw


def _media_type(raw: str) -> str:
    if not _MEDIA_TYPE.match(raw):
        raise ValueError("expected a media type such as application/json")
    return raw


def _boolean(raw: str) -> bool:
    try:
        return _BOOLEANS[raw.lower()]
    except KeyError:
        raise ValueError("expected true or false") from None


def _integer(low: int, high: int) -> Callable[[str], int]:
    def parse(raw: str) -> int:
        expected = f"expected a whole number from {low} to {high}"
        try:
            value = int(raw)
        except ValueError:
            raise ValueError(expected) from None
        if not low <= value <= high:
            raise ValueError(expected)
        return value

    return parse


def _number(low: float, high: float) -> Callable[[str], float]:
    def parse(raw: str) -> float:
        expected = f"expected a number from {low:g} to {high:g}"
        try:
            value = float(raw)
        except ValueError:
            raise ValueError(expected) from None
        if not low <= value <= high:  # also refuses NaN
            raise ValueError(expected)
        return value

    return parse


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(raw: str) -> str:
        if raw.lower() not in choices:
            raise ValueError(f"expected one of {', '.join(choices)}")
        return raw.lower()

    return parse


def _log_level(raw: str) -> str:
    """Take a name, or Python's numeric level as SageMaker's SDK sends it (20 = info)."""
    if raw.isdecimal():
        number = int(raw)
        return next((name for name in _LOG_LEVELS if number <= logging.getLevelNamesMapping()[name.upper()]), "error")
    return _one_of(*_LOG_LEVELS)({"critical": "error", "notset": "debug"}.get(raw.lower(), raw))


def _setting(
    default: Any,
    parse: Callable[[str], Any],
    help: str,
    *,
    sagemaker: Sequence[str] = (),
    platform: Sequence[str] = (),
) -> Any:
    """Define one setting.

    Args:
        default: used when no source names a value.
        parse: text to value; raises ``ValueError`` with what was expected.
        help: one line, for ``--help`` and the reference page.
        sagemaker: SageMaker's conventional variables for the same thing, weaker than ``BYOC_*``.
        platform: variables that the platform sets itself, stronger than ``BYOC_*``.
    """
    return field(
        default=default,
        metadata={"parse": parse, "help": help, "sagemaker": tuple(sagemaker), "platform": tuple(platform)},
    )


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of one server. Zero means "chosen by the server" where the help says ``0 = auto``."""

    model: str = _setting(
        "", _text, "ONNX file, or folder with one; empty: /opt/ml/model if it holds anything, else the demo model"
    )
    host: str = _setting("0.0.0.0", _text, "address to listen on")
    port: int = _setting(8080, _integer(0, 65535), "port to listen on; 0 = any", platform=["SAGEMAKER_BIND_TO_PORT"])
    topology: str = _setting(
        "auto",
        _one_of("auto", "inline", "split"),
        "inline: every worker runs the model itself; split: core processes run it for all workers, one a GPU; "
        "auto = split where there is a GPU",
    )
    workers: int = _setting(
        0,
        _integer(0, 256),
        "processes that serve HTTP; in the inline topology each has its own copy of the model; 0 = auto: 1 inline, "
        "else by CPU cores and GPUs",
        sagemaker=["SAGEMAKER_MODEL_SERVER_WORKERS"],
    )
    core_processes: int = _setting(
        0, _integer(0, 64), "processes that run the model in the split topology; 0 = auto: one a GPU, or 1 on the CPU"
    )
    threads: int = _setting(
        0,
        _integer(0, 1024),
        "threads of one inference; 0 = auto: usable CPU cores divided by the processes and sessions that run the model",
    )
    device: str = _setting(
        "auto",
        _one_of("auto", "cpu", "gpu"),
        "where the model runs: auto, cpu or gpu; auto = a GPU where one is visible, else the CPU",
    )
    execution_provider: str = _setting(
        "cuda",
        _one_of("cuda", "tensorrt"),
        "what runs the model on a GPU: cuda or tensorrt (with cuda for the operators it lacks)",
    )
    gpu_memory_limit_mib: int = _setting(
        0, _integer(0, 1048576), "MiB of GPU memory one session may take for weights and tensors; 0 = no limit"
    )
    gpu_arena: str = _setting(
        "same_as_requested",
        _one_of("same_as_requested", "next_power_of_two"),
        "how a session's GPU memory grows: same_as_requested or next_power_of_two",
    )
    cudnn_search: str = _setting(
        "heuristic",
        _one_of("heuristic", "exhaustive", "default"),
        "how cuDNN chooses the algorithm of a convolution: heuristic, exhaustive (all are tried) or default",
    )
    cuda_graphs: bool = _setting(
        False,
        _boolean,
        "replay each batch size as a CUDA graph; for models that run on cuda alone and have no control flow",
    )
    tensorrt_cache_dir: str = _setting(
        "", _text, "folder where TensorRT keeps the engines it has built; empty: none, and each start builds them anew"
    )
    tensorrt_precision: str = _setting(
        "model",
        _one_of("model", "fp16", "int8"),
        "precision TensorRT may use: model, fp16, or int8 (for quantised models)",
    )
    cuda_compat: str = _setting(
        "auto",
        _one_of("auto", "on", "off", "rule", "probe"),
        "CUDA forward-compatibility package: auto = by rule, confirmed by a probe; rule = no probe; "
        "probe = always probe; on = use it, whatever the rule says; off = never",
    )
    cuda_compat_dir: str = _setting(
        "", _folder, "folder with the compatibility libraries; empty: looked for under /usr/local/cuda*/compat"
    )
    cuda_compat_timeout_s: float = _setting(
        20.0, _number(0.1, 600), "seconds a probe of the CUDA driver library may take"
    )
    max_batch_size: int = _setting(
        0, _integer(0, 65536), "most records in one batch; 0 = auto: the size with the best throughput at warm-up"
    )
    max_queue_delay_ms: float = _setting(
        0.0,
        _number(0, 10_000),
        "milliseconds a request may wait for others to share its batch although the model is idle",
    )
    max_batch_tokens: int = _setting(
        0,
        _integer(0, 2**31),
        "most positions (records times the longest of them) in one batch of records of different lengths; 0 = auto: "
        "by warm-up",
    )
    pad_lengths: bool = _setting(
        True, _boolean, "let records of different lengths share a batch, padded, where the model allows it"
    )
    sessions: int = _setting(1, _integer(1, 16), "copies of the model on one device, which run batches side by side")
    request_timeout_s: float = _setting(
        60.0,
        _number(0.1, 3600),
        "seconds a request may take, from the end of its head to its answer",
        sagemaker=["SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS", "SAGEMAKER_MODEL_SERVER_TIMEOUT"],
    )
    max_payload_mib: int = _setting(
        25,
        _integer(0, 102400),
        "largest request body in MiB; 0 = no limit",
        platform=["SAGEMAKER_MAX_PAYLOAD_IN_MB"],
    )
    max_queue_rows: int = _setting(65536, _integer(1, 2**31), "records that may wait for the model; more get 503")
    max_queue_mib: int = _setting(
        512, _integer(1, 1048576), "MiB of bodies and tensors that may be held for waiting requests; more get 503"
    )
    default_content_type: str = _setting(
        "",
        _media_type,
        "media type of a request without Content-Type; empty: what byoc.toml says, else application/json",
    )
    default_accept: str = _setting(
        "",
        _media_type,
        "media type of the answer when Accept is missing or */*; empty: what byoc.toml says, else application/json",
        sagemaker=["SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT"],
    )
    final_newline: bool = _setting(
        True, _boolean, "end CSV and JSON Lines answers with a newline, so that joined answers stay apart"
    )
    echo_custom_attributes: bool = _setting(
        True, _boolean, "copy X-Amzn-SageMaker-Custom-Attributes from the request to the answer"
    )
    fast_lane: bool = _setting(
        True,
        _boolean,
        "serve small plain requests to the hot routes without ASGI; off: uvicorn's ordinary path for all",
    )
    keep_alive_s: int = _setting(65, _integer(1, 3600), "seconds an idle connection is kept open")
    drain_timeout_s: float = _setting(
        20.0, _number(0, 600), "seconds that requests in flight get to finish after SIGTERM (SageMaker kills at 30)"
    )
    log_level: str = _setting(
        "info",
        _log_level,
        f"least severe line to log: {', '.join(_LOG_LEVELS)}",
        sagemaker=["SAGEMAKER_CONTAINER_LOG_LEVEL"],
    )
    log_format: str = _setting(
        "auto", _one_of("auto", "json", "text"), "auto, json or text; auto = text on a terminal, else JSON lines"
    )
    request_log: str = _setting(
        "all", _one_of("all", "errors", "off"), "which invocations get a log line: all, errors or off; pings never do"
    )

    @property
    def max_payload_bytes(self) -> int | None:
        """Largest request body in bytes; ``None`` when unlimited."""
        return self.max_payload_mib * MIB or None


@dataclass(frozen=True, slots=True)
class SettingSpec:
    """What the command line and the reference page need to know about one setting."""

    name: str
    default: Any
    parse: Callable[[str], Any]
    help: str
    sagemaker: tuple[str, ...]
    platform: tuple[str, ...]

    @property
    def flag(self) -> str:
        """Command line flag, e.g. ``--max-batch-size``."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """Environment variable, e.g. ``BYOC_MAX_BATCH_SIZE``."""
        return PREFIX + self.name.upper()


def _spec(f: Field[Any]) -> SettingSpec:
    m = f.metadata
    return SettingSpec(f.name, f.default, m["parse"], m["help"], m["sagemaker"], m["platform"])


SETTINGS: tuple[SettingSpec, ...] = tuple(_spec(f) for f in fields(Settings))
"""All settings in the order of the reference page."""


def parse_value(spec: SettingSpec, raw: str, source: str) -> Any:
    """Parse ``raw``, which came from ``source`` (a flag or a variable).

    Raises:
        SettingsError: naming the source, the value and what was expected.
    """
    try:
        return spec.parse(raw.strip())
    except ValueError as error:
        raise SettingsError(f"{source}={raw}: {error}") from None


def load_settings(flags: Mapping[str, str], environ: Mapping[str, str]) -> Settings:
    """Build ``Settings`` from parsed flags (setting name -> text) and the environment.

    An empty variable counts as not set, because container platforms cannot always remove one.

    Raises:
        SettingsError: an unknown ``BYOC_*`` variable, or a value that does not parse or is out of range.
    """
    _refuse_unknown(environ)
    values = {}
    for spec in SETTINGS:
        if spec.name in flags:
            values[spec.name] = parse_value(spec, flags[spec.name], spec.flag)
            continue
        for variable in (*spec.platform, spec.variable, *spec.sagemaker):
            if environ.get(variable, "").strip():
                values[spec.name] = parse_value(spec, environ[variable], variable)
                break
    return Settings(**values)


def _refuse_unknown(environ: Mapping[str, str]) -> None:
    known = [spec.name.upper() for spec in SETTINGS]  # without the prefix, which would make any two of them alike
    for variable in sorted(environ):
        name = variable.removeprefix(PREFIX)
        if name != variable and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            advice = f"did you mean {PREFIX}{near[0]}?" if near else "run `byoc settings` to see all"
            raise SettingsError(f"{variable} is not a setting; {advice}")


def reference_page() -> str:
    """The settings as a Markdown page: the text of ``docs/settings.md``."""
    lines = [
        "# Settings",
        "",
        "Made by `byoc settings`; do not edit. A flag wins over a variable, a variable over the default.",
        "A variable marked *platform* is set by SageMaker itself and wins over `BYOC_*`; the other `SAGEMAKER_*` names",
        "are conventions of its SDK and images and are weaker than `BYOC_*`. Unknown `BYOC_*` variables are refused.",
        "",
        "| flag | variable | default | meaning | also read from |",
        "|---|---|---|---|---|",
    ]
    for spec in SETTINGS:
        text = str(spec.default).lower() if isinstance(spec.default, bool) else str(spec.default)
        default = f"`{text}`" if text else ""
        also = [f"`{name}` (*platform*)" for name in spec.platform] + [f"`{name}`" for name in spec.sagemaker]
        lines.append(f"| `{spec.flag}` | `{spec.variable}` | {default} | {spec.help} | {', '.join(also)} |")
    return "\n".join(lines) + "\n"
