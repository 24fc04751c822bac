"""Private database and cache servers for the tests, and what goes with them.

PostgreSQL, MariaDB, Redis, Memcached, and Valkey where it is installed.

Each listens on a free loopback port, keeps its files in a temporary directory and trades
durability for speed. None can outlive the process that started it, however that process ends:
the kernel signals the server when its parent dies, and a shell waiting for the parent's end
removes the directory. So nothing here has to catch a signal.

    with RedisServer(persistence="rdb") as redis:
        redis.port
        redis.pause(), redis.resume(), redis.kill(), redis.restart()

`python -m tests.servers` runs them all until it is interrupted, and prints the variables
that let test runs share them.
"""

from __future__ import annotations

import atexit
import functools
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    from typing_extensions import Self

HOST = "127.0.0.1"
DIRECTORY_VARIABLE = "ORMCACHE_TEST_DIRECTORY"
SECONDS_TO_START = 60
SECONDS_TO_STOP = 10


class MissingProgram(RuntimeError):
    """A server's program is not installed."""

    def __init__(self, server: type[Server], program: str) -> None:
        super().__init__(
            f"{server.name}'s program {program} is missing: apt-get install {server.package}"
        )
        self.server = server


class ServerFailed(RuntimeError):
    """A server did not start; the message holds the end of its log."""


