use crate::signature::Secrets;

/// Secrets that are taken sign: one signature each, at most two, that can stand in a header and differ with the body.
/// Written down they show nothing but their number.
pub fn signing_secret(content: &[u8]) {
    let Ok(secrets) = Secrets::from_file(content) else { return };
    let value = secrets.sign("id", 1, b"{}");
    let signatures: Vec<&str> = value.split(' ').collect();
    assert!((1..=2).contains(&signatures.len()));
    assert!(signatures.iter().all(|one| one.len() == "v1,".len() + 44 && one.bytes().all(|b| b.is_ascii_graphic())));
    assert_ne!(value, secrets.sign("id", 1, b"{ }"));
    assert_eq!(format!("{secrets:?}"), format!("Secrets({})", signatures.len()));
}
