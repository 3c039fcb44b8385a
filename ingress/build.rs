//! Generates the gRPC code and the descriptors that reflection serves, without protoc.

use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

const PROTO_ROOT: &str = "proto";
const PROTO_FILE: &str = "proto/turnflow/v1/conversations.proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={PROTO_ROOT}");
    let out_dir = PathBuf::from(env::var("OUT_DIR")?);

    let mut compiler = protox::Compiler::new([PROTO_ROOT])?;
    // Source information carries the comments, which become the documentation of the generated code.
    compiler.include_source_info(true).include_imports(true).open_file(PROTO_FILE)?;
    fs::write(out_dir.join("turnflow.v1.bin"), compiler.encode_file_descriptor_set())?;

    tonic_prost_build::configure()
        .codec_path("crate::grpc::codec::BlamingCodec")
        .compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
