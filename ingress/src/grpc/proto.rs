//! Messages, client and server of `turnflow.v1`, generated from the files in `proto/turnflow/v1`.

#![expect(
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    clippy::large_enum_variant,
    reason = "generated code"
)]

tonic::include_proto!("turnflow.v1");

/// The descriptors of `turnflow.v1`, encoded, with the comments of the protocol.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/turnflow.v1.bin"));
