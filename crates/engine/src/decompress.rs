//! One compressed cluster to its bytes.

use crate::error::{Error, ErrorKind, Result};
use catena_format::qcow2::Compression;
use flate2::{Decompress, FlushDecompress, Status};
use libdeflater::Decompressor;
use std::cell::RefCell;
use zstd::zstd_safe::{self, DCtx};

/// Decompresses a cluster into `out`, which is as long as one. `input` may go on behind the stream, since its length is only known in sectors.
///
/// The stream must yield at least that many bytes; like QEMU, what it would yield beyond is not asked for. What `out` holds after
/// an error is not said.
pub fn cluster(compression: Compression, input: &[u8], out: &mut [u8]) -> Result<()> {
    let complete = match compression {
        Compression::Deflate => inflate(input, out),
        Compression::Zstd => unzstd(input, out),
    };
    if complete {
        Ok(())
    } else {
        Err(Error::new(
            ErrorKind::Corrupt,
            "a compressed cluster does not decompress",
        ))
    }
}

thread_local! {
    // Made once for each thread: they are large, and clusters are many.
    static INFLATE: RefCell<Decompressor> = RefCell::new(Decompressor::new());
    static UNZSTD: RefCell<Option<DCtx<'static>>> = RefCell::new(DCtx::try_create());
}

fn inflate(input: &[u8], out: &mut [u8]) -> bool {
    let whole = INFLATE.with_borrow_mut(|inflate| inflate.deflate_decompress(input, out));
    whole == Ok(out.len()) || inflate_endless(input, out)
}

/// Inflates what has no end, or goes on behind the cluster.
fn inflate_endless(input: &[u8], out: &mut [u8]) -> bool {
    // A window of 15 bits reads every stream, also the 12 bit ones that QEMU writes.
    let mut stream = Decompress::new(false);
    let status = stream.decompress(input, out, FlushDecompress::Finish);
    // A full cluster counts even where the stream's end mark is missing or garbage follows.
    let full = stream.total_out() == out.len() as u64;
    full && status.is_ok_and(|status| matches!(status, Status::StreamEnd | Status::Ok | Status::BufError))
}

fn unzstd(input: &[u8], out: &mut [u8]) -> bool {
    // In one go into the cluster: the frame's window costs no memory, whatever size it claims.
    let Ok(frame_len) = zstd_safe::find_frame_compressed_size(input) else {
        return false;
    };
    let Some(frame) = input.get(..frame_len) else {
        return false;
    };
    UNZSTD.with_borrow_mut(|context| {
        let context = context.as_mut();
        context.is_some_and(|context| context.decompress(out, frame) == Ok(out.len()))
    })
}
