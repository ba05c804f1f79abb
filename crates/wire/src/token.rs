//! What an upload token may look like: a value that can be sent in a header, and nothing else.

/// Most bytes of a token and of a file that holds one.
pub const MAX_BYTES: usize = 16 * 1024;

/// Why a token is not accepted. No message shows any of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("is empty")]
    Empty,
    #[error("is longer than {MAX_BYTES} bytes")]
    TooLong,
    #[error("contains characters other than visible ASCII")]
    Characters,
}

/// Checks a token: visible ASCII without spaces, because a control character in a header starts another header.
pub fn check(token: &str) -> Result<(), TokenError> {
    if token.is_empty() {
        Err(TokenError::Empty)
    } else if token.len() > MAX_BYTES {
        Err(TokenError::TooLong)
    } else if !token.bytes().all(|b| b.is_ascii_graphic()) {
        Err(TokenError::Characters)
    } else {
        Ok(())
    }
}

/// The token in the content of a file: one newline at its end, as editors and `echo` put it, is not part of it.
pub fn from_file(content: &[u8]) -> Result<String, TokenError> {
    let line = content.strip_suffix(b"\n").unwrap_or(content);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let token = std::str::from_utf8(line).map_err(|_| TokenError::Characters)?;
    check(token).map(|()| token.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn visible_ascii_only() {
        assert_eq!(check("abc.DEF-123_~+/="), Ok(()));
        assert_eq!(check(""), Err(TokenError::Empty));
        for bad in ["a b", "a\nb", "a\rX-Evil: 1", "\u{7f}", "a\0", "tökén"] {
            assert_eq!(check(bad), Err(TokenError::Characters), "{bad:?}");
        }
        assert_eq!(check(&"x".repeat(MAX_BYTES)), Ok(()));
        assert_eq!(check(&"x".repeat(MAX_BYTES + 1)), Err(TokenError::TooLong));
    }

    #[test]
    fn one_newline_at_the_end_of_a_file_is_not_the_tokens() {
        for content in ["t0ken", "t0ken\n", "t0ken\r\n"] {
            assert_eq!(from_file(content.as_bytes()).as_deref(), Ok("t0ken"));
        }
        assert_eq!(from_file(b"t0ken\n\n"), Err(TokenError::Characters));
        assert_eq!(from_file(b"\n"), Err(TokenError::Empty));
        assert_eq!(from_file(b"\xff"), Err(TokenError::Characters));
    }

    proptest::proptest! {
        #[test]
        fn whatever_a_file_holds_cannot_break_a_header(content: Vec<u8>, text in "[!-~]{1,20}[\r\n]{0,3}") {
            crate::properties::token(&content);
            crate::properties::token(text.as_bytes());
        }
    }
}
