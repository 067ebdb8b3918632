//! `qemu-img resize`: makes an image's disk larger or smaller.

use super::create::not_preallocated;
use super::getopt::Takes::{Argument, Nothing};
use super::getopt::{Key, Options, Parser, long, word};
use super::image_args::ImageArgs;
use super::open::{self, Opened, Purpose};
use super::program::{self, Failure, Program, Result, error, usage};
use super::size::{self, SizeError};
use super::target::{Target, data_file};
use super::{errno, help, keyval};
use catena::ErrorKind;
use catena::ops::create::Preallocation;
use catena_engine::qcow2::{CheckOptions, Qcow2Disk, shrink};
use catena_engine::{GuestOffset, Unmap, WritableDisk};
use catena_format::qcow2::Version;
use catena_storage::{LocalFile, Storage};

const SECTOR: u64 = 512;

const OPTIONS: Options = Options {
    short: "f:hq",
    long: &[
        long("help", 'h', Nothing),
        long("quiet", 'q', Nothing),
        word("object", Argument),
        long("format", 'f', Argument),
        word("image-opts", Nothing),
        word("preallocation", Argument),
        word("shrink", Nothing),
    ],
};

/// Sizes beyond this are no file offsets for QEMU: the largest multiple of 1 GiB below 2^63.
const LARGEST: i64 = i64::MAX & !((1 << 30) - 1);

#[derive(Default)]
struct Said {
    image: ImageArgs,
    quiet: bool,
    shrink: bool,
    preallocation: Preallocation,
    name: Option<String>,
    size: Option<String>,
}

/// Runs the subcommand.
pub fn run(program: &Program, words: Vec<String>) -> Result<u8> {
    let Some(said) = read(words)? else {
        return help::print(program);
    };
    let (Some(name), Some(wanted)) = (said.name, said.size) else {
        return Err(usage("Expecting image file name and size"));
    };
    let wanted = Wanted::parse(&wanted)?;
    let opened = said.image.open(
        program,
        &name,
        Purpose {
            write: true,
            ..Purpose::default()
        },
    )?;
    let present = opened
        .top()?
        .virtual_size()
        .unwrap_or_default()
        .next_multiple_of(512)
        .cast_signed();
    let size = wanted.from(present);
    if size <= 0 {
        return Err(error("New image size must be positive"));
    }
    if size <= present && said.preallocation != Preallocation::Off {
        return Err(error("Preallocation can only be used for growing images"));
    }
    if size < present && !said.shrink {
        program.say("Use the --shrink option to perform a shrink operation.");
        program.say(
            "warning: Shrinking an image will delete all data beyond the shrunken image's end. \
             Before performing such an operation, make sure there is no important data there.",
        );
        return Err(Failure::Silent(1));
    }
    if size > LARGEST {
        return Err(error(format!("offset({size}) exceeds maximum({LARGEST})")));
    }
    let sizes = Sizes {
        present: present.cast_unsigned(),
        wanted: size.cast_unsigned(),
        preallocation: said.preallocation,
    };
    match opened.driver() {
        "qcow2" => sizes.qcow2(&opened)?,
        _ => sizes.raw(&opened.held)?,
    }
    if !said.quiet {
        program::print("Image resized.\n");
    }
    Ok(0)
}

/// From which size to which.
struct Sizes {
    present: u64,
    wanted: u64,
    preallocation: Preallocation,
}

impl Sizes {
    fn raw(&self, file: &LocalFile) -> Result<()> {
        let fail = |failed: &catena_storage::Error| match failed.io() {
            Some(io) => error(format!("Could not resize file: {}", open::system_word(io))),
            None => error(failed),
        };
        if self.preallocation == Preallocation::Metadata {
            return Err(error("Unsupported preallocation mode: metadata"));
        }
        file.set_len(self.wanted).map_err(|failed| fail(&failed))?;
        let added = self.wanted.saturating_sub(self.present);
        match self.preallocation {
            Preallocation::Falloc => file.allocate(self.present, added),
            Preallocation::Full => write_zeros(file, self.present, self.wanted),
            Preallocation::Off | Preallocation::Metadata => Ok(()),
        }
        .map_err(|failed| {
            // It is as large as it was. Where that fails too, there is one failure to tell all the same.
            let _ = file.set_len(self.present);
            let what = not_preallocated(self.preallocation);
            error(format!("{what}: {}", errno::word(&failed.into())))
        })?;
        file.flush().map_err(|failed| fail(&failed))
    }

    fn qcow2(&self, opened: &Opened) -> Result<()> {
        if !self.wanted.is_multiple_of(SECTOR) {
            return Err(error("The new size must be a multiple of 512"));
        }
        let header = opened.top()?.header.as_ref();
        if header.is_some_and(|header| header.version == Version::V2 && header.snapshot_count > 0) {
            return Err(error("Can't resize a v2 image which has snapshots"));
        }
        if self.wanted < self.present {
            return self.shrink(opened);
        }
        let target = Target::open(opened)?;
        let Some(disk) = &target.qcow2 else {
            return Ok(());
        };
        disk.grow(self.wanted)
            .and_then(|()| self.preallocate(disk, target.backing_size))
            .and_then(|()| target.finish())
            .map_err(|failed| match failed.kind() {
                ErrorKind::TooLarge => error("Failed to grow the L1 table: File too large"),
                ErrorKind::NoSpace
                    if matches!(self.preallocation, Preallocation::Falloc | Preallocation::Full) =>
                {
                    error(format!(
                        "Failed to resize underlying file: {}: {}",
                        not_preallocated(self.preallocation),
                        errno::word(&failed)
                    ))
                }
                _ => error(format!("Could not resize image: {}", errno::word(&failed))),
            })
    }

