//! What leaves the server, decided without PostgreSQL: plain data in, plain data out.

pub mod endpoint;
pub mod keys;
pub mod token;
