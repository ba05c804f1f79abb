//! What holds whatever a parser is fed, see [`wire::properties`].

mod address_list;
mod endpoint;
mod keys_of_body;
mod retry_after;

pub use address_list::address_list;
pub use endpoint::endpoint;
pub use keys_of_body::keys_of_body;
pub use retry_after::retry_after;
