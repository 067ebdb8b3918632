//! `qemu-img bitmap`: adds, removes, clears, switches and merges persistent bitmaps.
//!
//! What is asked for is done in the order of the command line. Where something fails, what was asked for before it is kept.

use super::getopt::Takes::{Argument, Nothing};
use super::getopt::{Key, Options, long, word};
use super::image_args::ImageArgs;
use super::open::{self, Named, Opened, Purpose};
use super::program::{self, Program, Result, error};
use super::{size, writing};
use catena_engine::qcow2::bitmap::{BitmapError, Bitmaps, NewBitmap, stored};
use catena_format::qcow2::Header;

const OPTIONS: Options = Options {
    short: "hf:g:b:F:",
    long: &[
        long("help", 'h', Nothing),
        long("format", 'f', Argument),
        word("image-opts", Nothing),
        word("add", Nothing),
        long("granularity", 'g', Argument),
        word("remove", Nothing),
        word("clear", Nothing),
        word("enable", Nothing),
        word("disable", Nothing),
        word("merge", Argument),
        long("source-file", 'b', Argument),
        long("source-format", 'F', Argument),
        word("object", Argument),
    ],
};

/// One thing that is done to the bitmap.
enum Action {
    Add,
    Remove,
    Clear,
    Enable,
    Disable,
    Merge(String),
}

impl Action {
    fn name(&self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Remove => "remove",
            Self::Clear => "clear",
            Self::Enable => "enable",
            Self::Disable => "disable",
            Self::Merge(_) => "merge",
        }
    }
}

#[derive(Default)]
struct Request {
    image: ImageArgs,
    actions: Vec<Action>,
    granularity: u64,
    source: Option<String>,
    source_format: Option<String>,
}

/// Runs the subcommand.
pub fn run(program: &Program, words: Vec<String>) -> Result<u8> {
    let mut request = Request::default();
    let others = program::options(OPTIONS, words, |key, value| {
        match key {
            Key::Letter('b') => request.source = Some(value),
            Key::Letter('F') => request.source_format = Some(value),
            Key::Letter('g') => {
                request.granularity = size::argument("granularity", &value, 0, size::MAX).map_err(error)?;
            }
            Key::Word("add") => request.actions.push(Action::Add),
            Key::Word("remove") => request.actions.push(Action::Remove),
            Key::Word("clear") => request.actions.push(Action::Clear),
            Key::Word("enable") => request.actions.push(Action::Enable),
            Key::Word("disable") => request.actions.push(Action::Disable),
            Key::Word("merge") => request.actions.push(Action::Merge(value)),
            _ => request.image.take(key, value)?,
        }
        Ok(())
    })?;
    let Some(others) = others else {
        return super::help::print(program);
    };
    request.check()?;
    let [file, bitmap] = others.as_slice() else {
        return Err(error("Expecting filename and bitmap name"));
    };
    request.image.check()?;
    let opened = request.image.open(
        program,
        file,
        Purpose {
            write: true,
            alone: true,
            ..Purpose::default()
        },
    )?;
    let source = match &request.source {
        None => None,
        Some(source) => Some(open::open(
            program,
            Named {
                word: source,
                format: request.source_format.as_deref(),
                options: false,
            },
            Purpose {
                alone: true,
                ..Purpose::default()
            },
        )?),
    };
    request.perform(&opened, source.as_ref(), bitmap)
}

impl Request {
    fn check(&self) -> Result<()> {
        let has = |wanted: &str| self.actions.iter().any(|action| action.name() == wanted);
        if self.actions.is_empty() {
            return Err(error(
                "Need at least one of --add, --remove, --clear, --enable, --disable, or --merge",
            ));
        }
        if self.granularity > 0 && !has("add") {
            return Err(error("granularity only supported with --add"));
        }
        if self.source_format.is_some() && self.source.is_none() {
            return Err(error("-F only supported with -b"));
        }
        if self.source.is_some() && !has("merge") {
            return Err(error("Merge bitmap source file only supported with --merge"));
        }
        Ok(())
    }

    /// QEMU keeps the granularity in 32 bits.
    fn granularity(&self) -> Option<u64> {
        (self.granularity > 0).then_some(self.granularity & u64::from(u32::MAX))
    }
}

