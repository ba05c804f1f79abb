"""A cast to json that a user has made, and a table whose rows are encoded with it."""

# Fails for 'bad'.
SQL_CAST = """
    CREATE TYPE colour AS ENUM ('red', 'green', 'bad');
    CREATE FUNCTION colour_json(colour) RETURNS json LANGUAGE sql IMMUTABLE AS
        $$ SELECT CASE WHEN $1 = 'bad' THEN (1 / (length($1::text) - 3))::text::json
                       ELSE to_json('x' || $1::text) END $$;
    CREATE CAST (colour AS json) WITH FUNCTION colour_json(colour);
    CREATE TABLE paint (id int PRIMARY KEY, c colour);
"""
