//! Generates the gRPC code and the descriptors that reflection serves, without protoc.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

const PROTO_ROOT: &str = "proto";
const PROTO_FOLDER: &str = "turnflow/v1";
/// What is a sorted map in Turnflow's own types is one here, so that no message has two encodings.
const SORTED_MAP: &str = ".turnflow.v1.Article.metadata";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={PROTO_ROOT}");
    let out_dir = PathBuf::from(env::var("OUT_DIR")?);

    let mut compiler = protox::Compiler::new([PROTO_ROOT])?;
    // Source information carries the comments, which become the documentation of the generated code.
    compiler.include_source_info(true).include_imports(true).open_files(proto_files()?)?;
    fs::write(out_dir.join("turnflow.v1.bin"), compiler.encode_file_descriptor_set())?;

    tonic_prost_build::configure()
        .codec_path("crate::grpc::codec::BlamingCodec")
        .btree_map(SORTED_MAP)
        .compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}

/// The protocol's files, in the same order on every machine.
fn proto_files() -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let folder = Path::new(PROTO_ROOT).join(PROTO_FOLDER);
    let mut files = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>, std::io::Error>>()?;
    files.sort();
    Ok(files)
}
