"""The owner of an accepted table who wants to be superuser of the hub."""

WIN = ("CREATE TRIGGER win BEFORE INSERT ON evil.sup FOR EACH ROW EXECUTE FUNCTION evil.win();"
       "ALTER TABLE evil.sup ENABLE ALWAYS TRIGGER win")


def mallory(hub):
    """A role that owns the accepted table evil.bait, and a session of it.

    The trigger function evil.win() writes down as whom it runs, and tries to make the role superuser."""
    role = hub.db.role("mallory")
    hub.run(f"CREATE SCHEMA evil AUTHORIZATION {role}")
    session = hub.db.session(user=role)
    session.execute("CREATE TABLE evil.bait (id int PRIMARY KEY, a int); CREATE TABLE evil.who (who text)")
    hub.run("SELECT sync_outbox_accept('evil.bait')")
    session.execute(f"""
        CREATE FUNCTION evil.win() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog AS $$ BEGIN
        INSERT INTO evil.who VALUES (current_user);
        BEGIN EXECUTE 'ALTER ROLE {role} SUPERUSER'; EXCEPTION WHEN OTHERS THEN NULL; END;
        RETURN NEW; END $$""")
    return role, session


def is_super(hub, role):
    return hub.value("SELECT rolsuper FROM pg_roles WHERE rolname = %s", [role])
