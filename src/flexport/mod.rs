//! The vocabulary of Flexport: its endpoints, its envelope, its links, and the catalogue of our own codes.

pub mod incremental;
pub mod links;
pub mod problem;
pub mod routes;
