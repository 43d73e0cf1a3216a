"""A measurement on another machine, over the system's own ``ssh``: there and back in one connection.

What there is of lightship on the other side times; the models travel as a tar archive on stdin.
After it, stdin stays open as a lifeline: when it ends, whatever the reason, the other side stops
what it runs and removes its folder.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import shlex
import shutil
import subprocess
import tarfile
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import msgspec

from deploy.bundle.opened import is_bundle, open_bundle
from deploy.bundle.signature import signature_path
from deploy.errors import UserError, as_given, naming_what_was_given
from deploy.record import MachineBench
from deploy.widths import WidthTable, decode_widths

_CONNECT_S = 15
_PATIENCE_S = 10
"""How long lightship may take there to end when it is told to."""
_MOST_ANSWER_BYTES = 1 << 24
_NO_FOLDER, _OTHER_VERSION, _NO_LIGHTSHIP, _NO_ARCHIVE = 71, 72, 73, 74

# One line, for shells that end a quoted word at the line's end. Fields in {} are filled in.
_THERE = " ".join(
    [
        "d=$(mktemp",
        "-d",
        '"${{TMPDIR:-/tmp}}/lightship-on-XXXXXX")',
        "||",
        "exit",
        "{no_folder};",
        "trap",
        # What is being ended may still write: then the folder is not empty when it is to go.
        "'for n in 1 2 3 4 5; do rm -rf",
        '"$d"',
        "2>/dev/null && break; sleep 1; done'",
        "EXIT;",
        "trap",
        "'exit",
        "143'",
        "HUP",
        "INT",
        "TERM;",
        "TMPDIR=$d;",
        "export",
        "TMPDIR;",
        "v=$({command}",
        "--version",
        '2>"$d/why")',
        "||",
        "{{",
        "tail",
        "-n",
        "1",
        '"$d/why"',
        ">&2;",
        "exit",
        "{no_lightship};",
        "}};",
        "v=${{v##*",
        "}};",
        "if",
        "[",
        '"$v"',
        "!=",
        "{version}",
        "];",
        "then",
        "echo",
        '"$v"',
        ">&2;",
        "exit",
        "{other_version};",
        "fi;",
        "mkdir",
        '"$d/in"',
        "&&",
        "head",
        "-c",
        "{size}",
        "|",
        "tar",
        "-xf",
        "-",
        "-C",
        '"$d/in"',
        "||",
        "exit",
        "{no_archive};",
        # A shell that says "Terminated" to who is gone would end before it has cleaned up.
        "trap '' PIPE;",
        "exec",
        "3<&0;",
        "(",
        "cd",
        '"$d/in"',
        "&&",
        "exec",
        "{command}",
        "{verb}",
        "{words}",
        "--json",
        ")",
        "<&-",
        "3<&-",
        "&",
        "p=$!;",
        "(",
        "cat",
        "<&3",
        ">/dev/null;",
        # Once more, if it has not ended when it could have cleaned up: Python drops what a signal
        # raises while it clears a lock of an import away.
        "for n in 1 2 3 4 5 6; do kill -TERM $p 2>/dev/null || exit; sleep {patience}; done;",
        "kill",
        "-KILL",
        "$p",
        ")",
        ">/dev/null",
        "2>&1",
        "&",
        "w=$!;",
        "exec",
        "3<&-;",
        "wait",
        "$p;",
        "rc=$?;",
        "kill",
        "$w",
        "2>/dev/null;",
        "wait",
        "$p",
        "2>/dev/null;",
        "exit",
        "$rc",
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """A machine that ssh reaches.

    Attributes:
        host: as ssh takes it: ``user@host``, or a name of ssh's configuration.
        command: how lightship is called there, as its shell reads it.
        ssh_config: a configuration file for ssh in place of the user's.
    """

    host: str
    command: str = "lightship"
    ssh_config: Path | None = None

    def __post_init__(self) -> None:
        if not self.host or self.host.startswith("-") or any(c.isspace() for c in self.host):
            raise UserError(f"--on: needs a host such as pi@pi4.local, got {self.host!r}")


def bench_on(
    there: Remote,
    models: Sequence[Path],
    options: Mapping[str, object],
    *,
    public_key: Path | None = None,
    on_line: Callable[[str], None] = lambda _: None,
) -> MachineBench:
    """Time models on another machine, and leave nothing there.

    Args:
        there: the machine.
        models: ONNX files and bundles; they are sent.
        options: those of ``lightship bench``, by name; None and False are not given.
        public_key: whose signature each model has to bear, a PEM file that stays here; None asks
            for none.
        on_line: called with each line that the other side says on stderr.

    Returns:
        What it measured, with the models named as here.

    Raises:
        UserError: if a file is missing or not signed as asked, or ssh, the machine or its lightship
            fails.
    """
    names = [f"{index}-{path.name or 'model'}" for index, path in enumerate(models)]
    words = [*(f"./{name}" for name in names), *_words(options)]
    given = {name: str(path) for name, path in zip(names, models, strict=True)}
    with (
        tempfile.TemporaryDirectory(prefix="lightship-on-") as folder,
        naming_what_was_given(given),
    ):
        sent = models
        if public_key is not None:
            sent = [
                _signed_copy(path, Path(folder, name), public_key)
                for name, path in zip(names, models, strict=True)
            ]
        files = dict(zip(names, sent, strict=True))
        answer = _asked(
            there, "bench", words, files, on_line=lambda line: on_line(as_given(line, given))
        )
    return _named(answer, given, there.host)


def _signed_copy(path: Path, copy: Path, public_key: Path) -> Path:
    """Copy a bundle and check the copy, so that what is sent is what was checked.

    Raises:
        UserError: if it is no bundle, damaged or not signed as asked.
    """
    is_bundle(
        path, public_key=public_key
    )  # it and the next say what is wrong with the bundle itself
    open_bundle(path, public_key=public_key)
    (shutil.copytree if path.is_dir() else shutil.copyfile)(path, copy)
    shutil.copyfile(signature_path(path), signature_path(copy))
    open_bundle(copy, public_key=public_key)
    return copy


def widths_on(
    there: Remote,
    options: Mapping[str, object],
    *,
    on_line: Callable[[str], None] = lambda _: None,
) -> WidthTable:
    """Measure on another machine how long layers of each width take there.

    Args:
        there: the machine; nothing is sent, since it writes what it times itself.
        options: those of ``lightship widths``, by name; None is not given.
        on_line: called with each line that the other side says on stderr.

    Raises:
        UserError: if ssh, the machine or its lightship fails, or it answers with something else.
    """
    answer = _asked(there, "widths", list(_words(options)), {}, on_line)
    return decode_widths(answer, where=there.host)


def _asked(
    there: Remote,
    verb: str,
    words: Sequence[str],
    files: Mapping[str, Path],
    on_line: Callable[[str], None],
) -> bytes:
    """Return the JSON that a command of lightship prints there, beside files that are sent."""
    with tempfile.TemporaryFile(prefix="lightship-on-") as archive:
        _pack(list(files.values()), list(files), archive)
        size = archive.tell()
        archive.seek(0)
        version = importlib.metadata.version("lightship")
        script = _THERE.format(
            command=there.command,
            verb=verb,
            version=shlex.quote(version),
            size=size,
            words=shlex.join(words),
            no_folder=_NO_FOLDER,
            no_lightship=_NO_LIGHTSHIP,
            other_version=_OTHER_VERSION,
            no_archive=_NO_ARCHIVE,
            patience=_PATIENCE_S,
        )
        return _ask(there, script, archive, version=version, on_line=on_line)


def _words(options: Mapping[str, object]) -> Iterator[str]:
    for name, value in options.items():
        flag = name.replace("_", "-")
        if value is True:
            yield f"--{flag}"
        elif value is False and name == "arena":
            yield "--no-arena"
        elif value is not None and value is not False:
            yield f"--{flag}={value}"


def _pack(models: Sequence[Path], names: Sequence[str], archive: IO[bytes]) -> None:
    """Write files and folders, and nothing of who owns them, as a tar archive."""
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for path, name in zip(models, names, strict=True):
            if not path.exists():
                raise UserError(f"{path}: no such file; give an ONNX model or a bundle")
            files = sorted(path.iterdir()) if path.is_dir() else [path]
            for file in files:
                content = file.read_bytes()
                inside = f"{name}/{file.name}" if path.is_dir() else name
                info = tarfile.TarInfo(inside)
                info.size, info.mode = len(content), 0o600
                tar.addfile(info, io.BytesIO(content))


def _ask(
    there: Remote,
    script: str,
    archive: IO[bytes],
    *,
    version: str,
    on_line: Callable[[str], None],
) -> bytes:
    """Run the script there and return what it printed."""
    words = ["ssh", "-T", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={_CONNECT_S}"]
    words += ["-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4"]
    if there.ssh_config is not None:
        words += ["-F", str(there.ssh_config)]
    words += ["--", there.host, f"sh -c {shlex.quote(script)}"]
    try:
        ssh = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
    except FileNotFoundError:
        raise UserError("--on: needs the command ssh; install OpenSSH's client") from None
    if ssh.stdin is None or ssh.stdout is None or ssh.stderr is None:
        raise TypeError("Popen made no pipes")
    last: deque[str] = deque(maxlen=1)
    listener = threading.Thread(target=_listen, args=(ssh.stderr, last, on_line), daemon=True)
    sender = threading.Thread(target=_send, args=(archive, ssh.stdin), daemon=True)
    try:
        listener.start()
        sender.start()
        answer = ssh.stdout.read(_MOST_ANSWER_BYTES + 1)
        if len(answer) > _MOST_ANSWER_BYTES:
            raise UserError(
                f"{there.host}: answered with more than a measurement; is it lightship?"
            )
        code = ssh.wait()
    finally:
        _hang_up(ssh, sender, listener)
    if code != 0:
        why = _why(there, code, last[0] if last else "it said nothing", version)
        raise UserError(f"{there.host}: {why}")
    return answer


def _listen(stderr: IO[bytes], last: deque[str], on_line: Callable[[str], None]) -> None:
    for raw in stderr:
        line = raw.decode(errors="replace").strip()
        if line:
            last.append(line)
            on_line(line)


def _send(archive: IO[bytes], stdin: IO[bytes]) -> None:
    try:
        while chunk := archive.read(1 << 16):
            stdin.write(chunk)
        stdin.flush()  # and it stays open
    except (OSError, ValueError):
        return  # the other side ended first; its exit code says why


def _hang_up(
    ssh: subprocess.Popen[bytes], sender: threading.Thread, listener: threading.Thread
) -> None:
    """Let go of the lifeline, wait for the other side to clean up, and end ssh."""
    if ssh.poll() is None and sender.is_alive():
        ssh.terminate()  # in the middle of sending: what arrives is cut off, which ends it there
    sender.join(timeout=_CONNECT_S)
    _close(ssh.stdin)
    try:
        ssh.wait(timeout=_CONNECT_S)
    except subprocess.TimeoutExpired:
        ssh.kill()
        ssh.wait()
    listener.join(timeout=_CONNECT_S)
    _close(ssh.stdout)
    _close(ssh.stderr)


def _close(pipe: IO[bytes] | None) -> None:
    if pipe is not None:
        with contextlib.suppress(OSError):  # what was not sent yet has nobody to go to
            pipe.close()


def _why(there: Remote, code: int, last: str, version: str) -> str:
    """Say in a few words why nothing was measured."""
    said = last.removeprefix("error: ")[:300]
    match code:
        case 255:
            return f"ssh does not get there: {said}"
        case c if c == _NO_FOLDER:
            return f"has no room for a temporary folder: {said}"
        case c if c == _NO_LIGHTSHIP:
            return (
                f"has no lightship that is called {there.command!r} ({said}); install it there, or "
                "say how it is called with --remote-command, such as '~/venv/bin/lightship'"
            )
        case c if c == _OTHER_VERSION:
            return f"has lightship {said}, here is {version}; install the same on both"
        case c if c == _NO_ARCHIVE:
            return f"could not unpack the models: {said}"
        case _:
            return f"lightship failed there (exit code {code}): {said}"


def _named(answer: bytes, given: Mapping[str, str], host: str) -> MachineBench:
    """Return what was measured, of the models as they are called here, by their names there."""
    try:
        seen = msgspec.json.decode(answer, type=MachineBench)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UserError(
            f"{host}: answered with something else than a measurement ({error}); does its shell "
            "print when it starts?"
        ) from error
    if [known.path for known in seen.models] != list(given):
        raise UserError(f"{host}: answered about other models than those that were sent")
    models = tuple(msgspec.structs.replace(known, path=given[known.path]) for known in seen.models)
    warnings = tuple(as_given(warning, given) for warning in seen.measurement.warnings)
    measurement = msgspec.structs.replace(seen.measurement, warnings=warnings)
    return msgspec.structs.replace(seen, models=models, measurement=measurement)
