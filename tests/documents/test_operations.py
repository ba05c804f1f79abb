"""docs/operations.md, typed from top to bottom, without the section on offline times: that needs a hub, so it is typed
where the quick start is."""

import pytest

from support.document import Document, Typist, plain

PAGE = Document("docs/operations.md")


@pytest.fixture
def typist(new_server, tmp_path):
    """A server of its own: the page makes roles."""
    server = new_server()
    database = server.create_database()
    database.run("SET client_min_messages = warning; CREATE EXTENSION sync_outbox")
    typist = Typist(server, tmp_path, database.name)
    yield typist
    typist.close()
    database.close()


def test_it_can_be_typed(typist):
    typed = [block for block in PAGE.blocks if block.language == "sql" and "Operating offline" not in block.headings]
    assert len(typed) > 10
    for block in typed:
        output = typist.sql(block.text)
        assert block.answer is None or plain(output) == plain(block.answer), f"{block}:\n{output}"
    # What was written with capture off is not in the outbox.
    assert typist.sql("SELECT count(*) FROM sync_outbox").split()[2] == "2"
