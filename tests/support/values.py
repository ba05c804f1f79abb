"""Types and values for the property that what is captured equals to_jsonb(row): per type its awkward values, and a
strategy that makes further ones. A value is the text PostgreSQL reads, the same under every session setting."""

import datetime
import json

from hypothesis import strategies as st

# What the server has to have, and what is made before the table; the mood has a cast to json, as extensions' types may have one.
EXTENSIONS = ("hstore", "citext")
PREPARE = '''
    CREATE TYPE colour AS ENUM ('red', 'sea "green"', 'blåbær');
    CREATE DOMAIN price AS numeric(12,3) CHECK (VALUE IS NULL OR VALUE >= 0);
    CREATE DOMAIN moment AS timestamptz;
    CREATE TYPE item AS (code text, at timestamptz, ratio float8, tags text[], "odd ""name""" date, "Größe" interval);
    CREATE TYPE basket AS (main item, rest item[], hue colour);
    CREATE DOMAIN item_domain AS item;
    CREATE TYPE moments AS RANGE (subtype = timestamptz, multirange_type_name = momentses);
    CREATE TYPE mood AS ENUM ('good', 'bad');
    CREATE FUNCTION mood_to_json(mood) RETURNS json IMMUTABLE LANGUAGE sql
        AS $$ SELECT json_build_object('mood', $1::text, 'words', array['so', 'so']) $$;
    CREATE CAST (mood AS json) WITH FUNCTION mood_to_json(mood);
'''

text = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=30)
ints = st.integers
floats64 = st.floats().map(repr)
floats32 = st.floats(width=32).map(repr)


def micros(value):
    return f"{value // 1_000_000:02d}.{value % 1_000_000:06d}".rstrip("0").rstrip(".")


dates = st.dates().map(lambda day: day.isoformat()) | ints(1, 4712).map(lambda year: f"{year:04d}-02-03 BC")
times = st.builds(lambda h, m, s: f"{h:02d}:{m:02d}:{micros(s)}", ints(0, 23), ints(0, 59), ints(0, 59_999_999))
zones = st.sampled_from(["+00", "-03:30", "+05:45", "+15:59:59", "-15:59:59", "+01:02:03"])
timestamps = st.builds(lambda day, at: f"{day} {at}" if not day.endswith("BC") else f"{day[:-3]} {at} BC", dates, times)
timestamptz = st.datetimes(datetime.datetime(2, 1, 1), datetime.datetime(9998, 1, 1)).map(lambda t: f"{t.isoformat()}+00")
intervals = st.builds(
    lambda months, days, us, sign: f"{months} mons {days} days {sign}{us // 3_600_000_000}:{us // 60_000_000 % 60:02d}:{micros(us % 60_000_000)}",
    ints(-5000, 5000), ints(-5000, 5000), ints(0, 10**13), st.sampled_from("+-"))
numerics = (st.decimals(allow_nan=False, allow_infinity=False).map(lambda n: format(n, "f")).filter(lambda n: len(n) < 2000)
            | st.builds(lambda n, scale: f"{n}e{scale}", ints(-10**40, 10**40), ints(-200, 200)))
json_values = st.recursive(
    st.none() | st.booleans() | ints(-10**30, 10**30) | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3), max_leaves=8)
documents = json_values.map(json.dumps)


def quoted(part):
    return '"' + part.replace("\\", "\\\\").replace('"', '\\"') + '"'


def array(of, size=4):
    return st.lists(of.map(quoted) | st.just("NULL"), max_size=size).map(lambda parts: "{" + ",".join(parts) + "}")


def row(*fields):
    return st.tuples(*[field.map(lambda v: '"' + v.replace("\\", "\\\\").replace('"', '""') + '"') | st.just("") for field in fields]).map(
        lambda parts: "(" + ",".join(parts) + ")")


def span(of, key=None):
    return st.tuples(of, of, st.sampled_from(["[)", "(]", "[]", "()"])).map(
        lambda ends: (lambda low, high: f"{ends[2][0]}{quoted(str(low))},{quoted(str(high))}{ends[2][1]}")(*sorted(ends[:2], key=key)))


items = row(text, timestamptz, floats64, array(text), dates, intervals)
moments = span(timestamptz)
bits = st.text("01", min_size=1, max_size=40)
hexes = st.binary(max_size=60).map(lambda b: "\\x" + b.hex())
addresses = st.ip_addresses().map(str)
points = st.builds("({},{})".format, st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))

