//! `qemu-img snapshot`: lists, takes, applies and deletes internal snapshots.

use super::getopt::Takes::{Argument, Nothing};
use super::getopt::{Key, Options, long, word};
use super::objects::Objects;
use super::open::{self, Named, Purpose};
use super::program::{self, Program, Result, error, usage};
use super::snapshots;
use catena_engine::StorageBytes;
use catena_format::qcow2::Snapshot;

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
    let (mut format, mut image_opts, mut shared) = (None, false, false);
    let mut action: Option<Action> = None;
    let mut objects = Objects::default();
    let others = program::options(OPTIONS, words, |key, value| {
        let wanted = match key {
            Key::Letter('l') => Action::List,
            Key::Letter('a') => Action::Apply(value),
            Key::Letter('c') => Action::Create(value),
            Key::Letter('d') => Action::Delete(value),
            Key::Letter('f') => {
                format = Some(value);
                return Ok(());
            }
            Key::Letter('U') => {
                shared = true;
                return Ok(());
            }
            Key::Word("object") => return objects.add(&value),
            Key::Word("image-opts") => {
                image_opts = true;
                return Ok(());
            }
            _ => return Ok(()),
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
    if image_opts && format.is_some() {
        return Err(error("--image-opts and --format are mutually exclusive"));
    }
    let action = action.unwrap_or(Action::List);
    let opened = open::open(
        program,
        Named {
            word: name,
            format: format.as_deref(),
            options: image_opts,
        },
        Purpose {
            shared,
            write: !matches!(action, Action::List),
            ..Purpose::default()
        },
    )?;
    match action {
        Action::List => {
            let layer = opened.top()?;
            if let (Some(header), Some(file)) = (&layer.header, &layer.file) {
                let bytes = StorageBytes::new(&file.storage).map_err(error)?;
                let list = Snapshot::read_all(header, &bytes).map_err(error)?;
                if !list.is_empty() {
                    program::print(&snapshots::table(&list));
                }
            }
            Ok(0)
        }
        Action::Create(tag) => Err(error(format!(
            "Could not create snapshot '{tag}': Operation not supported"
        ))),
        Action::Apply(tag) if opened.driver() == "raw" => {
            // QEMU opens the file once more for this.
            if opened.node.driver.is_none() {
                open::warn_of_raw(&opened.node.filename);
            }
            Err(error(format!(
                "Could not apply snapshot '{tag}': Block driver does not support snapshots"
            )))
        }
        Action::Apply(tag) => Err(error(format!(
            "Could not apply snapshot '{tag}': Block driver does not support snapshots"
        ))),
        Action::Delete(tag) => Err(error(format!(
            "Could not delete snapshot '{tag}': snapshot not found"
        ))),
    }
}
