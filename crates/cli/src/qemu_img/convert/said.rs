//! What the command line of `convert` says, and what of it contradicts itself, told in QEMU's order.

use crate::qemu_img::getopt::Takes::{Argument, Nothing};
use crate::qemu_img::getopt::{Key, Options, long, word};
use crate::qemu_img::image_args::ImageArgs;
use crate::qemu_img::measure::{self, SnapshotName};
use crate::qemu_img::program::{Program, Result, error};
use crate::qemu_img::{keyval, number, size};

pub const OPTIONS: Options = Options {
    short: "hf:O:B:CcF:o:l:S:pt:T:qnm:WUr:",
    long: &[
        long("help", 'h', Nothing),
        long("quiet", 'q', Nothing),
        word("object", Argument),
        word("image-opts", Nothing),
        word("source-image-opts", Nothing),
        long("source-format", 'f', Argument),
        long("source-cache", 'T', Argument),
        long("snapshot", 'l', Argument),
        long("sparse-size", 'S', Argument),
        long("output-format", 'O', Argument),
        long("options", 'o', Argument),
        long("output-cache", 't', Argument),
        long("backing", 'B', Argument),
        long("backing-format", 'F', Argument),
        long("force-share", 'U', Nothing),
        word("target-image-opts", Nothing),
        word("salvage", Nothing),
        word("target-is-zero", Nothing),
        word("bitmaps", Nothing),
        word("skip-broken-bitmaps", Nothing),
        long("rate", 'r', Argument),
        long("parallel", 'm', Argument),
        long("oob-writes", 'W', Nothing),
        long("copy-range-offloading", 'C', Nothing),
    ],
};

/// The longest run of zeros that can be asked to be left out.
const MOST_SPARSE: u64 = 16 << 20;

/// The command line.
#[derive(Debug)]
pub struct Said {
    pub image: ImageArgs,
    pub snapshot: Option<SnapshotName>,
    pub source_cache: Option<String>,
    pub target_format: Option<String>,
    pub target_image_opts: bool,
    pub target_is_zero: bool,
    pub options: Option<String>,
    pub compressed: bool,
    pub cache: Option<String>,
    pub backing: Option<String>,
    pub backing_format: Option<String>,
    pub no_create: bool,
    pub sparse: Option<u64>,
    pub bitmaps: bool,
    pub skip_broken_bitmaps: bool,
    pub rate: Option<u64>,
    pub parallel: u64,
    pub offload: bool,
    pub salvage: bool,
    pub any_order: bool,
    pub progress: bool,
    pub quiet: bool,
}

impl Default for Said {
    fn default() -> Self {
        Self {
            image: ImageArgs::default(),
            snapshot: None,
            source_cache: None,
            target_format: None,
            target_image_opts: false,
            target_is_zero: false,
            options: None,
            compressed: false,
            cache: None,
            backing: None,
            backing_format: None,
            no_create: false,
            sparse: None,
            bitmaps: false,
            skip_broken_bitmaps: false,
            rate: None,
            parallel: 8,
            offload: false,
            salvage: false,
            any_order: false,
            progress: false,
            quiet: false,
        }
    }
}

impl Said {
    /// An option.
    pub fn take(&mut self, program: &Program, key: Key, value: String) -> Result<()> {
        match key {
            Key::Letter('O') => self.target_format = Some(value),
            Key::Letter('B') => self.backing = Some(value),
            Key::Letter('F') => self.backing_format = Some(value),
            Key::Letter('C') => self.offload = true,
            Key::Letter('c') => self.compressed = true,
            Key::Letter('o') => keyval::join(&mut self.options, &value).map_err(error)?,
            Key::Letter('l') => self.snapshot = Some(measure::snapshot_of(program, &value)?),
            Key::Letter('S') => self.sparse = Some(sparse(&value)?),
            Key::Letter('p') => self.progress = true,
            Key::Letter('t') => self.cache = Some(value),
            Key::Letter('T') => self.source_cache = Some(value),
            Key::Letter('q') => self.quiet = true,
            Key::Letter('n') => self.no_create = true,
            Key::Letter('m') => {
                self.parallel = number::argument("number of coroutines", &value, 1, 16).map_err(error)?;
            }
            Key::Letter('W') => self.any_order = true,
            Key::Letter('r') => {
                self.rate = Some(size::argument("rate limit", &value, 0, size::MAX).map_err(error)?);
            }
            Key::Word("source-image-opts") => self.image.image_opts = true,
            Key::Word("target-image-opts") => self.target_image_opts = true,
            Key::Word("target-is-zero") => self.target_is_zero = true,
            Key::Word("bitmaps") => self.bitmaps = true,
            Key::Word("skip-broken-bitmaps") => self.skip_broken_bitmaps = true,
            Key::Word("salvage") => self.salvage = true,
            _ => self.image.take(key, value)?,
        }
        Ok(())
    }

    /// What cannot go together.
    pub fn check(&self) -> Result<()> {
        let faults = [
            (
                self.skip_broken_bitmaps && !self.bitmaps,
                "Use of --skip-broken-bitmaps requires --bitmaps",
            ),
            (
                self.offload && self.compressed,
                "Cannot enable copy offloading when -c is used",
            ),
            (
                self.offload && self.sparse.is_some(),
                "Cannot enable copy offloading when -S is used",
            ),
            (
                self.offload && self.salvage,
                "Cannot use copy offloading in salvaging mode",
            ),
            (
                self.target_image_opts && !self.no_create,
                "--target-image-opts requires use of -n flag",
            ),
            (
                self.no_create && self.options.is_some(),
                "-o has no effect when skipping image creation",
            ),
            (
                self.target_is_zero && !self.no_create,
                "--target-is-zero requires use of -n flag",
            ),
        ];
        match faults.iter().find(|(holds, _)| *holds) {
            Some((_, text)) => Err(error(text)),
            None => Ok(()),
        }
    }

    /// The target's format, where the target's options do not say it.
    pub fn target_format(&self) -> Option<&str> {
        match &self.target_format {
            Some(format) => Some(format),
            None if self.target_image_opts => None,
            None => Some("raw"),
        }
    }
}

fn sparse(value: &str) -> Result<u64> {
    let bytes = size::argument("buffer size for sparse output", value, 0, size::MAX).map_err(error)?;
    if bytes % 512 != 0 || bytes > MOST_SPARSE {
        return Err(error(format!(
            "Invalid buffer size for sparse output specified. Valid sizes are multiples of 512 up to {MOST_SPARSE}. \
             Select 0 to disable sparse detection (fully allocates output)."
        )));
    }
    Ok(bytes)
}