# (type, awkward values, strategy)
TYPES = [
    ("boolean", ["t", "f"], st.sampled_from(["t", "f"])),
    ("smallint", ["-32768", "32767"], ints(-2**15, 2**15 - 1).map(str)),
    ("integer", ["-2147483648", "0"], ints(-2**31, 2**31 - 1).map(str)),
    ("bigint", ["-9223372036854775808", "9223372036854775807"], ints(-2**63, 2**63 - 1).map(str)),
    ("oid", ["0", "4294967295"], ints(0, 2**32 - 1).map(str)),
    ("numeric", ["NaN", "Infinity", "-Infinity", "0.00", "1e-20", "-1.000", "1e20", "9" * 300, "0." + "0" * 200 + "1", "10000.0001"], numerics),
    ("numeric(20,4)", ["NaN", "1", "-0.00001"], ints(-10**15, 10**15).map(str)),
    ("real", ["NaN", "Infinity", "-Infinity", "-0", "1e-45", "3.4028235e38", "0.1"], floats32),
    ("double precision", ["NaN", "Infinity", "-Infinity", "-0", "5e-324", "1.7976931348623157e308", "0.1", "1e21", "100000",
                          "3.208814734508083e+16"], floats64),
    ("money", ["-92233720368547758.08", "0.01"], ints(-10**12, 10**12).map(lambda n: f"{n}.05")),
    ("text", ["", "é\\\"'\n\r\t\b\f\x01\x7f\u2028𝄞", "long " * 3000, "NULL", "{}"], text),
    ("character varying(40)", ["x" * 40], text),
    ("character(8)", ["ab", ""], st.text("abc é", max_size=8)),
    ('"char"', ["a", "", "\\377"], st.sampled_from("ab\"\\ ")),
    ("name", ["x" * 63], st.text("abc\"é", max_size=20)),
    ("citext", ["MiXed"], text),
    ("bytea", ["", "\\x00ff5c27", "\\x" + "deadbeef" * 3000], hexes),
    ("date", ["infinity", "-infinity", "4713-01-01 BC", "5874897-12-31", "0001-01-01"], dates),
    ("time", ["24:00:00", "00:00:00", "23:59:59.999999"], times),
    ("timetz", ["00:00:00+15:59:59", "12:00:00.5-03:30"], st.builds("{}{}".format, times, zones)),
    ("timestamp", ["infinity", "-infinity", "4713-11-24 00:00:00 BC", "294276-12-31 23:59:59.999999", "2024-02-29 12:00:00.1"], timestamps),
    ("timestamptz", ["infinity", "-infinity", "4713-11-24 00:00:00+00 BC", "294276-12-31 23:59:59.999999+00", "1850-01-01 00:00:00+00",
                     "2024-03-31 01:30:00+00", "0001-12-31 23:59:59 BC+00"], timestamptz),
    ("timestamptz(2)", ["2024-01-01 00:00:00.129+00"], timestamptz),
    ("interval", ["0", "1 year -1 mon 3 days -04:05:06.7", "-178000000 years", "1 mon 00:00:00.000001"], intervals),
    ("uuid", ["00000000-0000-0000-0000-000000000000"], st.uuids().map(str)),
    ("inet", ["::ffff:1.2.3.4/100", "10.0.0.1/8", "::1"], addresses),
    ("cidr", ["10.0.0.0/8", "::/0"], addresses),
    ("macaddr", ["08:00:2b:01:02:03"], st.none()),
    ("macaddr8", ["08:00:2b:01:02:03:04:05"], st.none()),
    ("bit(3)", ["101"], st.sampled_from(["000", "111"])),
    ("bit varying", ["", "1" * 100], bits),
    ("json", ['{"a" : 1,  "b":[null, true, 1e400, 0.10]}', "null", '"\\u00e9"', '{"a":1,"a":2}', '"' + "x" * 9000 + '"'], documents),
    ("jsonb", ['{"a" : 1,  "b":[null, true, 1e40, 0.10]}', "null", '"\\u00e9"', "-0.0", '{"k": "' + "x" * 9000 + '"}'], documents),
    ("jsonpath", ['$."a"[*] ? (@ > 1)'], st.none()),
    ("xml", ["<a b='1'>é<!-- x --></a>"], st.none()),
    ("point", ["(0.1,-1e300)", "(NaN,Infinity)"], points),
    ("line", ["{1,-0.1,3}"], st.none()),
    ("lseg", ["[(0.1,0),(1,1)]"], st.none()),
    ("box", ["(2,2),(0.1,0)"], st.none()),
    ("path", ["[(0.1,0),(1,1)]", "((0,0),(1e-5,2))"], st.none()),
    ("polygon", ["((0.1,0),(1,1),(2,0))"], st.none()),
    ("circle", ["<(0.1,0.3),2>"], st.none()),
    ("tsvector", ["'a':1A 'b\"':2,3B"], st.none()),
    ("tsquery", ["'a' & !'b':*"], st.none()),
    ("pg_lsn", ["16/B374D848"], st.none()),
    ("xid8", ["18446744073709551615"], st.none()),
    ("tid", ["(1,2)"], st.none()),
    ("regclass", ["pg_class"], st.none()),
    ("int4range", ["empty", "(,)", "[1,1]", "[5,)"], span(ints(-1000, 1000))),
    ("numrange", ["[1.0,2.50)", "(,NaN]"], span(ints(-10**20, 10**20))),
    ("daterange", ["[2024-01-01,infinity)", "[-infinity,)"], st.none()),
    ("tsrange", ["[2024-01-01 10:00:00,)"], st.none()),
    ("tstzrange", ['["2024-03-31 01:30:00+00",infinity]'], moments),
    ("tstzmultirange", ['{["2024-03-31 01:30:00+00","2024-04-01 00:00:00+00"),["2025-01-01 00:00:00+00",)}', "{}"], st.none()),
    ("moments", ['["2024-03-31 01:30:00+00",]'], moments),
    ("momentses", ['{["2024-03-31 01:30:00+00",]}'], st.none()),
    ("hstore", ['"a"=>"1", "b"=>NULL', ""], st.none()),
    ("colour", ["red", 'sea "green"', "blåbær"], st.sampled_from(["red", "blåbær"])),
    ("price", ["0", "123456789.125"], ints(0, 10**8).map(str)),
    ("moment", ["2024-10-27 00:30:00+00", "-infinity"], timestamptz),
    ("mood", ["good", "bad"], st.none()),
    ("item", ['(,,,,,)', '("a ""b"" \\\\",2024-03-31 01:30:00+00,NaN,"{x,NULL,""""}",0044-03-15 BC,1 mon)'], items),
    ("item_domain", ['(x,-infinity,-0,{},infinity,-1 days)'], items),
    ("basket", ['("(a,2024-03-31 01:30:00+00,0.1,,,)","{""(b,,,,,)"",NULL}",red)', "(,{},)"], st.none()),
    ("integer[]", ["{}", "{1,NULL,-3}", "{{1,2},{3,4}}", "[0:1]={5,6}", "{{{1}},{{2}}}"], array(ints(-9, 9).map(str))),
    ("bigint[]", ["{" + ",".join(map(str, range(3000))) + "}"], array(ints(-2**63, 2**63 - 1).map(str))),
    ("text[]", ['{"a \\"b\\"",NULL,"NULL","",é}'], array(text)),
    ("boolean[]", ["{t,f,NULL}"], st.none()),
    ("numeric[]", ["{NaN,Infinity,1.00,-0.0}"], array(numerics)),
    ("double precision[]", ["{NaN,-Infinity,0.1,1e21}"], array(floats64)),
    ("date[]", ["{infinity,2024-01-01,0044-03-15 BC}"], array(dates)),
    ("timestamp[]", ["{infinity,2024-01-01 10:00:00.5}"], array(timestamps)),
    ("timestamptz[]", ['{infinity,"2024-03-31 01:30:00+00","0044-03-15 12:00:00+00 BC"}'], array(timestamptz)),
    ("interval[]", ['{"1 mon -1 days",00:00:01}'], array(intervals)),
    ("bytea[]", ['{"\\\\x00ff","\\\\x"}'], array(hexes)),
    ("jsonb[]", ['{"{\\"a\\": 1}",NULL}'], array(documents)),
    ("json[]", ['{"{\\"a\\":  1}",NULL}'], array(documents)),
    ("uuid[]", ["{00000000-0000-0000-0000-000000000000}"], array(st.uuids().map(str))),
    ("tstzrange[]", ['{"[\\"2024-03-31 01:30:00+00\\",)"}'], array(moments)),
    ("colour[]", ['{red,"sea \\"green\\""}'], st.none()),
    ("price[]", ["{1,2.5}"], st.none()),
    ("item[]", ['{"(a,2024-03-31 01:30:00+00,0.1,,,)",NULL}'], array(items, 2)),
    ("mood[]", ["{good,bad,NULL}"], st.none()),
    ("hstore[]", ['{"\\"a\\"=>\\"1\\""}'], st.none()),
    ("point[]", ['{"(0.1,2)"}'], array(points)),
]

# What a session may have set when it writes.
ODD_SETTINGS = {
    "TimeZone": ["Asia/Kathmandu", "America/St_Johns", "Antarctica/Troll", "Europe/Dublin", "<+03>-3", "UTC"],
    "DateStyle": ["German, DMY", "SQL, MDY", "Postgres, DMY", "ISO, YMD"],
    "IntervalStyle": ["sql_standard", "iso_8601", "postgres_verbose", "postgres"],
    "extra_float_digits": ["-15", "0", "1", "3"],
    "bytea_output": ["escape", "hex"],
    "standard_conforming_strings": ["off", "on"],
    "quote_all_identifiers": ["on", "off"],
    "search_path": ["public", "pg_catalog, public", "public, pg_temp"],
    "xmloption": ["document", "content"],
}
