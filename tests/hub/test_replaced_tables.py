"""An accepted table is replaced, or gets another owner, while changes are applied: nobody's code runs with the rights
of somebody else."""

import json
import threading

import pytest
from psycopg import errors

from support.bait import WIN, is_super, mallory
from support.hub_database import change, insert
from support.wait import wait_for


def hostile(db, name):
    """A role, a function of it that tries to make it superuser, and its session."""
    role = db.role(name)
    db.run(f"CREATE SCHEMA {name} AUTHORIZATION {role}; GRANT USAGE ON SCHEMA {name} TO PUBLIC")
    session = db.session(user=role)
    session.execute(f"""CREATE TABLE {name}.who (who text); GRANT INSERT ON {name}.who TO PUBLIC;
        CREATE FUNCTION {name}.evil() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            INSERT INTO {name}.who VALUES (current_user);
            BEGIN EXECUTE 'ALTER ROLE {role} SUPERUSER'; EXCEPTION WHEN insufficient_privilege THEN NULL; END;
            RETURN coalesce(NEW, OLD); END $$""")
    return role, session


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read"])
def test_a_table_that_changes_its_owner_while_it_is_looked_up(hub, isolation):
    """A superuser gives an accepted table away; its new owner has prepared a trigger, which waits in the queue for the
    lock in front of apply. What apply knows of the owner is from before."""
    role, eve = hostile(hub.db, "eve")
    admin = hub.session(autocommit=False)
    admin.execute(f"ALTER TABLE sales OWNER TO {role}")
    outcome = []

    def plant():
        with hub.db.server.connect(hub.db.name, role, False) as session:
            session.execute("CREATE TRIGGER x BEFORE INSERT ON public.sales FOR EACH ROW EXECUTE FUNCTION eve.evil()")
            session.execute("ALTER TABLE public.sales ENABLE ALWAYS TRIGGER x")

    def apply():
        with hub.db.server.connect(hub.db.name) as session:
            session.execute(f"SET default_transaction_isolation = '{isolation}'")
            outcome.append(session.execute("SELECT sync_outbox_apply(%s::json)::text",
                                           [json.dumps({"changes": [insert(id=1)]})]).fetchone()[0])

    def waiting(n):
        return wait_for(lambda: hub.value("SELECT count(*) FROM pg_locks WHERE NOT granted"
                                          " AND relation = 'sales'::regclass") == n)

    threads = [threading.Thread(target=plant), threading.Thread(target=apply)]
    for n, thread in enumerate(threads):
        thread.start()
        waiting(n + 1)
    admin.commit()
    for thread in threads:
        thread.join()
    print(outcome)
    ran = {row.who for row in hub.rows("SELECT who FROM eve.who")}
    assert not is_super(hub.db, role) and ran <= {role}, ran


def test_a_partition_of_another_owner(hub):
    """The root is a superuser's and accepted, a leaf was given to somebody else."""
    role, eve = hostile(hub.db, "eve")
    hub.run("CREATE TABLE root (id int PRIMARY KEY, qty int) PARTITION BY RANGE (id);"
            " CREATE TABLE leaf PARTITION OF root DEFAULT;"
            f"SELECT sync_outbox_accept('root'); ALTER TABLE leaf OWNER TO {role}")
    eve.execute("CREATE TRIGGER x BEFORE INSERT ON public.leaf FOR EACH ROW EXECUTE FUNCTION eve.evil();"
                " ALTER TABLE public.leaf ENABLE ALWAYS TRIGGER x")
    print(hub.apply(insert("root", id=1)))
    ran = {row.who for row in hub.rows("SELECT who FROM eve.who")}
    assert not is_super(hub.db, role) and ran <= {role}, ran


def test_a_partition_of_somebody_else_does_not_run_as_the_parents_owner(hub):
    role, session = mallory(hub)
    hub.run("CREATE TABLE sup (id int PRIMARY KEY, a int) PARTITION BY RANGE (id)")
    session.execute("CREATE TABLE evil.part (id int NOT NULL, a int);"
                    "CREATE TRIGGER win BEFORE INSERT ON evil.part FOR EACH ROW EXECUTE FUNCTION evil.win();"
                    "ALTER TABLE evil.part ENABLE ALWAYS TRIGGER win")
    hub.run("ALTER TABLE sup ATTACH PARTITION evil.part DEFAULT")
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match="another owner"):
        hub.run("SELECT sync_outbox_accept('sup')")
    hub.run("ALTER TABLE sup DETACH PARTITION evil.part; SELECT sync_outbox_accept('sup');"
            "ALTER TABLE sup ATTACH PARTITION evil.part DEFAULT")
    assert len(hub.apply(change("INSERT", {"id": 1}, {"id": 1}, "sup"))["errors"]) == 1
    assert hub.rows("TABLE evil.who") == [] and not is_super(hub, role)


def test_a_table_that_is_replaced_during_the_call_is_not_written_as_the_old_ones_owner(hub):
    """A schema's owner may drop what others have in it: in public that is the database's owner."""
    role, session = mallory(hub)
    hub.run("CREATE TABLE evil.sup (id int PRIMARY KEY, a int)")  # a superuser's
    hub.run("SELECT sync_outbox_accept('evil.sup')")
    session.execute(f"""CREATE FUNCTION evil.swap() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        EXECUTE 'DROP TABLE evil.sup; CREATE TABLE evil.sup (id int PRIMARY KEY, a int); {WIN}';
        RETURN NEW; END $$;
        CREATE TRIGGER swap BEFORE INSERT ON evil.bait FOR EACH ROW EXECUTE FUNCTION evil.swap();
        ALTER TABLE evil.bait ENABLE ALWAYS TRIGGER swap""")
    sup = [change("INSERT", {"id": n}, {"id": n}, "sup", "evil") for n in (1, 2)]
    bait = change("INSERT", {"id": 1}, {"id": 1}, "bait", "evil")
    print(hub.apply(sup[0], bait, sup[1]), hub.rows("TABLE evil.who"))
    assert not is_super(hub, role)
    assert "postgres" not in [row.who for row in hub.rows("TABLE evil.who")]


