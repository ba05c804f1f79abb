//! Writing a datum as JSON: equal to what `to_jsonb` gives in a session in UTC with default output settings and a
//! `search_path` of `pg_catalog` alone.
//!
//! Common types are written here, others by PostgreSQL's own functions. The rules (what is a number, what is quoted,
//! which casts count) are those of `json_categorize_type` in PostgreSQL's json.c.

use crate::pg::buffer::Buffer;
use crate::pg::datum::{self, Function, Output, UsersFunction, Value};
use crate::pg::guc::Nest;
use crate::pg::role::ActAs;
use crate::pg::types::{self, JsonKind};
use pgrx::pg_sys;

/// How the values of one column are written.
pub enum Encoder {
    Bool,
    Int2,
    Int4,
    Int8,
    Float4,
    Float8,
    /// Text that is a number unless it says NaN or Infinity.
    Numeric(Output),
    /// A varlena whose bytes are the text.
    Text,
    Bytea,
    Uuid,
    /// Date, timestamp or timestamptz.
    DateTime(pg_sys::Oid),
    /// json, which is valid already.
    Json,
    /// A function of PostgreSQL that gives json: arrays of its own types.
    ToJson(Function, ObjectNames),
    /// A function that gives json and is, or calls, a user's cast: composites, arrays of users' types.
    UsersJson(UsersFunction, ObjectNames),
    /// An output function that gives json as it is.
    RawOutput(Output),
    /// Anything else: its text, quoted.
    Output(Output, ObjectNames),
}

/// How names of tables, functions, types and so on are written where they are part of a value (`regclass` and similar
/// types).
pub enum ObjectNames {
    /// There are none.
    None,
    /// With their schema, unless that is `pg_catalog`, whatever the writer's `search_path` says.
    InFull,
    /// As [`ObjectNames::InFull`], if this composite type contains such a name by now.
    InFullOf(pg_sys::Oid),
}

impl ObjectNames {
    fn of(type_oid: pg_sys::Oid) -> Self {
        match types::contents(type_oid) {
            contents if contents.composites => ObjectNames::InFullOf(type_oid),
            contents if contents.names => ObjectNames::InFull,
            _ => ObjectNames::None,
        }
    }

    /// Has names written in full for as long as the result lives. Not where a user's cast runs as well, which may rely
    /// on the `search_path`.
    fn in_full(&self) -> Option<Nest> {
        let wanted = match self {
            ObjectNames::None => false,
            ObjectNames::InFull => true,
            ObjectNames::InFullOf(type_oid) => {
                let contents = types::contents(*type_oid);
                contents.names && !contents.casts
            }
        };
        wanted.then(Nest::names_in_full)
    }
}

impl Encoder {
    /// The encoder of a type; domains are written as their base type.
    pub fn of(type_oid: pg_sys::Oid) -> Self {
        let base = types::base_type(type_oid);
        match base {
            pg_sys::BOOLOID => Encoder::Bool,
            pg_sys::INT2OID => Encoder::Int2,
            pg_sys::INT4OID => Encoder::Int4,
            pg_sys::INT8OID => Encoder::Int8,
            pg_sys::FLOAT4OID => Encoder::Float4,
            pg_sys::FLOAT8OID => Encoder::Float8,
            pg_sys::NUMERICOID => Encoder::Numeric(Function::output(type_oid)),
            pg_sys::TEXTOID | pg_sys::VARCHAROID | pg_sys::BPCHAROID => Encoder::Text,
            pg_sys::BYTEAOID => Encoder::Bytea,
            pg_sys::UUIDOID => Encoder::Uuid,
            pg_sys::DATEOID | pg_sys::TIMESTAMPOID | pg_sys::TIMESTAMPTZOID => Encoder::DateTime(base),
            pg_sys::JSONOID => Encoder::Json,
            pg_sys::JSONBOID => Encoder::RawOutput(Function::output(type_oid)),
            _ => {
                let names = match types::json_kind(base) {
                    JsonKind::Cast(_) => ObjectNames::None,
                    _ => ObjectNames::of(base),
                };
                if types::is_users_type(base) {
                    if let Some(function) = UsersFunction::to_json(type_oid) {
                        return Encoder::UsersJson(function, names);
                    }
                } else if let Some(function) = Function::to_json(type_oid) {
                    return Encoder::ToJson(function, names);
                }
                Encoder::Output(Function::output(type_oid), names)
            }
        }
    }

    /// Whether what it writes depends on the session's output settings (and so needs neutral ones).
    pub fn follows_settings(&self) -> bool {
        matches!(self, Encoder::ToJson(..) | Encoder::UsersJson(..) | Encoder::Output(..))
    }

    /// Whether it can run code that is not PostgreSQL's.
    pub fn runs_users_code(&self) -> bool {
        matches!(self, Encoder::UsersJson(..))
    }

    /// Writes the value as plain text: a JSON string without its quotes and escapes, anything else as in JSON.
    pub fn write_text(&self, value: Value, out: &mut Buffer) {
        match self {
            Encoder::Text => out.extend_from_slice(value.varlena()),
            _ => {
                let start = out.len();
                self.write(value, out);
                unquote(out, start);
            }
        }
    }

