"""How every command behaves: mistakes end in one line, JSON goes to stdout, a signal ends the work."""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import click

from deploy.errors import UserError

# Everything but click is imported inside the commands: --help answers at once.


class _OneLine(click.ClickException):
    """A user's mistake, printed as one line."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        click.echo(f"error: {' '.join(self.message.split())}", err=True)


def _in_one_line(error: click.UsageError) -> _OneLine:
    """Return click's own complaint, which it would print in several lines."""
    command = error.ctx.command_path if error.ctx else "lightship"
    return _OneLine(f"{error.format_message().rstrip('.')}; see {command} --help")


class Commands(click.Group):
    """A group whose commands end a user's mistake in one line and exit code 2."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """Read the words before the command; without any, click prints the help."""
        if not args:
            return super().make_context(info_name, args, parent, **extra)
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.UsageError as error:
            raise _in_one_line(error) from error

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; where there is none, name the one that was meant."""
        close = difflib.get_close_matches(args[0], self.commands, n=1)
        if close and args[0] not in self.commands:
            ctx.fail(f"no command {args[0]!r}, did you mean {close[0]}?")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; let a bug keep its traceback."""
        try:
            return super().invoke(ctx)
        except UserError as error:
            raise _OneLine(str(error)) from error
        except click.UsageError as error:
            raise _in_one_line(error) from error
        except KeyboardInterrupt as stop:
            # Most commands keep nothing; one that does raises it with what to do.
            click.echo("; ".join(["stopped", *map(str, stop.args)]), err=True)
            ctx.exit(130)  # 128 + SIGINT, as a shell says it
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            _drop_what_was_not_printed()
            where = error.filename or "what is printed, or a temporary file,"
            raise _OneLine(f"{where} cannot be written: no space is left") from error

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order in which they were added: that of the work."""
        return list(self.commands)


def _drop_what_was_not_printed() -> None:
    """Let Python's last flush of stdout succeed: a full disk has been told of, and ends with its own code."""
    with contextlib.suppress(OSError):  # where tests stand in for it, stdout has no number
        number = sys.stdout.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)


def print_json(value: object) -> None:
    """Print a record as one JSON document on stdout."""
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(value)).decode())


@contextlib.contextmanager
def goes_on_when_repeated() -> Iterator[None]:
    """Let Ctrl-C say that what the block has finished is kept, for the same command to go on from."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command goes on where it was") from None


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, so that no process or file is left behind."""
    import signal
    import threading

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say how a signal ends it
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def timing_bar() -> Iterator[Callable[[int, int], None]]:
    """Show on stderr how much of a timing is done, and end it on SIGTERM; gives what is to be told."""
    with (
        ended_by_sigterm(),
        click.progressbar(length=100, label="timing", file=sys.stderr) as bar,
    ):
        yield lambda done, total: bar.update(int(100 * done / total) - bar.pos)
