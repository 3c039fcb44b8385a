//! How conversations reach Turnflow: the gRPC server, the HTTP server, and the clients that the command line is made of.
//!
//! The only crate that knows gRPC and HTTP. It holds no state of its own: a turn is checked, handed to the pipeline, and its
//! events are passed on.

#![warn(clippy::print_stderr, clippy::print_stdout)]

pub mod backup;
pub mod chat;
pub mod cli;
pub mod commands;
pub mod demo;
mod door;
pub mod examples;
pub mod failure;
pub mod grpc;
pub mod http;
pub mod kb_file;
pub mod keys;
pub mod lines;
pub mod load;
mod metrics;
mod object;
pub mod policy_report;
pub mod progress;
pub mod replay;
pub mod router_report;
pub mod sample;
pub mod say;
pub mod telemetry;

pub use self::door::{Gateway, TlsError};
