//! `qemu-img snapshot`: lists, takes, applies and deletes internal snapshots.

use super::errno;
use super::getopt::Takes::{Argument, Nothing};
use super::getopt::{Key, Options, long, word};
use super::image_args::ImageArgs;
use super::open::{self, Opened, Purpose};
use super::program::{self, Program, Result, error, usage};
use super::snapshots;
use catena_engine::qcow2::check::CheckOptions;
use catena_engine::qcow2::metadata::{self, snapshot::NewSnapshot};
use catena_engine::{ErrorKind, StorageBytes};
use catena_format::limits;
use catena_format::qcow2::{Autoclear, Header, Snapshot};

pub const OPTIONS: Options = Options {
    short: "hla:c:d:f:qU",
    long: &[
        long("help", 'h', Nothing),
        long("quiet", 'q', Nothing),
        word("object", Argument),
        long("format", 'f', Argument),
        word("image-opts", Nothing),
        long("force-share", 'U', Nothing),
        long("list", 'l', Nothing),
        // As in QEMU, which takes no argument here.
        long("apply", 'a', Nothing),
        long("create", 'c', Nothing),
        long("delete", 'd', Nothing),
    ],
};

enum Action {
    List,
    Create(String),
    Apply(String),
    Delete(String),
}

/// Runs the subcommand.
pub fn run(program: &Program, words: Vec<String>) -> Result<u8> {
    let mut action: Option<Action> = None;
    let mut image = ImageArgs::default();
    let others = program::options(OPTIONS, words, |key, value| {
        let wanted = match key {
            Key::Letter('l') => Action::List,
            Key::Letter('a') => Action::Apply(value),
            Key::Letter('c') => Action::Create(value),
            Key::Letter('d') => Action::Delete(value),
            _ => return image.take(key, value),
        };
        if action.is_some() {
            return Err(usage("Cannot mix '-l', '-a', '-c', '-d'"));
        }
        action = Some(wanted);
        Ok(())
    })?;
    let Some(others) = others else {
        return super::help::print(program);
    };
    let [name] = others.as_slice() else {
        return Err(usage("Expecting one image file name"));
    };
    image.check()?;
    let action = action.unwrap_or(Action::List);
    let opened = image.open(
        program,
        name,
        Purpose {
            write: !matches!(action, Action::List),
            ..Purpose::default()
        },
    )?;
    match action {
        Action::List => {
            let layer = opened.top()?;
            if let (Some(header), Some(file)) = (&layer.header, &layer.file) {
                let bytes = StorageBytes::new(&file.storage).map_err(error)?;
                let list = snapshots::read(header, &bytes).map_err(error)?;
                if !list.is_empty() {
                    program::print(&snapshots::table(&list));
                }
            }
            Ok(0)
        }
        Action::Create(tag) => {
            create(&opened, &tag).map_err(|why| error(format!("Could not create snapshot '{tag}': {why}")))
        }
        Action::Apply(tag) => apply(program, &opened, &tag)
            .map_err(|why| error(format!("Could not apply snapshot '{tag}': {why}"))),
        Action::Delete(tag) => {
            delete(&opened, &tag).map_err(|why| error(format!("Could not delete snapshot '{tag}': {why}")))
        }
    }
}

/// QEMU's longest name.
const NAME_BYTES: usize = 255;
const NOT_SUPPORTED: &str = "Operation not supported";

/// The header as it is on disk, where there is one.
fn header(opened: &Opened) -> Result<Option<Header>, String> {
    if opened.driver() != "qcow2" {
        return Ok(None);
    }
    let bytes = StorageBytes::new(&opened.held).map_err(|why| why.to_string())?;
    Header::read(&bytes).map(Some).map_err(|why| why.to_string())
}

fn all(opened: &Opened, header: &Header) -> Result<Vec<Snapshot>, String> {
    let bytes = StorageBytes::new(&opened.held).map_err(|why| why.to_string())?;
    snapshots::read(header, &bytes).map_err(|why| why.to_string())
}

fn create(opened: &Opened, tag: &str) -> Result<u8, String> {
    let header = header(opened)?.filter(|header| !header.has_data_file());
    if header.is_none() {
        return Err(NOT_SUPPORTED.to_owned());
    }
    if header.is_some_and(|header| header.snapshot_count >= limits::QCOW2_SNAPSHOTS) {
        return Err("File too large".to_owned());
    }
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    let new = NewSnapshot {
        name: tag.bytes().take(NAME_BYTES).collect(),
        date_sec: u32::try_from(now.as_secs()).unwrap_or(u32::MAX),
        date_nsec: now.subsec_nanos(),
        vm_clock_nsec: 0,
        icount: 0,
    };
    metadata::snapshot::create(&opened.held, &new, &CheckOptions::default()).map_err(|why| {
        match why.kind() {
            // Refcounts are too narrow for one more reference.
            ErrorKind::TooLarge if why.message().starts_with("refcounts") => "Invalid argument".to_owned(),
            _ => errno::word(&why),
        }
    })?;
    Ok(0)
}

fn apply(program: &Program, opened: &Opened, tag: &str) -> Result<u8, String> {
    let Some(header) = header(opened)? else {
        // Applying opens the image once more, and QEMU warns once more.
        if opened.node.driver.is_none() && !opened.node.bare {
            open::warn_of_raw(&opened.node.filename);
        }
        return Err("Block driver does not support snapshots".to_owned());
    };
    let has_bitmaps = header.bitmaps().is_some_and(|bitmaps| bitmaps.count > 0);
    if has_bitmaps && header.autoclear.contains(Autoclear::BITMAPS) {
        return Err("Device has active dirty bitmaps".to_owned());
    }
    let not_loaded = |why: &str| format!("Failed to load snapshot: {why}");
    if header.has_data_file() {
        return Err(not_loaded(NOT_SUPPORTED));
    }
    let all = all(opened, &header)?;
    let by_id = all.iter().position(|one| one.id == tag);
    let found = by_id.or_else(|| all.iter().position(|one| one.name == tag));
    let index = found.ok_or_else(|| not_loaded("No such file or directory"))?;
    let fault = all
        .get(index)
        .and_then(|snapshot| snapshots::l1_fault(&header, snapshot));
    if let Some((text, word)) = fault {
        program.say(text);
        return Err(not_loaded(word));
    }
    metadata::snapshot::apply(&opened.held, index, &CheckOptions::default())
        .map_err(|why| not_loaded(&errno::word(&why)))?;
    Ok(0)
}

fn delete(opened: &Opened, tag: &str) -> Result<u8, String> {
    let not_found = || "snapshot not found".to_owned();
    let header = header(opened)?.ok_or_else(not_found)?;
    // By its name alone.
    let all = all(opened, &header)?;
    let index = all.iter().position(|one| one.name == tag).ok_or_else(not_found)?;
    let fault = all
        .get(index)
        .and_then(|snapshot| snapshots::l1_fault(&header, snapshot));
    if let Some((text, _)) = fault {
        return Err(text.to_owned());
    }
    metadata::snapshot::delete(&opened.held, index, &CheckOptions::default())
        .map_err(|why| errno::word(&why))?;
    Ok(0)
}
