//! One push session, used by flush, drain and worker alike.

pub mod credentials;
mod token_file;
