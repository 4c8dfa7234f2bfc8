//! The server with the bundled model, over real connections.

mod answers;
mod connections;
mod errors;
mod load;
mod requests;
mod support;
