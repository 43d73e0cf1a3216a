"""A bench over ssh, against a real sshd that listens on loopback."""

import getpass
import importlib.metadata
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

import deploy
from deploy import remote
from deploy.cli import cli
from deploy.errors import UserError
from deploy.machine import this_environment
from deploy.record import Benched, MachineBench, Measurement, SessionOptions, sha256_of
from deploy.remote import Remote, bench_on
from deploy.widths import read_widths
from tests.deploy import tiny_onnx

ROOT = Path(deploy.__file__).resolve().parents[1]
QUICK = {"batch": 2, "processes": 5, "seed": 0}
SSHD = shutil.which("sshd") or shutil.which("/usr/sbin/sshd")

needs_sshd = pytest.mark.skipif(
    SSHD is None or shutil.which("ssh") is None,
    reason="needs OpenSSH's server and client: apt-get install openssh-server",
)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def keygen(path):
    subprocess.run(
        [shutil.which("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", str(path)],
        check=True,
        timeout=30,
    )


def answers(port):
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def ssh_config(tmp_path_factory):
    """A configuration with which ``ssh there`` reaches an sshd of our own."""
    folder = tmp_path_factory.mktemp("ssh")
    keygen(folder / "host")
    keygen(folder / "user")
    shutil.copy(folder / "user.pub", folder / "authorized")
    port = free_port()
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {folder}/host\nPidFile none\nUsePAM no\n"
        f"AuthorizedKeysFile {folder}/authorized\nStrictModes no\nPermitRootLogin yes\n"
        "PasswordAuthentication no\n"
    )
    if os.geteuid() == 0:  # where sshd, started as root, wants to lock itself in
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    log = (folder / "log").open("wb")
    server = subprocess.Popen(
        [SSHD, "-D", "-e", "-f", str(folder / "sshd_config")], stdout=log, stderr=log
    )
    config = folder / "config"
    config.write_text(
        f"Host there\n  HostName 127.0.0.1\n  Port {port}\n  User {getpass.getuser()}\n"
        f"  IdentityFile {folder}/user\n  IdentitiesOnly yes\n  StrictHostKeyChecking no\n"
        f"  UserKnownHostsFile {folder}/known\n  LogLevel ERROR\n"
    )
    try:
        end = time.monotonic() + 10
        while not answers(port) and server.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        if not answers(port):
            pytest.skip(f"sshd does not start here: {(folder / 'log').read_text()[-200:]}")
        yield config
    finally:
        server.terminate()
        server.wait(timeout=10)
        log.close()


@pytest.fixture
def there(ssh_config):
    """The machine, whose lightship is this one."""
    python = f"env PYTHONPATH={ROOT} {sys.executable} -m deploy"
    return Remote(host="there", command=python, ssh_config=ssh_config)


@pytest.fixture
def far(monkeypatch, tmp_path):
    """The folder that takes the temporary files of the other side."""
    folder = tmp_path / "far"
    folder.mkdir(exist_ok=True)
    monkeypatch.setattr(remote, "_THERE", f"TMPDIR={folder}; {remote._THERE}")
    return folder


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "a model's.onnx"
    path.write_bytes(tiny_onnx.linear(np.eye(3)))
    return path


@needs_sshd
def test_a_bench_on_another_machine_comes_home_and_leaves_nothing_there(
    there, far, model, tmp_path
):
    out = tmp_path / "pi4.json"
    words = ["bench", "--on", "there", "--ssh-config", str(there.ssh_config), "--out", str(out)]
    words += ["--remote-command", there.command, "--processes", "5", str(model)]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0, result.stderr
    assert "p50 ms" in result.stdout
    seen = msgspec.json.decode(out.read_bytes(), type=MachineBench)  # what report --add reads
    assert [known.path for known in seen.models] == [str(model)]
    assert {known.sha256 for known in seen.models} == {sha256_of(model)}
    assert len(seen.measurement.latencies) == 1
    assert list(far.iterdir()) == []