    fn shrink(&self, opened: &Opened) -> Result<()> {
        let fail = |failed: &catena::Error| error(format!("Could not resize image: {}", errno::word(failed)));
        shrink(&opened.held, self.wanted, &CheckOptions::default()).map_err(|failed| fail(&failed))?;
        // The data file has the size of the disk, for those who read it by itself.
        match data_file(opened.top()?)? {
            None => Ok(()),
            Some(file) => file
                .set_len(self.wanted)
                .and_then(|()| file.flush())
                .map_err(|failed| fail(&failed.into())),
        }
    }

    fn preallocate(&self, disk: &Qcow2Disk, backing: Option<u64>) -> Result<(), catena::Error> {
        use catena_engine::qcow2::Preallocation as How;
        let how = match self.preallocation {
            Preallocation::Off => return Ok(()),
            Preallocation::Metadata => How::Metadata,
            Preallocation::Falloc => How::Falloc,
            Preallocation::Full => How::Full,
        };
        disk.preallocate(self.present..self.wanted, how)?;
        match backing {
            // As QEMU has it where the backing image is longer: clusters that are zeros, with a place kept.
            Some(size) if size > self.present && how == How::Metadata => {
                let added = self.wanted.saturating_sub(self.present);
                disk.write_zeroes(GuestOffset(self.present), added, Unmap::Keep)
            }
            _ => Ok(()),
        }
    }
}

fn write_zeros(file: &LocalFile, from: u64, to: u64) -> Result<(), catena_storage::Error> {
    const PIECE: u64 = 1 << 20;
    let zeros = vec![0; PIECE as usize];
    let mut at = from;
    while at < to {
        let len = (to - at).min(PIECE);
        let part = zeros
            .get(..usize::try_from(len).unwrap_or_default())
            .unwrap_or_default();
        file.write_all_at(part, at)?;
        at += len;
    }
    Ok(())
}

/// Takes the command line apart. `None` where help was asked for.
fn read(words: Vec<String>) -> Result<Option<Said>> {
    let mut said = Said::default();
    let mut parser = Parser::new(OPTIONS, words).in_order();
    while let Some((key, value)) = parser.next().map_err(Failure::Getopt)? {
        match key {
            Key::Letter('h') => return Ok(None),
            Key::Letter('q') => said.quiet = true,
            Key::Word("shrink") => said.shrink = true,
            Key::Word("preallocation") => said.preallocation = preallocation(&value)?,
            Key::Operand if said.name.is_none() => {
                said.name = Some(value);
                // A size such as -1G right behind the name is no option.
                let negative = |word: &str| {
                    let mut chars = word.chars();
                    chars.next() == Some('-') && chars.next().is_some_and(|c| c.is_ascii_digit())
                };
                if parser.peek().is_some_and(negative) {
                    said.size = parser.take();
                }
            }
            Key::Operand if said.size.is_none() => said.size = Some(value),
            Key::Operand => return Err(usage("Extra argument(s) in command line")),
            _ => said.image.take(key, value)?,
        }
    }
    for other in parser.others() {
        match (&said.name, &said.size) {
            (None, _) => said.name = Some(other),
            (_, None) => said.size = Some(other),
            _ => return Err(usage("Expecting image file name and size")),
        }
    }
    Ok(Some(said))
}

fn preallocation(word: &str) -> Result<Preallocation> {
    match word {
        "off" => Ok(Preallocation::Off),
        "metadata" => Ok(Preallocation::Metadata),
        "falloc" => Ok(Preallocation::Falloc),
        "full" => Ok(Preallocation::Full),
        other => Err(error(format!("Invalid preallocation mode '{other}'"))),
    }
}

/// The size that is asked for.
#[derive(Clone, Copy)]
enum Wanted {
    Exactly(i64),
    More(i64),
    Less(i64),
}

impl Wanted {
    fn parse(text: &str) -> Result<Self> {
        let number = text.strip_prefix(['+', '-']).unwrap_or(text);
        let bytes = size::parse(number).map_err(|wrong| match wrong {
            SizeError::Invalid => error(keyval::not_a_size("size")),
            SizeError::OutOfRange => error(format!("Value '{number}' is out of range for parameter 'size'")),
        })?;
        let bytes = bytes.cast_signed();
        Ok(match text.chars().next() {
            Some('+') => Self::More(bytes),
            Some('-') => Self::Less(bytes),
            _ => Self::Exactly(bytes),
        })
    }

    /// As it comes out of 64 bits with a sign.
    fn from(self, present: i64) -> i64 {
        match self {
            Self::Exactly(bytes) => bytes,
            Self::More(bytes) => present.wrapping_add(bytes),
            Self::Less(bytes) => present.wrapping_sub(bytes),
        }
    }
}
