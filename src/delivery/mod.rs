//! Delivery as plain data: what goes over the wire, what an answer means, when to try again; and the thread that talks
//! HTTP. Nothing in here knows PostgreSQL, so everything in here is tested without a server.

pub mod address;
pub mod answer;
pub mod backoff;
pub mod batch;
pub mod endpoint;
pub mod http;
pub mod keys;
pub mod outcome;
mod resolve;
pub mod secret_file;
pub mod signature;
mod tls;
pub mod token;
