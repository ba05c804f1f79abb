use crate::push::token_file::StoredToken;

/// What our own file gives back can stand in a header, and is written and read again as it was.
pub fn kept_token(content: &[u8]) {
    let Ok(kept) = StoredToken::parse(content) else { return };
    assert!(!kept.token.is_empty() && kept.token.bytes().all(|b| b.is_ascii_graphic()));
    let again = serde_json::to_vec(&kept).map(|written| StoredToken::parse(&written));
    assert!(again.is_ok_and(|again| again.is_ok_and(|again| (again.origin, again.token) == (kept.origin, kept.token))));
}
