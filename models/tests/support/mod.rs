//! The real encoder, pulled once into `TURNFLOW_HOME` or the platform's data folder.

use turnflow_models::{
    Encoder, EncoderCheckpoint, EncoderOptions, ModelHome, Progress, WeightSource, default_home, ensure,
};

/// The encoder's files; pulls them where they are missing.
pub(crate) fn files() -> EncoderCheckpoint {
    let home = ModelHome::new(default_home().expect("a home"));
    let progress = |progress: Progress<'_>| {
        if let Progress::Trying { source } = progress {
            eprintln!("pulling the encoder from {source}");
        }
    };
    ensure(&home, &WeightSource::defaults(None), &progress).expect("the encoder's files")
}

/// The encoder.
pub(crate) fn encoder() -> Encoder {
    Encoder::load(&files(), EncoderOptions::default()).expect("the encoder")
}
