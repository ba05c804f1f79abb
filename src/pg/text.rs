//! Text datums from bytes in the server encoding, and UTF-8 from them.

use super::{memory, xact};
use pgrx::PgLogLevel;
use pgrx::pg_sys::{self, Datum};
use std::borrow::Cow;
use std::marker::PhantomData;

/// A varlena that PostgreSQL reads in place. It lives as long as what it borrows.
#[derive(Clone, Copy)]
pub struct Varlena<'a>(Datum, PhantomData<&'a ()>);

impl Varlena<'_> {
    /// # Safety
    /// A varlena with a header of four bytes, neither compressed nor out of line, that lives as long as the result.
    pub(super) unsafe fn new(datum: Datum) -> Self {
        Varlena(datum, PhantomData)
    }

    pub(super) fn datum(self) -> Datum {
        self.0
    }

    /// The size in bytes, the header included.
    pub(super) fn size(self) -> usize {
        // SAFETY: by the contract of `new`.
        unsafe { pgrx::varlena::varsize_4b(self.0.cast_mut_ptr()) }
    }
}

/// A text holding a copy of `bytes`, which lives as long as the current memory context.
pub fn datum(bytes: &[u8]) -> Varlena<'static> {
    // SAFETY: copies `len` bytes into a fresh varlena.
    unsafe {
        let text = pg_sys::cstring_to_text_with_len(bytes.as_ptr().cast(), bytes.len() as i32);
        Varlena::new(Datum::from(text))
    }
}

/// The number of characters of `bytes`, which are in the server encoding.
pub fn characters(bytes: &[u8]) -> usize {
    // SAFETY: reads no further than the length.
    unsafe { pg_sys::pg_mbstrlen_with_len(bytes.as_ptr().cast(), bytes.len() as i32) as usize }
}

/// A text that is kept as a datum.
pub struct KeptText(Vec<u8>);

impl KeptText {
    /// `bytes` in the server encoding.
    pub fn new(bytes: &[u8]) -> Self {
        let mut varlena = vec![0; 4];
        varlena.extend_from_slice(bytes);
        // SAFETY: the four bytes of a varlena's header are there, aligned by the allocator; a name is short.
        unsafe { pgrx::set_varsize_4b(varlena.as_mut_ptr().cast(), varlena.len() as i32) };
        KeptText(varlena)
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0[4..]
    }

    pub fn datum(&self) -> Varlena<'_> {
        // SAFETY: a varlena that self holds; PostgreSQL only reads it.
        unsafe { Varlena::new(Datum::from(self.0.as_ptr().cast_mut())) }
    }
}

/// Whether the database encoding is UTF-8, so that nothing has to be converted.
pub fn server_is_utf8() -> bool {
    // SAFETY: plain getter.
    unsafe { pg_sys::GetDatabaseEncoding() == pg_sys::pg_enc::PG_UTF8 as i32 }
}

/// Whether the database has no encoding, so that the meaning of its bytes is unknown.
pub fn server_is_sql_ascii() -> bool {
    // SAFETY: plain getter.
    unsafe { pg_sys::GetDatabaseEncoding() == pg_sys::pg_enc::PG_SQL_ASCII as i32 }
}

/// Appends `bytes`, which are in the server encoding, as UTF-8. Raises an ERROR if they cannot be converted.
pub fn write_utf8(bytes: &[u8], out: &mut Vec<u8>) {
    if server_is_utf8() || bytes.is_ascii() {
        memory::reserve(out, bytes.len());
        return out.extend_from_slice(bytes);
    }
    // SAFETY: the input is a live slice; the result is NUL-terminated, and the input itself if nothing had to be done.
    unsafe {
        let converted =
            pg_sys::pg_server_to_any(bytes.as_ptr().cast(), bytes.len() as i32, pg_sys::pg_enc::PG_UTF8 as i32);
        let unchanged = converted.cast_const() == bytes.as_ptr().cast();
        let converted = if unchanged { bytes } else { std::ffi::CStr::from_ptr(converted).to_bytes() };
        memory::reserve(out, converted.len());
        out.extend_from_slice(converted);
    }
}