@needs_sshd
def test_widths_are_measured_on_another_machine_and_come_home(there, far, tmp_path):
    out = tmp_path / "pi4-widths.json"
    words = ["widths", "--on", "there", "--ssh-config", str(there.ssh_config), "--out", str(out)]
    words += ["--remote-command", there.command, "--processes", "5", "--conv", "none"]
    words += ["--dense", "2,4", "--precision", "int8", "--threads", "2"]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0, result.stderr
    table = read_widths(out)
    assert [(t.operator, t.precision, t.width) for t in table.times] == [
        ("dense", "int8", 2), ("dense", "int8", 4),
    ]  # fmt: skip
    assert table.session.threads == 2
    assert list(far.iterdir()) == []


@needs_sshd
@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("no-such-lightship", "has no lightship that is called 'no-such-lightship'"),
        ("sh -c 'echo lightship, version 0.0.7' --", "has lightship 0.0.7, here is"),
        (f"{sys.executable} -c 'raise SystemExit(1)'", "has no lightship that is called"),
    ],
)
def test_a_machine_that_cannot_bench_is_one_line_that_says_why(there, far, model, command, words):
    with pytest.raises(UserError) as refused:
        bench_on(Remote(host="there", command=command, ssh_config=there.ssh_config), [model], QUICK)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
    assert list(far.iterdir()) == []


@needs_sshd
def test_what_lightship_refuses_there_is_told_here(there, far, tmp_path):
    (tmp_path / "no.onnx").write_bytes(b"no model")
    with pytest.raises(
        UserError, match=r"lightship failed there \(exit code 2\): .*/no\.onnx: is no ONNX model"
    ) as refused:
        bench_on(there, [tmp_path / "no.onnx"], QUICK)
    assert str(tmp_path / "no.onnx") in str(refused.value)
    assert list(far.iterdir()) == []


@needs_sshd
def test_a_machine_that_is_not_there_is_one_line(there, model, tmp_path):
    config = tmp_path / "config"
    config.write_text(f"Host there\n  HostName 127.0.0.1\n  Port {free_port()}\n")
    with pytest.raises(UserError, match=r"^there: ssh does not get there: .*refused"):
        bench_on(Remote(host="there", ssh_config=config), [model], QUICK)


def processes_under(folder):
    listed = subprocess.run(
        [shutil.which("ps"), "-eo", "args="], capture_output=True, text=True, check=True
    )
    return [line for line in listed.stdout.splitlines() if str(folder) in line]


@needs_sshd
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_bench_stops_there_and_leaves_nothing(there, far, model, tmp_path, how):
    script = (
        "import sys, signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from pathlib import Path\nfrom deploy import remote\n"
        f"remote._THERE = {remote._THERE!r}\n"
        f"there = remote.Remote(host='there', command={there.command!r}, "
        f"ssh_config=Path({str(there.ssh_config)!r}))\n"
        f"remote.bench_on(there, [Path({str(model)!r})], {{'processes': 500}})\n"
    )
    here = subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
    )
    end = time.monotonic() + 30
    while not list(far.glob("lightship-on-*/lightship-bench-*")) and time.monotonic() < end:
        time.sleep(0.05)
    assert list(far.glob("lightship-on-*/lightship-bench-*"))
    here.send_signal(how)
    here.wait(timeout=30)
    end = time.monotonic() + 30
    while (list(far.iterdir()) or processes_under(far)) and time.monotonic() < end:
        time.sleep(0.05)
    assert list(far.iterdir()) == []
    assert processes_under(far) == []


STUBBORN = """
import os, signal, sys, tempfile, time
if "--version" in sys.argv:
    print("lightship, version", {version!r})
    sys.exit()
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(1))
scratch = tempfile.mkdtemp(prefix="lightship-bench-")
while len(told) < {deaf}:
    time.sleep(0.05)
time.sleep(2)  # as long as it cleans up, it is left in peace
open({log!r}, "w").write(str(len(told)))
"""


