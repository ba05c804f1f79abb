//! What holds whatever the parsers of this crate are fed, see [`wire::properties`].

mod config;
#[cfg(test)]
mod corpus;
mod kept_token;

pub use config::config;
pub use kept_token::kept_token;