/// `bytes`, which are in the server encoding, as UTF-8.
pub fn to_utf8(bytes: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(bytes) {
        Ok(text) if server_is_utf8() || bytes.is_ascii() => Cow::Borrowed(text),
        _ => {
            let mut out = Vec::new();
            write_utf8(bytes, &mut out);
            Cow::Owned(String::from_utf8(out).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
        }
    }
}

/// The most bytes of a name, including the NUL at its end.
pub const NAME_BYTES: usize = pg_sys::NAMEDATALEN as usize;

/// `text` in the server encoding; characters that it lacks become question marks.
pub fn from_utf8(text: &str) -> Vec<u8> {
    if server_is_utf8() || text.is_ascii() {
        return memory::copy(text.as_bytes());
    }
    let convert = |text: &str| {
        xact::subtransaction(|| {
            // SAFETY: the input is a live slice of valid UTF-8; the result is NUL-terminated or the input itself.
            unsafe {
                let converted =
                    pg_sys::pg_any_to_server(text.as_ptr().cast(), text.len() as i32, pg_sys::pg_enc::PG_UTF8 as i32);
                if converted.cast_const() == text.as_ptr().cast() {
                    memory::copy(text.as_bytes())
                } else {
                    memory::copy(std::ffi::CStr::from_ptr(converted).to_bytes())
                }
            }
        })
    };
    convert(text).unwrap_or_else(|_| text.chars().map(|c| if c.is_ascii() { c as u8 } else { b'?' }).collect())
}

/// Makes a text of an error reportable. pgrx passes the bytes of a `String` to PostgreSQL as they are, which takes them
/// for text in the server's encoding. If that is not UTF-8, non-ASCII characters are escaped as in SQL's `U&'..'`. The
/// text of an error that we are going to catch ourselves is not changed.
pub fn reportable(text: String, level: PgLogLevel) -> String {
    let comes_back = level == PgLogLevel::ERROR && xact::is_catching();
    if text.is_ascii() || server_is_utf8() || server_is_sql_ascii() || comes_back {
        return text;
    }
    text.chars().fold(String::new(), |mut out, c| {
        match u32::from(c) {
            0..0x80 => out.push(c),
            code @ 0x80..0x1_0000 => out += &format!("\\{code:04X}"),
            code => out += &format!("\\+{code:06X}"),
        }
        out
    })
}

/// A name that SQL passes, as UTF-8.
pub fn name(name: &std::ffi::CStr) -> String {
    to_utf8(name.to_bytes()).into_owned()
}

/// `bytes`, which are in the server encoding, as UTF-8; or the reason why it cannot be converted: a character without a
/// counterpart, or too little memory. Raises nothing.
pub fn checked_utf8(bytes: &[u8]) -> Result<Cow<'_, str>, String> {
    if server_is_utf8() || bytes.is_ascii() {
        return std::str::from_utf8(bytes)
            .map(Cow::Borrowed)
            .map_err(|error| format!("it is not valid UTF-8: {error}"));
    }
    const ROOM: usize = 64 * 1024;
    let mut out = Vec::new();
    let mut piece = [0u8; ROOM];
    let mut rest = bytes;
    while !rest.is_empty() {
        // SAFETY: the source and the room for the result are live slices of the given lengths; with noError the
        // function stops in front of what it cannot convert and says how far it came.
        let (done, made) = unsafe {
            let (from, to) = (pg_sys::GetDatabaseEncoding(), pg_sys::pg_enc::PG_UTF8 as i32);
            let conversion = pg_sys::FindDefaultConversionProc(from, to);
            let taken = rest.len().min(ROOM / 8) as i32;
            let source = rest.as_ptr().cast_mut();
            let done = if conversion == pg_sys::InvalidOid {
                0
            } else {
                let room = piece.as_mut_ptr();
                pg_sys::pg_do_encoding_conversion_buf(conversion, from, to, source, taken, room, ROOM as i32, true)
            };
            (done.max(0) as usize, std::ffi::CStr::from_bytes_until_nul(&piece).map_or(0, |made| made.count_bytes()))
        };
        if done == 0 {
            return Err(format!("the character with byte 0x{:02x} cannot be written in UTF-8", rest[0]));
        }
        out.try_reserve(made).map_err(|_| format!("not enough memory for {} bytes", bytes.len()))?;
        out.extend_from_slice(&piece[..made]);
        rest = &rest[done..];
    }
    String::from_utf8(out).map(Cow::Owned).map_err(|error| format!("it is not valid UTF-8: {error}"))
}
