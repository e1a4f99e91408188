"""The CPU image, under every condition that a platform may start it in."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import requests

from tests import onnx_models
from tests.container.engine import ROOT, Container, Engine, EngineError

pytestmark = pytest.mark.container

MAX_SIZE_BYTES = 330_000_000
NO_NETWORK = ["--network=none"]
ANY_USER = ["--user=1234:0"]
NO_CAPABILITIES = ["--cap-drop=all", "--security-opt=no-new-privileges"]
SMALL = ["--memory=512m", "--cpus=1"]
CONDITIONS = {
    "root": [],
    "any user": ANY_USER,
    "user without a group": ["--user=4321:4321"],
    "no network": NO_NETWORK,
    "read-only": ["READ-ONLY"],
    "no capabilities": NO_CAPABILITIES,
    "512 MB and one CPU": SMALL,
    "all at once": [*ANY_USER, *NO_NETWORK, "READ-ONLY", *NO_CAPABILITIES, *SMALL],
}
HEALTH_CHECK = ("/opt/venv/bin/python", "-IS", "/opt/venv/share/byoc/healthcheck.py")
READ_MOUNTS = "print(open('/proc/self/mounts').read())"
ROWS = np.array([[1, 2, 3, 4], [5, 6, 7, 8.5]], np.float32)


def options(engine: Engine, named: Sequence[str]) -> list[str]:
    return [option for name in named for option in (engine.read_only if name == "READ-ONLY" else [name])]


def mounted(model_folder: Path) -> str:
    return f"--volume={model_folder}:/opt/ml/model:ro"


def npy(array: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def check_every_format(container: Container) -> None:
    """The model answers with its input, which comes back in the format that was asked for."""
    formats = {
        "application/json": json.dumps({"instances": ROWS.tolist()}).encode(),
        "text/csv": b"1,2,3,4\n5,6,7,8.5\n",
        "application/jsonlines": b"[1,2,3,4]\n[5,6,7,8.5]\n",
        "application/x-npy": npy(ROWS),
    }
    ping, *answers = container.ask(*((body, {"Content-Type": name, "Accept": name}) for name, body in formats.items()))
    assert (ping.status, ping.body) == (200, b"")
    assert [answer.status for answer in answers] == [200] * 4, container.log()
    as_json, as_csv, as_lines, as_npy = answers
    assert [answer.media_type.partition(";")[0] for answer in answers] == list(formats)
    assert as_json.json() == {"predictions": ROWS.tolist()}
    assert np.array_equal(np.loadtxt(io.BytesIO(as_csv.body), delimiter=","), ROWS)
    assert [json.loads(line) for line in as_lines.body.splitlines()] == ROWS.tolist()
    assert np.array_equal(np.load(io.BytesIO(as_npy.body), allow_pickle=False), ROWS)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_it_serves_a_mounted_model(engine: Engine, cpu_image: str, model_folder: Path, condition: str) -> None:
    """Every format, with the model mounted read-only; it ends with 0 soon after SIGTERM, and has written nothing."""
    run = [*options(engine, CONDITIONS[condition]), mounted(model_folder)]
    idle = ["--entrypoint=/opt/venv/bin/python", *run]
    with engine.running(cpu_image, "-c", "pass", options=idle) as container:
        container.wait_for(lambda: container.state()["Status"] == "exited", "the idle container has ended")
        own = container.changed_paths()  # what the engine itself puts into any container
    with engine.running(cpu_image, "serve", options=run) as container:
        check_every_format(container)
        assert container.changed_paths() <= own
        code, seconds = container.stop()
        assert code == 0, container.log()
        assert seconds < 5
        assert container.changed_paths() <= own


@pytest.mark.parametrize("arguments", [(), ("serve",)], ids=["no argument", "serve"])
@pytest.mark.parametrize("condition", ["root", "all at once"])
def test_it_serves_the_demo_model(engine: Engine, cpu_image: str, condition: str, arguments: Sequence[str]) -> None:
    with engine.running(cpu_image, *arguments, options=options(engine, CONDITIONS[condition])) as container:
        ping, answer = container.ask((b"5.1,3.5,1.4,0.2", {"Content-Type": "text/csv"}))
        assert ping.status == 200
        assert answer.json()["predictions"][0]["label"] == "setosa"
        assert container.events("demo_model")


def test_several_workers_run_on_a_read_only_root(engine: Engine, cpu_image: str, model_folder: Path) -> None:
    run = [*options(engine, CONDITIONS["all at once"]), mounted(model_folder)]
    with engine.running(cpu_image, "serve", "--workers", "2", options=run) as container:
        check_every_format(container)
        code, seconds = container.stop()
        assert code == 0, container.log()
        assert seconds < 5


def test_fronts_and_a_core_need_no_place_to_write(engine: Engine, cpu_image: str, model_folder: Path) -> None:
    """Large tensors go from one to the other in memory files, without /dev/shm."""
    run = [*options(engine, CONDITIONS["all at once"]), "--ipc=none", mounted(model_folder)]
    split = ["--topology", "split", "--workers", "2"]
    with engine.running(cpu_image, "serve", *split, options=run) as container:
        check_every_format(container)
        assert "/dev/shm" not in container.exec("/opt/venv/bin/python", "-", stdin=READ_MOUNTS).output
        large = np.arange(16_000, dtype=np.float32).reshape(4000, 4)
        _, answer = container.ask((npy(large), {"Content-Type": "application/x-npy", "Accept": "application/x-npy"}))
        assert (answer.status, answer.body) == (200, npy(large))
        code, seconds = container.stop()
        assert code == 0, container.log()
        assert seconds < 5


def test_the_server_is_the_first_process_and_has_no_shell_beside_it(engine: Engine, cpu_image: str) -> None:
    """Signals of the platform go to the first process (contract: no shell, no init)."""
    listing = (
        "import pathlib\n"
        "for path in pathlib.Path('/proc').glob('[0-9]*/cmdline'):\n"
        "    print(path.parent.name, *path.read_text().split('\\0')[:3])\n"
    )
    with engine.running(cpu_image) as container:
        container.ask()
        lines = container.exec("/opt/venv/bin/python", "-", stdin=listing).output.splitlines()
        processes = dict(line.split(maxsplit=1) for line in lines)
        assert processes.pop("1").split() == ["/opt/venv/bin/python", "/opt/venv/bin/byoc", "serve"]
        assert [command.split() for command in processes.values()] == [["/opt/venv/bin/python", "-"]]


def test_it_is_reached_from_outside(engine: Engine, cpu_image: str) -> None:
    with engine.running(cpu_image, options=["--publish=127.0.0.1::8080"]) as container:
        container.ask()
        url = f"http://{container.address()}"
        assert requests.get(f"{url}/ping", timeout=10).status_code == 200
        answer = requests.post(
            f"{url}/invocations", data="5.1,3.5,1.4,0.2", headers={"Content-Type": "text/csv"}, timeout=10
        )
        assert answer.json()["predictions"][0]["label"] == "setosa"


def test_serve_is_on_the_path_of_an_image_without_an_entry_point(engine: Engine, cpu_image: str) -> None:
    with engine.running(cpu_image, "serve", "--port", "8081", options=["--entrypoint="]) as container:
        (ping,) = container.ask(port=8081)
        assert ping.status == 200


def test_the_port_of_the_platform_is_used(engine: Engine, cpu_image: str) -> None:
    with engine.running(cpu_image, options=["--env=SAGEMAKER_BIND_TO_PORT=9090", "--env=BYOC_PORT=1"]) as container:
        (ping,) = container.ask(port=9090)
        assert ping.status == 200
        assert container.exec(*HEALTH_CHECK).code == 0


def test_the_health_check_says_whether_it_is_ready(engine: Engine, cpu_image: str) -> None:
    with engine.running(cpu_image) as container:
        container.ask()
        assert container.exec(*HEALTH_CHECK).code == 0
        nobody = container.exec(*HEALTH_CHECK, environ={"BYOC_PORT": "1"})
        assert nobody.code == 1
        assert "no answer on port 1" in nobody.errors


def test_the_health_check_gives_the_reason_of_a_503(engine: Engine, cpu_image: str, tmp_path: Path) -> None:
    """The model takes a minute to warm up; long before that the container is removed."""
    onnx_models.busy(tmp_path / "model.onnx", onnx_models.rounds_per_second(), idle_s=60)
    with engine.running(cpu_image, options=[mounted(tmp_path)]) as container:
        (ping,) = container.ask(until_ready=False)
        assert ping.status == 503
        check = container.exec(*HEALTH_CHECK)
        assert check.code == 1
        assert "503" in check.errors
        assert ping.body.decode() in check.errors


def test_the_health_check_is_part_of_the_image(engine: Engine, cpu_image: str) -> None:
    image = engine.inspect_image(cpu_image)
    health = image.get("Healthcheck") or image["Config"]["Healthcheck"]  # podman and docker
    assert health["Test"] == ["CMD", *HEALTH_CHECK]
    assert health["Timeout"] == 5e9


def test_a_command_too_many_is_explained(engine: Engine, cpu_image: str) -> None:
    done = engine.run(cpu_image, "byoc", "settings")
    assert done.code == 2
    assert "byoc: " in done.errors
    assert "byoc --help" in done.errors
    assert "Traceback" not in done.errors


def test_other_commands_run(engine: Engine, cpu_image: str) -> None:
    done = engine.run(cpu_image, "settings", options=options(engine, CONDITIONS["all at once"]))
    assert done.code == 0
    assert "SAGEMAKER_BIND_TO_PORT" in done.output


def test_it_tells_what_it_found(engine: Engine, cpu_image: str) -> None:
    done = engine.run(cpu_image, "info", "--json", options=options(engine, CONDITIONS["all at once"]))
    assert done.code == 0, done.errors
    facts = json.loads(done.output)
    assert (facts["onnxruntime"]["package"], facts["device"]["name"]) == ("onnxruntime", "cpu")


def test_it_starts_as_sagemaker_wants_it(engine: Engine, cpu_image: str) -> None:
    config = engine.inspect_image(cpu_image)["Config"]
    assert config["Entrypoint"] == ["/opt/venv/bin/byoc"]
    assert config["Cmd"] == ["serve"]
    assert config["StopSignal"] in ("SIGTERM", "15")
    assert list(config["ExposedPorts"]) == ["8080/tcp"]
    assert not config.get("User")
    variables = dict(line.split("=", 1) for line in config["Env"])
    assert variables["PATH"].startswith("/opt/venv/bin:")
    assert variables["ORT_DISABLE_TELEMETRY"] == "1"
    assert "LD_LIBRARY_PATH" not in variables


def test_it_claims_what_it_can_do_and_nothing_else(engine: Engine, cpu_image: str) -> None:
    labels = engine.inspect_image(cpu_image)["Config"]["Labels"]
    assert {name: text for name, text in labels.items() if name.startswith(("com.amazonaws.", "org."))} == {
        "com.amazonaws.sagemaker.capabilities.accept-bind-to-port": "true",
        "org.opencontainers.image.title": "byoc-server",
        "org.opencontainers.image.description": (
            "Serves an ONNX model behind Amazon SageMaker's container contract, on the CPU"
        ),
        "org.opencontainers.image.licenses": "Apache-2.0",
        "org.opencontainers.image.version": "1.2.3",
    }


def test_it_is_small(engine: Engine, cpu_image: str) -> None:
    assert engine.inspect_image(cpu_image)["Size"] <= MAX_SIZE_BYTES


def test_its_bill_of_materials_names_every_package(engine: Engine, cpu_image: str) -> None:
    script = (
        "import importlib.metadata, json\n"
        "found = {d.name: d.version for d in importlib.metadata.distributions()}\n"
        "print(json.dumps([found, open('/opt/venv/share/byoc/sbom.json').read()]))"
    )
    found, text = json.loads(engine.python(cpu_image, script))
    packages = [package["metadata"] for package in json.loads(text)["installed"]]
    assert {package["name"]: package["version"] for package in packages} == found
    assert "onnxruntime" in found
    assert not {"pip", "setuptools", "wheel", "hatchling"} & set(found)
    assert all(
        {"license", "license_expression", "license_file", "classifier"} & set(package) for package in packages
    ), packages
    assert "direct_url" not in text
    assert "file:" not in text
    assert "/build" not in text


def test_nothing_is_compiled_at_start(engine: Engine, cpu_image: str) -> None:
    """Every module that serving imports has its bytecode, also those of the base's standard library."""
    script = (
        "import importlib, os, sys\n"
        "for name in ('cli.main', 'server.serve', 'server.uvicorn', 'server.gunicorn', 'http.app', 'engines.onnx'):\n"
        "    importlib.import_module(f'byoc_server.{name}')\n"
        "specs = [m.__spec__ for m in list(sys.modules.values()) if getattr(m, '__spec__', None)]\n"
        "print(*(s.name for s in specs if (s.origin or '').endswith('.py') and not os.path.exists(s.cached)))"
    )
    assert engine.python(cpu_image, script).split() == []


