//! Delivery as plain data: batches and their request bodies, what a reply means, when to try again, which keys wait for
//! which; and the HTTP thread. Nothing in here knows PostgreSQL, so that all of it is tested without a
//! server.

pub mod address;
pub mod backoff;
pub mod batch;
pub mod endpoint;
pub mod http;
pub mod keys;
pub mod outcome;
#[cfg(any(test, feature = "properties"))]
pub mod properties;
mod resolve;
pub mod secret_file;
mod settings;
mod tls;

pub use settings::Settings;