class Server:
    """A server process of ours, with its own port and its own files."""

    name: ClassVar[str]
    package: ClassVar[str]
    programs: ClassVar[tuple[str, ...]]

    # What ends the server in good order, and what the kernel sends when our process is gone.
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    orphan_signal: ClassVar[signal.Signals] = signal.SIGKILL

    def __init__(self) -> None:
        for program in self.programs:
            find_program(program, self)
        self.port = free_port()
        self.files = Path(tempfile.mkdtemp(prefix=f"{self.key()}-", dir=directory()))
        os.chown(self.files, *account()[:2])
        self._process: subprocess.Popen[bytes] | None = None
        _servers_of_this_process().append(self)

    @classmethod
    def key(cls) -> str:
        return cls.name.lower().replace(" ", "-")

    @classmethod
    def variable(cls) -> str:
        """The environment variable that holds the port of the shared server of this kind."""
        return f"ORMCACHE_TEST_{cls.key().upper()}_PORT"

    @classmethod
    def for_all(cls) -> Self:
        """A server that tests will share: as far as it can, it refuses what is felt by others."""
        return cls()

    # What each kind of server has to say.

    def preparation(self) -> Sequence[str]:
        """The command that fills the directory before the first start, if there is one."""
        return ()

    def command(self) -> Sequence[str]:
        raise NotImplementedError

    def is_ready(self) -> bool:
        raise NotImplementedError

    # What a test can do.

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{self.name} on {HOST}:{self.port}, pid {self.pid or 'none'}>"

    @property
    def pid(self) -> int | None:
        """The server's process id while it runs."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self) -> None:
        """Start, on the same port and with the same files as before.

        The server lives as long as the *thread* that starts it: that is the kernel's notion
        of a parent.
        """
        start_together([self])

    def stop(self) -> None:
        """End in good order; files and port are kept for the next `start()`."""
        if self.pid:
            self.resume()
            self._signal(self.stop_signal)
            try:
                self._wait_for_end()
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        """End as in a crash (SIGKILL); files and port are kept for the next `start()`."""
        if self.pid:
            self._signal(signal.SIGKILL)
            self._wait_for_end()

    def restart(self) -> None:
        self.stop()
        self.start()

    def pause(self) -> None:
        """Hang: connections are still accepted by the kernel, but nothing is answered."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        """End for good and remove the files."""
        self.stop()
        shutil.rmtree(self.files, ignore_errors=True)
        with suppress(ValueError):
            _servers_of_this_process().remove(self)

    # How it is done.

    def _signal(self, number: signal.Signals) -> None:
        if self._process is None or self._process.poll() is not None:
            raise RuntimeError(f"{self!r} is not running")
        self._process.send_signal(number)

    def _wait_for_end(self) -> None:
        assert self._process is not None
        self._process.wait(SECONDS_TO_STOP)

    def _spawn(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        uid, gid, is_ours = account()
        # setpriv takes the account first and the death signal last: a change of account
        # would clear the signal. That is also why no server may change it by itself.
        privileges = ["setpriv", f"--pdeathsig={self.orphan_signal.name[3:]}"]
        if not is_ours:
            privileges += [f"--reuid={uid}", f"--regid={gid}", "--clear-groups"]
        with (self.files / "log").open("ab") as log:
            return subprocess.Popen(
                [*privileges, "--", *command],
                cwd=self.files,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C is for pytest, which may go on (in a debugger).
                start_new_session=True,
            )

    def _prepare(self) -> subprocess.Popen[bytes] | None:
        is_first_start = not (self.files / "log").exists()
        command = self.preparation()
        return self._spawn(command) if is_first_start and command else None

    def _launch(self) -> None:
        if self.pid:
            raise RuntimeError(f"{self!r} is already running")
        self._process = self._spawn(self.command())

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + SECONDS_TO_START
        while not self.is_ready():
            if not self.pid:
                raise self._failure("ended while starting")
            if time.monotonic() > deadline:
                raise self._failure(f"is not ready after {SECONDS_TO_START} seconds")
            time.sleep(0.02)
        if not self.pid:
            raise self._failure("lost its port to another process")

    def _failure(self, what: str) -> ServerFailed:
        log = (self.files / "log").read_text(errors="replace")
        return ServerFailed(f"{self.name} {what}; its log ends with:\n{log[-2000:]}")


class PostgreSQLServer(Server):
    name = "PostgreSQL"
    package = "postgresql"
    programs: ClassVar[tuple[str, ...]] = ("initdb", "postgres", "pg_isready")

    # "Immediate shutdown": the files are thrown away, but shared memory is given back.
    stop_signal = signal.SIGQUIT
    orphan_signal = signal.SIGQUIT

    user: ClassVar[str] = "postgres"

    def __init__(self, *, durable: bool = False) -> None:
        """`durable`: a commit waits for the disk, as PostgreSQL does unless told otherwise."""
        super().__init__()
        self.durable = durable

    @classmethod
    def variable(cls) -> str:
        return "ORMCACHE_TEST_POSTGRES_PORT"

    def preparation(self) -> Sequence[str]:
        return [
            find_program("initdb", self),
            "--pgdata=data",
            f"--username={self.user}",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            "--no-sync",
        ]

    def command(self) -> Sequence[str]:
        options = {
            "port": self.port,
            "listen_addresses": HOST,
            "unix_socket_directories": "",
            "max_connections": 200,
            "max_prepared_transactions": 20,
            # In our files, where a crash leaves nothing behind that we would not remove.
            "dynamic_shared_memory_type": "mmap",
        }
        if not self.durable:
            # For replicas: what was committed is sent to them when it has been written.
            options["wal_writer_delay"] = "10ms"
            options |= dict.fromkeys(("fsync", "synchronous_commit", "full_page_writes"), "off")
        settings = [f"--{option}={value}" for option, value in options.items()]
        return [find_program("postgres", self), "-D", "data", *settings]

    def is_ready(self) -> bool:
        ready = [find_program("pg_isready", self), "--quiet", "-h", HOST, "-p", str(self.port)]
        return subprocess.run(ready, check=False).returncode == 0

    def ask(self, sql: str) -> str:
        """The only value that a query gives, as text."""
        return _psql(self, "postgres", sql)


class PostgreSQLReplica(PostgreSQLServer):
    """A streaming replica ("hot standby") of a server that runs; all its databases are there.

    with PostgreSQLServer() as primary, PostgreSQLReplica(primary) as replica:
        replica.pause_replay()  # it receives what is written, and does not show it
        replica.resume_replay()
        replica.wait_for_primary()
    """

    name = "PostgreSQL replica"
    programs: ClassVar[tuple[str, ...]] = ("pg_basebackup", "psql", *PostgreSQLServer.programs)

    def __init__(self, primary: PostgreSQLServer) -> None:
        super().__init__()
        self.primary = primary

    def preparation(self) -> Sequence[str]:
        return [
            find_program("pg_basebackup", self),
            *("-h", HOST, "-p", str(self.primary.port), "-U", self.user),
            "--pgdata=data",
            "--write-recovery-conf",
            "--wal-method=stream",
            "--checkpoint=fast",
            "--no-sync",
        ]

    def pause_replay(self) -> None:
        self.ask("SELECT pg_wal_replay_pause()")
        _wait_until(lambda: self.ask("SELECT pg_get_wal_replay_pause_state()") == "paused", self)

    def resume_replay(self) -> None:
        self.ask("SELECT pg_wal_replay_resume()")

    def wait_for_primary(self) -> None:
        """Wait until it shows what the primary has written so far."""
        # Whatever is not committed yet is not sent until something else is.
        self.primary.ask(
            "SET synchronous_commit = on; SELECT pg_logical_emit_message(true, 'tests', 'step')"
        )
        position = int(self.primary.ask("SELECT pg_current_wal_insert_lsn() - '0/0'"))
        if position % 8192 in (24, 40):
            # That is behind the header of a new page, which has no record yet.
            position -= position % 8192
        question = f"SELECT pg_last_wal_replay_lsn() - '0/0' >= {position}"
        _wait_until(lambda: self.ask(question) == "t", self)

    def promote(self) -> None:
        """Take over from the primary, which should be dead by then."""
        self.ask("SELECT pg_promote()")


class PgBouncerServer(Server):
    """PgBouncer in front of a PostgreSQL server that runs; all its databases are behind it.

    with PgBouncerServer(postgresql.port, options={"default_pool_size": "2"}) as bouncer:
        bouncer.port  # for HOST and PORT of a database alias
        bouncer.ask("SHOW SERVERS")

    `options` are lines of pgbouncer.ini's first section.
    """

    name = "PgBouncer"
    package = "pgbouncer"
    programs: ClassVar[tuple[str, ...]] = ("pgbouncer",)

    # It would wait for its clients to go.
    stop_signal = signal.SIGKILL

    def __init__(
        self,
        postgresql_port: int | str,
        *,
        pool_mode: Literal["transaction", "session", "statement"] = "transaction",
        options: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        user = PostgreSQLServer.user
        self.options = {
            "listen_addr": HOST,
            "listen_port": str(self.port),
            "unix_socket_dir": "",
            "auth_type": "trust",
            "auth_file": "users",
            "admin_users": user,
            "pool_mode": pool_mode,
            "max_client_conn": "200",
            # Seconds, after which a new connection is tried once PostgreSQL has refused one.
            "server_login_retry": "1",
        }
        self.options |= options or {}
        lines = [
            "[databases]",
            f"* = host={HOST} port={postgresql_port}",
            "[pgbouncer]",
            *(f"{name} = {value}" for name, value in self.options.items()),
        ]
        (self.files / "pgbouncer.ini").write_text("\n".join(lines) + "\n")
        (self.files / "users").write_text(f'"{user}" ""\n')

    def command(self) -> Sequence[str]:
        return [find_program("pgbouncer", self), "pgbouncer.ini"]

    def is_ready(self) -> bool:
        # The question whether it speaks TLS, which is answered before anybody logs in.
        return bool(exchange(self.port, bytes.fromhex("0000000804d2162f")))

    def ask(self, command: str) -> str:
        """What a command of its console answers, as lines of text."""
        return _psql(self, "pgbouncer", command)


class MariaDBServer(Server):
    name = "MariaDB"
    package = "mariadb-server"
    programs: ClassVar[tuple[str, ...]] = ("mariadb-install-db", "mariadbd")

    # An orderly end would only save what is thrown away.
    stop_signal = signal.SIGKILL

    user: ClassVar[str] = "root"

    def __init__(self, *, server_id: int | None = None) -> None:
        """`server_id`: keep a binary log, as a primary, under this number."""
        super().__init__()
        self.server_id = server_id

    def _options(self) -> Sequence[str]:
        return [
            "--no-defaults",
            f"--datadir={self.files / 'data'}",
            # In /tmp, a starting server would remove the temporary tables of another.
            f"--tmpdir={self.files}",
            "--innodb-flush-log-at-trx-commit=0",
            "--innodb-doublewrite=0",
            "--innodb-flush-method=O_DIRECT_NO_FSYNC",
            # Containers often forbid it, and mariadbd would complain.
            "--innodb-use-native-aio=0",
        ]

    def preparation(self) -> Sequence[str]:
        return [
            find_program("mariadb-install-db", self),
            *self._options(),
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
        ]

    def command(self) -> Sequence[str]:
        return [
            find_program("mariadbd", self),
            *self._options(),
            f"--port={self.port}",
            f"--bind-address={HOST}",
            "--socket=mariadb.sock",
            "--pid-file=mariadb.pid",
            "--skip-name-resolve",
            "--max-connections=200",
            "--character-set-server=utf8mb4",
            *self._replication(),
        ]

    def _replication(self) -> Sequence[str]:
        if self.server_id is None:
            return []
        return [f"--server-id={self.server_id}", "--log-bin=binlog", "--gtid-strict-mode"]

    def is_ready(self) -> bool:
        # The server speaks first, once it can take connections.
        return bool(exchange(self.port, b""))

    def ask(self, sql: str) -> str:
        """What a query gives, as text."""
        return _output_of(
            [
                find_program("mariadb", self),
                *("--no-defaults", "-h", HOST, "-P", str(self.port), "-u", self.user),
                *("--skip-column-names", "--batch", "-e", sql),
            ]
        )


class MariaDBReplica(MariaDBServer):
    """A replica, by global transaction ids, of a server that was made with a `server_id`.

    It gets all that the primary has written since its first start.
    """

    name = "MariaDB replica"
    programs: ClassVar[tuple[str, ...]] = ("mariadb", *MariaDBServer.programs)

    def __init__(self, primary: MariaDBServer) -> None:
        assert primary.server_id is not None
        super().__init__(server_id=primary.server_id + 1)
        self.primary = primary

    def start(self) -> None:
        super().start()
        self.ask(
            # It goes on by itself when it has run before.
            "STOP SLAVE; "
            f"CHANGE MASTER TO MASTER_HOST='{HOST}', MASTER_PORT={self.primary.port}, "
            f"MASTER_USER='{self.user}', MASTER_USE_GTID=slave_pos; START SLAVE"
        )

    def pause_replay(self) -> None:
        self.ask("STOP SLAVE SQL_THREAD")

    def resume_replay(self) -> None:
        self.ask("START SLAVE SQL_THREAD")

    def wait_for_primary(self) -> None:
        """Wait until it shows what the primary has written so far."""
        position = self.primary.ask("SELECT @@global.gtid_binlog_pos")
        if self.ask(f"SELECT MASTER_GTID_WAIT('{position}', {SECONDS_TO_START})") != "0":
            raise self._failure("is not in step with its primary")


def _psql(server: Server, database: str, sql: str) -> str:
    address = ["-h", HOST, "-p", str(server.port), "-U", PostgreSQLServer.user, "-d", database]
    return _output_of([find_program("psql", server), *address, "-XAtqc", sql])


def _output_of(command: Sequence[str]) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stderr}")
    return done.stdout.strip()


def _wait_until(is_so: Callable[[], bool], server: Server) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while not is_so():
        if time.monotonic() > deadline:
            raise server._failure("does not do what it was told")
        time.sleep(0.02)


class RedisServer(Server):
    """A Redis server; by default it keeps nothing over a restart.

    `persistence="rdb"` saves when it is stopped, but not when it is killed;
    `persistence="aof"` keeps every answered command in both cases.
    `options` are lines of redis.conf, such as `{"maxmemory": "2mb"}`.
    """

    name = "Redis"
    package = "redis-server"
    programs: ClassVar[tuple[str, ...]] = ("redis-server",)

    # Django's cache for it, and what its URLs begin with.
    backend: ClassVar[str] = "django.core.cache.backends.redis.RedisCache"
    scheme: ClassVar[str] = "redis"

    def __init__(
        self,
        *,
        persistence: Literal["rdb", "aof"] | None = None,
        replica_of: RedisServer | None = None,
        options: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.options = {
            "port": str(self.port),
            "bind": HOST,
            "databases": "1024",
            "enable-debug-command": "local",
            "repl-diskless-sync-delay": "0",
            "save": "3600 1" if persistence == "rdb" else "",
            "appendonly": "yes" if persistence == "aof" else "no",
            "appendfsync": "always",
        }
        if replica_of is not None:
            self.options["replicaof"] = f"{HOST} {replica_of.port}"
        self.options |= options or {}

    @classmethod
    def for_all(cls) -> Self:
        # Were there no rule against it, a test that kills sockets would kill those of the tests
        # that happen to run beside it: at worst, what these have just stored is not there.
        rules = (
            "-flushall -shutdown -debug -client|kill -client|pause -client|no-evict "
            "-config|set -config|rewrite -script|flush -script|kill -function|flush"
        )
        return cls(options={"user": f"default on nopass ~* &* +@all {rules}"})

    def command(self) -> Sequence[str]:
        # Every option has a value, if only an empty one.
        words = [[f"--{name}", *(value.split() or [""])] for name, value in self.options.items()]
        return [find_program(self.programs[0], self), *(word for line in words for word in line)]

    def is_ready(self) -> bool:
        # Both an answer and a demand for a password say that it serves.
        return exchange(self.port, b"PING\r\n").startswith((b"+PONG", b"-NOAUTH"))

    def serve_tls(self) -> None:
        """Listen on the port `options["tls-port"]`, too; with `certificate.pem` in the files."""
        request = (
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 "
            f"-subj /CN=localhost -addext subjectAltName=IP:{HOST},DNS:localhost "
            "-keyout key.pem -out certificate.pem"
        )
        subprocess.run(request.split(), cwd=self.files, check=True, capture_output=True)
        # For the account of the server.
        (self.files / "key.pem").chmod(0o644)
        self.options |= {
            "tls-port": str(free_port()),
            "tls-cert-file": "certificate.pem",
            "tls-key-file": "key.pem",
            "tls-auth-clients": "no",
        }

    def wait_for_primary(self, seconds: float = 10) -> None:
        """Wait until this replica has the data of its primary."""
        deadline = time.monotonic() + seconds
        while b"master_link_status:up" not in exchange(self.port, b"INFO replication\r\n"):
            if time.monotonic() > deadline:
                raise self._failure("is not in step with its primary")
            time.sleep(0.02)


class ValkeyServer(RedisServer):
    """A Valkey server: the same options, commands and protocol."""

    name = "Valkey"
    package = "valkey-server"
    programs: ClassVar[tuple[str, ...]] = ("valkey-server",)

    backend = "django_valkey.cache.ValkeyCache"
    scheme = "valkey"


class MemcachedServer(Server):
    name = "Memcached"
    package = "memcached"
    programs: ClassVar[tuple[str, ...]] = ("memcached",)

    def __init__(self, *, arguments: Sequence[str] = ()) -> None:
        super().__init__()
        self.arguments = arguments

    @classmethod
    def for_all(cls) -> Self:
        # Without flush_all.
        return cls(arguments=["-F"])

    def command(self) -> Sequence[str]:
        program = find_program("memcached", self)
        return [program, "-l", HOST, "-p", str(self.port), "-U", "0", *self.arguments]

    def is_ready(self) -> bool:
        return exchange(self.port, b"version\r\n").startswith(b"VERSION")


SHARED: tuple[type[Server], ...] = (
    PostgreSQLServer,
    MariaDBServer,
    RedisServer,
    ValkeyServer,
    MemcachedServer,
)

OWN: tuple[type[Server], ...] = (PostgreSQLReplica, PgBouncerServer, MariaDBReplica)
"""What only the tests start that need it."""

OPTIONAL: tuple[type[Server], ...] = (ValkeyServer,)
"""What nobody has to have: not every supported Debian has a package of it."""

REQUIRED = tuple(kind for kind in (*SHARED, *OWN) if kind not in OPTIONAL)


def missing_programs(kinds: Iterable[type[Server]] = (*SHARED, *OWN)) -> dict[str, str]:
    """The programs that are not installed, each with the Debian package that has it."""
    return {
        program: kind.package
        for kind in kinds
        for program in kind.programs
        if not _path_of(program)
    }


def is_installed(kind: type[Server]) -> bool:
    return not missing_programs([kind])


def start_shared(kinds: Iterable[type[Server]] = SHARED) -> list[Server]:
    """Start one server of each kind and put the ports into the environment."""
    servers = [kind.for_all() for kind in kinds]
    start_together(servers)
    os.environ[DIRECTORY_VARIABLE] = str(directory())
    for server in servers:
        os.environ[server.variable()] = str(server.port)
    return servers


def start_together(servers: Sequence[Server]) -> None:
    """Start servers at the same time: preparing the files of a database takes seconds."""
    preparations = [(server, server._prepare()) for server in servers]
    for server, preparation in preparations:
        if preparation and preparation.wait() != 0:
            raise server._failure("could not prepare its files")
    for server in servers:
        server._launch()
    for server in servers:
        server._wait_until_ready()


def find_program(program: str, server: Server) -> str:
    path = _path_of(program)
    if not path:
        raise MissingProgram(type(server), program)
    return path


def _path_of(program: str) -> str | None:
    return shutil.which(program, path=os.pathsep.join(_program_directories()))


@functools.cache
def _program_directories() -> tuple[str, ...]:
    """PATH, and where Debian puts servers: not everybody's PATH has these."""
    return (
        *os.environ.get("PATH", os.defpath).split(os.pathsep),
        "/usr/local/sbin",
        "/usr/sbin",
        *_newest_first(Path("/usr/lib/postgresql").glob("*/bin")),
    )


