//! What QEMU says of an image: what its guest reads, where the bytes lie, whether its structures hold.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, bail};
use rustix::fs::SeekFrom;
use serde::Deserialize;
use serde_json::Value;

use crate::images::Built;
use crate::qemu;

/// The bytes that a guest sees, as a sparse file that is gone when this is dropped.
#[derive(Debug)]
pub struct GuestBytes {
    file: File,
    len: u64,
}

/// What the guest of the chain reads, by `qemu-img convert`.
///
/// # Errors
/// If QEMU cannot read the chain, or there is no space.
pub fn guest(built: &Built) -> Result<GuestBytes> {
    guest_of(built, 0)
}

/// The same for the chain that begins at a lower layer.
///
/// # Errors
/// As for [`guest`].
pub fn guest_of(built: &Built, layer: usize) -> Result<GuestBytes> {
    let target = built.target_of(layer);
    let dir = crate::scratch()?;
    let path = dir.path().join("guest.raw");
    let mut words = vec!["convert"];
    words.extend(target.options());
    let output = path.display().to_string();
    // What is zero becomes a hole, down to a block of the file system.
    words.extend(["-O", "raw", "-S", "4k", &target.name, &output]);
    qemu::img(words)?;
    let file = File::open(&path)?;
    let len = file.metadata()?.len();
    Ok(GuestBytes { file, len })
}

impl GuestBytes {
    /// The size of the disk in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the disk has no byte at all.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Fills `buffer` with the bytes at `offset`.
    ///
    /// # Errors
    /// If the range is not within the disk.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.file
            .read_exact_at(buffer, offset)
            .with_context(|| format!("{} bytes at {offset}", buffer.len()))
    }

    /// The ranges outside of which every byte is zero, in order.
    ///
    /// # Errors
    /// If the file system does not say.
    pub fn data(&self) -> Result<Vec<Range<u64>>> {
        let mut ranges = Vec::new();
        let mut at = 0;
        while at < self.len {
            let start = match rustix::fs::seek(&self.file, SeekFrom::Data(at)) {
                Ok(start) => start,
                Err(rustix::io::Errno::NXIO) => break,
                Err(error) => return Err(error.into()),
            };
            at = rustix::fs::seek(&self.file, SeekFrom::Hole(start))?;
            ranges.push(start..at.min(self.len));
        }
        Ok(ranges)
    }

    /// Where `read` first differs from these bytes, however large the disk: all data is compared, and of the zeros
    /// between them what lies beside data and a sample of the rest. `read` fills a buffer with the bytes at an offset.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn first_difference<E>(
        &self,
        mut read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
    ) -> Result<Option<u64>, anyhow::Error>
    where
        anyhow::Error: From<E>,
    {
        const STEP: usize = 1 << 20;
        let mut ours = vec![0; STEP];
        let mut theirs = vec![0; STEP];
        for range in self.ranges_to_compare()? {
            let mut at = range.start;
            while at < range.end {
                let len = usize::try_from(range.end - at).map_or(STEP, |len| len.min(STEP));
                self.read_at(at, &mut ours[..len])?;
                // A reader that leaves the buffer as it was must not pass for one that read zeros.
                theirs.fill(0xA5);
                read(at, &mut theirs[..len])?;
                if let Some(index) = ours[..len].iter().zip(&theirs[..len]).position(|(a, b)| a != b) {
                    return Ok(Some(at + index as u64));
                }
                at += len as u64;
            }
        }
        Ok(None)
    }

    /// All data; of each hole its ends and some places between.
    fn ranges_to_compare(&self) -> Result<Vec<Range<u64>>> {
        const EDGE: u64 = 256 << 10;
        const SAMPLES: u64 = 16;
        let mut all = Vec::new();
        let mut at = 0;
        let end = self.len..self.len;
        for data in self.data()?.into_iter().chain([end]) {
            let hole = at..data.start;
            let len = hole.end - hole.start;
            if len <= EDGE * (SAMPLES + 2) {
                all.push(hole);
            } else {
                all.push(hole.start..hole.start + EDGE);
                let stride = (len - 2 * EDGE) / SAMPLES;
                all.extend((0..SAMPLES).map(|index| {
                    let at = hole.start + EDGE + index * stride;
                    at..at + 4096
                }));
                all.push(hole.end - EDGE..hole.end);
            }
            at = data.end;
            all.push(data);
        }
        Ok(all)
    }
}

