//! What property tests feed to parsers: JSON that is often nearly what a parser wants.

use proptest::prelude::*;

/// A JSON text whose names and strings are often among `words`, sometimes cut off.
pub fn json(words: &'static [&'static str]) -> impl Strategy<Value = String> {
    let text = prop_oneof![
        6 => prop::sample::select(words).prop_map(str::to_owned),
        1 => "\\PC{0,12}",
        1 => any::<String>(),
    ];
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        text.clone().prop_map(Into::into),
    ];
    let value = leaf.prop_recursive(5, 60, 8, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Into::into),
            prop::collection::vec((text.clone(), inner), 0..8)
                .prop_map(|members| { serde_json::Value::Object(members.into_iter().collect()) }),
        ]
    });
    (value, prop_oneof![9 => Just(usize::MAX), 1 => 0..200usize])
        .prop_map(|(value, most)| value.to_string().chars().take(most).collect())
}
