//! Standard output: what is written there, and what it is.

use std::io::{self, BufWriter, StdoutLock};

/// Standard output: buffered, and without colours where they are not wanted.
pub fn stdout() -> BufWriter<anstream::AutoStream<StdoutLock<'static>>> {
    BufWriter::new(anstream::AutoStream::auto(io::stdout().lock()))
}
