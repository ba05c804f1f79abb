use crate::api::config::Config;
use crate::error::SqlState;
use std::collections::HashSet;
use wire::Operation;
use wire::properties::text;
use wire::token;

/// A configuration is taken with options that make sense, or refused as an argument, with words and a hint.
pub fn config(input: &[u8]) {
    let Some(json) = text(input) else { return };
    let config = match Config::parse(json) {
        Ok(config) => config,
        Err(error) => {
            assert_eq!(error.sqlstate, SqlState::ERRCODE_INVALID_PARAMETER_VALUE);
            return assert!(!error.message.is_empty() && error.hint.is_some_and(|hint| !hint.is_empty()));
        }
    };
    assert!(config.token.is_none_or(|token| token::check(&token).is_ok()));
    assert!(config.url.is_none_or(|url| !url.trim().is_empty()));
    for given in config.tables.into_iter().flatten().map(|entry| entry.given) {
        if let Some(operations) = &given.operations {
            assert!(operations.iter().all(|op| Operation::parse(op).is_some()));
        }
        for list in [given.columns, given.exclude, given.key_columns, given.operations].into_iter().flatten() {
            assert!(!list.is_empty() && list.iter().collect::<HashSet<_>>().len() == list.len());
        }
    }
}