    /// Writes the value as JSON.
    pub fn write(&self, value: Value, out: &mut Buffer) {
        match self {
            Encoder::Bool => out.extend_from_slice(if value.bool() { b"true" } else { b"false" }),
            Encoder::Int2 => write_int(value.int2().into(), out),
            Encoder::Int4 => write_int(value.int4().into(), out),
            Encoder::Int8 => write_int(value.int8(), out),
            Encoder::Float4 => {
                let v = value.float4();
                write_float(v.into(), out, |out| datum::shortest_float4(v, out));
            }
            Encoder::Float8 => {
                let v = value.float8();
                write_float(v, out, |out| datum::shortest_float8(v, out));
            }
            Encoder::Numeric(function) => {
                let start = out.len();
                function.text(value, |text| out.extend_from_slice(text));
                if !out[start..].last().is_some_and(u8::is_ascii_digit) {
                    out.insert(start, b'"');
                    out.push(b'"');
                }
            }
            Encoder::Text => write_string(value.varlena(), out),
            Encoder::Bytea => {
                out.extend_from_slice(b"\"\\\\x");
                write_hex(value.varlena(), out);
                out.push(b'"');
            }
            Encoder::Uuid => {
                out.push(b'"');
                write_uuid(value.uuid(), out);
                out.push(b'"');
            }
            Encoder::DateTime(type_oid) => {
                out.push(b'"');
                datum::iso_datetime(value, *type_oid, |text| out.extend_from_slice(text));
                out.push(b'"');
            }
            Encoder::Json => out.extend_from_slice(value.varlena()),
            Encoder::ToJson(function, names) => {
                let _in_full = names.in_full();
                function.write_varlena(value, out);
            }
            Encoder::UsersJson(function, names) => {
                // Settings that the cast makes must affect neither the session nor the next value.
                let _guard = ActAs::confined();
                let _in_full = names.in_full();
                function.write_varlena(value, out);
            }
            Encoder::RawOutput(function) => function.text(value, |text| out.extend_from_slice(text)),
            Encoder::Output(function, names) => {
                let _in_full = names.in_full();
                function.text(value, |text| write_string(text, out));
            }
        }
    }
}

fn write_int(value: i64, out: &mut Buffer) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

/// A finite float as a number, the others as the strings PostgreSQL uses.
fn write_float(value: f64, out: &mut Buffer, finite: impl FnOnce(&mut Buffer)) {
    if value.is_nan() {
        out.extend_from_slice(b"\"NaN\"");
    } else if value.is_infinite() {
        out.extend_from_slice(if value > 0.0 { b"\"Infinity\"" } else { b"\"-Infinity\"" });
    } else {
        finite(out);
    }
}

/// A JSON string of text in any server encoding (all of them keep ASCII bytes for ASCII characters).
pub fn write_string(text: &[u8], out: &mut Buffer) {
    out.push(b'"');
    let mut clean = 0;
    for (i, byte) in text.iter().enumerate() {
        let escape: &[u8] = match byte {
            b'"' => b"\\\"",
            b'\\' => b"\\\\",
            b'\n' => b"\\n",
            b'\r' => b"\\r",
            b'\t' => b"\\t",
            8 => b"\\b",
            12 => b"\\f",
            0..=31 => &[b'\\', b'u', b'0', b'0', b'0' + (byte >> 4), HEX[usize::from(byte & 15)]],
            _ => continue,
        };
        out.extend_from_slice(&text[clean..i]);
        out.extend_from_slice(escape);
        clean = i + 1;
    }
    out.extend_from_slice(&text[clean..]);
    out.push(b'"');
}

/// Replaces the JSON string that stands in `out` from `start` on, if it is one, by its text. Escapes of other
/// characters than ASCII, which only a json value can have, stay as they are.
fn unquote(out: &mut Buffer, start: usize) {
    let [b'"', .., b'"'] = out[start..] else { return };
    let (end, mut from, mut to) = (out.len() - 1, start + 1, start);
    while from < end {
        let (byte, length) = match out[from..end] {
            [b'\\', b'n', ..] => (b'\n', 2),
            [b'\\', b'r', ..] => (b'\r', 2),
            [b'\\', b't', ..] => (b'\t', 2),
            [b'\\', b'b', ..] => (8, 2),
            [b'\\', b'f', ..] => (12, 2),
            [b'\\', b'u', b'0', b'0', high @ b'0'..=b'7', low, ..]
                if low.is_ascii_hexdigit() && [high, low] != *b"00" =>
            {
                ((high - b'0') << 4 | (low as char).to_digit(16).map_or(0, |digit| digit as u8), 6)
            }
            [b'\\', b'u', ..] | [b'\\'] => (b'\\', 1),
            [b'\\', other, ..] => (other, 2),
            [byte, ..] => (byte, 1),
            [] => break,
        };
        out[to] = byte;
        (from, to) = (from + length, to + 1);
    }
    out.truncate(to);
}

const HEX: &[u8; 16] = b"0123456789abcdef";

fn write_hex(bytes: &[u8], out: &mut Buffer) {
    out.reserve(2 * bytes.len());
    for byte in bytes {
        out.extend_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
    }
}

fn write_uuid(bytes: &[u8; 16], out: &mut Buffer) {
    for (i, part) in [&bytes[..4], &bytes[4..6], &bytes[6..8], &bytes[8..10], &bytes[10..]].into_iter().enumerate() {
        if i > 0 {
            out.push(b'-');
        }
        write_hex(part, out);
    }
}
