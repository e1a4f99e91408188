"""The server without what a container may lack: network, root, a writable file system."""

from __future__ import annotations

import functools
import http.client
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.onnx_models import identity
from tests.server_process import SERVE, running, wait_for

ONE_AND_TWO = pytest.mark.parametrize("workers", ["1", "2"])

IN_A_SANDBOX = """
set -e
{prepare}
{serve} serve --model {model} --host 127.0.0.1 --port 18080 --workers {workers} &
server=$!
{python} - <<'EOF'
import http.client, time
for _ in range(1000):
    try:
        connection = http.client.HTTPConnection("127.0.0.1", 18080, timeout=10)
        connection.request("GET", "/ping")
        if connection.getresponse().status == 200:
            break
    except OSError:
        pass
    time.sleep(0.02)
connection = http.client.HTTPConnection("127.0.0.1", 18080, timeout=10)
connection.request("POST", "/invocations", "[[1, 2]]")
answer = connection.getresponse()
print("ANSWER", answer.status, answer.read())
EOF
kill -TERM $server
wait $server
echo "ENDED $?"
"""


@functools.cache
def can_unshare(*flags: str) -> bool:
    program = shutil.which("unshare")
    if program is None:
        return False
    return subprocess.run([program, *flags, "true"], capture_output=True, check=False, timeout=20).returncode == 0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models")
    identity(folder / "model.onnx", shape=("N", 2))
    return str(folder)


def run_in_sandbox(unshare: str, prepare: str, model: str, workers: str) -> str:
    if not can_unshare(unshare):
        pytest.skip(f"this user may not run `unshare {unshare}`")
    script = IN_A_SANDBOX.format(
        prepare=prepare, serve=f"{sys.executable} -m byoc_server", model=model, workers=workers, python=sys.executable
    )
    result = subprocess.run(
        ["unshare", unshare, "bash", "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        # coverage's data files cannot be written there
        env={name: text for name, text in os.environ.items() if not name.startswith("COV")},
    )
    output = result.stdout + result.stderr
    assert """ANSWER 200 b'{"predictions":[[1.0,2.0]]}'""" in output, output
    assert "ENDED 0" in output, output
    assert "Traceback" not in output
    return output


@ONE_AND_TWO
def test_without_any_network(model: str, workers: str) -> None:
    """Checklist 8: there is nothing but loopback."""
    run_in_sandbox("-n", "ip link set lo up 2>/dev/null || ifconfig lo up", model, workers)


@ONE_AND_TWO
def test_on_a_read_only_file_system(model: str, workers: str) -> None:
    """Checklist 9, 10, 18: nothing can be written anywhere, not even to /tmp and /dev/shm."""
    prepare = """
    mount --make-rprivate /
    for point in $(awk '$5 !~ "^/(proc|sys)" {print $5}' /proc/self/mountinfo); do
        mount -o remount,bind,ro "$point" 2>/dev/null || true
    done
    ! touch /tmp/written 2>/dev/null
    ! touch "$HOME/written" 2>/dev/null
    """
    run_in_sandbox("-m", prepare, model, workers)


def test_no_connection_is_opened_to_anywhere(model: str, tmp_path: Path) -> None:
    """Checklist 8: in a whole life of the server there is no connect() and no DNS query."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    trace = tmp_path / "trace"
    probe = subprocess.run([strace, "-o", os.devnull, "true"], capture_output=True, check=False, timeout=20)
    if probe.returncode != 0:
        pytest.skip("this user may not trace processes")
    command = (strace, "-f", "-qq", "-e", "trace=connect,sendto,sendmsg", "-o", str(trace), *SERVE)
    with running("--model", model, command=command) as server:
        assert server.invoke("[[1, 2]]").status_code == 200
        (python,) = server.worker_pids()
        os.kill(python, 15)
        wait_for(lambda: server.process.poll() is not None, "the server has ended")
    outgoing = [line for line in trace.read_text().splitlines() if re.search(r"connect\(|AF_INET", line)]
    assert outgoing == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root can start a server as another user")
@ONE_AND_TWO
def test_as_another_user(model: str, workers: str) -> None:
    """Checklist 7: an unknown uid without a home can serve."""
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("setpriv is not installed")
    # The interpreter of a developer may lie in a folder that only root can read; reading is all that is granted.
    command: tuple[str, ...] = (
        setpriv,
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "--inh-caps=-all,+dac_read_search",
    )
    command = (*command, "--ambient-caps=-all,+dac_read_search", "--bounding-set=-all,+dac_read_search")
    probe = subprocess.run([*command, "true"], capture_output=True, check=False, timeout=20)
    if probe.returncode != 0:
        pytest.skip("this machine does not let setpriv change users")
    with running(
        "--model", model, "--workers", workers, command=(*command, *SERVE), environ={"HOME": "/nowhere"}
    ) as server:
        pids = (server.process.pid, *server.worker_pids())
        for pid in pids:
            assert re.search(r"^Uid:\s65534\s65534", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        connection.request("POST", "/invocations", "[[1, 2]]")
        assert connection.getresponse().read() == b'{"predictions":[[1.0,2.0]]}'
        connection.close()
        assert server.stop() == 0
