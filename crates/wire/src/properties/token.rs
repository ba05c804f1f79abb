use crate::token;

/// What is read from a token's file can stand in a header, and is all of the file but a newline at its end.
pub fn token(content: &[u8]) {
    let Ok(token) = token::from_file(content) else { return };
    assert!((1..=token::MAX_BYTES).contains(&token.len()));
    assert!(token.bytes().all(|b| b.is_ascii_graphic()));
    assert!([&b""[..], b"\n", b"\r", b"\r\n"].iter().any(|end| content == [token.as_bytes(), end].concat()));
}