impl Request {
    fn perform(&self, opened: &Opened, source: Option<&Opened>, name: &str) -> Result<u8> {
        let failed = |action: &Action, why: String| {
            error(format!(
                "Operation {} on bitmap {name} failed: {why}",
                action.name()
            ))
        };
        if opened.driver() != "qcow2" {
            // Without a place for bitmaps there are none.
            return match self.actions.first() {
                Some(action @ Action::Add) => {
                    let node = node_name();
                    let why = format!("Can't store persistent bitmaps to {node}: Operation not supported");
                    Err(failed(action, why))
                }
                Some(action) => Err(failed(action, format!("Dirty bitmap '{name}' not found"))),
                None => Ok(0),
            };
        }
        let disk = writing::image_alone(opened)?;
        let mut bitmaps = Bitmaps::read(&disk).map_err(|failure| error(failure.full()))?;
        let mut outcome = Ok(0);
        for action in &self.actions {
            let done = match action {
                Action::Add => bitmaps.add(&NewBitmap {
                    name: name.to_owned(),
                    granularity: self.granularity(),
                    enabled: true,
                }),
                Action::Remove => bitmaps.remove(name),
                Action::Clear => bitmaps.clear(name),
                Action::Enable => bitmaps.enable(name, true),
                Action::Disable => bitmaps.enable(name, false),
                Action::Merge(from) => self.merge(&mut bitmaps, &disk, source, (from, name)),
            };
            if let Err(why) = done {
                outcome = Err(failed(action, sentence(name, &why)));
                break;
            }
        }
        bitmaps
            .store(&disk)
            .and_then(|()| disk.close())
            .map_err(|failure| error(failure.full()))?;
        outcome
    }

    fn merge(
        &self,
        bitmaps: &mut Bitmaps,
        disk: &catena_engine::qcow2::Qcow2Disk,
        source: Option<&Opened>,
        (from, to): (&str, &str),
    ) -> Result<(), BitmapError> {
        let Some(source) = source else {
            let known = bitmaps.list().any(|bitmap| bitmap.name == to);
            if !known {
                return Err(BitmapError::NotFound(to.to_owned()));
            }
            let target = bitmaps.bits(to, disk);
            let bits = bitmaps.bits(from, disk);
            // QEMU looks for the bitmap that takes up the other, then for that, and only then at whether they can be used.
            return match bits {
                Err(BitmapError::NotFound(name)) => Err(BitmapError::NotFound(name)),
                bits => {
                    target?;
                    bitmaps.merge(to, &bits?, disk)
                }
            };
        };
        if !bitmaps.list().any(|bitmap| bitmap.name == to) {
            return Err(BitmapError::NotFound(to.to_owned()));
        }
        let (Some(header), Some(layer)) = (header_of(source), source.chain.active()) else {
            return Err(BitmapError::NotFound(from.to_owned()));
        };
        let Some(file) = &layer.file else {
            return Err(BitmapError::NotFound(from.to_owned()));
        };
        let found = stored::list(header, &file.storage)?
            .into_iter()
            .find(|bitmap| bitmap.name == from)
            .ok_or_else(|| BitmapError::NotFound(from.to_owned()))?;
        let target = bitmaps.bits(to, disk)?;
        if found.in_use {
            return Err(BitmapError::Inconsistent(from.to_owned()));
        }
        if target.size() != header.virtual_size {
            return Err(BitmapError::DifferentSizes {
                target: target.size(),
                from: header.virtual_size,
            });
        }
        let bits = stored::load(&found, header, &file.storage)?;
        bitmaps.merge(to, &bits, disk)
    }
}

fn header_of(opened: &Opened) -> Option<&Header> {
    opened.chain.active()?.header.as_ref()
}

/// The name QEMU makes up for an image that nobody has named: the last two digits are dice.
fn node_name() -> String {
    let nanoseconds = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |now| now.subsec_nanos());
    format!("#block1{:02}", nanoseconds / 1000 % 100)
}

/// What QEMU says of why a bitmap cannot be changed.
fn sentence(name: &str, why: &BitmapError) -> String {
    let not_persistent = |why: &str| {
        format!(
            "Can't make bitmap '{name}' persistent in '{}': {why}",
            node_name()
        )
    };
    match why {
        BitmapError::Exists(name) => format!("Bitmap already exists: {name}"),
        BitmapError::NotFound(name) => format!("Dirty bitmap '{name}' not found"),
        BitmapError::Inconsistent(name) => format!(
            "Bitmap '{name}' is inconsistent and cannot be used\nTry block-dirty-bitmap-remove to delete this bitmap from disk"
        ),
        BitmapError::NameEmpty => "Bitmap name cannot be empty".to_owned(),
        BitmapError::NameTooLong(_) => not_persistent("Name length exceeds maximum (1023 characters)"),
        BitmapError::Version2 => not_persistent("Cannot store dirty bitmaps in qcow2 v2 files"),
        BitmapError::GranularityTooLarge(_) => {
            not_persistent("Granularity exceeds maximum (2147483648 bytes)")
        }
        BitmapError::TooMuchSpace => {
            not_persistent("Too much space will be occupied by the bitmap. Use larger granularity")
        }
        BitmapError::TooMany => not_persistent("Maximum number of persistent bitmaps is already reached"),
        BitmapError::Granularity(_) => "Granularity must be power of 2 and at least 512".to_owned(),
        BitmapError::DifferentSizes { target, from } => format!(
            "Bitmaps are of different sizes (destination size is {target}, source size is {from}) and can't be merged"
        ),
        other => other.to_string(),
    }
}