def _newest_first(directories: Iterator[Path]) -> list[str]:
    return [str(path) for path in sorted(directories, key=_version, reverse=True)]


def _version(postgresql_bin: Path) -> float:
    try:
        return float(postgresql_bin.parent.name)
    except ValueError:
        return 0


@functools.cache
def account() -> tuple[int, int, bool]:
    """The uid and gid that run the servers, and whether they are our own.

    PostgreSQL, MariaDB and Memcached refuse to run as root.
    """
    if os.geteuid() != 0:
        return os.geteuid(), os.getegid(), True
    nobody = pwd.getpwnam("nobody")
    return nobody.pw_uid, nobody.pw_gid, False


def free_port() -> int:
    """A port nobody listens on, below those the kernel gives to outgoing connections.

    So no client can sit on the port of a server that is killed and will be restarted.
    """
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        if port in _ports_given(os.getpid()):
            continue
        with socket.socket() as probe, suppress(OSError):
            probe.bind((HOST, port))
            _ports_given(os.getpid()).add(port)
            return port


@functools.cache
def _ports_given(pid: int) -> set[int]:
    return set()


def exchange(port: int, message: bytes) -> bytes:
    """Send a message and return the first part of the answer, or nothing."""
    try:
        with socket.create_connection((HOST, port), timeout=1) as connection:
            connection.sendall(message)
            return connection.recv(65536)
    except OSError:
        return b""


