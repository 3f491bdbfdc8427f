"""What dbt knows of the project, as pages for a browser."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from medallion.dbt import DBT_PROJECT
from medallion.errors import FailedError
from warehouse.settings import ConnectionInfo, WarehouseError

HOST = "127.0.0.1"
# A folder of its own: whoever runs dbt by hand meanwhile does not pull the pages away.
PAGES = DBT_PROJECT / "target" / "docs"


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Say nothing of a request."""


def open_server(port: int) -> ThreadingHTTPServer:
    """Take the port, before the time that writing the pages takes.

    Raises:
        WarehouseError: it can't be had.

    """
    try:
        return ThreadingHTTPServer((HOST, port), partial(_Quiet, directory=str(PAGES)))
    except OSError as error:
        raise WarehouseError(
            f"{HOST}:{port} can't be opened ({error.strerror}): choose another with --port."
        ) from None


def write_pages(connection: ConnectionInfo) -> None:
    """Run `dbt docs generate` in this process: the project's descriptions, the database's types.

    Raises:
        FailedError: dbt could not run.

    """
    from dbt.cli.main import dbtRunner  # noqa: PLC0415  (takes seconds)

    os.environ.update(connection.environment())
    folders = ["--project-dir", str(DBT_PROJECT), "--profiles-dir", str(DBT_PROJECT)]
    done = dbtRunner().invoke(
        ["--quiet", "docs", "generate", *folders, "--target-path", str(PAGES)]
    )
    if isinstance(done.exception, KeyboardInterrupt):
        raise done.exception
    if not done.success:
        raise FailedError(f"`dbt docs generate` failed: {done.exception or 'see above'}")


def serve(server: ThreadingHTTPServer) -> None:
    """Answer until Ctrl-C or SIGTERM."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt):
        server.serve_forever()
