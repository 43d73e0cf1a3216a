"""``lightship serve``: bundles, limits, keys and a socket, put together."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from deploy.errors import UserError
from deploy.serve.app import Limits, build_app
from deploy.serve.served import Models, open_models
from deploy.serve.server import listen, require_certificate, run

KEY_VARIABLE = "LIGHTSHIP_API_KEY"
_LEAST_KEY = 16


def serve(
    bundles: Sequence[Path],
    *,
    host: str,
    port: int,
    threads: int | None,
    max_batch: int,
    queue: int,
    deadline_ms: float,
    max_body_mb: float,
    timeout_s: float,
    api_key_file: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    public_key: Path | None,
    on_ready: Callable[[dict[str, object], list[str]], None],
    warn: Callable[[str], None],
) -> None:
    """Serve until a signal; everything is checked before the first byte is taken.

    The arguments are the options of the command. ``on_ready`` is told, once it answers, what is
    served and where, as data and as lines; ``warn`` what a careful owner would want to know.

    Raises:
        UserError: if a bundle, a key, a certificate or the address is not usable.
    """
    keys = read_keys(api_key_file)
    if (tls_cert is None) != (tls_key is None):
        raise UserError("--tls-cert and --tls-key: one needs the other; give both or none")
    tls = (tls_cert, tls_key) if tls_cert and tls_key else None
    if tls:
        require_certificate(*tls)
    models = open_models(bundles, threads=threads, max_batch=max_batch, public_key=public_key)
    limits = Limits(
        most_waiting=queue,
        deadline_ms=deadline_ms,
        max_batch=max_batch,
        max_body_bytes=max(1, int(max_body_mb * 1e6)),
        body_timeout_s=timeout_s,
    )
    app = build_app(models, limits, keys=keys)
    with listen(host, port) as listening:
        if not is_loopback(host):
            if not keys:
                warn(
                    f"{host} is reachable from outside and everyone is answered: see --api-key-file"
                )
            elif not tls:
                warn(
                    f"{host} is reachable from outside and keys travel in the clear: see --tls-cert"
                )
        taken = listening.getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        url = f"{'https' if tls else 'http'}://{shown}:{taken}"
        run(
            app,
            listening,
            tls=tls,
            patience_s=timeout_s,
            on_ready=lambda: on_ready(*_said(url, models)),
        )


def read_keys(path: Path | None) -> tuple[str, ...]:
    """Return the API keys of a file, or the one of the environment, or none.

    Raises:
        UserError: if the file cannot be read or holds none, or a key is short or no plain ASCII.
    """
    if path is None:
        where, given = f"${KEY_VARIABLE}", os.environ.get(KEY_VARIABLE)
        if given is None:
            return ()
    else:
        where = f"--api-key-file {path}"
        try:
            given = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{where}: cannot be read ({error})") from error
    keys = tuple(line.strip() for line in given.splitlines() if line.strip())
    if not keys:
        raise UserError(f"{where}: holds no key; put one on a line")
    for key in keys:
        if len(key) < _LEAST_KEY or not key.isascii() or not key.isprintable() or " " in key:
            raise UserError(
                f"{where}: a key must be {_LEAST_KEY} printable ASCII characters or more, without "
                "spaces; make one with: openssl rand -hex 32"
            )
    return keys


def is_loopback(host: str) -> bool:
    """Say whether only this machine can reach an address.

    >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("0.0.0.0")
    (True, True, False)
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _said(url: str, models: Models) -> tuple[dict[str, object], list[str]]:
    lines = [f"{url}  ready; a page to try it, {url}/docs for the rest"]
    found: list[dict[str, object]] = []
    for model in models:
        why = model.why_not_merged
        found.append(
            {"name": model.name, "version": model.version, "merged": not why, "why_not": why}
        )
        lines.append(
            f"  {model.name} {model.version}: {model.input.datatype} {[-1, *model.input.shape]}, "
            + (f"a run for each request: {why}" if why else f"up to {model.max_batch} a run")
        )
    return {"url": url, "models": found}, lines