def directory() -> Path:
    """This process's temporary directory; it goes when the process does."""
    return _directory(os.getpid())


# These two are kept by process id, so that a forked child begins with nothing:
# the servers and the files it sees are its parent's to stop and to remove.


@functools.cache
def _directory(pid: int) -> Path:
    path = Path(tempfile.mkdtemp(prefix="ormcache-tests-"))
    path.chmod(0o711)
    # The shell is told of our end by the end of its input, even if we are killed. It tries
    # more than once: dying servers may still be writing.
    waits_for_our_end = 'cat; for try in 1 2 3 4 5; do rm -rf "$0" && break; sleep 1; done'
    remover = subprocess.Popen(
        ["/bin/sh", "-c", waits_for_our_end, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    atexit.register(_end, pid, remover)
    return path


@functools.cache
def _servers_of(pid: int) -> list[Server]:
    return []


def _servers_of_this_process() -> list[Server]:
    return _servers_of(os.getpid())


def _end(pid: int, remover: subprocess.Popen[bytes]) -> None:
    if os.getpid() == pid:
        for server in [*_servers_of(pid)]:
            server.close()
        remover.communicate()


def main() -> None:
    """Run the shared servers until interrupted."""
    kinds = [kind for kind in SHARED if kind not in OPTIONAL or is_installed(kind)]
    if missing := missing_programs(kinds):
        sys.exit(f"Missing: {missing}. apt-get install {' '.join(sorted({*missing.values()}))}")
    servers = start_shared(kinds)
    for variable in [DIRECTORY_VARIABLE, *(server.variable() for server in servers)]:
        print(f"export {variable}={os.environ[variable]}", flush=True)
    with suppress(KeyboardInterrupt):
        signal.pause()


if __name__ == "__main__":
    main()
