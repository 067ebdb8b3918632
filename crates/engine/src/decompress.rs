//! One compressed cluster to its bytes.

use crate::error::{Error, ErrorKind, Result};
use catena_format::qcow2::Compression;
use flate2::{Decompress, FlushDecompress, Status};
use zstd::zstd_safe;

/// Decompresses a cluster. `input` may go on behind the stream, since its length is only known in sectors.
///
/// The stream must yield at least `cluster_size` bytes; like QEMU, what it would yield beyond is not asked for.
pub fn cluster(compression: Compression, input: &[u8], cluster_size: u64) -> Result<Vec<u8>> {
    let size = usize::try_from(cluster_size)
        .map_err(|_| Error::new(ErrorKind::TooLarge, "cluster does not fit in memory"))?;
    let mut out = vec![0; size];
    let complete = match compression {
        Compression::Deflate => inflate(input, &mut out),
        Compression::Zstd => unzstd(input, &mut out),
    };
    if complete {
        Ok(out)
    } else {
        Err(Error::new(
            ErrorKind::Corrupt,
            "a compressed cluster does not decompress",
        ))
    }
}

fn inflate(input: &[u8], out: &mut [u8]) -> bool {
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
    let Some(mut context) = zstd_safe::DCtx::try_create() else {
        return false;
    };
    context.decompress(out, frame) == Ok(out.len())
}