def test_the_package_is_a_plain_installation(engine: Engine, cpu_image: str) -> None:
    script = "import byoc_server, sys; print(byoc_server.__file__, sys.prefix, *sys.path)"
    file, prefix, *paths = engine.python(cpu_image, script).split()
    assert file.startswith("/opt/venv/lib/python3.")
    assert prefix == "/opt/venv"
    assert not [path for path in paths if "build" in path]


def test_a_change_of_the_source_keeps_the_layer_of_the_dependencies(
    engine: Engine, cpu_image: str, tmp_path: Path
) -> None:
    """And the files that are not meant for the image, here a secret and a test, do not even reach the build."""
    for name in ("Dockerfile.cpu", ".dockerignore", "constraints.txt", "pyproject.toml", "LICENSE", "README.md"):
        shutil.copy2(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "byoc_server", tmp_path / "byoc_server")
    (tmp_path / "byoc_server" / "added.py").write_text("ADDED = 1\n")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_a.py").touch()
    (tmp_path / ".env").write_text("SECRET=1")
    dockerfile = tmp_path / "Dockerfile.cpu"
    with engine.image(dockerfile, context=tmp_path, arguments={"VERSION": "1.2.3"}) as changed:
        old, new = (engine.inspect_image(image)["RootFS"]["Layers"] for image in (cpu_image, changed))
        assert len(old) == len(new)
        assert [a == b for a, b in zip(old, new, strict=True)].count(False) == 1
        assert engine.python(changed, "import byoc_server.added") == ""
    with engine.image(dockerfile, context=tmp_path, target="package") as package:
        listing = "import os; print(*os.listdir('/build'))"
        done = engine.run(package, "-c", listing, options=["--entrypoint=/opt/venv/bin/python"])
        assert not {"tests", ".env", ".git"} & set(done.output.split())
        assert "byoc_server" in done.output.split()


def test_a_broken_build_is_not_taken_for_an_image(engine: Engine, tmp_path: Path) -> None:
    """The tests' own helper: a build that fails must not leave a test green."""
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY missing /\n")
    with pytest.raises(EngineError, match="missing"), engine.image(tmp_path / "Dockerfile", context=tmp_path):
        pass
