"""Makes tests/fixtures/0.1.0.sql: a site that the real version 0.1.0 has filled, as pg_dump writes it.

It was made once, and is made again only if the site needs something more."""

import re
import sys

from support import old_site, run as runs
from support.old_release import Release
from support.receiver import Receiver
from support.server import Server

HEAD = """\
-- A site of sync_outbox 0.1.0, filled by its real library: `/usr/bin/python3 tests/dump_0_1_0.py`, which is pg_dump's
-- output but for the names of a machine. Restore it behind CREATE EXTENSION sync_outbox VERSION '0.1.0'.

"""

# What is of the machine that it was made on.
NEUTRAL = """
    UPDATE sync_outbox_identity SET host = 'store-1', data_directory = '/var/lib/postgresql/15/main';
    UPDATE sync_outbox_target SET base_url = 'https://hub.example.com';
"""


def main():
    run = runs.create()
    try:
        release = Release(run, "old").install_old()
        server = Server(release.run, "old", settings=old_site.SETTINGS).start()
        with server.connect() as admin:
            admin.execute(old_site.ROLES)
        database = server.create_database(name="store")
        receiver = Receiver()
        old_site.fill(database, receiver)
        database.run(NEUTRAL)
        database.close()
        dump = release.run.call("pg_dump", "-h", server.sockets, "-U", "postgres", "store")
        # Newer minor releases of psql alone know these two.
        dump = re.sub(r"^\\(un)?restrict .*\n\n?", "", dump, flags=re.M)
        old_site.DUMP.write_text(HEAD + dump)
        release.close()
    finally:
        run.close()
        run.remove()


if __name__ == "__main__":
    sys.exit(main())
