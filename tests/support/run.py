"""One test run: the private prefix, a template data directory, and every server started from them.

The process that starts pytest makes the directory; xdist's workers find it through the environment and share it.
"""

import contextlib
import os
import pathlib
import pwd
import shutil
import subprocess
import tempfile

import pytest

from . import prefix

ENVIRONMENT = "SYNC_OUTBOX_TEST_RUN"


def account():
    """The user that servers run as: PostgreSQL refuses root."""
    return pwd.getpwnam("postgres") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())


def own(path):
    """Gives one path to the servers' user."""
    user = account()
    os.chown(path, user.pw_uid, user.pw_gid)


def environment():
    """What every server process gets: no locale, PG*, proxy or RUST_BACKTRACE of whoever runs the tests.

    RUST_BACKTRACE would put a backtrace into the DETAIL of every error."""
    return {"PATH": os.environ["PATH"], "LC_ALL": "C", "HOME": "/"}


def create():
    """Makes the run's directory and publishes it to the workers."""
    # Not below a private TMPDIR: the servers' user must be able to get there. Short: a socket's path has 107 bytes.
    where = pathlib.Path(tempfile.mkdtemp(prefix="sync_outbox.", dir="/tmp"))
    where.chmod(0o755)
    run = Run(where)
    try:
        (where / "bindir").symlink_to(prefix.build(where / "pg"))
        template = run.directory("template")
        run.initialise(template)
    except BaseException:
        run.remove()
        raise
    os.environ[ENVIRONMENT] = str(where)
    return run


class Run:
    """The directory of a test run; keeps what was started so that nothing outlives it.

    `programs` names another server's bindir in the directory, for tests of two versions."""

    def __init__(self, where=None, programs="bindir"):
        self.where = pathlib.Path(where or os.environ[ENVIRONMENT])
        self.programs = programs
        self.started = contextlib.ExitStack()

    @property
    def bindir(self):
        return (self.where / self.programs).resolve()

    def directory(self, name):
        """A new directory of the servers' user."""
        path = self.where / name
        path.mkdir(mode=0o700)
        own(path)
        return path

    def command(self, program, *arguments, within=(), through=()):
        """Arguments that run a PostgreSQL program as the servers' user, ended when this process ends; `through`: a command
        that runs it in its turn; `within`: one that does so while it still has our rights, to put it into namespaces.

        setpriv rather than runuser: it replaces itself, so that the pid is the program's."""
        user = account()
        switch = [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--init-groups"] if os.geteuid() == 0 else []
        return [*within, "setpriv", *switch, "--pdeathsig=INT", *through, str(self.bindir / program), *map(str, arguments)]

    def call(self, program, *arguments, cwd="/"):
        """Runs a PostgreSQL program to its end and returns its output; its errors become the test's."""
        done = subprocess.run(self.command(program, *arguments), env=environment(), cwd=cwd, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert done.returncode == 0, f"{program} {arguments}:\n{done.stdout}"
        return done.stdout

    def require(self, extension):
        """Skips the test on a server that does not have this extension."""
        if not (pathlib.Path(self.call("pg_config", "--sharedir").strip()) / "extension" / f"{extension}.control").exists():
            pytest.skip(f"this server has no {extension}")

    def initialise(self, data, *options):
        """Makes a data directory of an empty one."""
        self.call("initdb", "-D", data, "--no-sync", "-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C", *options)

    def clone_template(self, name):
        """A data directory that was initialised once and copied since: a tenth of initdb's time."""
        subprocess.run(["cp", "-a", self.where / "template", self.where / name], check=True)
        return self.where / name

    def close(self):
        """Stops what this process started."""
        self.started.close()

    def remove(self):
        shutil.rmtree(self.where)