def test_a_table_that_gets_another_owner_while_apply_waits(hub):
    role, session = mallory(hub)
    hub.run("CREATE TABLE evil.sup (id int PRIMARY KEY, a int)")
    hub.run("SELECT sync_outbox_accept('evil.sup')")
    giving = hub.session(autocommit=False)
    giving.execute(f"ALTER TABLE evil.sup OWNER TO {role}")
    answers = []
    with hub.session() as applying:
        thread = threading.Thread(target=lambda: answers.append(
            hub.apply(change("INSERT", {"id": 1}, {"id": 1}, "sup", "evil"), session=applying)))
        thread.start()
        hub.db.wait_until_blocked(applying)
        giving.execute(f"SET LOCAL ROLE {role}; {WIN}")
        giving.commit()
        thread.join()
    print(answers, hub.rows("TABLE evil.who"))
    assert not is_super(hub, role)
    assert "postgres" not in [row.who for row in hub.rows("TABLE evil.who")]


@pytest.mark.parametrize("wrapped", ["domain", "index", "rls", "rule"])
def test_a_swapped_table_through_other_code(hub, wrapped):
    """The swap does not need a trigger: any code of the bait's owner does."""
    role, session = mallory(hub)
    hub.run("CREATE TABLE evil.sup (id int PRIMARY KEY, a int)")
    hub.run("SELECT sync_outbox_accept('evil.sup')")
    session.execute(f"""CREATE FUNCTION evil.swap(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN
        EXECUTE 'DROP TABLE IF EXISTS evil.sup; CREATE TABLE evil.sup (id int PRIMARY KEY, a int); {WIN}'; RETURN $1;
        END $$""")
    session.execute({
        "domain": "CREATE DOMAIN evil.d AS int CHECK (evil.swap(VALUE) > 0); ALTER TABLE evil.bait ALTER a TYPE evil.d",
        "index": "CREATE INDEX ON evil.bait (evil.swap(a))",
        "rls": "ALTER TABLE evil.bait ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;"
               " CREATE POLICY p ON evil.bait WITH CHECK (evil.swap(a) > 0)",
        "rule": "CREATE RULE r AS ON INSERT TO evil.bait DO ALSO SELECT evil.swap(1);"
                " ALTER TABLE evil.bait ENABLE ALWAYS RULE r"}[wrapped])
    sup = [change("INSERT", {"id": n}, {"id": n}, "sup", "evil") for n in (1, 2)]
    bait = change("INSERT", {"id": 1}, {"id": 1, "a": 1}, "bait", "evil")
    print(hub.apply(sup[0], bait, sup[1]), hub.rows("TABLE evil.who"))
    assert not is_super(hub, role)


def test_a_database_owner_in_public(hub):
    """The realistic form: the database belongs to an ordinary role, and a superuser's table lies in public."""
    role = hub.db.role("app")
    hub.run(f"ALTER DATABASE {hub.db.name} OWNER TO {role}; CREATE TABLE ledger (id int PRIMARY KEY)")
    hub.run("SELECT sync_outbox_accept('ledger')")
    session = hub.db.session(user=role)
    session.execute(f"""CREATE TABLE bait (id int PRIMARY KEY);
        CREATE FUNCTION win() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN EXECUTE 'ALTER ROLE {role} SUPERUSER';
        RETURN NEW; END $$;
        CREATE FUNCTION swap() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        EXECUTE 'DROP TABLE public.ledger; CREATE TABLE public.ledger (id int PRIMARY KEY);
        CREATE TRIGGER win BEFORE INSERT ON public.ledger FOR EACH ROW EXECUTE FUNCTION public.win();
        ALTER TABLE public.ledger ENABLE ALWAYS TRIGGER win';
        RETURN NEW; END $$;
        CREATE TRIGGER swap BEFORE INSERT ON bait FOR EACH ROW EXECUTE FUNCTION swap();
        ALTER TABLE bait ENABLE ALWAYS TRIGGER swap""")
    hub.run("SELECT sync_outbox_accept('bait')")
    print(hub.apply(insert("ledger", id=1), insert("bait", id=1), insert("ledger", id=2)))
    assert not is_super(hub, role)


def test_own_triggers_may_call_apply_again(hub):
    """Recursion: apply inside apply, by an owner who has the right."""
    role, session = mallory(hub)
    hub.run(f"GRANT EXECUTE ON FUNCTION sync_outbox_apply(json) TO {role}")
    inner = insert(id=5)
    session.execute(f"""CREATE FUNCTION evil.again() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        PERFORM public.sync_outbox_apply('{json.dumps({"changes": [inner]})}'); RETURN NEW; END $$;
        CREATE TRIGGER again BEFORE INSERT ON evil.bait FOR EACH ROW EXECUTE FUNCTION evil.again();
        ALTER TABLE evil.bait ENABLE ALWAYS TRIGGER again""")
    bait, mine = change("INSERT", {"id": 1}, {"id": 1}, "bait", "evil"), insert(id=6)
    hub.db.server.set(sync_outbox__apply_statement_timeout="1s")
    with hub.session() as applying:
        print(hub.apply(bait, mine, session=applying), hub.content())
        state = applying.execute("SELECT current_user, current_setting('session_replication_role')").fetchone()
        assert state == ("postgres", "origin")
        applying.execute("SELECT pg_sleep(1.5)")