@needs_sshd
@pytest.mark.parametrize("deaf", [1, 2])
def test_who_does_not_end_at_once_is_told_again_but_not_while_it_cleans_up(
    there, far, model, tmp_path, deaf, monkeypatch
):
    monkeypatch.setattr(remote, "_PATIENCE_S", 4)
    script, log = tmp_path / "stubborn.py", tmp_path / "log"
    version = importlib.metadata.version("lightship")
    script.write_text(STUBBORN.format(version=version, deaf=deaf, log=str(log)))
    command = f"{sys.executable} {script}"
    stubborn = Remote(host="there", command=command, ssh_config=there.ssh_config)

    def ask():
        with pytest.raises(UserError):
            bench_on(stubborn, [model], {})

    bench = threading.Thread(target=ask)
    hung_up = []
    monkeypatch.setattr(remote, "_send", lambda archive, stdin: send(archive, stdin, hung_up))
    bench.start()
    end = time.monotonic() + 30
    while not list(far.glob("lightship-on-*/lightship-bench-*")) and time.monotonic() < end:
        time.sleep(0.05)
    hung_up[0].close()  # the lifeline, as if we had been killed
    bench.join(timeout=40)
    assert not bench.is_alive()
    assert log.read_text() == str(deaf)
    assert list(far.iterdir()) == []


def send(archive, stdin, kept):
    stdin.write(archive.read())
    stdin.flush()
    kept.append(stdin)


@needs_sshd
def test_a_machine_without_tar_says_that_it_has_none(there, far, tmp_path, monkeypatch):
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("mktemp", "rm", "sleep", "head", "tail", "cat", "mkdir", "env"):
        (tools / name).symlink_to(shutil.which(name))
    monkeypatch.setattr(remote, "_THERE", f"PATH={tools}; {remote._THERE}")
    large = tmp_path / "large.onnx"
    large.write_bytes(bytes(1 << 20))
    with pytest.raises(UserError, match=r"could not unpack the models: .*tar.*not found"):
        bench_on(there, [large], QUICK)


def test_without_ssh_the_line_says_what_to_install(monkeypatch, tmp_path, model):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="needs the command ssh"):
        bench_on(Remote(host="there"), [model], QUICK)


@pytest.mark.parametrize("host", ["", "-oProxyCommand=true", "a b"])
def test_a_host_that_ssh_would_take_for_an_option_is_refused(host):
    with pytest.raises(UserError, match="--on: needs a host"):
        Remote(host=host)


def test_a_missing_model_is_refused_before_anyone_is_called(tmp_path):
    with pytest.raises(UserError, match=r"no\.onnx: no such file"):
        bench_on(Remote(host="there"), [tmp_path / "no.onnx"], QUICK)


@pytest.mark.parametrize("answer", [b"Welcome!\n{}", b"\xff", b"{}"])
def test_an_answer_that_is_no_measurement_is_one_line(answer, tmp_path):
    with pytest.raises(UserError, match="there: answered with something else"):
        remote._named(answer, {"0-x": str(tmp_path)}, "there")


def test_a_warning_from_there_names_the_model_as_it_is_called_here():
    seen = Measurement(
        environment=this_environment(), session=SessionOptions(), processes=5,
        sessions_per_process=1, latencies=(), warnings=("the speed-up of 0-m.onnx is known badly",),
    )  # fmt: skip
    there = MachineBench(
        models=(Benched(path="0-m.onnx", sha256="ab" * 32, bundle=None),), measurement=seen
    )
    here = remote._named(msgspec.json.encode(there), {"0-m.onnx": "my/m.onnx"}, "there")
    assert here.models[0].path == "my/m.onnx"
    assert here.measurement.warnings == ("the speed-up of my/m.onnx is known badly",)


def test_every_option_of_a_bench_that_the_other_machine_knows_travels(model, monkeypatch):
    sent = {}

    def stands_in(there, models, options, **_):
        sent.update(options)
        raise UserError("asked")

    monkeypatch.setattr(remote, "bench_on", stands_in)
    CliRunner().invoke(cli, ["bench", "--on", "pi", "--trust-model", "--threads", "2", str(model)])
    assert (sent["trust_model"], sent["threads"]) == (True, 2)
    here_alone = {"models", "host", "remote_command", "ssh_config", "out", "public_key", "as_json"}
    assert set(sent) == {one.name for one in cli.commands["bench"].params} - here_alone


def test_options_travel_as_words():
    asked = {"threads": 2, "batch": None, "arena": False, "mmap": True, "memory_limit": "64MB"}
    assert list(remote._words(asked)) == [
        "--threads=2", "--no-arena", "--mmap", "--memory-limit=64MB",
    ]  # fmt: skip
