"""docs/upgrading.md, typed on a site that the real 0.1.0 has filled: each statement before, in or after the update, as the
page has them."""

import pytest

from support import old_site
from support.document import Document, Typist, plain

PAGE = Document("docs/upgrading.md")


@pytest.fixture
def typist(new_server, tmp_path):
    """A server with the new library, and a shell beside the dump of a store."""
    server = new_server(preload=True)
    with server.connect() as admin:
        admin.execute(old_site.ROLES)
    (tmp_path / "store.sql").write_text(old_site.DUMP.read_text())
    typist = Typist(server, tmp_path)
    # The whole restore but for the update, which the page has further up.
    (restore,) = PAGE.below("Restoring a dump of 0.1.0")
    *lines, update = restore.text.splitlines()
    typist.update = update
    typist.sh("\n".join(lines))
    typist.database = "restored"
    yield typist
    typist.close()


def type_block(typist, block):
    output = typist.sql(block.text)
    assert block.answer is None or plain(output) == plain(block.answer), f"{block}:\n{output}"


def version(typist):
    return typist.sql("SELECT extversion FROM pg_extension WHERE extname = 'sync_outbox'").split()[2]


def test_it_can_be_typed(typist):
    assert version(typist) == "0.1.0"
    before = [block for block in PAGE.below("Before the update") if block.language == "sql"]
    update, after = [block for block in PAGE.below("The update") if block.language == "sql"]
    assert len(before) == 3
    for block in [*before, update]:
        type_block(typist, block)
    assert version(typist) != "0.1.0"
    type_block(typist, after)

    # What stands in sentences and in the tables, in a database that is updated.
    typist.sql("CREATE TABLE hub_new (id int PRIMARY KEY)")
    statements = [statement for statement in PAGE.statements() if not statement.startswith(("CREATE EXTENSION", "ALTER EXTENSION"))]
    assert len(statements) > 7
    for statement in statements:
        typist.sql(statement + ";")


def test_the_restore_as_it_stands_ends_updated(typist):
    typist.sh(typist.update)
    assert version(typist) != "0.1.0"


def test_what_is_to_be_found_is_found(typist):
    """The queries of the page list what they are for."""
    typist.sql("""
        ALTER TABLE sales RENAME pan TO card_number; ALTER TABLE stock RENAME store TO shop; ALTER TABLE tariffs RENAME code TO tariff;
        ALTER TABLE hub_sales SET UNLOGGED; ALTER TABLE products RENAME code TO number""")
    missing, excluded, flawed = [block for block in PAGE.below("Before the update") if block.language == "sql"]
    found = plain(typist.sql(missing.text))
    for row in ("sales | exclude | pan", "stock | branch_column | store", "tariffs | key_columns | code", "products | columns | code"):
        assert row in found
    assert "(4 rows)" in found
    assert "hub_sales" in plain(typist.sql(flawed.text))
    typist.sql("ALTER TABLE sales DROP CONSTRAINT sales_pkey; ALTER TABLE sales RENAME card_number TO pan;"
               "ALTER TABLE sales ADD PRIMARY KEY (id, pan)")
    assert "sales | pan" in plain(typist.sql(excluded.text))


def test_a_table_is_attached_anew_in_the_transaction_of_the_update(typist):
    (block,) = [block for block in PAGE.below("The update") if block.language == ""]
    typist.sql(block.text)
    assert version(typist) != "0.1.0"
    typist.sql("SET sync_outbox.reason = 'till opened'; UPDATE tills SET place = 99 WHERE id = 1")
    assert plain(typist.sql("SELECT data->>'place' AS place, reason FROM sync_outbox ORDER BY id DESC LIMIT 1"))[2] == "99 | till opened"
