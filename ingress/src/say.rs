//! What is said to people beside a command's result: lines on stderr. Where nobody reads them any more, they are for nobody, and the
//! command goes on: `eprintln!` would end it in a panic.

use std::fmt::Arguments;
use std::io::Write as _;

/// Says a line on stderr.
macro_rules! say {
    ($($text:tt)*) => { $crate::say::line(format_args!($($text)*)) };
}
pub(crate) use say;

/// Says a line on stderr; what `say!` is made of.
pub fn line(text: Arguments<'_>) {
    let _nobody_reads = writeln!(std::io::stderr().lock(), "{text}");
}