/// A range of the disk, by `qemu-img map`.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct MapExtent {
    /// Where it begins on the disk.
    pub start: u64,
    /// How many bytes it has.
    pub length: u64,
    /// How many layers below the active one it comes from.
    pub depth: u64,
    /// Whether a layer of the chain says anything of it.
    pub present: bool,
    /// Whether it reads as zeros.
    pub zero: bool,
    /// Whether it has data in a file.
    pub data: bool,
    /// Whether that data is compressed.
    pub compressed: bool,
    /// Where the data lies in the file, where that can be said.
    pub offset: Option<u64>,
    /// The file, if QEMU names it.
    pub filename: Option<String>,
}

/// The map of the chain.
///
/// # Errors
/// If QEMU cannot read the chain.
pub fn map(built: &Built) -> Result<Vec<MapExtent>> {
    let text = qemu::img_on("map", &built.target(), &["--output=json"])?;
    serde_json::from_str(&text).context("qemu-img map")
}

/// What QEMU says of one image of a chain.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub struct ImageInfo {
    /// Its name, as QEMU opened it.
    pub filename: String,
    /// Its format.
    pub format: String,
    /// Its virtual size in bytes.
    pub virtual_size: u64,
    /// Its cluster size in bytes, where the format has clusters.
    pub cluster_size: Option<u64>,
    /// The name of its backing image, as recorded.
    pub backing_filename: Option<String>,
    /// The same from where the image lies.
    pub full_backing_filename: Option<String>,
    /// The format of its backing image, as recorded.
    pub backing_filename_format: Option<String>,
    /// Whether it was not closed.
    #[serde(default)]
    pub dirty_flag: bool,
    /// Whether it is encrypted.
    #[serde(default)]
    pub encrypted: bool,
    /// What only this format has.
    pub format_specific: Option<Value>,
    /// Its internal snapshots.
    #[serde(default)]
    pub snapshots: Vec<Value>,
}

/// The images of the chain, the active one first.
///
/// # Errors
/// If QEMU cannot open the chain.
pub fn info_chain(built: &Built) -> Result<Vec<ImageInfo>> {
    // No password is needed, and a description of the backing images is not even allowed.
    let top = built.layers.first().context("a chain has at least one layer")?;
    let target = qemu::Target::file(&top.path, top.format);
    let text = qemu::img_on("info", &target, &["--backing-chain", "--output=json"])?;
    serde_json::from_str(&text).context("qemu-img info")
}

/// What QEMU found when it checked one image.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub struct Check {
    /// Errors that put data at risk.
    #[serde(default)]
    pub corruptions: u64,
    /// Clusters that nothing uses.
    #[serde(default)]
    pub leaks: u64,
    /// Checks that could not be made.
    #[serde(default)]
    pub check_errors: u64,
    /// Clusters of the guest.
    #[serde(default)]
    pub total_clusters: u64,
    /// Of these, those that have a place of their own.
    #[serde(default)]
    pub allocated_clusters: u64,
    /// Of these, those that are compressed.
    #[serde(default)]
    pub compressed_clusters: u64,
    /// Where the last cluster in use ends, in bytes.
    #[serde(default)]
    pub image_end_offset: u64,
}

impl Check {
    /// No fault, and nothing leaked.
    pub fn is_clean(&self) -> bool {
        self.corruptions == 0 && self.leaks == 0 && self.check_errors == 0
    }
}

/// Checks the image of one layer (0 is the active one). It is not repaired.
///
/// # Errors
/// If QEMU cannot open the image, or its format has no checks (raw).
pub fn check(built: &Built, layer: usize) -> Result<Check> {
    check_target(&built.target_of(layer))
}

/// As [`check`], for any image.
///
/// # Errors
/// As for [`check`].
pub fn check_target(target: &qemu::Target) -> Result<Check> {
    let mut words = vec!["check", "--output=json"];
    words.extend(target.options());
    words.push(&target.name);
    // It exits with 2 or 3 where it found something, and reports all the same.
    let text = qemu::img_whatever_status(words)?;
    match serde_json::from_str(&text) {
        Ok(check) => Ok(check),
        Err(_) => bail!("qemu-img check: {text}"),
    }
}
