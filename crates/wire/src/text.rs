//! Text from foreign sources.

/// Makes a text safe to store and show: without control characters, and with at most `most` characters.
pub fn sanitise(text: &str, most: usize) -> String {
    let mut clean: String =
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(most + 1).collect::<String>().trim().to_owned();
    if clean.chars().count() > most {
        clean = clean.chars().take(most.saturating_sub(1)).collect();
        clean.push('…');
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_made_harmless() {
        assert_eq!(sanitise("a\u{1b}[31m\nb", 100), "a [31m b");
        assert_eq!(sanitise("äöü", 2), "ä…");
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_made_harmless(text: String, most in 0..50usize) {
            let clean = sanitise(&text, most);
            proptest::prop_assert!(clean.chars().count() <= most.max(1) && !clean.chars().any(char::is_control));
        }
    }
}
